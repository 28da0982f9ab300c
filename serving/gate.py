"""What every request passes before anything reads it: a name, a key, a size."""

import re
from collections.abc import MutableMapping
from typing import Annotated, Any
from uuid import uuid4

from fastapi import Request, Security
from fastapi.openapi.models import HTTPBearer
from fastapi.security import SecurityScopes
from fastapi.security.base import SecurityBase
from opentelemetry.trace import SpanKind
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from handbill.errors import HandbillError
from handbill.serving.errors import InvalidKeyError, ScopeError, TooLargeError
from handbill.serving.gateway import Gateway
from handbill.serving.refusals import refusal
from handbill.serving.tenants import Caller
from handbill.serving.tracing import TRACER, continued


def caller_of(request: Request) -> Caller:
    """Whom the gate let in."""
    caller: Caller = request.state.caller
    return caller


class _KeyWithScope(SecurityBase):
    """Whom the gate let in, with a key that has the route's scope; so the document says it, too."""

    def __init__(self) -> None:
        self.model = HTTPBearer(bearerFormat="hb_ID_SECRET_CHECKSUM")
        self.scheme_name = "key"

    async def __call__(self, request: Request, wanted: SecurityScopes) -> Caller:
        caller = caller_of(request)
        for scope in wanted.scopes:
            if scope not in caller.scopes:
                raise ScopeError(scope)
        return caller


_key = _KeyWithScope()
# Every route under /v1 takes one of these: a test looks for it.
MayGenerate = Annotated[Caller, Security(_key, scopes=["generate"])]
MaySendFeedback = Annotated[Caller, Security(_key, scopes=["feedback"])]
MayManage = Annotated[Caller, Security(_key, scopes=["manage"])]
_BATCHES = "/v1/copy/batch"
_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Gate:
    """Middleware: request id, API key (everything under ``/v1``), size of the body.

    Args:
        app: What is behind the gate.
        gateway: Knows tenants and limits.
        answers_request_id: Send ``x-request-id`` back; off where a proxy does.
    """

    def __init__(self, app: ASGIApp, *, gateway: Gateway, answers_request_id: bool) -> None:
        self._app = app
        self._gateway = gateway
        self._answers_request_id = answers_request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request = given if _REQUEST_ID.fullmatch(given) else uuid4().hex
        state: MutableMapping[str, Any] = scope.setdefault("state", {})
        state["request"] = request

        with TRACER.start_as_current_span(
            scope["method"],
            continued(headers.get("traceparent", "")),
            kind=SpanKind.SERVER,
            record_exception=False,  # its words may be a request's
            set_status_on_exception=False,
        ) as span:
            span.set_attributes({"http.request.method": scope["method"], "request": request})

            async def named_send(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                    if self._answers_request_id:
                        MutableHeaders(scope=message)["x-request-id"] = request
                await send(message)

            try:
                if scope["path"] == "/v1" or scope["path"].startswith("/v1/"):
                    state["caller"] = await self._authenticate(scope, headers)
                    span.set_attribute("tenant", state["caller"].tenant)
                body = await self._read(headers, receive, limit=self._limit(scope["path"]))
            except HandbillError as error:
                await refusal(error)(scope, receive, named_send)
                return
            await self._app(scope, _replay(body, receive), named_send)
            if route := scope.get("route"):  # its template: a path may name a shopper
                span.update_name(f"{scope['method']} {route.path}")
                span.set_attribute("http.route", route.path)

    async def _authenticate(self, scope: Scope, headers: Headers) -> Caller:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = key.strip() if scheme.lower() == "bearer" else ""
        try:
            # In a thread: it asks the database, and event loops wait for nobody.
            return await run_in_threadpool(self._gateway.tenants.authenticate, given)
        except InvalidKeyError:
            self._gateway.strangers.count((scope.get("client") or ("?",))[0])
            raise

    def _limit(self, path: str) -> int:
        config = self._gateway.config
        return config.batch_body_bytes if path.startswith(_BATCHES) else config.max_body_bytes

    async def _read(self, headers: Headers, receive: Receive, *, limit: int) -> bytes:
        declared = headers.get("content-length", "0")
        body = bytearray()
        more = True
        while more and not (declared.isdecimal() and int(declared) > limit) and len(body) <= limit:
            message = await receive()
            body += message.get("body", b"")
            more = message["type"] == "http.request" and message.get("more_body", False)
        if more or len(body) > limit:
            raise TooLargeError(f"The request's body is over {limit} bytes.")
        return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
