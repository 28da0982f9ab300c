"""Endpoints of batches; whoever calls sees and changes its own tenant's only."""

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool

from handbill.serving.batch.bodies import BatchBody, RowsBody
from handbill.serving.batch.results import Batch, BatchList, BatchResults
from handbill.serving.batch.store import Batches
from handbill.serving.documented import documented
from handbill.serving.gate import MayGenerate
from handbill.serving.gateway import Gateway

MAX_PAGE = 500


def batch_routes(gateway: Gateway, batches: Batches) -> APIRouter:
    """Make the routes."""
    routes = APIRouter()

    @routes.post(
        "/v1/copy/batch",
        **documented(
            Batch,
            "batches",
            status=201,
            about="The batch.",
            example={
                "defaults": {"scenario": "ad_headline"},
                "rows": [{"id": "sku-1", "title": "Oak desk lamp"}, {"title": "Wool blanket"}],
            },
            refusals=("Conflict",),
        ),
    )
    async def create_batch(body: BatchBody, caller: MayGenerate) -> dict[str, Any]:
        """Make a job of many requests for copy. They are written when there is room beside live requests.

        Rows count against the tokens of the day and the month, and against no other limit. A row that
        cannot be written is a result with an error. Results are kept for some days, locked.
        """
        make = partial(
            batches.make, caller, body.defaults, body.rows, name=body.key, more=body.more
        )
        async with gateway.admit(caller.tenant, 1):
            return await run_in_threadpool(make)

    @routes.get("/v1/copy/batch", **documented(BatchList, "batches", about="The batches."))
    async def list_batches(caller: MayGenerate) -> dict[str, Any]:
        """The caller's batches, oldest first."""
        rows = await run_in_threadpool(batches.list, caller.tenant)
        return {"object": "list", "data": rows}

    @routes.get(
        "/v1/copy/batch/{batch}",
        **documented(Batch, "batches", about="The batch.", refusals=("NotFound",)),
    )
    async def show_batch(batch: str, caller: MayGenerate) -> dict[str, Any]:
        """How far a batch is."""
        return await run_in_threadpool(batches.show, caller.tenant, batch)

    @routes.post(
        "/v1/copy/batch/{batch}/rows",
        **documented(
            Batch,
            "batches",
            about="The batch.",
            example={"offset": 2, "rows": [{"title": "Linen shirt"}]},
            refusals=("NotFound", "Conflict"),
        ),
    )
    async def add_rows(batch: str, body: RowsBody, caller: MayGenerate) -> dict[str, Any]:
        """Add rows to a batch that was made with `more`. Sent again, nothing changes."""
        async with gateway.admit(caller.tenant, 1):
            add = partial(batches.add, caller.tenant, batch, body.offset, body.rows)
            return await run_in_threadpool(add)

    @routes.post(
        "/v1/copy/batch/{batch}/start",
        **documented(Batch, "batches", about="The batch.", refusals=("NotFound",)),
    )
    async def start_batch(batch: str, caller: MayGenerate) -> dict[str, Any]:
        """Say that a batch has all its rows."""
        return await run_in_threadpool(batches.start, caller.tenant, batch)

    @routes.get(
        "/v1/copy/batch/{batch}/results",
        **documented(BatchResults, "batches", about="A page.", refusals=("NotFound",)),
    )
    async def batch_results(
        batch: str,
        caller: MayGenerate,
        after: Annotated[int, Query(ge=-1, lt=2**31)] = -1,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
    ) -> dict[str, Any]:
        """A page of the rows that have ended, by number."""
        read = partial(batches.results, caller.tenant, batch, after=after, limit=limit)
        async with gateway.admit(caller.tenant, 1):
            rows, following = await run_in_threadpool(read)
        return {"object": "list", "data": rows, "next": following}

    @routes.delete(
        "/v1/copy/batch/{batch}",
        **documented(None, "batches", status=204, about="It is gone.", refusals=("NotFound",)),
    )
    async def delete_batch(batch: str, caller: MayGenerate) -> None:
        """Stop a batch and delete its rows and results."""
        await run_in_threadpool(batches.delete, caller.tenant, batch)

    return routes
