"""Endpoints of feedback and experiments; whoever calls sees and changes its own tenant's only."""

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from handbill.errors import InputError
from handbill.generator.scenarios import Scenarios
from handbill.serving.copy_body import CopyBody
from handbill.serving.documented import documented
from handbill.serving.errors import BadRequestError
from handbill.serving.experiments.design import Design, Variant
from handbill.serving.feedback.bodies import EventsBody, ExperimentBody, ForgetBody, VariantBody
from handbill.serving.feedback.results import (
    Deleted,
    EventPage,
    EventsTaken,
    Experiment,
    ExperimentList,
)
from handbill.serving.feedback.store import MAX_PAGE
from handbill.serving.gate import MayManage, MaySendFeedback
from handbill.serving.gateway import Gateway


def feedback_routes(gateway: Gateway) -> APIRouter:
    """Make the routes."""
    routes = APIRouter()
    feedback = gateway.feedback
    trials = feedback.experiments

    @routes.post(
        "/v1/events",
        **documented(
            EventsTaken,
            "feedback",
            about="What became of each.",
            example={
                "events": [
                    {"id": "evt-1", "copy_id": "hb-5f0c-0", "kind": "click", "shopper": "c7d2"}
                ]
            },
            refusals=("NotFound",),
        ),
    )
    async def take_events(body: EventsBody, caller: MaySendFeedback) -> dict[str, Any]:
        """Take in what shoppers did with copy. A batch counts as an answer."""
        async with gateway.admit(caller.tenant, 1):
            work = partial(feedback.take, caller.tenant, body.events, partial=body.partial)
            taken = await run_in_threadpool(work)
        return {
            "object": "events",
            "accepted": taken.accepted,
            "repeated": taken.repeated,
            "refused": taken.refused,
        }

    @routes.get("/v1/events", **documented(EventPage, "feedback", about="A page."))
    async def export_events(
        caller: MayManage,
        after: Annotated[int, Query(ge=0)] = 0,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 500,
    ) -> dict[str, Any]:
        """A page of the caller's events, in the clear, with the copy they are about."""
        async with gateway.admit(caller.tenant, 1):
            work = partial(feedback.export, caller.tenant, after=after, limit=limit)
            events, following = await run_in_threadpool(work)
        return {"object": "list", "data": events, "next": following or None}

    @routes.delete(
        "/v1/events",
        **documented(
            Deleted, "feedback", about="How much was deleted.", example={"shopper": "c7d2"}
        ),
    )
    async def forget_events(body: ForgetBody, caller: MayManage) -> dict[str, Any]:
        """Delete all that is kept of one shopper, or of all."""
        if body.shopper is None:
            counts = await run_in_threadpool(feedback.forget_tenant, caller.tenant)
        else:
            counts = await run_in_threadpool(feedback.forget_shopper, caller.tenant, body.shopper)
        return {"object": "deletion", **counts}

    @routes.post(
        "/v1/experiments",
        **documented(
            Experiment,
            "experiments",
            status=201,
            about="The experiment.",
            example={
                "name": "tone",
                "variants": [{"name": "plain"}, {"name": "warm", "settings": {"tone": "warm"}}],
            },
        ),
    )
    async def create_experiment(body: ExperimentBody, caller: MayManage) -> dict[str, Any]:
        """Begin an experiment."""
        design = _design(body, gateway, caller.tenant)
        return await run_in_threadpool(trials.create, caller.tenant, design)

    @routes.get(
        "/v1/experiments",
        **documented(ExperimentList, "experiments", about="The experiments."),
    )
    async def list_experiments(caller: MayManage) -> dict[str, Any]:
        """The caller's experiments, without their results."""
        rows = await run_in_threadpool(trials.list, caller.tenant)
        return {"object": "list", "data": rows}

    @routes.get(
        "/v1/experiments/{experiment}",
        **documented(Experiment, "experiments", about="The experiment.", refusals=("NotFound",)),
    )
    async def show_experiment(experiment: str, caller: MayManage) -> dict[str, Any]:
        """One of them, with its result so far. Counts as an answer."""
        async with gateway.admit(caller.tenant, 1):
            return await run_in_threadpool(trials.show, caller.tenant, experiment)

    @routes.post(
        "/v1/experiments/{experiment}/stop",
        **documented(
            Experiment, "experiments", about="The experiment.", refusals=("NotFound", "Conflict")
        ),
    )
    async def stop_experiment(experiment: str, caller: MayManage) -> dict[str, Any]:
        """Stop one; its result stays as it is now."""
        return await run_in_threadpool(trials.stop, caller.tenant, experiment)

    return routes


def _design(body: ExperimentBody, gateway: Gateway, tenant: str) -> Design:
    """An experiment every variant of which could be asked for copy."""
    variants = [
        Variant(name=v.name, settings=v.settings, adapter=v.adapter, share=v.share)
        for v in body.variants
    ]
    for variant in body.variants:
        _check(variant, gateway, gateway.scenarios.of(tenant))
    min_share = body.min_share
    if min_share is None:
        min_share = min(0.05, 1 / max(1, len(variants)))
    return Design(
        name=body.name,
        variants=tuple(variants),
        metric=body.metric,
        allocation=body.allocation,
        min_share=min_share,
        window_hours=body.window_hours,
        alpha=body.alpha,
    )


def _check(variant: VariantBody, gateway: Gateway, scenarios: Scenarios) -> None:
    """Refuse settings that a request for copy would be refused for.

    Raises:
        InputError: Naming the variant and the field.
    """
    try:
        fields = {"title": "a product", "question": "a question", "reviews": ["a review"]}
        copy = CopyBody.model_validate(fields | variant.settings)
        copy.request(scenarios)
        copy.sampling(gateway.config, vocabulary=len(gateway.tokenizer))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"variants: {variant.name}: {where}: {first['msg']}") from None
    except (BadRequestError, InputError) as error:
        raise InputError(f"variants: {variant.name}: {error}") from None
