"""From a request's body to an answer that is being written, for one request or a row of a batch."""

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from functools import partial
from typing import Final
from uuid import uuid4

from starlette.concurrency import run_in_threadpool

from handbill.generator.claims.checker import check
from handbill.generator.prompts import CopyRequest, render_prompt
from handbill.serving.answers import Answer, CopyAnswer, Piece
from handbill.serving.errors import BadRequestError
from handbill.serving.feedback.tracking import Tracking, tracking_of
from handbill.serving.gateway import Gateway, Job
from handbill.serving.requests import CopyBody, Generation
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
    room = gateway.config.max_prompt_tokens
    product = body.request()
    prompt = render_prompt(gateway.tokenizer, product, max_tokens=room)
    label = AI_LABELS.get(product.language.partition("-")[0], AI_LABELS["en"])
    shape = partial(
        CopyAnswer,
        label=label,
        label_place=body.label,
        experiment=tracking.trial,
        tracked=gateway.feedback.kept,
    )
    return await begin(
        gateway,
        asked,
        shape,
        body,
        [prompt],
        product=product,
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
    product: CopyRequest | None = None,
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
    if len(prompts) * max(n, body.num_beams or 1) > gateway.config.max_choices:
        raise BadRequestError(f"prompt: at most {gateway.config.max_choices} answers at once")
    if not all(prompts):
        raise BadRequestError("prompt: is empty", param="prompt")
    sampling = body.sampling(gateway.config, vocabulary=len(gateway.tokenizer))
    house = await run_in_threadpool(gateway.tenants.house.rules, caller.tenant)

    async def keep(text: str) -> int | None:
        facts = {"request": asked.request, "artifact": route.digest}
        title = product.title if product is not None else ""
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
        check=partial(check, product=product, house=house),
        attempts=gateway.config.copy_attempts if product is not None else 0,
        keep=keep if review else None,
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
