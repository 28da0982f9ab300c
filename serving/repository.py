"""Queries of the serving database. What belongs to a tenant is always asked by tenant."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Engine, delete, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from handbill.errors import InputError, MissingError
from handbill.serving.errors import ConflictError
from handbill.serving.orm import (
    HouseRuleRow,
    KeyRow,
    MarkRow,
    ReviewRow,
    TenantRow,
    UsageRow,
    connect,
    utc_now,
)

MAX_LIVE_KEYS = 2
MAX_HOUSE_RULES = 100
MAX_PENDING_REVIEWS = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredKey:
    """A live key as stored."""

    tenant: str
    mac: str
    scopes: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one request used.

    Attributes:
        outcome: ``done``, ``blocked`` (nothing passed the check of copy), ``error`` (the model or the
            engine), ``refused`` (what was asked for, or no room) or ``disconnect``.
        coverage: Share of the product's attributes that the copy states, in the mean of its pieces;
            None where none were given.
    """

    tenant: str
    key: str
    request: str
    endpoint: str
    artifact: str
    prompt_tokens: int
    completion_tokens: int
    outcome: str
    started_at: datetime
    duration_ms: int
    coverage: float | None = None


class Repository:
    """The serving database."""

    def __init__(self, url: str) -> None:
        self._engine: Engine = connect(url)

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    def add_tenant(self, tenant: str, name: str) -> None:
        """Add a tenant.

        Raises:
            InputError: There is one of that id.
        """
        try:
            with Session(self._engine) as session, session.begin():
                session.add(TenantRow(id=tenant, name=name, created_at=utc_now()))
        except IntegrityError as error:
            raise InputError(f"tenant {tenant}: is there already") from error

    def tenants(self) -> list[dict[str, Any]]:
        """All tenants with their keys' facts and usage sums; for the operator."""
        with Session(self._engine) as session:
            sums = {
                row.tenant_id: row
                for row in session.execute(
                    select(
                        UsageRow.tenant_id,
                        func.count().label("requests"),
                        func.sum(UsageRow.prompt_tokens).label("prompt_tokens"),
                        func.sum(UsageRow.completion_tokens).label("completion_tokens"),
                    ).group_by(UsageRow.tenant_id)
                )
            }
            keys: dict[str, list[dict[str, Any]]] = {}
            for key in session.scalars(select(KeyRow).order_by(KeyRow.created_at)):
                keys.setdefault(key.tenant_id, []).append(
                    {
                        "id": key.id,
                        "state": _key_state(key),
                        "scopes": key.scopes.split(),
                        "created": key.created_at.isoformat(),
                    }
                )
            return [
                {
                    "id": row.id,
                    "name": row.name,
                    "keys": keys.get(row.id, []),
                    "requests": sums[row.id].requests if row.id in sums else 0,
                    "prompt_tokens": sums[row.id].prompt_tokens if row.id in sums else 0,
                    "completion_tokens": sums[row.id].completion_tokens if row.id in sums else 0,
                }
                for row in session.scalars(select(TenantRow).order_by(TenantRow.id))
            ]

    def add_key(
        self,
        tenant: str,
        key: str,
        mac: str,
        expires_at: datetime | None,
        *,
        scopes: Collection[str],
    ) -> None:
        """Store a new key's MAC.

        Raises:
            MissingError: No such tenant.
            InputError: The tenant has two live keys of these scopes.
        """
        with Session(self._engine) as session, session.begin():
            # Writing first takes the row's lock, so that two callers cannot both count one key.
            touched = session.execute(
                update(TenantRow).where(TenantRow.id == tenant).values(name=TenantRow.name)
            )
            if touched.rowcount == 0:  # type: ignore[attr-defined]
                raise MissingError(f"tenant {tenant}: no such tenant; `tenants add {tenant}` first")
            written = " ".join(sorted(scopes))
            mine = select(func.count()).select_from(KeyRow)
            mine = mine.where(KeyRow.tenant_id == tenant, KeyRow.scopes == written, *_live())
            if (session.scalar(mine) or 0) >= MAX_LIVE_KEYS:
                raise InputError(
                    f"tenant {tenant}: has {MAX_LIVE_KEYS} live keys for {written}; "
                    f"`tenants revoke KEYID` one first"
                )
            session.add(
                KeyRow(
                    id=key,
                    tenant_id=tenant,
                    mac=mac,
                    scopes=written,
                    created_at=utc_now(),
                    expires_at=expires_at,
                )
            )

    def live_key(self, key: str) -> StoredKey | None:
        """A key that is neither revoked nor expired."""
        with Session(self._engine) as session:
            row = session.scalar(select(KeyRow).where(KeyRow.id == key, *_live()))
            if row is None:
                return None
            scopes = frozenset(row.scopes.split())
            return StoredKey(tenant=row.tenant_id, mac=row.mac, scopes=scopes)

    def revoke_key(self, key: str) -> None:
        """End a key now; ending it twice is the same.

        Raises:
            MissingError: No such key.
        """
        with Session(self._engine) as session, session.begin():
            row = session.get(KeyRow, key)
            if row is None:
                raise MissingError(f"key {key}: no such key; `tenants list` shows them")
            row.revoked_at = row.revoked_at or utc_now()

    def add_usage(self, usage: Usage) -> None:
        """Add a request's row."""
        with Session(self._engine) as session, session.begin():
            session.execute(
                insert(UsageRow).values(
                    tenant_id=usage.tenant,
                    key_id=usage.key,
                    request_id=usage.request,
                    endpoint=usage.endpoint,
                    artifact=usage.artifact,
                    prompt_tokens=usage.prompt_tokens,
                    completion_tokens=usage.completion_tokens,
                    outcome=usage.outcome,
                    started_at=usage.started_at,
                    duration_ms=usage.duration_ms,
                    coverage=usage.coverage,
                )
            )

    def usage(self, tenant: str) -> Sequence[UsageRow]:
        """A tenant's requests, oldest first."""
        with Session(self._engine, expire_on_commit=False) as session:
            rows = select(UsageRow).where(UsageRow.tenant_id == tenant).order_by(UsageRow.id)
            return session.scalars(rows).all()

    def usage_by_day(self, tenant: str, *, since: datetime) -> list[dict[str, Any]]:
        """Sums of a tenant's requests by day (UTC), oldest first."""
        day = func.date(UsageRow.started_at)
        sums = (
            select(
                day.label("day"),
                func.count().label("requests"),
                func.sum(UsageRow.prompt_tokens).label("prompt_tokens"),
                func.sum(UsageRow.completion_tokens).label("completion_tokens"),
            )
            .where(UsageRow.tenant_id == tenant, UsageRow.started_at >= since)
            .group_by(day)
            .order_by(day)
        )
        with Session(self._engine) as session:
            return [
                {
                    "day": str(row.day),
                    "requests": row.requests,
                    "prompt_tokens": int(row.prompt_tokens),
                    "completion_tokens": int(row.completion_tokens),
                }
                for row in session.execute(sums)
            ]

    def add_house_rule(self, tenant: str, kind: str, value: str, evidence: str) -> int:
        """Add a house rule; its id.

        Raises:
            MissingError: No such tenant.
            InputError: The tenant has as many as there may be.
        """
        with Session(self._engine) as session, session.begin():
            if session.get(TenantRow, tenant) is None:
                raise MissingError(f"tenant {tenant}: no such tenant; `tenants add {tenant}` first")
            mine = select(func.count()).where(HouseRuleRow.tenant_id == tenant)
            if (session.scalar(mine) or 0) >= MAX_HOUSE_RULES:
                raise InputError(f"tenant {tenant}: has {MAX_HOUSE_RULES} house rules; remove one")
            row = HouseRuleRow(
                tenant_id=tenant, kind=kind, value=value, evidence=evidence, created_at=utc_now()
            )
            session.add(row)
            session.flush()
            return row.id

    def remove_house_rule(self, tenant: str, rule: int) -> None:
        """Remove a house rule.

        Raises:
            MissingError: The tenant has none of this id.
        """
        with Session(self._engine) as session, session.begin():
            mine = (HouseRuleRow.tenant_id == tenant, HouseRuleRow.id == rule)
            if session.scalar(select(HouseRuleRow).where(*mine)) is None:
                raise MissingError(f"house rule {rule}: no such rule; `claims list` shows them")
            session.execute(delete(HouseRuleRow).where(*mine))

    def house_rules(self, tenant: str) -> Sequence[HouseRuleRow]:
        """A tenant's house rules, oldest first."""
        with Session(self._engine, expire_on_commit=False) as session:
            rows = select(HouseRuleRow).where(HouseRuleRow.tenant_id == tenant)
            return session.scalars(rows.order_by(HouseRuleRow.id)).all()

    def add_review(
        self, tenant: str, *, request: str, artifact: str, title: str, text: str
    ) -> int | None:
        """Keep a piece of copy for review; its id, or None when too many wait already."""
        with Session(self._engine) as session, session.begin():
            waiting = (ReviewRow.tenant_id == tenant, ReviewRow.state == "pending")
            if (session.scalar(select(func.count()).where(*waiting)) or 0) >= MAX_PENDING_REVIEWS:
                return None
            row = ReviewRow(
                tenant_id=tenant,
                request_id=request,
                artifact=artifact,
                title=title,
                text=text,
                state="pending",
                created_at=utc_now(),
                decided_by="",
            )
            session.add(row)
            session.flush()
            return row.id

    def decide_review(
        self, tenant: str, review: int, *, state: str, text: str | None, key: str
    ) -> ReviewRow:
        """Write a decision; the row as it is now.

        Args:
            tenant: Whose.
            review: Its id.
            state: What was decided.
            text: Takes the place of the text, unless None.
            key: Id of the key that decided.

        Raises:
            MissingError: The tenant has none of this id.
            ConflictError: It is decided already.
        """
        with Session(self._engine, expire_on_commit=False) as session, session.begin():
            mine = (ReviewRow.tenant_id == tenant, ReviewRow.id == review)
            changed = session.execute(
                update(ReviewRow)
                .where(*mine, ReviewRow.state == "pending")
                .values(
                    state=state,
                    text=ReviewRow.text if text is None else text,
                    decided_at=utc_now(),
                    decided_by=key,
                )
            )
            row = session.scalar(select(ReviewRow).where(*mine))
            if row is None:
                raise MissingError(f"review {review}: no such review; `reviews list` shows them")
            if changed.rowcount == 0:  # type: ignore[attr-defined]
                raise ConflictError(f"review {review}: is {row.state} already")
            return row

    def reviews(self, tenant: str, state: str) -> Sequence[ReviewRow]:
        """A tenant's reviews in a state, oldest first."""
        with Session(self._engine, expire_on_commit=False) as session:
            rows = select(ReviewRow).where(ReviewRow.tenant_id == tenant, ReviewRow.state == state)
            return session.scalars(rows.order_by(ReviewRow.id).limit(MAX_PENDING_REVIEWS)).all()


class DatabaseMarks:
    """Channel marks that outlive the process; see :class:`handbill.serving.registry.Marks`."""

    def __init__(self, url: str) -> None:
        self._engine = connect(url)

    def read(self, channel: str) -> tuple[int, str]:
        """Serial and digest; (0, "") when never seen."""
        with Session(self._engine) as session:
            row = session.get(MarkRow, channel)
            return (0, "") if row is None else (row.serial, row.digest)

    def write(self, channel: str, serial: int, digest: str) -> None:
        """Remember, durably; an older serial never replaces a newer one."""
        with Session(self._engine) as session, session.begin():
            row = session.get(MarkRow, channel)
            if row is None:
                session.add(MarkRow(channel=channel, serial=serial, digest=digest))
            elif serial >= row.serial:
                row.serial, row.digest = serial, digest


def _live() -> tuple[Any, ...]:
    return (
        KeyRow.revoked_at.is_(None),
        or_(KeyRow.expires_at.is_(None), KeyRow.expires_at > utc_now()),
    )


def _key_state(key: KeyRow) -> str:
    if key.revoked_at is not None:
        return "revoked"
    return "expired" if key.expires_at is not None and key.expires_at <= utc_now() else "live"
