"""What is kept of each tenant under a key of its own: destroy the key, and all of it is gone.

Envelope encryption with AES-256-GCM. A tenant's adapter is locked with that tenant's key; tenant
keys lie in ``<registry>/vault/``, each wrapped with the **key-encryption key** (KEK), a file that
is kept apart. So a copy of database, artifacts and wrapped keys tells nothing without the KEK, and
renewing the KEK touches no artifact: only the tenant keys are wrapped again.

An adapter is locked before its manifest is signed. What is signed, verified, copied and backed up
is therefore the locked file, and none of that needs a key.

Who writes keys holds the operator's one-writer lock (:mod:`handbill.server.deletion`); readers hold
nothing and look again when the KEK was renewed between two of their reads.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from handbill.errors import ArtifactError, InputError, MissingError
from handbill.generator.adapters import (
    CONFIG_FILE,
    LOCKED_FILE,
    WEIGHTS_FILE,
    Adapter,
    read_adapter,
    read_bounded,
)
from handbill.generator.artifacts import (
    Manifest,
    canonical_json,
    check_tenant,
    sync_to_disk,
    write_durably,
)
from handbill.privacy.faults import faultpoint

KEK_FILE: Final = Path("keys/vault.kek")
ADAPTER_LABEL: Final = b"handbill/v1/vault/adapter\0"
TENANT_KEY_LABEL: Final = b"handbill/v1/vault/tenant-key\0"
KEK_LABEL: Final = b"handbill/v1/vault/kek\0"
_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_LOOKS: Final = 5


class Vault:
    """The tenant keys of one registry.

    Args:
        registry: The registry's folder.
        kek: File of the key-encryption key; ``keys/vault.kek`` beside the registry if empty. It
            holds keys in hex, one a line: new tenant keys are wrapped with the first, and what
            any of them wrapped can be read.
    """

    def __init__(self, registry: Path, kek: Path | str = "") -> None:
        self.folder = registry / "vault"
        self.kek = Path(kek) if str(kek) else registry.parent / KEK_FILE

    def __contains__(self, tenant: str) -> bool:
        return self._path(tenant).is_file()

    def __iter__(self) -> Iterator[str]:
        """Tenants that have a key."""
        yield from sorted(path.stem for path in self.folder.glob("*.key"))

    def create_kek(self) -> None:
        """Make the key-encryption key, if there is none.

        Raises:
            MissingError: Tenant keys are there, so there was one.
        """
        if self.kek.is_file():
            return
        if any(self):
            raise self._no_kek()
        self.kek.parent.mkdir(parents=True, exist_ok=True)
        self._write_keks([os.urandom(_KEY_BYTES)])

    def check(self) -> None:
        """Make sure that a key could be made now.

        Raises:
            MissingError: There is no key-encryption key.
            InputError: It is none, or others may read it.
        """
        self._keks()

    def add(self, tenant: str) -> None:
        """Make a tenant's key, if it has none."""
        if tenant not in self:
            self._wrap(tenant, os.urandom(_KEY_BYTES))

    def lock(self, tenant: str, plain: bytes) -> bytes:
        """Encrypt with a tenant's key: a nonce, then AES-256-GCM bound to the tenant.

        Raises:
            ArtifactError: The tenant has no key (:meth:`add`).
        """
        return _encrypt(self._tenant_key(tenant), plain, ADAPTER_LABEL + tenant.encode())

    def unlock(self, tenant: str, locked: bytes) -> bytes:
        """Decrypt what :meth:`lock` made for the same tenant.

        Raises:
            ArtifactError: The tenant's key is gone, is another one by now, or the bytes changed.
            MissingError: There is no key-encryption key.
            InputError: The key-encryption key is another one, or others may read it.
        """
        try:
            return _decrypt(self._tenant_key(tenant), locked, ADAPTER_LABEL + tenant.encode())
        except InvalidTag as error:
            raise ArtifactError(
                f"{tenant}: not locked with the key this tenant has now; it was changed, or is "
                "from before the tenant was forgotten"
            ) from error

    def derive(self, tenant: str, label: bytes) -> bytes:
        """A key of 32 bytes for one purpose (HKDF, RFC 5869): gone when the tenant's key is gone.

        Raises:
            ArtifactError: The tenant has no key (:meth:`add`).
            MissingError: There is no key-encryption key.
            InputError: The key-encryption key is another one, or others may read it.
        """
        bound_to = label + tenant.encode()
        kdf = HKDF(SHA256(), length=_KEY_BYTES, salt=None, info=bound_to)
        return kdf.derive(self._tenant_key(tenant))

    def destroy(self, tenant: str) -> None:
        """Overwrite and remove a tenant's key; once it is gone this does nothing."""
        path = self._path(tenant)
        for file in (path, path.with_suffix(".new")):  # a draft that a crash left, too
            if file.is_file():
                with file.open("r+b") as handle:
                    _overwrite(handle.fileno())
                faultpoint("vault.destroy.overwritten")
                file.unlink()
        if self.folder.is_dir():
            sync_to_disk(self.folder)

    def rotate(self) -> int:
        """Renew the key-encryption key: wrap every tenant key with a new one, destroy the old.

        Interrupted anywhere, everything can still be read, and it can be done again.

        Returns:
            How many tenant keys were wrapped again.

        Raises:
            ArtifactError: A tenant key cannot be read; the old key-encryption key stays.
        """
        tenants = list(self)
        new = os.urandom(_KEY_BYTES)
        self._write_keks([new, *self._keks().values()])
        faultpoint("vault.rotate.both")
        for tenant in tenants:
            self._wrap(tenant, self._tenant_key(tenant))
        faultpoint("vault.rotate.wrapped")
        self._write_keks([new])
        return len(tenants)

    def _tenant_key(self, tenant: str) -> bytes:
        path = self._path(tenant)
        name = ""
        for _ in range(_LOOKS):
            try:
                fields = json.loads(path.read_bytes())
                name, wrapped = str(fields["kek"]), bytes.fromhex(fields["key"])
            except FileNotFoundError as error:
                raise ArtifactError(
                    f"{tenant}: has no key in {self.folder}; it was destroyed when the tenant was "
                    "forgotten, or never came here"
                ) from error
            except (ValueError, KeyError, TypeError) as error:
                raise ArtifactError(f"{path}: no tenant key, or being destroyed") from error
            kek = self._keks().get(name)  # read second: a rotation in between is seen
            if kek is not None:
                try:
                    return _decrypt(kek, wrapped, TENANT_KEY_LABEL + tenant.encode())
                except InvalidTag as error:
                    raise ArtifactError(f"{path}: changed, or the key of another tenant") from error
        raise InputError(
            f"{path}: wrapped with key-encryption key {name}, which {self.kek} does not hold; bring "
            "back the one it was wrapped with"
        )

    def _wrap(self, tenant: str, key: bytes) -> None:
        name, kek = next(iter(self._keks().items()))
        wrapped = _encrypt(kek, key, TENANT_KEY_LABEL + tenant.encode())
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        document = canonical_json({"kek": name, "key": wrapped.hex()})
        write_durably(self._path(tenant), document, secret=True)

    def _keks(self) -> Mapping[str, bytes]:
        """Key-encryption keys by their names, the current one first."""
        try:
            if self.kek.stat().st_mode & 0o077:
                raise InputError(f"{self.kek}: others may read it; chmod 600 {self.kek}")
            text = self.kek.read_text()
            for _ in range(_LOOKS):
                if "\0" not in text:
                    break
                # Opened just before a rotation put another in its place, and overwrote this one.
                text = self.kek.read_text()
        except FileNotFoundError:
            raise self._no_kek() from None
        lines = text.split()
        if not lines or not all(re.fullmatch(r"[0-9a-f]{64}", line) for line in lines):
            raise InputError(f"{self.kek}: must hold keys of 64 hex digits, one a line")
        return {_name(key): key for key in map(bytes.fromhex, lines)}

    def _write_keks(self, keks: list[bytes]) -> None:
        """Put a new file in place, then overwrite what the old one held on the disk."""
        with ExitStack() as stack:
            old = stack.enter_context(self.kek.open("r+b")) if self.kek.is_file() else None
            write_durably(self.kek, "".join(f"{k.hex()}\n" for k in keks).encode(), secret=True)
            if old is not None:
                _overwrite(old.fileno())

    def _path(self, tenant: str) -> Path:
        return self.folder / f"{check_tenant(tenant)}.key"

    def _no_kek(self) -> MissingError:
        return MissingError(
            f"{self.kek}: no key-encryption key; bring it back from where it is kept, or name its "
            "file in HANDBILL_KEK (handbill serve: HANDBILL_SERVING_KEK); "
            "handbill server init makes the first"
        )


def open_weights(
    folder: Path, manifest: Manifest, vault: Vault, files: Mapping[str, bytes] | None = None
) -> bytes:
    """A verified artifact's weights as a safetensors file; the one place where they are unlocked.

    Args:
        folder: Where it lies.
        manifest: What was verified.
        vault: Has the key of its tenant.
        files: What was verified, where it was kept
            (:func:`~handbill.generator.artifacts.read_verified`); else it is read again.

    Raises:
        ArtifactError: They cannot be unlocked, or are a tenant's and are not locked.
    """
    if manifest.kind == "global":
        return read_bounded(folder / WEIGHTS_FILE, files)
    check_locked(manifest)
    return vault.unlock(manifest.tenant, read_bounded(folder / LOCKED_FILE, files))


def open_adapter(
    folder: Path, manifest: Manifest, vault: Vault, files: Mapping[str, bytes] | None = None
) -> Adapter:
    """A verified artifact's adapter, checked; see :func:`open_weights`."""
    weights = open_weights(folder, manifest, vault, files)
    config = read_bounded(folder / CONFIG_FILE, files)
    return read_adapter(folder, files={CONFIG_FILE: config, WEIGHTS_FILE: weights})


def check_locked(manifest: Manifest) -> None:
    """Refuse a tenant's adapter that is not locked.

    Raises:
        ArtifactError: It holds weights in plain.
    """
    if manifest.kind == "tenant" and (
        WEIGHTS_FILE in manifest.files or LOCKED_FILE not in manifest.files
    ):
        raise ArtifactError(
            f"{manifest.digest}: the adapter of {manifest.tenant} is not locked with its key; "
            "train it again"
        )


def _name(kek: bytes) -> str:
    return hashlib.sha256(KEK_LABEL + kek).hexdigest()[:16]


def _encrypt(key: bytes, plain: bytes, bound_to: bytes) -> bytes:
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plain, bound_to)


def _decrypt(key: bytes, data: bytes, bound_to: bytes) -> bytes:
    if len(data) < _NONCE_BYTES:
        raise InvalidTag
    return AESGCM(key).decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], bound_to)


def _overwrite(handle: int) -> None:
    """Zeros over a file's bytes, on the disk (whatever lies below may still keep a copy)."""
    os.pwrite(handle, bytes(os.fstat(handle).st_size), 0)
    os.fsync(handle)
