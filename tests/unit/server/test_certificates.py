"""The federation's own authority: what merchants trust, and how the server's certificate is renewed."""

import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta

import pytest

from handbill.errors import MissingError
from handbill.server.certificates import expires_at, make_certificates, renew_certificate


def greets(folder, kit):
    """Whether a server with these files is trusted by whoever has only ``kit``."""
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(folder / "server.crt", folder / "server.key")
    client = ssl.create_default_context(cadata=kit)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            connection, _ = listener.accept()
            try:
                with server.wrap_socket(connection, server_side=True) as talk:
                    talk.recv(1)
            except OSError:
                pass

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with (
                socket.create_connection(listener.getsockname()) as connection,
                client.wrap_socket(connection, server_hostname="127.0.0.1") as talk,
            ):
                talk.sendall(b"x")
                return True
        except ssl.SSLCertVerificationError:
            return False
        finally:
            thread.join()


def test_a_renewed_certificate_is_trusted_by_the_kit_that_merchants_have(tmp_path):
    make_certificates(tmp_path, host="fl.example.org")
    kit, old = (tmp_path / "ca.crt").read_text(), (tmp_path / "server.crt").read_bytes()
    assert greets(tmp_path, kit)
    expires = renew_certificate(tmp_path, host="fl.example.org")
    assert (tmp_path / "server.crt").read_bytes() != old
    assert greets(tmp_path, kit)
    assert expires == expires_at(tmp_path) > datetime.now(UTC) + timedelta(days=360)
    for name in ("ca.key", "server.key"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600


def test_another_federations_server_is_not_trusted(tmp_path):
    for name in ("one", "other"):
        make_certificates(tmp_path / name, host="127.0.0.1")
    assert not greets(tmp_path / "one", (tmp_path / "other" / "ca.crt").read_text())


def test_what_is_there_is_kept(tmp_path):
    assert expires_at(tmp_path) is None
    make_certificates(tmp_path, host="127.0.0.1")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    make_certificates(tmp_path, host="127.0.0.1")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert set(before) == {"ca.crt", "ca.key", "server.crt", "server.key"}


def test_without_the_authoritys_key_nothing_is_renewed(tmp_path):
    make_certificates(tmp_path, host="127.0.0.1")
    (tmp_path / "ca.key").rename(tmp_path / "elsewhere")
    before = (tmp_path / "server.crt").read_bytes()
    with pytest.raises(MissingError, match=r"ca\.key: not here; put the authority"):
        renew_certificate(tmp_path, host="127.0.0.1")
    assert (tmp_path / "server.crt").read_bytes() == before
