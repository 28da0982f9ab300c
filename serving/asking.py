"""From a request's body to an answer that is being written, for one request or a row of a batch."""

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from functools import partial
from typing import Final
from uuid import uuid4

from starlette.concurrency import run_in_threadpool

from handbill.generator.claims.checker import Finding, check
from handbill.generator.prompts import fit_prompt
from handbill.generator.scenario_rules import check_scenario, facts_of
from handbill.serving.answers import Answer, CopyAnswer, Piece
from handbill.serving.copy_body import CopyBody
from handbill.serving.errors import BadRequestError
from handbill.serving.feedback.tracking import Tracking, tracking_of
from handbill.serving.finishing import Finishing, check_polish
from handbill.serving.gateway import Gateway, Job
from handbill.serving.requests import Generation
from handbill.serving.tenants import Caller

# The words that say that a machine wrote it, by language.
AI_LABELS: Final = {"zh": "AI 生成", "en": "AI-generated"}

Begun = tuple[Answer, AsyncGenerator[Piece, None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Who asks, and under which id.

    Attributes:
        background: It is a row of a batch, which waits for room.
    """

    caller: Caller
    request: str
    endpoint: str
    background: bool = False


async def begin_copy(gateway: Gateway, asked: Asked, body: CopyBody) -> Begun:
    """Begin copy for a product, for one shopper or for all."""
    tracking = await run_in_threadpool(tracking_of, gateway, asked.caller, body)
    body = tracking.body
    if body.explain and not gateway.config.explains:
        raise BadRequestError(
            "explain: this service's engine does not score texts; leave it out", param="explain"
        )
    scenarios = gateway.scenarios.of(asked.caller.tenant)
    product = body.request(scenarios)
    check_polish(body, scenarios)
    prompt = fit_prompt(
        gateway.tokenizer,
        product,
        max_tokens=gateway.config.max_prompt_tokens,
        scenarios=scenarios,
    )
    label = AI_LABELS.get(product.language.partition("-")[0], AI_LABELS["en"])
    shape = partial(
        CopyAnswer,
        label=label,
        label_place=body.label,
        experiment=tracking.trial,
        tracked=gateway.feedback.kept,
    )
    house = await run_in_threadpool(gateway.tenants.house.rules, asked.caller.tenant)
    known = facts_of(product, scenarios=scenarios)

    def check_copy(text: str) -> list[Finding]:
        found = [
            *check(text, product=known, house=house),
            *check_scenario(text, product, scenarios=scenarios),
        ]
        return sorted(found, key=lambda one: one.start)

    finishing = Finishing(
        body=body,
        product=product,
        prompt=prompt,
        scenarios=scenarios,
        engine=gateway.engine,
        tokenizer=gateway.tokenizer,
        sentiment=await run_in_threadpool(lambda: gateway.sentiment) if body.candidates else None,
        check=check_copy,
    )
    return await begin(
        gateway,
        asked,
        shape,
        body,
        [prompt.ids(gateway.tokenizer)],
        finishing=finishing,
        review=body.review,
        tracking=tracking,
    )


async def begin(
    gateway: Gateway,
    asked: Asked,
    shape: Callable[..., Answer],
    body: Generation,
    prompts: list[list[int]],
    *,
    finishing: Finishing | None = None,
    review: bool = False,
    tracking: Tracking | None = None,
) -> Begun:
    """Begin an answer and its pieces; copy for a product only if it passes the check."""
    caller = asked.caller
    route = gateway.route(
        caller,
        body.model,
        who=body.written_for or asked.request,
        adapter=tracking.adapter if tracking else "",
    )
    n = body.answers(gateway.config)
    candidates = finishing.body.rows(gateway.config) if finishing else 0
    if len(prompts) * max(n, body.num_beams or 1) > gateway.config.max_choices:
        raise BadRequestError(f"prompt: at most {gateway.config.max_choices} answers at once")
    if not all(prompts):
        raise BadRequestError("prompt: is empty", param="prompt")
    sampling = body.sampling(
        gateway.config,
        vocabulary=len(gateway.tokenizer),
        tokens=finishing.usual_tokens if finishing else 64,
    )
    finish = None
    if finishing is not None:
        gateway.scenarios.compare(caller.tenant, finishing.scenarios, route)
        sampling = finishing.guided(sampling)
        check_text = finishing.check
        finish = partial(finishing.finished, tenant=caller.tenant, adapter=route.adapter)
    else:
        house = await run_in_threadpool(gateway.tenants.house.rules, caller.tenant)
        check_text = partial(check, house=house)

    async def keep(text: str) -> int | None:
        facts = {"request": asked.request, "artifact": route.digest}
        title = finishing.product.title if finishing is not None else ""
        keep_text = partial(gateway.tenants.reviews.keep, title=title, **facts)
        return await run_in_threadpool(keep_text, caller.tenant, text)

    job = Job(
        caller=caller,
        request=asked.request,
        endpoint=asked.endpoint,
        route=route,
        prompts=tuple(map(tuple, prompts)),
        n=n,
        sampling=sampling,
        check=check_text,
        attempts=gateway.config.copy_attempts if finishing is not None else 0,
        keep=keep if review else None,
        candidates=candidates,
        choose=finishing.chosen if candidates and finishing is not None else None,
        finish=finish,
        covers=finishing.covers if finishing is not None else None,
        finish_tokens=finishing.most_tokens(
            prompt=sum(map(len, prompts)), answers=n, longest=sampling.max_tokens
        )
        if finishing is not None
        else 0,
        background=asked.background,
    )
    answer = shape(
        id=f"hb-{uuid4().hex}",
        model=body.model,
        version=route.digest,
        fingerprint=route.fingerprint,
        n=job.answers,
        prompt_tokens=job.prompt_tokens,
    )
    pieces = gateway.run(job)
    if tracking is not None and isinstance(answer, CopyAnswer):
        pieces = tracking.kept(pieces, answer)
    return answer, pieces
