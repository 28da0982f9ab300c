"""Check everything a registry holds, and say exactly what is wrong.

Compared with each other: the rows of the database, every file of every artifact and its signature,
the audit chain with its signed head, and the signed channel files. Any one of them can be
edited behind our back; a consistent lie needs the publisher's key.
"""

from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from handbill.errors import ArtifactError, HandbillError
from handbill.generator import artifacts
from handbill.generator.channels import GLOBAL_CHANNEL, read_channel
from handbill.server.audit import AuditEntry, chain_problems, forgotten, read_head, removed
from handbill.server.outbox import HEAD_FILE, channel_of
from handbill.server.records import Artifact, Publication, Round
from handbill.server.registry import Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """How much was checked, and one sentence per thing that is wrong."""

    artifacts: int
    rounds: int
    audit_entries: int
    channels: int
    problems: tuple[str, ...]


def verify_artifact(
    registry: Registry, artifact: Artifact, *, gone: Collection[str] | None = None
) -> list[str]:
    """Check one artifact: files, signature, and that its row says the same.

    Args:
        registry: Where it is.
        artifact: Its row.
        gone: Artifacts whose files were removed on purpose, where that is known already: their
            rows must still be what was signed.
    """
    if gone is None:
        with registry.database.begin() as uow:
            gone = removed(uow.audit.all())
    name = f"artifact {artifact.digest}"
    folder, problems = registry.store.path(artifact.digest), list[str]()
    try:
        if artifact.digest in gone:
            manifest = artifacts.Manifest.from_bytes(artifacts.canonical_json(artifact.manifest))
            if manifest.digest != artifact.digest:
                problems.append(f"{name}: the database row differs from the signed manifest")
            if folder.exists():
                problems.append(f"{folder}: was removed and is there again; do it once more")
        else:
            manifest = artifacts.verify(folder, registry.public_key)
            if manifest.digest != artifact.digest:
                problems.append(f"{name}: the folder holds {manifest.digest}")
    except HandbillError as error:
        return [str(error)]
    if asdict(manifest) != {"prompts": "", **artifact.manifest}:  # rows from before there were any
        problems.append(f"{name}: the database row differs from the signed manifest")
    row = (artifact.kind, artifact.tenant, artifact.version, artifact.created_at)
    if row != (manifest.kind, manifest.tenant, manifest.version, manifest.created):
        problems.append(f"{name}: kind, tenant, version or time of the row were changed")
    if artifact.size_bytes != sum(entry.size_bytes for entry in manifest.files.values()):
        problems.append(f"{name}: the row says {artifact.size_bytes} bytes, the files differ")
    if artifact.path != str(registry.store.path(artifact.digest).relative_to(registry.root)):
        problems.append(f"{name}: the row points to {artifact.path}")
    return problems


def verify_registry(registry: Registry) -> Verification:
    """Check everything; training and publishing may go on meanwhile."""
    with registry.database.begin() as uow:
        found = uow.artifacts.all()
        rounds = uow.rounds.all()
        chain = uow.audit.all()
        histories = {tenant: uow.channels.history(tenant) for tenant in uow.channels.tenants()}
        problems = [*audit_problems(registry, chain), *_channel_file_problems(registry, histories)]
    known = {artifact.digest: artifact for artifact in found}
    gone = removed(chain)
    for artifact in found:
        problems += verify_artifact(registry, artifact, gone=gone)
    problems += _key_problems(registry, chain)
    problems += _lineage_problems(known, chain)
    problems += _folder_problems(registry, known)
    problems += _round_problems(rounds, known, chain)
    problems += _history_problems(histories, known, chain)
    return Verification(
        artifacts=len(found),
        rounds=sum(r.status == "committed" for r in rounds),
        audit_entries=len(chain),
        channels=len(histories),
        problems=tuple(problems),
    )


def audit_problems(registry: Registry, chain: list[AuditEntry]) -> list[str]:
    """Check the chain by itself and against the signed head; call it inside a unit of work."""
    path = registry.root / HEAD_FILE
    if not path.is_file():
        return [*chain_problems(chain), f"{path}: missing"] if chain else []
    try:
        signed = read_head(path.read_bytes(), registry.public_key)
    except ArtifactError as error:
        return [*chain_problems(chain), f"{path}: {error}"]
    return chain_problems(chain, signed=signed)


def _lineage_problems(known: dict[str, Artifact], chain: list[AuditEntry]) -> Iterator[str]:
    for entry in chain:
        if entry.action == "artifact.register" and entry.object not in known:
            yield f"artifact {entry.object}: in the audit chain, but its row is gone"
    for artifact in known.values():
        parent = artifact.manifest["parent"]
        if parent and parent not in known:
            yield f"artifact {artifact.digest}: its parent {parent} has no row"
    for kind, tenant in sorted({(a.kind, a.tenant) for a in known.values()}):
        versions = sorted(a.version for a in known.values() if (a.kind, a.tenant) == (kind, tenant))
        if versions != list(range(1, len(versions) + 1)):
            yield f"artifacts of {tenant or 'global'}: versions {versions} have a gap; rows are gone"


def _folder_problems(registry: Registry, known: dict[str, Artifact]) -> Iterator[str]:
    for digest in registry.store:
        if digest in known:
            continue
        with registry.database.begin() as uow:  # it may have been committed since we looked
            arrived = uow.artifacts.get(digest)
        if arrived is None:
            yield f"{registry.store.path(digest)}: no row names this folder"


def _key_problems(registry: Registry, chain: list[AuditEntry]) -> Iterator[str]:
    for tenant in sorted(forgotten(chain) & set(registry.vault)):
        yield (
            f"{registry.vault.folder}: the key of {tenant}, which was forgotten, is there again; "
            f"handbill server forget {tenant}"
        )


def _round_problems(
    rounds: list[Round], known: dict[str, Artifact], chain: list[AuditEntry]
) -> Iterator[str]:
    recorded = {e.object: e.result for e in chain if e.action == "round.commit"}
    committed = {r.name: r for r in rounds if r.status == "committed"}
    for name, row in committed.items():
        if recorded.get(name) != row.facts():
            yield f"round {name}: differs from what the audit chain recorded at its commit"
        if row.aggregate and row.aggregate not in known:
            yield f"round {name}: its aggregate {row.aggregate} has no row"
    for name in sorted(recorded.keys() - committed.keys()):
        yield f"round {name}: committed according to the audit chain, but its row is gone"


def _history_problems(
    histories: dict[str, list[Publication]], known: dict[str, Artifact], chain: list[AuditEntry]
) -> Iterator[str]:
    recorded = {e.object: (e.action, e.result) for e in chain if e.action.startswith("channel.")}
    steps = [step for history in histories.values() for step in history]
    for step in steps:
        if recorded.get(step.name) != (f"channel.{step.action}", step.audited):
            yield f"channel {step.name}: differs from what the audit chain recorded"
        for digest in filter(None, (step.digest, step.stable)):
            if digest not in known:
                yield f"channel {step.name}: {digest} has no row"
            elif known[digest].tenant not in {"", step.tenant}:
                yield f"channel {step.name}: serves the adapter of {known[digest].tenant}"
    for name in sorted(recorded.keys() - {step.name for step in steps}):
        yield f"channel {name}: published according to the audit chain, but its row is gone"


def _channel_file_problems(
    registry: Registry, histories: dict[str, list[Publication]]
) -> Iterator[str]:
    expected: dict[Path, str] = {}
    for tenant, history in histories.items():
        path = registry.root / "channels" / f"{tenant or GLOBAL_CHANNEL}.json"
        expected[path] = tenant
        try:
            channel = read_channel(registry.root, tenant, registry.public_key)
        except ArtifactError as error:
            yield str(error)
            continue
        newest = history[-1]
        if channel is None:
            yield f"{path}: missing; starting the server writes it again"
        elif channel != channel_of(newest):
            yield f"{path}: serial {channel.serial}, but the database says {newest.serial}"
    for path in sorted((registry.root / "channels").glob("*.json")):
        if path not in expected:
            yield f"{path}: no publication in the database"
