"""The HTTP gateway: OpenAI's endpoints for existing clients, and the product's own.

The tenant comes from the key, never from the body. Text from outside is tokenised without
special tokens (:mod:`handbill.generator.prompts`), so it cannot forge a turn.
"""

import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from handbill.generator.prompts import plain_ids, render_chat
from handbill.serving import openapi, refusals
from handbill.serving.answers import (
    Answer,
    ChatAnswer,
    ClosingStream,
    CompletionAnswer,
    Piece,
    collect,
    events,
)
from handbill.serving.asking import Asked, begin, begin_copy
from handbill.serving.batch.api import batch_routes
from handbill.serving.batch.runner import BatchRunner
from handbill.serving.claims_api import claims_routes
from handbill.serving.copy_body import CopyBody
from handbill.serving.copy_results import CopyResult
from handbill.serving.documented import documented
from handbill.serving.errors import ModelNotFoundError
from handbill.serving.feedback.api import feedback_routes
from handbill.serving.gate import Gate, MayGenerate
from handbill.serving.gateway import Gateway
from handbill.serving.requests import ChatBody, CompletionBody, Generation
from handbill.serving.results import (
    ChatCompletion,
    Health,
    Model,
    ModelList,
    Readiness,
    TextCompletion,
)
from handbill.serving.usage_api import usage_routes


def create_app(gateway: Gateway, *, answers_request_id: bool = True) -> FastAPI:
    """Make the app.

    Args:
        gateway: Started and closed with the app.
        answers_request_id: Whether ``x-request-id`` is sent back from here.
    """
    runner = BatchRunner(gateway, gateway.batches)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        gateway.start()
        runner.start()
        yield
        await runner.stop()
        gateway.close()

    # The pages of documentation would load scripts from elsewhere; the schema itself stays.
    app = FastAPI(
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.reports = gateway.reports
    app.add_middleware(Gate, gateway=gateway, answers_request_id=answers_request_id)
    app.add_middleware(refusals.Unexpected)  # the outermost
    refusals.install(app)
    openapi.complete(app, gateway.config)
    app.include_router(claims_routes(gateway))
    app.include_router(feedback_routes(gateway))
    app.include_router(usage_routes(gateway))
    app.include_router(batch_routes(gateway, gateway.batches))

    @app.post(
        "/v1/chat/completions",
        **documented(
            ChatCompletion,
            "openai",
            about="The answers, or with `stream` a stream of chunks.",
            example={
                "messages": [{"role": "user", "content": "Two uses for an oak desk lamp?"}],
                "max_tokens": 60,
            },
            stream=True,
            refusals=("NotFound",),
        ),
    )
    async def chat(body: ChatBody, request: Request, caller: MayGenerate) -> Response:
        """Continue a conversation."""
        prompt = render_chat(gateway.tokenizer, [message.pair() for message in body.messages])
        asked = Asked(caller=caller, request=request.state.request, endpoint=request.url.path)
        return await _respond(body, *await begin(gateway, asked, ChatAnswer, body, [prompt]))

    @app.post(
        "/v1/completions",
        **documented(
            TextCompletion,
            "openai",
            about="The answers, or with `stream` a stream of chunks.",
            example={"prompt": "A lamp for late readers:", "max_tokens": 40},
            stream=True,
            refusals=("NotFound",),
        ),
    )
    async def complete(body: CompletionBody, request: Request, caller: MayGenerate) -> Response:
        """Continue a text."""
        prompts = [plain_ids(gateway.tokenizer, text) for text in body.texts()]
        asked = Asked(caller=caller, request=request.state.request, endpoint=request.url.path)
        return await _respond(body, *await begin(gateway, asked, CompletionAnswer, body, prompts))

    @app.post(
        "/v1/copy",
        **documented(
            CopyResult,
            "copy",
            about="The copy that passed the check, or with `stream` each piece as an event.",
            example={
                "title": "Oak desk lamp",
                "description": "Warm light, dimmer, 40 cm",
                "shopper": "reads at night",
                "n": 2,
            },
            stream=True,
            refusals=("NotFound", "Conflict", "Blocked"),
        ),
    )
    async def copy(body: CopyBody, request: Request, caller: MayGenerate) -> Response:
        """Write copy for a product, for one shopper or for all."""
        asked = Asked(caller=caller, request=request.state.request, endpoint=request.url.path)
        return await _respond(body, *await begin_copy(gateway, asked, body))

    @app.get("/v1/models", **documented(ModelList, "openai", about="The names."))
    async def models(caller: MayGenerate) -> dict[str, Any]:
        """The names the caller may use."""
        return {"object": "list", "data": [_model(name) for name in gateway.models(caller)]}

    @app.get(
        "/v1/models/{name:path}",
        **documented(Model, "openai", about="The name.", refusals=("NotFound",)),
    )
    async def model(name: str, caller: MayGenerate) -> dict[str, Any]:
        """One of those names."""
        if name not in gateway.models(caller):
            raise ModelNotFoundError
        return _model(name)

    @app.get("/healthz", **documented(Health, "service", about="It answers."))
    async def healthz() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok"}

    @app.get(
        "/readyz",
        **documented(Readiness, "service", about="It can.", refusals=("Unavailable",)),
    )
    async def readyz() -> dict[str, Any]:
        """Whether it can write copy."""
        return {"status": "ready", **await gateway.health()}

    return app


async def _respond(
    body: Generation, answer: Answer, pieces: AsyncGenerator[Piece, None]
) -> Response:
    """Answer a request that was begun, whole or as a stream."""
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
