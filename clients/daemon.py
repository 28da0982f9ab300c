"""The warm trainer: one process that keeps a merchant's data and model loaded.

Flower starts a new Python process for every message; loading the model there would cost more
than the training. So that process is a shim (:mod:`handbill.clients.client_app`) that hands the
message over a Unix socket to this daemon and takes the reply back.

Frame, both ways: one byte (operation, or ``+`` done, ``-`` refused), 8 bytes length, content.
"""

import contextlib
import hashlib
import json
import logging
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from handbill.clients.refusals import TrainerError, refusal
from handbill.errors import HandbillError
from handbill.federation.messages import MAX_MESSAGE_BYTES
from handbill.logs import configure_logs

log = logging.getLogger(__name__)

MESSAGE: Final = b"M"
EVALUATE: Final = b"E"
STATUS: Final = b"S"
_DONE: Final = b"+"
_REFUSED: Final = b"-"
_CUT: Final = "the trainer's connection was cut; it may have died, see its log"


def socket_path(home: Path) -> Path:
    """Where a merchant's trainer listens: a short path only this user can reach."""
    name = hashlib.sha256(str(home.absolute()).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"handbill-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise TrainerError("belongs to somebody else", path=folder)
    return folder / f"{name}.sock"


def ask(home: Path, operation: bytes, content: bytes = b"", *, wait_s: float = 0.0) -> bytes:
    """Send one request to a merchant's running trainer.

    Args:
        home: The merchant's folder.
        operation: What is asked for.
        content: Of the request.
        wait_s: How long to wait for a trainer that is not there, but may be starting again.

    Raises:
        TrainerError: It refused, died, or does not run for this home. What it refused of a message
            is said in words for the operator.
    """
    with _connect(home, wait_s) as connection:
        try:
            _send(connection, operation, content)
            verdict, answer = _receive(connection)
        except OSError as error:
            raise TrainerError(_CUT) from error
    if verdict != _DONE:
        raise TrainerError(answer.decode(errors="replace"))
    return answer


def serve(home: Path) -> None:
    """Load a merchant's data, then answer requests one at a time until SIGTERM."""
    from handbill.clients.evaluation import evaluate
    from handbill.clients.trainer import Trainer

    trainer = Trainer(home)

    def evaluation(content: bytes) -> bytes:
        return json.dumps(evaluate(trainer, **json.loads(content)).to_dict()).encode()

    def status(content: bytes) -> bytes:
        del content
        return json.dumps({"merchant": trainer.merchant.id, "pid": os.getpid()}).encode()

    handlers: dict[bytes, Callable[[bytes], bytes]] = {
        MESSAGE: trainer.handle,
        EVALUATE: evaluation,
        STATUS: status,
    }
    path = socket_path(home)
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(8)
        log.info("trainer_ready", extra={"merchant": trainer.merchant.id})
        try:
            while True:
                connection, _ = listener.accept()
                # Whoever asked may be gone before the question or the answer is through.
                with connection, contextlib.suppress(OSError, TrainerError):
                    _answer(connection, handlers)
        finally:
            path.unlink(missing_ok=True)


def _connect(home: Path, wait_s: float) -> socket.socket:
    until = time.monotonic() + wait_s
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(str(socket_path(home)))
        except OSError as error:
            connection.close()
            if time.monotonic() >= until:
                raise TrainerError(
                    "no trainer runs here; start it with `handbill client run`", path=home
                ) from error
            time.sleep(0.2)
        else:
            return connection


def _answer(connection: socket.socket, handlers: dict[bytes, Callable[[bytes], bytes]]) -> None:
    operation, content = _receive(connection)
    try:
        _send(connection, _DONE, handlers[operation](content))
    except Exception as error:  # noqa: BLE001 - logged by refusal
        said = refusal(error)
        if isinstance(error, HandbillError) and operation != MESSAGE:
            said = str(error)  # to the shop itself
        _send(connection, _REFUSED, said.encode())


def _send(connection: socket.socket, kind: bytes, content: bytes) -> None:
    connection.sendall(kind + len(content).to_bytes(8, "big"))
    if content:  # sending nothing fails when the other side has answered and hung up already
        connection.sendall(content)


def _receive(connection: socket.socket) -> tuple[bytes, bytes]:
    head = _exactly(connection, 9)
    size = int.from_bytes(head[1:], "big")
    if size > MAX_MESSAGE_BYTES:
        raise TrainerError(f"frame of {size} bytes refused")
    return head[:1], _exactly(connection, size)


def _exactly(connection: socket.socket, size: int) -> bytes:
    parts: list[bytes] = []
    while size:
        part = connection.recv(min(size, 1 << 20))
        if not part:
            raise TrainerError(_CUT)
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def main() -> None:
    """Run the daemon for the home named on the command line."""
    configure_logs()

    def leave(*_: Any) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, leave)
    try:
        serve(Path(sys.argv[1]))
    except HandbillError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
