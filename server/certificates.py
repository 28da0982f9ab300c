"""The federation's own certificate authority and the server's certificate.

Merchants get ``ca.crt`` in their kit and trust nothing else, so no public authority and no
network is needed. The authority's key, ``ca.key``, is needed once a year, to renew: it may be kept
elsewhere in between. Whoever has a proper certificate puts it in place of these files.
"""

import ipaddress
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from handbill.errors import MissingError
from handbill.generator.artifacts import write_durably

_CA_DAYS: Final = 3650
_SERVER_DAYS: Final = 365
_CA_NAME: Final = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "handbill federation CA")])


def make_certificates(folder: Path, *, host: str) -> None:
    """Write ``ca.crt``, ``ca.key``, ``server.crt`` and ``server.key`` unless they are there."""
    if (folder / "server.key").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP384R1())
    ca = (
        _builder(_CA_NAME, _CA_NAME, key.public_key(), _CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .sign(key, hashes.SHA384())
    )
    _write_key(folder / "ca.key", key)
    write_durably(folder / "ca.crt", ca.public_bytes(serialization.Encoding.PEM))
    _issue(folder, key, host)


def renew_certificate(folder: Path, *, host: str) -> datetime:
    """Issue a new key and certificate for the server, from the authority that merchants trust.

    Returns:
        When the new one expires.

    Raises:
        MissingError: The authority's key is not here: it is kept elsewhere, or the certificate is
            from another authority.
    """
    path = folder / "ca.key"
    if not path.is_file():
        raise MissingError(
            f"{path}: not here; put the authority's key back, or ask the authority that issued "
            f"{folder / 'server.crt'} for a new one"
        )
    key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    _issue(folder, cast(ec.EllipticCurvePrivateKey, key), host)
    return _read(folder).not_valid_after_utc


def expires_at(folder: Path) -> datetime | None:
    """When the server's certificate expires; None if there is none yet."""
    return _read(folder).not_valid_after_utc if (folder / "server.crt").is_file() else None


def _read(folder: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate((folder / "server.crt").read_bytes())


def _issue(folder: Path, authority: ec.EllipticCurvePrivateKey, host: str) -> None:
    """Write a server certificate and its key: each whole or not at all."""
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "handbill server")])
    certificate = (
        _builder(name, _CA_NAME, key.public_key(), _SERVER_DAYS)
        .add_extension(x509.SubjectAlternativeName(_alternatives(host)), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), False
        )
        .sign(authority, hashes.SHA384())
    )
    _write_key(folder / "server.key", key)
    write_durably(folder / "server.crt", certificate.public_bytes(serialization.Encoding.PEM))


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    draft = path.with_suffix(".new")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(private)
    draft.rename(path)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))  # a merchant's clock may be behind
        .not_valid_after(now + timedelta(days=days))
    )


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _alternatives(host: str) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = [x509.DNSName("localhost")]
    for address in {"127.0.0.1", host}:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(address)))
        except ValueError:
            names.append(x509.DNSName(address))
    return names
