"""The HTTP gateway: OpenAI's endpoints for existing clients, and the product's own.

The tenant comes from the key, never from the body. Text from outside is tokenised without
special tokens (:mod:`handbill.generator.prompts`), so it cannot forge a turn.
"""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final
from uuid import uuid4

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from handbill.generator.claims.checker import check
from handbill.generator.prompts import CopyRequest, plain_ids, render_chat, render_prompt
from handbill.serving import refusals
from handbill.serving.answers import (
    Answer,
    ChatAnswer,
    ClosingStream,
    CompletionAnswer,
    CopyAnswer,
    collect,
    events,
)
from handbill.serving.claims_api import claims_routes
from handbill.serving.errors import BadRequestError, ModelNotFoundError
from handbill.serving.feedback.api import feedback_routes
from handbill.serving.feedback.tracking import Tracking, tracking_of
from handbill.serving.gate import CallerOf, Gate, caller_of
from handbill.serving.gateway import Gateway, Job
from handbill.serving.requests import (
    ChatBody,
    CompletionBody,
    CopyBody,
    Generation,
)

# The words that say that a machine wrote it, by language.
AI_LABELS: Final = {"zh": "AI 生成", "en": "AI-generated"}


def create_app(gateway: Gateway, *, answers_request_id: bool = True) -> FastAPI:
    """Make the app.

    Args:
        gateway: Started and closed with the app.
        answers_request_id: Whether ``x-request-id`` is sent back from here.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        gateway.start()
        yield
        gateway.close()

    # The pages of documentation would load scripts from elsewhere; the schema itself stays.
    app = FastAPI(title="handbill", docs_url=None, redoc_url=None, lifespan=lifespan)
    app.add_middleware(Gate, gateway=gateway, answers_request_id=answers_request_id)
    refusals.install(app)
    app.include_router(claims_routes(gateway))
    app.include_router(feedback_routes(gateway))

    @app.post("/v1/chat/completions")
    async def chat(body: ChatBody, request: Request) -> Response:
        """Continue a conversation."""
        prompt = render_chat(gateway.tokenizer, [message.pair() for message in body.messages])
        return await _respond(gateway, request, ChatAnswer, body, [prompt])

    @app.post("/v1/completions")
    async def complete(body: CompletionBody, request: Request) -> Response:
        """Continue a text."""
        prompts = [plain_ids(gateway.tokenizer, text) for text in body.texts()]
        return await _respond(gateway, request, CompletionAnswer, body, prompts)

    @app.post("/v1/copy")
    async def copy(body: CopyBody, request: Request) -> Response:
        """Write copy for a product, for one shopper or for all."""
        tracking = await run_in_threadpool(tracking_of, gateway, caller_of(request), body)
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
        return await _respond(
            gateway,
            request,
            shape,
            body,
            [prompt],
            product=product,
            review=body.review,
            tracking=tracking,
        )

    @app.get("/v1/models")
    async def models(caller: CallerOf) -> dict[str, Any]:
        """The names the caller may use."""
        return {"object": "list", "data": [_model(name) for name in gateway.models(caller)]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str, caller: CallerOf) -> dict[str, Any]:
        """One of those names."""
        if name not in gateway.models(caller):
            raise ModelNotFoundError
        return _model(name)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> dict[str, Any]:
        """Whether it can write copy."""
        return {"status": "ready", **await gateway.health()}

    return app


async def _respond(
    gateway: Gateway,
    request: Request,
    shape: Callable[..., Answer],
    body: Generation,
    prompts: list[list[int]],
    *,
    product: CopyRequest | None = None,
    review: bool = False,
    tracking: Tracking | None = None,
) -> Response:
    """Run a request and answer it whole or as a stream; copy for a product only if it passes."""
    caller = caller_of(request)
    route = gateway.route(caller, body.model, adapter=tracking.adapter if tracking else "")
    n = body.answers(gateway.config)
    if len(prompts) * max(n, body.num_beams or 1) > gateway.config.max_choices:
        raise BadRequestError(f"prompt: at most {gateway.config.max_choices} answers at once")
    if not all(prompts):
        raise BadRequestError("prompt: is empty", param="prompt")
    sampling = body.sampling(gateway.config, vocabulary=len(gateway.tokenizer))
    house = await run_in_threadpool(gateway.tenants.house.rules, caller.tenant)

    async def keep(text: str) -> int | None:
        facts = {"request": request.state.request, "artifact": route.digest}
        title = product.title if product is not None else ""
        keep_text = partial(gateway.tenants.reviews.keep, title=title, **facts)
        return await run_in_threadpool(keep_text, caller.tenant, text)

    job = Job(
        caller=caller,
        request=request.state.request,
        endpoint=request.url.path,
        route=route,
        prompts=tuple(map(tuple, prompts)),
        n=n,
        sampling=sampling,
        check=partial(check, product=product, house=house),
        attempts=gateway.config.copy_attempts if product is not None else 0,
        keep=keep if review else None,
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
    try:
        if not body.stream:
            return JSONResponse(await collect(answer, pieces))
        # Until the first piece is there, a refusal is still a status and not an event.
        first = await anext(pieces)
    except BaseException:
        await pieces.aclose()
        raise
    return ClosingStream(events(answer, first, pieces, include_usage=body.include_usage))


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": int(time.time()), "owned_by": "handbill"}
