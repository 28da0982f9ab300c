"""How feedback is locked: with keys made from the tenant's own, which can be destroyed.

The service has a vault of its own for this, beside its database: not every tenant has an adapter,
and so a key, in the operator's registry, and a service may only read that one. Who has the
database without the service's folder has nothing.
"""

import fcntl
import hashlib
import hmac
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from handbill.errors import ArtifactError, InputError, MissingError
from handbill.generator.vault import Vault

log = logging.getLogger(__name__)

SEAL_LABEL: Final = b"handbill/v1/feedback/seal\0"
HASH_LABEL: Final = b"handbill/v1/feedback/hash\0"
DRAW_LABEL: Final = b"handbill/v1/feedback/draw\0"
_NONCE_BYTES: Final = 12


@dataclass(frozen=True, slots=True, repr=False)
class TenantKeys:
    """One tenant's keys, for the time of one request.

    Attributes:
        draw: Decides which variant a shopper is given.
    """

    seal_key: bytes
    hash_key: bytes
    draw: bytes

    def seal(self, facts: dict[str, Any], *, bound_to: str) -> bytes:
        """Lock facts with AES-256-GCM; they open only where they belong."""
        nonce = os.urandom(_NONCE_BYTES)
        plain = json.dumps(facts, ensure_ascii=False, separators=(",", ":")).encode()
        return nonce + AESGCM(self.seal_key).encrypt(nonce, plain, bound_to.encode())

    def unseal(self, sealed: bytes, *, bound_to: str) -> dict[str, Any]:
        """Open what :meth:`seal` made.

        Raises:
            ArtifactError: It was changed, moved, or locked with a key that is gone.
        """
        nonce, locked = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
        try:
            plain = AESGCM(self.seal_key).decrypt(nonce, locked, bound_to.encode())
        except (InvalidTag, ValueError) as error:
            raise ArtifactError("feedback: locked with another key, or changed") from error
        facts: dict[str, Any] = json.loads(plain)
        return facts

    def opened(self, sealed: bytes, *, bound_to: str) -> dict[str, Any] | None:
        """The same, or None: what was locked just before its tenant's key was destroyed is noise."""
        try:
            return self.unseal(sealed, bound_to=bound_to)
        except ArtifactError:
            return None

    def mac(self, kind: str, text: str) -> str:
        """A keyed hash (HMAC-SHA256, hex): the same text has another one for another kind."""
        message = f"{kind}\0{text}".encode()
        return hmac.new(self.hash_key, message, hashlib.sha256).hexdigest()

    def shopper(self, name: str) -> str:
        """What stands for a shopper in the database."""
        return self.mac("shopper", name)


class Sealing:
    """The keys of a service's tenants.

    Args:
        folder: The service's own folder.
        kek: File of the key-encryption key; ``keys/vault.kek`` in the folder when empty.
    """

    def __init__(self, folder: Path, kek: str = "") -> None:
        self._folder = folder
        self._vault = Vault(folder / "feedback", kek)

    def keys(self, tenant: str) -> TenantKeys:
        """A tenant's keys; they are made when it has none.

        Raises:
            ArtifactError: The tenant's key or the key-encryption key cannot be read: the
                operator's business, which a tenant is not told of.
        """
        derive = self._vault.derive
        try:
            if tenant not in self._vault:
                with self._alone():  # two processes must not each make one
                    self._vault.create_kek()
                    self._vault.add(tenant)
            return TenantKeys(
                derive(tenant, SEAL_LABEL), derive(tenant, HASH_LABEL), derive(tenant, DRAW_LABEL)
            )
        except (InputError, MissingError) as error:
            log.error("feedback_key_unreadable", extra={"tenant": tenant})  # noqa: TRY400 - no trace
            raise ArtifactError(f"feedback: {error}") from error

    def destroy(self, tenant: str) -> None:
        """Destroy a tenant's key: what was locked with it is noise.

        The key-encryption key is renewed, so that an older copy of the wrapped key opens nothing.
        """
        with self._alone():
            self._vault.destroy(tenant)
            if self._vault.kek.is_file():
                try:
                    self._vault.rotate()
                except OSError:  # the file may be mounted for reading
                    log.warning("feedback_kek_not_renewed", extra={"tenant": tenant})

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "feedback.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
