"""What the caller used, and what it may use."""

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool

from handbill.serving.documented import documented
from handbill.serving.gate import MayGenerate
from handbill.serving.gateway import Gateway
from handbill.serving.results import UsageReport


def usage_routes(gateway: Gateway) -> APIRouter:
    """Make the route."""
    routes = APIRouter()

    @routes.get("/v1/usage", **documented(UsageReport, "service", about="Days and limits."))
    async def usage(
        caller: MayGenerate, days: Annotated[int, Query(ge=1, le=366)] = 30
    ) -> dict[str, Any]:
        """What the caller used day by day (UTC), and its limits with what of them is used now."""
        used = partial(gateway.tenants.usage_by_day, caller.tenant, days=days)
        return {
            "object": "usage",
            "days": await run_in_threadpool(used),
            "quotas": await run_in_threadpool(gateway.quotas.show, caller.tenant),
        }

    return routes
