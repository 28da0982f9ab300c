"""The desk where merchants enrol over the network: it hands out the kit and takes invited requests.

It listens with the server's own certificate. Nothing it hands out is secret, and it lets nobody in
who was not invited, whatever the settings say: on the network nothing else tells whom a request is from.
"""

import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from handbill.errors import HandbillError, InputError
from handbill.federation.invitation import ENROLMENTS_PATH, KIT_FILES, KIT_PATH
from handbill.server.enrolment import admit

log = logging.getLogger(__name__)

_MAX_BYTES: Final = 16_384  # a request is two public keys and a name
_AT_ONCE: Final = 32
_START_S: Final = 30.0


def read_kit(home: Path) -> dict[str, str]:
    """The kit's files by name."""
    return {name: (home / "kit" / name).read_text() for name in KIT_FILES}


@contextmanager
def desk(home: Path, *, host: str, port: int) -> Iterator[None]:
    """Keep the desk open while the context is, in a thread.

    Raises:
        InputError: It cannot listen there.
    """
    server = uvicorn.Server(
        uvicorn.Config(
            _application(home),
            host=host,
            port=port,
            ssl_certfile=home / "certificates" / "server.crt",
            ssl_keyfile=home / "certificates" / "server.key",
            limit_concurrency=_AT_ONCE,
            timeout_keep_alive=5,
            h11_max_incomplete_event_size=_MAX_BYTES,
            access_log=False,
            log_config=None,
            lifespan="off",
            ws="none",
        )
    )
    thread = threading.Thread(target=_run, args=(server,), daemon=True)
    thread.start()
    started = threading.Event()
    for _ in range(int(_START_S / 0.05)):
        if server.started or not thread.is_alive():
            break
        started.wait(0.05)
    if not server.started:
        raise InputError(f"enrol_port={port}: cannot listen there; give another in server.toml")
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()


def _run(server: uvicorn.Server) -> None:
    try:
        server.run()
    except SystemExit:  # how uvicorn says that a port is taken
        log.warning("desk_not_open")


def _application(home: Path) -> FastAPI:
    app = FastAPI(openapi_url=None)

    @app.get(KIT_PATH)
    def kit() -> dict[str, str]:
        return read_kit(home)

    @app.post(ENROLMENTS_PATH)
    async def enrolment(request: Request) -> JSONResponse:
        try:
            asked = await _body(request)
            merchant = await run_in_threadpool(admit, home, asked, invited=True)
        except HandbillError as error:
            log.info("enrolment_refused", extra={"status": error.status_code})
            return JSONResponse({"error": str(error)}, error.status_code)
        log.info("enrolled", extra={"merchant": merchant.id})
        return JSONResponse({"id": merchant.id, "name": merchant.name}, 201)

    return app


async def _body(request: Request) -> Any:
    got = b""
    async for part in request.stream():
        got += part
        if len(got) > _MAX_BYTES:
            raise InputError(f"an enrolment request has at most {_MAX_BYTES} bytes")
    try:
        return json.loads(got)
    except ValueError as error:
        raise InputError(f"not an enrolment request ({error})") from error
