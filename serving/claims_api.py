"""Endpoints around the check of copy: texts, a tenant's own rules, its review queue."""

from functools import partial
from typing import Any, Literal

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool

from handbill.generator.claims.checker import blocks, check
from handbill.serving.documented import documented
from handbill.serving.gate import MayGenerate, MayManage
from handbill.serving.gateway import Gateway
from handbill.serving.requests import CheckBody, DecisionBody, HouseRuleBody
from handbill.serving.results import CheckResult, HouseRuleList, HouseRuleMade, Review, ReviewList

State = Literal["pending", "approved", "edited", "rejected"]


def claims_routes(gateway: Gateway) -> APIRouter:
    """Make the routes; whoever calls sees and changes its own tenant's only."""
    routes = APIRouter()
    house, queue = gateway.tenants.house, gateway.tenants.reviews

    @routes.post(
        "/v1/check",
        **documented(
            CheckResult,
            "claims",
            about="What was found.",
            example={"text": "The best lamp in the world.", "title": "Oak desk lamp"},
        ),
    )
    async def check_text(body: CheckBody, caller: MayGenerate) -> dict[str, Any]:
        """What is wrong with a text, by the rules and the caller's own. Counts as an answer."""
        async with gateway.admit(caller.tenant, 1):
            mine = await run_in_threadpool(house.rules, caller.tenant)
            work = partial(check, body.text, product=body.product(), house=mine)
            findings = await run_in_threadpool(work)
        facts = [finding.facts(body.text) for finding in findings]
        return {"object": "check", "blocked": blocks(findings), "findings": facts}

    @routes.get("/v1/claims", **documented(HouseRuleList, "claims", about="The rules."))
    async def house_rules(caller: MayManage) -> dict[str, Any]:
        """The caller's house rules."""
        rules = await run_in_threadpool(house.list, caller.tenant)
        return {"object": "list", "data": rules}

    @routes.post(
        "/v1/claims",
        **documented(
            HouseRuleMade,
            "claims",
            status=201,
            about="The rule's number.",
            example={"kind": "brand", "value": "Lumora"},
        ),
    )
    async def add_house_rule(body: HouseRuleBody, caller: MayManage) -> dict[str, Any]:
        """Attach substantiation, or name a brand or a text that copy may not hold."""
        add = house.add
        made = await run_in_threadpool(add, caller.tenant, body.kind, body.value, body.evidence)
        return {"object": "house_rule", "id": made}

    @routes.delete(
        "/v1/claims/{rule}",
        **documented(None, "claims", status=204, about="It is gone.", refusals=("NotFound",)),
    )
    async def remove_house_rule(rule: int, caller: MayManage) -> None:
        """Take one of them away."""
        await run_in_threadpool(house.remove, caller.tenant, rule)

    @routes.get("/v1/reviews", **documented(ReviewList, "claims", about="The texts."))
    async def reviews(caller: MayManage, state: State = "pending") -> dict[str, Any]:
        """The caller's texts in a state."""
        rows = await run_in_threadpool(queue.list, caller.tenant, state)
        return {"object": "list", "data": rows}

    @routes.post(
        "/v1/reviews/{review}",
        **documented(
            Review,
            "claims",
            about="The text as it is now.",
            example={"decision": "approve"},
            refusals=("NotFound", "Conflict"),
        ),
    )
    async def decide(review: int, body: DecisionBody, caller: MayManage) -> dict[str, Any]:
        """Approve, edit or reject one."""
        work = partial(queue.decide, text=body.text, key=caller.key)
        return await run_in_threadpool(work, caller.tenant, review, body.decision)

    return routes
