"""Queries of quotas: limits, what is used, what runs. Always by tenant."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, delete, func, select, update
from sqlalchemy.orm import Session

from handbill.errors import MissingError
from handbill.serving.orm import QuotaRow, QuotaUseRow, RunningRow, TenantRow, connect

_COLUMNS = {
    QuotaRow: [c.name for c in QuotaRow.__table__.columns if c.name != "tenant_id"],
    QuotaUseRow: [c.name for c in QuotaUseRow.__table__.columns if c.name != "tenant_id"],
}


class Books:
    """One tenant's rows inside a transaction that nobody else can be in."""

    def __init__(self, session: Session, tenant: str) -> None:
        self._session = session
        self._tenant = tenant
        self.quota = _facts(session, QuotaRow, tenant)
        self.use = _facts(session, QuotaUseRow, tenant)

    def running(self, now: float) -> int:
        """Requests that run at all gateways that live."""
        return _running(self._session, self._tenant, now)

    def run(self, gateway: str, more: int, *, expires_at: float) -> None:
        """Count a request that begins or ends at a gateway."""
        row = self._session.get(RunningRow, (gateway, self._tenant))
        if row is None:
            row = RunningRow(gateway=gateway, tenant_id=self._tenant, running=0, expires_at=0.0)
            self._session.add(row)
        row.running = max(0, row.running + more)
        row.expires_at = expires_at

    def write(self, use: Mapping[str, Any]) -> None:
        """Write what is used."""
        self._session.merge(QuotaUseRow(tenant_id=self._tenant, **use))


class QuotaRepository:
    """Quotas in the serving database.

    A commit here survives the end of the process; a power cut may take the last ones, which
    costs nobody anything: usage itself is written elsewhere, power-safe.
    """

    def __init__(self, url: str) -> None:
        self._engine: Engine = connect(url, power_safe=False)

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    @contextmanager
    def of(self, tenant: str) -> Iterator[Books]:
        """A tenant's books, kept from everybody else; written when nothing is raised.

        Raises:
            MissingError: No such tenant.
        """
        with Session(self._engine) as session, session.begin():
            _lock(session, tenant)
            yield Books(session, tenant)

    def quota(self, tenant: str) -> dict[str, Any]:
        """A tenant's own limits; empty when it has none."""
        with Session(self._engine) as session:
            return _facts(session, QuotaRow, tenant)

    def set_quota(self, tenant: str, limits: Mapping[str, Any]) -> None:
        """Write a tenant's own limits.

        Raises:
            MissingError: No such tenant.
        """
        with Session(self._engine) as session, session.begin():
            _lock(session, tenant)
            session.merge(QuotaRow(tenant_id=tenant, **limits))

    def use(self, tenant: str) -> dict[str, Any]:
        """What a tenant has used; empty when nothing."""
        with Session(self._engine) as session:
            return _facts(session, QuotaUseRow, tenant)

    def running(self, tenant: str, now: float) -> int:
        """Requests of a tenant that run now."""
        with Session(self._engine) as session:
            return _running(session, tenant, now)

    def renew(self, gateway: str, *, now: float, expires_at: float) -> None:
        """Say that a gateway lives; forget those that do not."""
        with Session(self._engine) as session, session.begin():
            session.execute(
                update(RunningRow)
                .where(RunningRow.gateway == gateway)
                .values(expires_at=expires_at)
            )
            session.execute(delete(RunningRow).where(RunningRow.expires_at <= now))

    def leave(self, gateway: str) -> None:
        """A gateway ends: nothing runs there any more."""
        with Session(self._engine) as session, session.begin():
            session.execute(delete(RunningRow).where(RunningRow.gateway == gateway))


def _lock(session: Session, tenant: str) -> None:
    """Writing first takes the row's lock (SQLite: the database's), so that nobody counts beside."""
    touched = session.execute(
        update(TenantRow).where(TenantRow.id == tenant).values(name=TenantRow.name)
    )
    if touched.rowcount == 0:  # type: ignore[attr-defined]
        raise MissingError(f"tenant {tenant}: no such tenant; `tenants add {tenant}` first")


def _facts(session: Session, table: type[Any], tenant: str) -> dict[str, Any]:
    row = session.get(table, tenant)
    return {} if row is None else {name: getattr(row, name) for name in _COLUMNS[table]}


def _running(session: Session, tenant: str, now: float) -> int:
    alive = (RunningRow.tenant_id == tenant, RunningRow.expires_at > now)
    return int(session.scalar(select(func.sum(RunningRow.running)).where(*alive)) or 0)
