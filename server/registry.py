"""The registry: what was trained, what is served, and the proof of both.

A file comes first and its row after, inside one transaction: :class:`ArtifactStore` puts the
sealed folder on disk, then {round, artifact, ledger heads, audit entry} commit together. A crash
in between leaves a folder that no row names, which :mod:`handbill.server.recovery` removes.
Publishing is the other way round (:mod:`handbill.server.channels`). Both happen under the
database's one-writer lock.

Folder: ``<home>/registry/{store/<hex>/, channels/<tenant>.json, vault/<tenant>.key, publisher.pub,
audit-head.json}``.
"""

import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from handbill.errors import ArtifactError, MissingError, RoundError
from handbill.federation.messages import AuditHead, Receipt
from handbill.federation.roster import Roster
from handbill.federation.rounds import What
from handbill.generator import artifacts
from handbill.generator.artifacts import (
    ArtifactStore,
    Manifest,
    canonical_json,
    check_tenant,
    sha256_digest,
    utc_now,
)
from handbill.generator.vault import Vault, check_locked
from handbill.privacy.faults import faultpoint
from handbill.server.channels import Channels, refuse_revoked
from handbill.server.outbox import Outbox
from handbill.server.records import (
    WHY_CHARS,
    Artifact,
    Conduct,
    Merchant,
    Round,
    Run,
    RunStatus,
    Stage,
)
from handbill.server.repository import Database, UnitOfWork
from handbill.server.roster_log import complete_roster

log = logging.getLogger(__name__)

PUBLISHER_KEY: Final = Path("keys/publisher.key")


class Registry:
    """Everything the operator keeps, below ``home``, signed with ``key``.

    Args:
        home: The server's folder; made if it is not there.
        key: The publisher's key; a registry belongs to one key for good.
        url: Database; SQLite in ``home`` if empty.
        kek: File of the key-encryption key; ``keys/vault.kek`` in ``home`` if empty.
    """

    def __init__(self, home: Path, key: Ed25519PrivateKey, *, url: str = "", kek: str = "") -> None:
        self.root = home / "registry"
        self.vault = Vault(self.root, kek)
        self.store = ArtifactStore(self.root / "store")
        self.public_key = key.public_key()
        self._key = key
        self.outbox = Outbox(self.root, key)
        self.outbox.claim()
        self.database = Database(url or f"sqlite:///{home.absolute() / 'server.db'}")
        self.channels = Channels(
            self.database, self.outbox, verified=self.verified, record=self.record
        )

    # -- roster and runs ---------------------------------------------------------------------

    def enrol(self, merchant: Merchant, *, actor: str = "operator") -> None:
        """Put a merchant on the roster, or renew its keys."""
        with self.database.begin() as uow:
            self.enrol_in(uow, merchant, actor=actor)

    def enrol_in(self, uow: UnitOfWork, merchant: Merchant, *, actor: str = "operator") -> None:
        """As :meth:`enrol`, and commit with it what else the unit of work holds."""
        check_tenant(merchant.id)
        uow.merchants.put(merchant)
        complete_roster(uow.merchants, self._key)
        facts = sha256_digest(canonical_json(asdict(merchant)))
        self.record(uow, actor, "merchant.enrol", merchant.id, facts)

    def revoke(self, merchant_id: str, *, actor: str = "operator") -> None:
        """Take a merchant off the roster; its committed contributions stay."""
        with self.database.begin() as uow:
            merchant = uow.merchants.revoke(merchant_id)
            complete_roster(uow.merchants, self._key)
            self.record(uow, actor, "merchant.revoke", merchant_id, merchant.revoked_at)

    def roster(self) -> Roster:
        """Return the signed log of who may take part, as merchants read it."""
        with self.database.begin() as uow:
            roster = complete_roster(uow.merchants, self._key)
            uow.commit()
        return roster

    def start_run(self, run: Run, *, revive: bool = True, actor: str = "server") -> None:
        """Write that a run is under way: a new one, or one that ended and that ``revive`` lets go on.

        InputError if it began on other terms, LeaseError if it ended.
        """
        with self.database.begin() as uow:
            known = next((one for one in uow.rounds.runs() if one.id == run.id), None)
            if known is not None:
                known.check_terms(run)
                if not revive:
                    known.check_under_way()
                run = replace(known, status="running", ended_at="", reason="", publish=run.publish)
            if run != known:
                uow.rounds.put_run(run)
                self.record(uow, actor, "run.start", run.id, run.base_digest)

    def run(self, run_id: str) -> Run:
        """Return a run; MissingError if there is none."""
        with self.database.begin() as uow:
            return uow.rounds.run(run_id)

    def end_run(
        self, run_id: str, status: RunStatus, reason: str = "", *, actor: str = "server"
    ) -> None:
        """Write how a training run ended.

        Raises:
            LeaseError: Another coordinator took it over, or it was ended already.
            MissingError: There is no such run.
        """
        with self.database.begin() as uow:
            uow.rounds.end_run(run_id, status, reason)
            self.record(uow, actor, "run.end", run_id, f"{status} {reason}".rstrip())

    # -- rounds ------------------------------------------------------------------------------

    def open_round(self, run: str, number: int, stage: Stage, cohort: Sequence[str]) -> Round:
        """Write that a round was begun, before anybody is asked to train.

        Raises:
            RoundError: the round is committed, or another attempt at it is open.
        """
        with self.database.begin() as uow:
            attempt = uow.rounds.open(run, number, stage, list(cohort))
            uow.commit()
        return attempt

    def note_conduct(
        self, attempt: Round, merchants: Collection[str], what: What, why: str
    ) -> None:
        """Write what merchants did in an attempt, as soon as it is known.

        Raises:
            RoundError: Another coordinator took over.
        """
        noted = [
            Conduct(
                run=attempt.run,
                number=attempt.number,
                stage=attempt.stage,
                attempt=attempt.attempt,
                merchant=merchant,
                what=what,
                why=why[:WHY_CHARS],
            )
            for merchant in sorted(merchants)
        ]
        with self.database.begin() as uow:
            uow.rounds.note(attempt.run, noted)
            uow.commit()

    def abandon_round(self, attempt: Round, reason: str, *, actor: str = "server") -> None:
        """Close an open attempt without a result."""
        closed = replace(attempt, status="abandoned", closed_at=utc_now())
        with self.database.begin() as uow:
            uow.rounds.close(closed)
            self.record(uow, actor, "round.abandon", attempt.name, reason)

    def commit_round(
        self,
        attempt: Round,
        *,
        folder: Path | None,
        parent: str,
        survivors: Sequence[str],
        ledger_heads: Mapping[str, str],
        metrics: Mapping[str, float],
        bytes_down: int,
        bytes_up: int,
        seconds: float,
        own: Sequence[Path] = (),
        actor: str = "server",
    ) -> Round:
        """Commit an open attempt, once and for all.

        Args:
            attempt: What :meth:`open_round` returned.
            folder: The sealed aggregate (:meth:`seal`); None for a personal round.
            parent: Digest of the artifact the round started from, "" for the base model.
            survivors: Merchants whose updates are in the aggregate.
            ledger_heads: Hash of each survivor's privacy ledger after its training; each
                merchant gets it back as a receipt with the next instruction.
            metrics: Finite numbers.
            bytes_down: To all merchants together.
            bytes_up: From all merchants together.
            seconds: From instruct to commit.
            own: Of a personal round, the tenants' sealed adapters, which come in with it or not at
                all. One of a tenant that is revoked by now is left out.
            actor: Who commits, for the audit chain.

        Raises:
            RoundError: committed before, taken over by another coordinator, or a fact that
                contradicts the sealed manifest. Nothing was written.
            ArtifactError: a folder is not what was sealed, or an own adapter is not locked.
        """
        adapters = [(adapter, self._own_manifest(adapter)) for adapter in own]
        manifest = None if folder is None else artifacts.verify(folder, self.public_key)
        if manifest is None and attempt.stage != "personal":
            raise RoundError(f"{attempt.name}: such a round commits a sealed aggregate")
        if manifest is not None:
            sealed = (manifest.run, manifest.round, manifest.parent)
            if sealed != (attempt.run, attempt.number, parent):
                raise RoundError(f"{attempt.name}: the manifest was sealed for another round")
        committed = replace(
            attempt,
            status="committed",
            closed_at=utc_now(),
            parent=parent,
            aggregate="" if manifest is None else manifest.digest,
            survivors=sorted(survivors),
            ledger_heads=dict(ledger_heads),
            metrics=dict(metrics),
            bytes_down=bytes_down,
            bytes_up=bytes_up,
            seconds=seconds,
        )
        with self.database.begin() as uow:
            if own:
                gone = {m.id for m in uow.merchants.all(revoked=True) if m.revoked_at}
                adapters = [
                    (path, sealed) for path, sealed in adapters if sealed.tenant not in gone
                ]
                committed = replace(committed, survivors=sorted(m.tenant for _, m in adapters))
            uow.rounds.close(committed)
            if folder is not None and manifest is not None:
                self._add_artifact(uow, folder, manifest)
            for path, signed in adapters:
                artifact = self._add_artifact(uow, path, signed)
                uow.audit.append(actor=actor, **_registered(artifact))
            faultpoint("registry.commit.before")
            self.record(uow, actor, "round.commit", attempt.name, committed.facts())
        faultpoint("registry.commit.after")
        log.info("round_committed", extra={"round": attempt.name, "digest": committed.aggregate})
        return committed

    def last_committed(self, run: str, stage: Stage = "global") -> Round | None:
        """Return where a run goes on: its committed round with the highest number."""
        with self.database.begin() as uow:
            return uow.rounds.last_committed(run, stage)

    def receipts(self) -> dict[str, Receipt]:
        """Return, by merchant, the last ledger head that a committed round holds of it."""
        with self.database.begin() as uow:
            return uow.rounds.receipts()

    def audit_head(self) -> AuditHead | None:
        """Return where the audit chain stands, None before its first entry."""
        with self.database.begin() as uow:
            return uow.audit.head()

    # -- artifacts ---------------------------------------------------------------------------

    def seal(self, folder: Path, *, kind: str, tenant: str = "", **fields: Any) -> Manifest:
        """Sign an adapter folder as the next version of its kind and tenant.

        Args:
            folder: An adapter's files.
            kind: ``global`` or ``tenant``.
            tenant: Whose it is, for kind ``tenant``.
            **fields: The other fields of :class:`Manifest`.
        """
        with self.database.begin() as uow:
            version = uow.artifacts.last_version(kind, tenant) + 1
        return artifacts.seal(
            folder, key=self._key, kind=kind, tenant=tenant, version=version, **fields
        )

    def locker(self, tenant: str) -> Callable[[bytes], bytes]:
        """Return what locks the weights of a tenant's own adapter, with a key it has from now on.

        Raises:
            ArtifactError: the tenant is revoked.
        """
        with self.database.begin() as uow:
            refuse_revoked(uow, tenant)
            self.vault.add(tenant)
        return partial(self.vault.lock, tenant)

    def register_tenant_artifact(self, folder: Path, *, actor: str = "server") -> Artifact:
        """Add one tenant's own sealed adapter, locked with its key.

        Raises:
            ArtifactError: not sealed by this registry, not a tenant's, not locked, of one that is
                revoked, or not the next version.
        """
        manifest = self._own_manifest(folder)
        with self.database.begin() as uow:
            refuse_revoked(uow, manifest.tenant)
            artifact = self._add_artifact(uow, folder, manifest)
            self.record(uow, actor, **_registered(artifact))
        return artifact

    def _own_manifest(self, folder: Path) -> Manifest:
        """The manifest of a tenant's own adapter, its files checked."""
        manifest = artifacts.verify(folder, self.public_key)
        if manifest.kind != "tenant":
            raise ArtifactError(f"{folder}: kind {manifest.kind!r}; a round commits global ones")
        check_tenant(manifest.tenant)
        check_locked(manifest)
        return manifest

    def verified(self, digest: str) -> Manifest:
        """Check an artifact's files and signature, and return its manifest."""
        if digest not in self.store:
            raise ArtifactError(f"{digest}: its files are not in the store; were they removed?")
        return artifacts.verify(self.store.path(digest), self.public_key)

    def _add_artifact(self, uow: UnitOfWork, folder: Path, manifest: Manifest) -> Artifact:
        """Add rows first, then the folder; the caller commits, so the file is always first."""
        expected = uow.artifacts.last_version(manifest.kind, manifest.tenant) + 1
        if manifest.version != expected:
            raise ArtifactError(
                f"{folder}: version {manifest.version} sealed, but the next is {expected}; "
                "seal it again"
            )
        if manifest.parent and uow.artifacts.get(manifest.parent) is None:
            raise ArtifactError(f"{folder}: its parent {manifest.parent} is not in the registry")
        artifact = Artifact(
            digest=manifest.digest,
            kind=manifest.kind,
            tenant=manifest.tenant,
            version=manifest.version,
            path=str(self.store.path(manifest.digest).relative_to(self.root)),
            manifest=asdict(manifest),
            size_bytes=sum(entry.size_bytes for entry in manifest.files.values()),
            created_at=manifest.created,
        )
        uow.artifacts.add(artifact)
        self.store.add(folder)
        return artifact

    # -- audit -------------------------------------------------------------------------------

    def record(self, uow: UnitOfWork, actor: str, action: str, object_: str, result: str) -> None:
        """Add an entry to the audit chain, commit the unit of work, and sign the new head."""
        uow.audit.append(actor=actor, action=action, object_=object_, result=result)
        uow.commit()
        self.outbox.write_head(uow)


def _registered(artifact: Artifact) -> dict[str, str]:
    """What the audit chain says of a tenant's own adapter."""
    return {
        "action": "artifact.register",
        "object_": artifact.digest,
        "result": f"{artifact.tenant} version {artifact.version}",
    }


def open_registry(home: Path, *, create: bool = False) -> Registry:
    """Open the registry of a server's home with its own key.

    The database is ``HANDBILL_DATABASE`` (an environment variable, because a URL may hold a
    password), or ``server.db`` in ``home``; the key-encryption key is the file ``HANDBILL_KEK``,
    or ``keys/vault.kek`` in ``home``.

    Raises:
        MissingError: there is none and ``create`` is false.
    """
    if not create and not (home / PUBLISHER_KEY).is_file():
        raise MissingError(f"{home}: no registry here; run handbill server init, or give --home")
    key = artifacts.load_or_create_key(home / PUBLISHER_KEY)
    registry = Registry(
        home,
        key,
        url=os.environ.get("HANDBILL_DATABASE", ""),
        kek=os.environ.get("HANDBILL_KEK", ""),
    )
    if create:
        registry.vault.create_kek()
    return registry
