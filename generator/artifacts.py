"""Signed, content-addressed artifacts.

An artifact is a folder: an adapter's files, ``manifest.json`` (what it is, where it comes
from, what it guarantees, the digest of every file) and ``manifest.sig`` (Ed25519 over the
manifest's canonical bytes). Its name is the digest of its manifest, so a name always means
the same bytes. What points to them is in :mod:`handbill.generator.channels`.

Every signature is made over a label and the bytes, so that no signature of one kind can be
shown as another.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from handbill.errors import ArtifactError, InputError

MANIFEST_FILE: Final = "manifest.json"
SIGNATURE_FILE: Final = "manifest.sig"
MANIFEST_LABEL: Final = b"handbill/v1/manifest\0"
ADDING: Final = ".adding-"
LEAVING: Final = ".leaving-"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_TENANT = re.compile(r"[a-z0-9][a-z0-9-]{1,62}")
_MAX_JSON_BYTES: Final = 1024 * 1024


def canonical_json(value: Any) -> bytes:
    """The one byte string of a JSON value: sorted keys, no spaces, UTF-8, no NaN."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode()


def sha256_digest(data: bytes) -> str:
    """``sha256:<hex>`` of some bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def utc_now() -> str:
    """The time now, ISO 8601 UTC in seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def check_tenant(tenant: str) -> str:
    """Return a tenant or shop id that is safe as a name of files, or raise.

    Raises:
        InputError: Not lower-case letters, digits and hyphens, 2 to 63 of them.
    """
    if not _TENANT.fullmatch(tenant):
        raise InputError(f"id {tenant[:80]!r}: use 2 to 63 lower-case letters, digits and hyphens")
    return tenant


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file of an artifact."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What an artifact is, where it comes from and what it guarantees.

    Attributes:
        kind: ``global`` (from a round) or ``tenant`` (one merchant's own, on top of a global).
        tenant: Whose it is; empty for global.
        version: Rises by one per kind and tenant.
        parent: Digest of the artifact it continues; empty for the first.
        metrics: Numbers measured before it was signed.
        privacy: DP statements, one per contributing merchant (:mod:`handbill.privacy.statement`).
        sums: How many merchants were in each secure sum it was made of; none where the operator
            was given updates one by one.
        prompts: Digest of what the prompts it was trained with were made of, for a tenant's own that
            was trained with scenarios of the shop's own; empty for the shipped ones.
    """

    kind: str
    tenant: str = ""
    version: int
    base_name: str
    base_digest: str
    files: dict[str, FileEntry]
    parent: str = ""
    run: str = ""
    round: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    privacy: list[dict[str, Any]] = field(default_factory=list)
    sums: list[int] = field(default_factory=list)
    prompts: str = ""
    created: str
    format: int = 1

    @property
    def digest(self) -> str:
        """The artifact's name."""
        return sha256_digest(self.to_bytes())

    def to_bytes(self) -> bytes:
        """Canonical JSON, which is what is signed."""
        fields = asdict(self)
        for name in ("sums", "prompts"):
            if not fields[name]:
                del fields[name]  # as it was before there were any
        return canonical_json(fields)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Manifest":
        """Read a manifest; unknown or missing fields are refused."""
        try:
            fields = json.loads(data)
            fields["files"] = {n: FileEntry(**entry) for n, entry in fields["files"].items()}
            manifest = cls(**fields)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ArtifactError(f"manifest is not in handbill's format ({error})") from error
        if manifest.format != 1 or manifest.kind not in {"global", "tenant"}:
            raise ArtifactError(f"manifest of format {manifest.format}, kind {manifest.kind!r}")
        return manifest


def load_or_create_key(path: Path) -> Ed25519PrivateKey:
    """Read a signing key, or make one: mode 0600, the public half beside it as ``.pub``."""
    if path.is_file():
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        if not isinstance(key, Ed25519PrivateKey):
            raise InputError(f"{path}: not an Ed25519 private key")
        return key
    key = Ed25519PrivateKey.generate()
    path.parent.mkdir(parents=True, exist_ok=True)
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(private)
    path.with_suffix(".pub").write_bytes(public_pem(key.public_key()))
    return key


def public_pem(key: Ed25519PublicKey) -> bytes:
    """A public key as PEM."""
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def load_public_key(source: Path | bytes) -> Ed25519PublicKey:
    """Read a public key from a PEM file or its bytes."""
    name = "public key" if isinstance(source, bytes) else str(source)
    try:
        data = source if isinstance(source, bytes) else source.read_bytes()
        key = serialization.load_pem_public_key(data)
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: not a readable public key ({error})") from error
    if not isinstance(key, Ed25519PublicKey):
        raise InputError(f"{name}: not an Ed25519 public key")
    return key


def seal(folder: Path, *, key: Ed25519PrivateKey, **fields: Any) -> Manifest:
    """Describe an adapter folder in a manifest, sign it, and write both into the folder.

    Args:
        folder: An adapter's files.
        key: The publisher's signing key.
        **fields: Fields of :class:`Manifest` except ``files`` (and ``created``, if not given).
    """
    fields.setdefault("created", utc_now())
    files = {file.name: _entry(file.read_bytes()) for file in _plain_files(folder)}
    manifest = Manifest(files=files, **fields)
    (folder / MANIFEST_FILE).write_bytes(manifest.to_bytes())
    (folder / SIGNATURE_FILE).write_text(key.sign(MANIFEST_LABEL + manifest.to_bytes()).hex())
    return manifest


def verify(folder: Path, public_key: Ed25519PublicKey) -> Manifest:
    """Check an artifact; see :func:`read_verified`."""
    return read_verified(folder, public_key)[0]


def read_verified(folder: Path, public_key: Ed25519PublicKey) -> tuple[Manifest, dict[str, bytes]]:
    """Check an artifact: signature first, then the size and digest of every file.

    Returns:
        Its manifest, and its files: the very bytes that were checked, whatever becomes of the
        folder afterwards.

    Raises:
        ArtifactError: Naming the file that is missing, extra or changed.
    """
    data = read_small(folder / MANIFEST_FILE)
    _check_signature(folder / SIGNATURE_FILE, MANIFEST_LABEL + data, public_key)
    manifest = Manifest.from_bytes(data)
    files: dict[str, bytes] = {}
    found = {file.name: file for file in _plain_files(folder)}
    for name in sorted(found.keys() | manifest.files.keys()):
        entry = manifest.files.get(name)
        if name in found and entry is not None:
            with found[name].open("rb") as handle:
                files[name] = handle.read(entry.size_bytes + 1)
        if name not in files or entry != _entry(files[name]):
            raise ArtifactError(f"{folder / name}: missing, extra or changed since it was signed")
    return manifest, files


def _entry(data: bytes) -> FileEntry:
    return FileEntry(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))


def _plain_files(folder: Path) -> Iterator[Path]:
    """An artifact's files, manifest and signature aside."""
    for file in sorted(folder.iterdir()):
        if file.name not in {MANIFEST_FILE, SIGNATURE_FILE}:
            if file.is_symlink() or not file.is_file():
                raise ArtifactError(f"{file}: an artifact holds plain files only")
            yield file


class ArtifactStore:
    """A folder of sealed artifacts, each named by the digest of its manifest."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, digest: str) -> Path:
        """Where an artifact lies, or would lie.

        Raises:
            InputError: Not a digest.
        """
        if not _DIGEST.fullmatch(digest):
            raise InputError(f"{digest[:80]!r} is not an artifact digest (sha256:...)")
        return self.root / digest.removeprefix("sha256:")

    def __contains__(self, digest: str) -> bool:
        return (self.path(digest) / MANIFEST_FILE).is_file()

    def __iter__(self) -> Iterator[str]:
        """Digests of all artifacts in the store."""
        if self.root.is_dir():
            for folder in sorted(self.root.iterdir()):
                if re.fullmatch(r"[0-9a-f]{64}", folder.name):
                    yield f"sha256:{folder.name}"

    def add(self, folder: Path) -> str:
        """Copy a sealed artifact in: complete and on disk, or not there at all.

        Returns:
            Its digest.
        """
        digest = Manifest.from_bytes(read_small(folder / MANIFEST_FILE)).digest
        target = self.path(digest)
        if digest in self:
            return digest
        self.root.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=self.root, prefix=ADDING))
        try:
            for file in folder.iterdir():
                shutil.copyfile(file, temporary / file.name)
                sync_to_disk(temporary / file.name)
            sync_to_disk(temporary)
            temporary.chmod(0o755)
            temporary.rename(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        sync_to_disk(self.root)
        return digest

    def remove(self, digest: str) -> None:
        """Take an artifact out, whole at once; one that is not there is no error."""
        leaving = self.root / f"{LEAVING}{digest.removeprefix('sha256:')}"
        if self.path(digest).is_dir():
            self.path(digest).rename(leaving)
            sync_to_disk(self.root)
        if leaving.is_dir():
            shutil.rmtree(leaving)

    def clean(self) -> None:
        """Remove what a crash left half added or half removed; nobody else may be at it."""
        for prefix in (ADDING, LEAVING):
            for folder in self.root.glob(f"{prefix}*"):
                shutil.rmtree(folder)


def _check_signature(path: Path, signed: bytes, public_key: Ed25519PublicKey) -> None:
    try:
        public_key.verify(bytes.fromhex(read_small(path).decode()), signed)
    except (InvalidSignature, ValueError) as error:
        raise ArtifactError(f"{path}: not the publisher's signature of the manifest") from error


def read_small(path: Path) -> bytes:
    """All of a small file, such as a manifest.

    Raises:
        ArtifactError: It cannot be read, or is larger than a mebibyte.
    """
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ArtifactError(f"{path}: larger than {_MAX_JSON_BYTES} bytes")
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror})") from error


def sync_to_disk(path: Path) -> None:
    """Make a file's bytes, or a folder's entries, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_durably(path: Path, data: bytes, *, secret: bool = False) -> None:
    """Write a file whole or not at all, such that it survives a power cut.

    Args:
        path: Replaced if it is there.
        data: All of it.
        secret: Nobody but its owner may read it (mode 0600).
    """
    temporary = path.with_suffix(".new")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600 if secret else 0o666)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
    sync_to_disk(temporary)
    temporary.rename(path)
    sync_to_disk(path.parent)
