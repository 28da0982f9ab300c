"""Errors as HTTP: every refusal has OpenAI's shape and says nothing about other tenants."""

import logging
import math
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from handbill.errors import ArtifactError, HandbillError, MissingError
from handbill.serving.documented import methods_of
from handbill.serving.errors import (
    BadRequestError,
    CopyBlockedError,
    GatewayError,
    InvalidKeyError,
    RateLimitError,
    UnavailableError,
)

log = logging.getLogger(__name__)


def error_body(error: HandbillError) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, body and headers of an error that was raised on purpose."""
    headers = {}
    wait_s = getattr(error, "retry_after_s", None)
    if wait_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(wait_s)))
    if isinstance(error, InvalidKeyError):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, GatewayError):
        body = _body(str(error), error.kind, error.param, error.code)
        if isinstance(error, CopyBlockedError):
            body["error"]["findings"] = list(error.findings)
            body["error"]["reviews"] = list(error.reviews)
        if isinstance(error, RateLimitError):
            body["error"] |= error.facts
        return error.status_code, body, headers
    if isinstance(error, ArtifactError) or error.status_code >= 500:
        # Whose artifact, where it lies and what is wrong with it is the operator's business.
        log.error("request_failed", extra={"error": type(error).__name__})
        message = "This model cannot be served now."
        return 503, _body(message, "server_error", None, "unavailable"), {"Retry-After": "1"}
    if isinstance(error, MissingError):
        return 404, _body(str(error), "invalid_request_error", None, "not_found"), headers
    message = str(error)
    param = message.partition(":")[0].partition("=")[0]
    known = param if param.isidentifier() else None
    return 400, _body(message, BadRequestError.kind, known, BadRequestError.code), headers


def refusal(error: HandbillError) -> JSONResponse:
    """The response of an error that was raised on purpose."""
    status, body, headers = error_body(error)
    return JSONResponse(body, status, headers)


def install(app: FastAPI) -> None:
    """Give every error of an app its shape."""

    @app.exception_handler(HandbillError)
    async def on_purpose(_: Request, error: HandbillError) -> JSONResponse:
        return refusal(error)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        path = [str(part) for part in first["loc"] if part != "body"]
        param = ".".join(path) or None
        # Only pydantic's words: the value itself may hold a shopper's text.
        message = f"{param or 'body'}: {first['msg']}"
        return JSONResponse(_body(message, BadRequestError.kind, param, BadRequestError.code), 400)

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> JSONResponse:
        # A body that is no JSON ends here as a 400; what is no route has no code, as with OpenAI.
        code = BadRequestError.code if error.status_code == BadRequestError.status_code else None
        body = _body(str(error.detail), BadRequestError.kind, None, code)
        headers = dict(error.headers or {})
        if error.status_code == 405:  # the router names the methods of one of the path's routes
            headers["Allow"] = ", ".join(methods_of(app.openapi(), request.url.path))
        return JSONResponse(body, error.status_code, headers)


class Unexpected:
    """Middleware: an error that nobody raised on purpose ends here, without its text.

    Starlette's handler of such errors raises them once more, for the server to log: Serve's proxy, a
    process of its own, would write what they quote of a request.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request.

        Raises:
            UnavailableError: The answer broke off after it had begun.
        """
        begun = False

        async def noted_send(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, noted_send)
        except Exception:
            log.exception("request_broke")
        else:
            return
        if begun or scope["type"] != "http":
            raise UnavailableError("The answer broke off.")  # out here, without what led to it
        body = _body("Internal error.", "server_error", None, "internal_error")
        await JSONResponse(body, 500)(scope, receive, send)


def _body(message: str, kind: str, param: str | None, code: str | None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
