"""A tenant's batches: made, filled, started, shown, deleted. Rows are locked with the tenant's key.

A row's request is kept until the row has ended; what became of it, until the batch expires.
"""

import secrets
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final
from uuid import uuid4

from pydantic import ValidationError

from handbill.errors import HandbillError
from handbill.serving.batch.repository import BatchRepository
from handbill.serving.batch.tables import BatchRowTable, BatchTable
from handbill.serving.config import ServingConfig
from handbill.serving.copy_body import CopyBody
from handbill.serving.errors import BadRequestError
from handbill.serving.feedback.sealing import Sealing, TenantKeys
from handbill.serving.orm import utc_now
from handbill.serving.tenants import Caller

MAX_UNFINISHED: Final = 20
MAX_ID_CHARS: Final = 128
_LONE: Final = {"stream", "stream_options"}  # mean nothing in a batch


class Batches:
    """The batches of a service's tenants.

    Args:
        repository: An up-to-date serving database.
        sealing: The tenants' keys.
        days: How long results are kept.
        max_rows: Of one batch.
    """

    def __init__(
        self, repository: BatchRepository, sealing: Sealing, *, days: float, max_rows: int
    ) -> None:
        self.repository = repository
        self._sealing = sealing
        self._days = timedelta(days=days)
        self._max_rows = max_rows

    def close(self) -> None:
        """Let go of the database."""
        self.repository.close()

    def make(
        self,
        caller: Caller,
        defaults: Mapping[str, Any],
        rows: Sequence[Mapping[str, Any]],
        *,
        name: str,
        more: bool,
    ) -> dict[str, Any]:
        """Make a batch with its first rows, and start it unless more will come.

        Asked again under the same name, it goes on where it was cut off.

        Raises:
            BadRequestError: A field of ``defaults`` could be in no row, or there are no rows.
            ConflictError: There are too many rows, or too many unfinished batches.
        """
        if not rows and not more:
            raise BadRequestError("rows: a batch needs some, or `more`", param="rows")
        made, new = self.create(caller, defaults, name=name)
        if made["state"] != "open":
            return made
        try:
            if rows:
                made = self.add(caller.tenant, made["id"], 0, rows)
        except HandbillError:
            if new:
                self.repository.delete(caller.tenant, made["id"])
            raise
        return made if more else self.start(caller.tenant, made["id"])

    def create(
        self, caller: Caller, defaults: Mapping[str, Any], *, name: str
    ) -> tuple[dict[str, Any], bool]:
        """Make a batch, or find the one that was made under this name.

        Returns:
            Its facts, and whether it is new.

        Raises:
            BadRequestError: A field of ``defaults`` could be in no row.
            ConflictError: There are too many unfinished ones.
        """
        problem = _problem({"title": "a product", **defaults})
        if problem is not None:
            raise BadRequestError(f"defaults: {problem['message']}", param="defaults")
        made = f"batch-{uuid4().hex[:20]}"
        keys = self._sealing.keys(caller.tenant)
        now = utc_now()
        new = self.repository.add(
            {
                "id": made,
                "tenant_id": caller.tenant,
                "key_id": caller.key,
                "name": name or made,
                "state": "open",
                "reason": "",
                "rows": 0,
                "sealed": keys.seal(dict(defaults), bound_to=made),
                "owner": "",
                "leased_until": 0.0,
                "created_at": now,
                "expires_at": now + self._days,
            },
            most=MAX_UNFINISHED,
        )
        if not new:
            there = self.repository.of_name(caller.tenant, name)
            if there is not None:
                return self._facts(there), False
        return self.show(caller.tenant, made), True

    def add(
        self, tenant: str, batch: str, offset: int, rows: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Add rows from a number on. A row that cannot be is one that failed, not an error here.

        Raises:
            MissingError: The tenant has no such batch.
            ConflictError: Rows are missing before these, or the batch takes no more.
        """
        found = self.repository.batch(tenant, batch)
        keys = self._sealing.keys(tenant)
        defaults = keys.unseal(found.sealed, bound_to=batch)
        table = [
            {"batch_id": batch, "number": number, "tenant_id": tenant}
            | _row(keys, f"{batch}:{number}", row, defaults)
            for number, row in enumerate(rows, start=offset)
        ]
        self.repository.add_rows(tenant, batch, table, most=self._max_rows)
        return self.show(tenant, batch)

    def start(self, tenant: str, batch: str) -> dict[str, Any]:
        """Say that a batch has all its rows.

        Raises:
            MissingError: The tenant has no such batch.
            BadRequestError: It has none.
        """
        if not self.repository.batch(tenant, batch).rows:
            raise BadRequestError("rows: a batch without rows cannot be started", param="rows")
        self.repository.start(tenant, batch)
        return self.show(tenant, batch)

    def show(self, tenant: str, batch: str) -> dict[str, Any]:
        """How far a batch is.

        Raises:
            MissingError: The tenant has no such batch.
        """
        return self._facts(self.repository.batch(tenant, batch))

    def list(self, tenant: str) -> list[dict[str, Any]]:
        """A tenant's batches, oldest first."""
        return [self._facts(row) for row in self.repository.batches(tenant)]

    def results(
        self, tenant: str, batch: str, *, after: int, limit: int
    ) -> tuple[Sequence[dict[str, Any]], int | None]:
        """Rows that have ended, by number, and what to go on after.

        Raises:
            MissingError: The tenant has no such batch.
        """
        self.repository.batch(tenant, batch)
        keys = self._sealing.keys(tenant)
        rows = self.repository.ended(tenant, batch, after=after, limit=limit)
        facts = [
            {"row": row.number, **(keys.opened(row.sealed, bound_to=_bound(row)) or {"id": ""})}
            for row in rows
        ]
        return facts, rows[-1].number if len(rows) == limit else None

    def delete(self, tenant: str, batch: str) -> None:
        """Stop a batch and delete all of it.

        Raises:
            MissingError: The tenant has no such batch.
        """
        self.repository.batch(tenant, batch)
        self.repository.delete(tenant, batch)

    def tidy(self) -> None:
        """Delete what has expired."""
        self.repository.purge(utc_now())

    def request(self, row: BatchRowTable) -> dict[str, Any] | None:
        """A row's request; None when its tenant's key was destroyed."""
        return self._sealing.keys(row.tenant_id).opened(row.sealed, bound_to=_bound(row))

    def end(self, row: BatchRowTable, facts: Mapping[str, Any]) -> None:
        """Keep what became of a row in its request's place."""
        keys = self._sealing.keys(row.tenant_id)
        self.repository.end_row(
            row.batch_id,
            row.number,
            state="written" if "result" in facts else "failed",
            sealed=keys.seal(dict(facts), bound_to=_bound(row)),
        )

    def finish(self, batch: str) -> None:
        """End a batch if all its rows have."""
        self.repository.finish(batch, expires_at=utc_now() + self._days)

    def _facts(self, row: BatchTable) -> dict[str, Any]:
        counts = self.repository.counts(row.id)
        return {
            "object": "batch",
            "id": row.id,
            "key": row.name if row.name != row.id else "",
            "state": "waiting" if row.state == "running" and row.reason else row.state,
            "reason": row.reason,
            "rows": row.rows,
            "written": counts.get("written", 0),
            "failed": counts.get("failed", 0),
            "created": row.created_at.isoformat(),
            "finished": row.finished_at.isoformat() if row.finished_at else None,
            "expires": row.expires_at.isoformat(),
        }


def open_batches(config: ServingConfig) -> Batches:
    """Open a service's batches; its database is up to date already."""
    return Batches(
        BatchRepository(config.url),
        Sealing(config.state, config.feedback_kek),
        days=config.batch_days,
        max_rows=config.batch_max_rows,
    )


def _bound(row: BatchRowTable) -> str:
    return f"{row.batch_id}:{row.number}"


def _row(
    keys: TenantKeys, bound_to: str, row: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    name = row.get("id", "")
    # With its seed, so that a row that is written again after a crash says the same.
    request = {"seed": secrets.randbits(63), **defaults, **row}
    request.pop("id", None)
    named = isinstance(name, str) and len(name) <= MAX_ID_CHARS
    problem = _problem(request) if named else _wrong("id", f"not a text of {MAX_ID_CHARS} letters")
    facts = {"id": name if named else ""}
    facts |= {"request": request} if problem is None else {"error": problem}
    state = "waiting" if problem is None else "failed"
    return {"state": state, "sealed": keys.seal(facts, bound_to=bound_to)}


def _problem(request: Mapping[str, Any]) -> dict[str, Any] | None:
    """Why a request can never be answered, as far as its fields alone say it."""
    alone = sorted(_LONE & {name for name, value in request.items() if value})
    if alone:
        return _wrong(alone[0], "has no meaning in a batch")
    try:
        CopyBody.model_validate(dict(request))
    except ValidationError as error:
        first = error.errors()[0]
        return _wrong(".".join(map(str, first["loc"])), first["msg"])
    return None


def _wrong(field: str, words: str) -> dict[str, Any]:
    kind, code = BadRequestError.kind, BadRequestError.code
    return {"message": f"{field}: {words}", "type": kind, "param": field, "code": code}
