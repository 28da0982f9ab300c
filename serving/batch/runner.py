"""Writes batches when there is room beside live requests.

Every gateway has one. A batch belongs to the gateway that holds its lease; when that dies, another
takes it after :data:`LEASE_S` and goes on with the rows that have not ended. Rows of a batch take
at most ``batch_rows`` of the engine's, fewer when live requests run, and none while one waits.
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final
from uuid import uuid4

from handbill.errors import HandbillError
from handbill.serving.answers import collect
from handbill.serving.asking import Asked, begin_copy
from handbill.serving.batch.store import Batches
from handbill.serving.batch.tables import BatchRowTable, BatchTable
from handbill.serving.copy_body import CopyBody
from handbill.serving.errors import RateLimitError, UnavailableError
from handbill.serving.gateway import Gateway
from handbill.serving.refusals import error_body

log = logging.getLogger(__name__)

LEASE_S: Final = 10.0
ENDPOINT: Final = "/v1/copy/batch"
_LOOK_S: Final = 0.5
_TIDY_S: Final = 600.0
_READ_AHEAD: Final = 32
_LONGEST_PAUSE_S: Final = 60.0
_ATTEMPTS: Final = (
    3  # at a row that fails for no known reason: a full disk passes, a fault does not
)


@dataclass(slots=True)
class _Work:
    """A batch this gateway writes."""

    batch: BatchTable
    rows: deque[BatchRowTable] = field(default_factory=deque)
    writing: set[int] = field(default_factory=set)
    broke: Counter[int] = field(default_factory=Counter)  # times a row failed for no known reason
    paused_until: float = 0.0
    paused_at: float = 0.0
    pause_s: float = 1.0

    def pause(self, seconds: float) -> None:
        """Let it wait; rows that were read are read again."""
        self.paused_at = time.monotonic()
        self.paused_until = self.paused_at + min(seconds, _LONGEST_PAUSE_S)
        self.pause_s = min(2 * self.pause_s, _LONGEST_PAUSE_S)
        self.rows.clear()


class BatchRunner:
    """Writes the rows of a service's batches.

    Args:
        gateway: Writes one row.
        batches: Where they are kept.
    """

    def __init__(self, gateway: Gateway, batches: Batches) -> None:
        self._gateway = gateway
        self._batches = batches
        self._owner = uuid4().hex
        self._works: dict[str, _Work] = {}
        self._turn: deque[str] = deque()  # tenants: each its turn
        self._tasks: dict[asyncio.Task[None], int] = {}  # with the engine's rows each takes
        self._main: asyncio.Task[None] | None = None
        self._looked_s = self._tidied_s = -1e9

    def start(self) -> None:
        """Begin, on the running event loop."""
        self._main = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stop, and leave what is not done to others."""
        tasks = [*self._tasks, *([self._main] if self._main else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(Exception):  # the database may be gone; the lease then runs out
            await asyncio.to_thread(self._batches.repository.release, self._owner)

    async def _run(self) -> None:
        while True:
            try:
                await self._look()
                await self._fill(await self._room())
            except UnavailableError:
                pass  # the engine is starting again
            except Exception as error:  # noqa: BLE001 - a full disk, say; the next time may work
                log.error("batches_held_up", extra={"error": type(error).__name__})  # noqa: TRY400
            if self._tasks:
                await asyncio.wait(
                    self._tasks, timeout=_LOOK_S, return_when=asyncio.FIRST_COMPLETED
                )
            else:
                await asyncio.sleep(_LOOK_S)

    async def _look(self) -> None:
        """Take batches, keep the lease of those that are written, delete what has expired."""
        now_s = time.monotonic()
        if now_s - self._tidied_s > _TIDY_S:
            self._tidied_s = now_s
            await asyncio.to_thread(self._batches.tidy)
        if now_s - self._looked_s < _LOOK_S:
            return
        self._looked_s = now_s
        now = time.time()
        lease = partial(self._batches.repository.lease, now=now, until=now + LEASE_S)
        found = {batch.id: batch for batch in await asyncio.to_thread(lease, self._owner)}
        # A batch that is not there any more was deleted, or taken when this process was asleep.
        self._works = {name: work for name, work in self._works.items() if name in found}
        for name, batch in found.items():
            self._works.setdefault(name, _Work(batch))
        tenants = {work.batch.tenant_id for work in self._works.values()}
        self._turn = deque([t for t in self._turn if t in tenants])
        self._turn.extend(sorted(tenants - set(self._turn)))

    async def _room(self) -> int:
        """Rows of the engine's that batches may take now, beside those they have."""
        if not self._works:
            return 0
        stats = await self._gateway.engine_stats()
        mine = sum(self._tasks.values())
        others = max(0, stats.running + stats.waiting - mine)
        config = self._gateway.config
        return min(config.batch_rows, config.max_batch - others) - mine

    async def _fill(self, room: int) -> None:
        """Begin rows, a tenant's turn after the other's, as long as there is room."""
        begun = True
        while room > 0 and begun:
            begun = False
            for _ in range(len(self._turn)):
                self._turn.rotate(-1)
                row = await self._next(self._turn[-1])
                if row is None:
                    continue
                begun = True
                room -= await self._begin(*row)
                if room <= 0:
                    break

    async def _next(self, tenant: str) -> tuple[_Work, BatchRowTable] | None:
        """The next row of a tenant's oldest batch that can go on."""
        now_s = time.monotonic()
        for work in [w for w in self._works.values() if w.batch.tenant_id == tenant]:
            if work.paused_until > now_s:
                continue
            # As it is when the rows are looked up: one that fails meanwhile is not done.
            writing = set(work.writing)
            if not work.rows:
                waiting = partial(
                    self._batches.repository.waiting, without=writing, limit=_READ_AHEAD
                )
                work.rows.extend(await asyncio.to_thread(waiting, work.batch.id))
            if work.rows:
                return work, work.rows.popleft()
            if not writing:
                await asyncio.to_thread(self._batches.finish, work.batch.id)
                self._works.pop(work.batch.id, None)
        return None

    async def _begin(self, work: _Work, row: BatchRowTable) -> int:
        facts = await asyncio.to_thread(self._batches.request, row)
        request = (facts or {}).get("request", {})
        wide = ("n", "candidates", "num_beams")
        rows = max(1, *(request.get(name) or 1 for name in wide))
        work.writing.add(row.number)
        task = asyncio.create_task(self._write(work, row, facts))
        self._tasks[task] = rows
        task.add_done_callback(lambda done: self._tasks.pop(done, None))
        return rows

    async def _write(self, work: _Work, row: BatchRowTable, facts: dict[str, Any] | None) -> None:
        """Write one row and keep what became of it; or leave it for later."""
        begun_s = time.monotonic()
        try:
            if facts is None:
                outcome: dict[str, Any] = {"id": "", "error": _UNREADABLE}
            else:
                outcome = {"id": facts["id"], **await self._answer(work, row, facts["request"])}
            await asyncio.to_thread(self._batches.end, row, outcome)
            if work.batch.reason and begun_s > work.paused_at:  # it goes on again
                work.pause_s, work.batch.reason = 1.0, ""
                await asyncio.to_thread(self._batches.repository.say, row.batch_id, "")
        except (RateLimitError, UnavailableError) as error:
            wait_s = error.retry_after_s if isinstance(error, RateLimitError) else work.pause_s
            work.pause(wait_s)
            work.batch.reason = str(error)[:200]
            say = self._batches.repository.say
            await asyncio.to_thread(say, row.batch_id, work.batch.reason)
        except Exception as error:  # noqa: BLE001 - the disk, say: the row is written again later
            log.error("batch_row_held_up", extra={"error": type(error).__name__})  # noqa: TRY400
            work.pause(work.pause_s)
        finally:
            work.writing.discard(row.number)

    async def _answer(
        self, work: _Work, row: BatchRowTable, request: dict[str, Any]
    ) -> dict[str, Any]:
        """A row's copy, or why there is none.

        Raises:
            RateLimitError: The tenant's quota is used up for now.
            UnavailableError: The engine or the adapter cannot be used now.
            Exception: No known reason, and it has not been tried often enough.
        """
        caller = await asyncio.to_thread(self._gateway.tenants.holder, work.batch.key_id)
        if caller is None:  # looked up for each row: a key ends what was begun with it, too
            return {"error": _KEY_ENDED}
        asked = Asked(
            caller=caller,
            request=f"{row.batch_id}-{row.number}",
            endpoint=ENDPOINT,
            background=True,
        )
        try:
            body = CopyBody.model_validate(request)
            answer, pieces = await begin_copy(self._gateway, asked, body)
            try:
                return {"result": await collect(answer, pieces)}
            finally:
                await pieces.aclose()
        except HandbillError as error:
            status, refusal, _ = error_body(error)
            if isinstance(error, RateLimitError):
                raise
            if status == UnavailableError.status_code:
                raise UnavailableError(refusal["error"]["message"]) from error
            return {"error": refusal["error"]}
        except Exception as error:  # one row must not hold up the others
            work.broke[row.number] += 1
            if work.broke[row.number] < _ATTEMPTS:
                raise
            log.error("batch_row_broke", extra={"error": type(error).__name__})  # noqa: TRY400
            return {"error": _BROKEN}


_UNREADABLE: Final = {
    "message": "The key this row was locked with was destroyed.",
    "type": "invalid_request_error",
    "param": None,
    "code": "unreadable",
}
_KEY_ENDED: Final = {
    "message": "The API key this batch was made with was revoked or has expired.",
    "type": "authentication_error",
    "param": None,
    "code": "invalid_api_key",
}
_BROKEN: Final = {
    "message": "Internal error.",
    "type": "server_error",
    "param": None,
    "code": "internal_error",
}
