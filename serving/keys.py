"""API keys: ``hb_<id>_<secret>_<checksum>``.

The id (8 characters) finds the row, the secret (32 random bytes, base64url) proves it, the
checksum (CRC-32, hex) lets a scanner or a typing error be seen without a database. Stored is
HMAC-SHA256(pepper, key): a secret of 256 bits needs no slow hash, and the pepper, a file that
is not in the database, makes a stolen database useless.
"""

import base64
import hashlib
import hmac
import os
import re
import secrets
import string
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from handbill.errors import InputError

PEPPER_BYTES: Final = 32
# What a key may be used for.
SCOPES: Final = {
    "generate": "ask for text: chat, completions, copy, checks, batches, models, usage",
    "feedback": "send events, and nothing else: for what runs close to shoppers",
    "manage": "read and delete feedback; experiments, house rules and the review queue",
}
_KEY: Final = re.compile(r"hb_([a-z0-9]{8})_([A-Za-z0-9_-]{43})_([0-9a-f]{8})")
_ID_LETTERS: Final = string.ascii_lowercase + string.digits


@dataclass(frozen=True, slots=True, repr=False)
class ApiKey:
    """A key in the clear. It has no ``repr``, so that it cannot end up in a log by accident."""

    id: str
    secret: str

    @classmethod
    def new(cls) -> Self:
        """A fresh random key."""
        secret = base64.urlsafe_b64encode(secrets.token_bytes(32)).decode().rstrip("=")
        return cls("".join(secrets.choice(_ID_LETTERS) for _ in range(8)), secret)

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Read a key; None when it is not one."""
        found = _KEY.fullmatch(text)
        if found is None:
            return None
        key = cls(found[1], found[2])
        return key if key.reveal() == text else None

    def reveal(self) -> str:
        """The key as the tenant writes it."""
        body = f"hb_{self.id}_{self.secret}"
        return f"{body}_{zlib.crc32(body.encode()):08x}"

    def mac(self, pepper: bytes) -> str:
        """What is stored of it."""
        return hmac.new(pepper, f"{self.id}\0{self.secret}".encode(), hashlib.sha256).hexdigest()


def check_scopes(scopes: Iterable[str]) -> frozenset[str]:
    """Scopes as a set; all of them when none is given.

    Raises:
        InputError: One that there is not.
    """
    wanted = frozenset(scopes) or frozenset(SCOPES)
    for scope in sorted(wanted - SCOPES.keys()):
        raise InputError(f"scope: {scope[:80]!r} is not one of {', '.join(SCOPES)}")
    return wanted


def load_or_create_pepper(path: Path) -> bytes:
    """Read the pepper, or make one: mode 0600.

    Raises:
        InputError: Others may read the file, or it is cut short.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        pepper = path.read_bytes()
        if len(pepper) != PEPPER_BYTES or path.stat().st_mode & 0o077:
            raise InputError(
                f"{path}: must be {PEPPER_BYTES} bytes with mode 0600 (`chmod 600 {path}`)"
            ) from None
        return pepper
    with os.fdopen(handle, "wb") as file:
        pepper = secrets.token_bytes(PEPPER_BYTES)
        file.write(pepper)
        file.flush()
        os.fsync(file.fileno())
    return pepper
