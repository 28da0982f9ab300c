"""One unit of work and its repositories: every query of the operator's database is here.

``with database.begin() as uow: ...; uow.commit()`` is one transaction; leaving without ``commit``
undoes everything. Units of work run one after another (``orm.py``), so what is read inside one
still holds when it is written.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, fields, replace
from types import TracebackType
from typing import Self, TypeVar

from sqlalchemy import delete, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from handbill.errors import LeaseError, MissingError, RoundError
from handbill.federation.messages import AuditHead, Receipt
from handbill.generator.artifacts import utc_now
from handbill.server import orm
from handbill.server.audit import AuditEntry, next_entry
from handbill.server.database import migrate
from handbill.server.lease_repository import LeaseRepository
from handbill.server.records import (
    Artifact,
    Conduct,
    Invitation,
    Merchant,
    Publication,
    Round,
    Run,
    RunStatus,
    Stage,
)

Record = TypeVar(
    "Record",
    Conduct,
    Invitation,
    Merchant,
    Run,
    Round,
    Receipt,
    Artifact,
    Publication,
    AuditEntry,
)


def _record(cls: Callable[..., Record], row: orm.Base) -> Record:
    return cls(**{f.name: getattr(row, f.name) for f in fields(cls)})  # type: ignore[arg-type]


class MerchantRepository:
    """The roster."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def put(self, merchant: Merchant) -> None:
        """Enrol a merchant, or replace what is known of it."""
        self._session.merge(orm.MerchantRow(**asdict(merchant)))

    def get(self, merchant_id: str) -> Merchant:
        """Return one merchant; MissingError if it never enrolled."""
        row = self._session.get(orm.MerchantRow, merchant_id)
        if row is None:
            raise MissingError(f"no merchant {merchant_id!r} is enrolled")
        return _record(Merchant, row)

    def find(self, merchant_id: str) -> Merchant | None:
        """Return a merchant that is enrolled and not revoked, or None."""
        row = self._session.get(orm.MerchantRow, merchant_id)
        return None if row is None or row.revoked_at else _record(Merchant, row)

    def revoke(self, merchant_id: str) -> Merchant:
        """Mark a merchant as revoked now, and return it."""
        merchant = replace(self.get(merchant_id), revoked_at=utc_now())
        self.put(merchant)
        return merchant

    def all(self, *, revoked: bool = False) -> list[Merchant]:
        """Return enrolled merchants by id, with the revoked ones if asked for."""
        query = select(orm.MerchantRow).order_by(orm.MerchantRow.id)
        found = [_record(Merchant, row) for row in self._session.scalars(query)]
        return [merchant for merchant in found if revoked or not merchant.revoked_at]

    def roster(self) -> list[str]:
        """Return the lines of the signed log of who may take part."""
        query = select(orm.RosterRow.line).order_by(orm.RosterRow.number)
        return list(self._session.scalars(query))

    def add_to_roster(self, number: int, line: str) -> None:
        """Add the next line of the log."""
        self._session.add(orm.RosterRow(number=number, line=line))
        self._session.flush()


class InvitationRepository:
    """Invitations to enrol."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, invitation: Invitation) -> None:
        """Keep a new one."""
        self._session.add(orm.InvitationRow(**asdict(invitation)))
        self._session.flush()

    def open_for(self, merchant: str) -> list[Invitation]:
        """Return a merchant's that were not used yet, also those that have expired."""
        row = orm.InvitationRow
        query = select(row).where(row.merchant == merchant, row.used_at == "").order_by(row.key)
        return [_record(Invitation, found) for found in self._session.scalars(query)]

    def use(self, key: str, at: str) -> None:
        """Mark one as used."""
        row = self._session.get_one(orm.InvitationRow, key)
        row.used_at = at

    def remove(self, merchant: str = "", *, expired_before: str = "") -> None:
        """Remove a merchant's, and those that expired before a time, used or not."""
        row = orm.InvitationRow
        which = (row.merchant == merchant) | (row.expires_at < expired_before)
        self._session.execute(delete(row).where(which))


class RoundRepository:
    """Runs and their rounds; where ``holder`` is given, only while it has the lease."""

    def __init__(self, session: Session, holder: str = "") -> None:
        self._session, self._holder = session, holder

    def put_run(self, run: Run) -> None:
        """Add a run, or replace what is known of it."""
        self._session.merge(orm.RunRow(**asdict(run)))
        self._session.flush()

    def end_run(self, run_id: str, status: RunStatus, reason: str) -> None:
        """Write how a run ended; LeaseError if this process may not say so, or it was said before."""
        self._fence(run_id)
        run = self.run(run_id)
        run.check_under_way()
        self.put_run(replace(run, status=status, ended_at=utc_now(), reason=reason))

    def run(self, run_id: str) -> Run:
        """Return one run; MissingError if there is none."""
        row = self._session.get(orm.RunRow, run_id)
        if row is None:
            raise MissingError(f"no run {run_id!r}")
        return _record(Run, row)

    def runs(self) -> list[Run]:
        """Return every run, oldest first."""
        query = select(orm.RunRow).order_by(orm.RunRow.started_at, orm.RunRow.id)
        return [_record(Run, row) for row in self._session.scalars(query)]

    def open(self, run: str, number: int, stage: Stage, cohort: list[str]) -> Round:
        """Add the next attempt at a round.

        Raises:
            RoundError: the round is committed already, or another attempt at it is open.
            LeaseError: another coordinator took over, or the run was ended.
        """
        self._fence(run)
        attempts = [r for r in self.all(run) if (r.number, r.stage) == (number, stage)]
        attempt = Round(
            run=run,
            number=number,
            stage=stage,
            attempt=1 + max((r.attempt for r in attempts), default=0),
            opened_at=utc_now(),
            cohort=sorted(cohort),
        )
        if any(r.status == "committed" for r in attempts):
            raise RoundError(f"{attempt.name} is committed already; open the next round")
        if any(r.status == "open" for r in attempts):
            raise RoundError(f"{attempt.name} is open already; abandon that attempt first")
        self._session.add(orm.RoundRow(**asdict(attempt)))
        self._session.flush()
        return attempt

    def close(self, attempt: Round) -> None:
        """Write an open attempt as ``attempt`` now says, committed or abandoned, once.

        A committed one's ledger heads become the merchants' receipts, but for a warm-up's.

        Raises:
            RoundError: the attempt is not open any more, or the round has a committed attempt.
            LeaseError: another coordinator took over; or it is to be committed, and the run was ended.
        """
        # What a run left open when it was ended must still be closed, or no other could begin.
        self._fence("" if attempt.status == "abandoned" else attempt.run)
        key = (attempt.run, attempt.number, attempt.stage, attempt.attempt)
        row = orm.RoundRow
        query = (
            update(row)
            .where(row.run == key[0], row.number == key[1], row.stage == key[2])
            .where(row.attempt == key[3], row.status == "open")
            .values(**asdict(attempt))
        )
        try:
            changed = self._session.execute(query).rowcount  # type: ignore[attr-defined]
        except IntegrityError as error:
            raise RoundError(
                f"{attempt.name} is committed already; this attempt is void"
            ) from error
        if changed != 1:
            raise RoundError(
                f"{attempt.name} attempt {attempt.attempt} is not open; it was closed or taken "
                "over by another coordinator, the last committed round stands"
            )
        # A warm-up costs no budget: the ledger may be empty still, without a row to receipt.
        if attempt.status == "committed" and attempt.stage != "warmup":
            for merchant, head in attempt.ledger_heads.items():
                receipt = Receipt(
                    run=attempt.run, round=attempt.number, stage=attempt.stage, head=head
                )
                self._session.merge(orm.ReceiptRow(merchant=merchant, **asdict(receipt)))

    def note(self, run_id: str, conduct: Iterable[Conduct]) -> None:
        """Add what merchants did in an attempt of a run.

        Raises:
            LeaseError: another coordinator took over, or the run was ended.
        """
        self._fence(run_id)
        self._session.add_all(orm.ConductRow(**asdict(one)) for one in conduct)
        self._session.flush()

    def conduct(self) -> list[Conduct]:
        """Return what merchants did in every attempt, in the order it was found."""
        query = select(orm.ConductRow).order_by(orm.ConductRow.id)
        return [_record(Conduct, row) for row in self._session.scalars(query)]

    def receipts(self) -> dict[str, Receipt]:
        """Return each merchant's ledger head in the last committed round it took part in."""
        query = select(orm.ReceiptRow).order_by(orm.ReceiptRow.merchant)
        return {row.merchant: _record(Receipt, row) for row in self._session.scalars(query)}

    def all(self, run: str = "") -> list[Round]:
        """Return every attempt, of one run if named, in the order they were opened."""
        query = select(orm.RoundRow).order_by(orm.RoundRow.id)
        if run:
            query = query.where(orm.RoundRow.run == run)
        return [_record(Round, row) for row in self._session.scalars(query)]

    def last_committed(self, run: str, stage: Stage) -> Round | None:
        """Return the committed round with the highest number."""
        row = orm.RoundRow
        query = (
            select(row)
            .where(row.run == run, row.stage == stage, row.status == "committed")
            .order_by(row.number.desc())
            .limit(1)
        )
        found = self._session.scalars(query).first()
        return None if found is None else _record(Round, found)

    def _fence(self, run_id: str) -> None:
        """Refuse a holder that lost its lease, or whose run was ended; no id asks for the first alone."""
        if not self._holder:
            return
        held, run = LeaseRepository(self._session).get(), self._session.get(orm.RunRow, run_id)
        if held is None or held.holder != self._holder:
            raise LeaseError(
                f"another coordinator ({held.holder if held else 'gone by now'}) took over; the "
                f"last committed round stands"
            )
        if run is not None:
            _record(Run, run).check_under_way()


class ArtifactRepository:
    """Sealed adapters."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, artifact: Artifact) -> None:
        """Add an artifact; the caller has checked that its version is the next one."""
        self._session.add(orm.ArtifactRow(**asdict(artifact)))
        self._session.flush()

    def get(self, digest: str) -> Artifact | None:
        """Return one artifact, or None."""
        row = self._session.get(orm.ArtifactRow, digest)
        return None if row is None else _record(Artifact, row)

    def all(self) -> list[Artifact]:
        """Return every artifact: the global ones first, then by tenant, by version."""
        row = orm.ArtifactRow
        query = select(row).order_by(row.kind, row.tenant, row.version)
        return [_record(Artifact, found) for found in self._session.scalars(query)]

    def last_version(self, kind: str, tenant: str) -> int:
        """Return the highest version of a kind and tenant, 0 if there is none."""
        row = orm.ArtifactRow
        query = select(func.max(row.version)).where(row.kind == kind, row.tenant == tenant)
        return self._session.scalar(query) or 0


class ChannelRepository:
    """What each tenant is served, and was."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, publication: Publication) -> None:
        """Add a step to a channel's history."""
        self._session.add(orm.ChannelRow(**asdict(publication)))
        self._session.flush()

    def history(self, tenant: str) -> list[Publication]:
        """Return every step of one channel, oldest first."""
        row = orm.ChannelRow
        query = select(row).where(row.tenant == tenant).order_by(row.serial)
        return [_record(Publication, found) for found in self._session.scalars(query)]

    def tenants(self) -> list[str]:
        """Return every tenant that has a channel; ``""`` is the global one."""
        query = select(orm.ChannelRow.tenant).distinct().order_by(orm.ChannelRow.tenant)
        return list(self._session.scalars(query))


class AuditRepository:
    """The hash chain; entries are only ever added."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def append(self, *, actor: str, action: str, object_: str, result: str) -> AuditHead:
        """Add the next entry and return the new head; a long ``result`` is cut to its column."""
        facts = {"actor": actor, "action": action, "object_": object_, "result": result[:200]}
        entry = next_entry(self.head(), time=utc_now(), **facts)
        self._session.add(orm.AuditRow(**asdict(entry)))
        self._session.flush()
        return AuditHead(seq=entry.seq, hash=entry.hash)

    def head(self) -> AuditHead | None:
        """Return the last entry's place and hash."""
        query = select(orm.AuditRow).order_by(orm.AuditRow.seq.desc()).limit(1)
        row = self._session.scalars(query).first()
        return None if row is None else AuditHead(seq=row.seq, hash=row.hash)

    def all(self) -> list[AuditEntry]:
        """Return the whole chain."""
        query = select(orm.AuditRow).order_by(orm.AuditRow.seq)
        return [_record(AuditEntry, row) for row in self._session.scalars(query)]


class UnitOfWork:
    """One transaction over all repositories."""

    def __init__(self, session: Session, holder: str = "") -> None:
        self._session = session
        self.merchants = MerchantRepository(session)
        self.invitations = InvitationRepository(session)
        self.leases = LeaseRepository(session)
        self.rounds = RoundRepository(session, holder)
        self.artifacts = ArtifactRepository(session)
        self.channels = ChannelRepository(session)
        self.audit = AuditRepository(session)

    def commit(self) -> None:
        """Make everything durable at once."""
        self._session.commit()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._session.close()


class Database:
    """The operator's database at ``url``, migrated to the newest schema.

    ``holder`` is set while this process has the lease of rounds (:mod:`handbill.server.lease`).
    """

    holder = ""

    def __init__(self, url: str) -> None:
        migrate(url)
        self._engine = orm.connect(url)

    def begin(self) -> UnitOfWork:
        """Start a unit of work; it waits for the one that is running."""
        return UnitOfWork(Session(self._engine), self.holder)

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()
