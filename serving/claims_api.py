"""Endpoints around the check of copy: texts, a tenant's own rules, its review queue."""

from functools import partial
from typing import Any

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool

from handbill.generator.claims.checker import blocks, check
from handbill.serving.gate import CallerOf
from handbill.serving.gateway import Gateway
from handbill.serving.requests import CheckBody, DecisionBody, HouseRuleBody


def claims_routes(gateway: Gateway) -> APIRouter:
    """Make the routes; whoever calls sees and changes its own tenant's only."""
    routes = APIRouter()
    house, queue = gateway.tenants.house, gateway.tenants.reviews

    @routes.post("/v1/check")
    async def check_text(body: CheckBody, caller: CallerOf) -> dict[str, Any]:
        """What is wrong with a text, by the rules and the caller's own. Counts as an answer."""
        with gateway.limits.admit(caller.tenant, 1):
            mine = await run_in_threadpool(house.rules, caller.tenant)
            work = partial(check, body.text, product=body.product(), house=mine)
            findings = await run_in_threadpool(work)
        facts = [finding.facts(body.text) for finding in findings]
        return {"object": "check", "blocked": blocks(findings), "findings": facts}

    @routes.get("/v1/claims")
    async def house_rules(caller: CallerOf) -> dict[str, Any]:
        """The caller's house rules."""
        rules = await run_in_threadpool(house.list, caller.tenant)
        return {"object": "list", "data": rules}

    @routes.post("/v1/claims", status_code=201)
    async def add_house_rule(body: HouseRuleBody, caller: CallerOf) -> dict[str, Any]:
        """Attach substantiation, or name a brand or a text that copy may not hold."""
        add = house.add
        made = await run_in_threadpool(add, caller.tenant, body.kind, body.value, body.evidence)
        return {"object": "house_rule", "id": made}

    @routes.delete("/v1/claims/{rule}", status_code=204)
    async def remove_house_rule(rule: int, caller: CallerOf) -> None:
        """Take one of them away."""
        await run_in_threadpool(house.remove, caller.tenant, rule)

    @routes.get("/v1/reviews")
    async def reviews(caller: CallerOf, state: str = "pending") -> dict[str, Any]:
        """The caller's texts in a state."""
        rows = await run_in_threadpool(queue.list, caller.tenant, state)
        return {"object": "list", "data": rows}

    @routes.post("/v1/reviews/{review}")
    async def decide(review: int, body: DecisionBody, caller: CallerOf) -> dict[str, Any]:
        """Approve, edit or reject one."""
        work = partial(queue.decide, text=body.text, key=caller.key)
        return await run_in_threadpool(work, caller.tenant, review, body.decision)

    return routes
