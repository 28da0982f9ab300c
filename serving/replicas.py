"""What runs inside Ray Serve's processes: the engine replica, and the gateway's way to it."""

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Final, Self

from handbill.generator.base_models import BaseModel
from handbill.logs import hide_values
from handbill.serving.config import ServingConfig
from handbill.serving.errors import (
    BadRequestError,
    BusyError,
    ContextLengthError,
    GatewayError,
    SchemaError,
    UnavailableError,
)
from handbill.serving.reports import REPORT_S
from handbill.serving.sequences import Delta, Engine, EngineStats, Sequence
from handbill.serving.tracing import TRACER, continued, start_tracing

log = logging.getLogger(__name__)

APP: Final = "handbill"
ENGINE: Final = "EngineReplica"
GATEWAY: Final = "Gateway"
_CROSSING: Final = {
    kind.__name__: kind
    for kind in (
        BadRequestError,
        BusyError,
        ContextLengthError,
        GatewayError,
        SchemaError,
        UnavailableError,
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """An error on its way from a replica to the gateway: Ray would wrap the error itself."""

    kind: str
    message: str

    @classmethod
    def of(cls, error: Exception) -> Self:
        """What is said of an error: nothing of one that nobody raised on purpose."""
        if isinstance(error, GatewayError):
            return cls(kind=type(error).__name__, message=str(error))
        return cls(kind=GatewayError.__name__, message="Internal error.")

    def error(self) -> GatewayError:
        """The error again."""
        return _CROSSING.get(self.kind, UnavailableError)(self.message)


class LostError(UnavailableError):
    """A replica went away with an answer."""


class EngineReplica:
    """A Serve deployment that holds one engine. Its event loop never runs torch.

    Args:
        config: How the service runs.
        base: The base model; found anew from ``config`` if not given.
        local: Close Serve's port between replicas to other machines.
    """

    def __init__(
        self, config: ServingConfig, base: BaseModel | None, *, local: bool = True
    ) -> None:
        hide_values()
        if local:
            keep_grpc_local()
        import torch

        from handbill.generator.base_models import resolve_base

        if config.device == "cpu":  # Ray sets one thread for an actor of less than one core
            cores = len(os.sched_getaffinity(0))
            torch.set_num_threads(config.threads or max(1, cores // config.most_replicas))
        start_tracing(config.traces, "engine")
        self._engine = make_engine(config, base or resolve_base(config.base))

        from ray import serve

        @serve.multiplexed(max_num_models_per_replica=config.slots)  # type: ignore[untyped-decorator]
        async def warm(adapter: str) -> str:
            return adapter

        self._warm = warm  # tells Serve's router which adapters have been asked for here
        self._name = serve.get_replica_context().replica_id.unique_id
        self._gateway: Any = None

    async def generate(self, sequence: Sequence) -> AsyncGenerator[Delta | Refusal, None]:
        """Stream an answer; Ray cancels this when the gateway lets go of it."""
        if sequence.adapter:
            await self._warm(sequence.adapter)
        stream = self._engine.submit(sequence)
        # Ended by hand: a generator may be left in another context than it was begun in.
        span = TRACER.start_span(
            "generate", continued(sequence.trace), attributes={"adapter": sequence.adapter}
        )
        written = 0
        try:
            async for delta in stream:
                if not written:
                    span.add_event("first_piece")
                written += delta.n_tokens
                yield delta
        except Exception as error:
            if not isinstance(error, GatewayError):
                log.exception("engine_broke")  # without its text, see handbill.logs
            span.add_event("refused", {"error": type(error).__name__})
            yield Refusal.of(error)
        finally:
            span.set_attributes({"prompt_tokens": len(sequence.prompt), "tokens": written})
            span.end()
            await stream.aclose()

    async def stats(self) -> EngineStats:
        """Counts of the engine."""
        return replace(await self._engine.stats(), engine=self._name)

    async def check_health(self) -> None:
        """Report to the gateway; raise when the engine's thread has died: Serve starts another."""
        stats = await self.stats()
        from ray import serve
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException

        with contextlib.suppress(
            RayError, RayServeException, TimeoutError
        ):  # not there yet, or busy
            self._gateway = self._gateway or serve.get_deployment_handle(GATEWAY, app_name=APP)
            await asyncio.wait_for(self._gateway.report.remote(stats), REPORT_S)


class GatewayReplica:
    """The deployment of the gateway, beside the HTTP that Serve answers with its app.

    Args:
        engine: Bound to it, so that Serve starts the engines first.
    """

    app: Any  # Serve's: what gateway_app made

    def __init__(self, engine: Any) -> None:
        del engine

    async def report(self, stats: EngineStats) -> None:
        """Take what an engine says of itself."""
        self.app.state.reports.put(stats)


def make_engine(config: ServingConfig, base: BaseModel) -> Engine:
    """The engine that ``config.engine`` names, with the registry's adapters."""
    from handbill.generator.base_models import load_base
    from handbill.serving.registry import Verifier

    settings: dict[str, Any] = {
        "load": Verifier(config.registry, base, kek=config.kek).adapter,
        "max_batch": config.max_batch,
        "slots": config.slots,
        "max_rank": config.max_rank,
        "context_tokens": config.context_tokens,
        "prefill_tokens": config.prefill_tokens,
        "prefix_cache_bytes": config.prefix_cache_bytes,
        "queue_limit": config.queue_limit,
    }
    if config.engine == "vllm":
        from handbill.serving.vllm_engine import VllmEngine

        return VllmEngine(base, device=config.device, dtype=config.dtype, **settings)
    from handbill.serving.engine import TorchEngine

    model, tokenizer = load_base(base, device=config.device, dtype=config.dtype)
    return TorchEngine(model, tokenizer, **settings)


class RemoteEngine:
    """The engine of the replicas, as an :class:`~handbill.serving.sequences.Engine`.

    Args:
        handle: A Serve handle of :class:`EngineReplica`.
    """

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._streams = handle.options(stream=True)

    async def submit(self, sequence: Sequence) -> AsyncGenerator[Delta, None]:
        """Stream an answer from a replica; from another if that one dies before its first piece."""
        begun = False
        for last in (False, True):
            try:
                async with aclosing(self._submit(sequence)) as stream:
                    async for delta in stream:
                        begun = True
                        yield delta
            except LostError:
                if begun or last:
                    raise
            else:
                return

    async def _submit(self, sequence: Sequence) -> AsyncGenerator[Delta, None]:
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException

        to = self._streams.options(multiplexed_model_id=sequence.adapter)
        response = to.generate.remote(sequence)
        left = sequence.answers
        try:
            async for item in response:
                if isinstance(item, Refusal):
                    left = 0
                    raise item.error()
                left -= item.finish_reason is not None
                yield item
        except (RayError, RayServeException) as error:
            log.error("engine_replica_lost", extra={"error": type(error).__name__})  # noqa: TRY400 - the trace holds the sequence
            raise LostError("The engine was lost; try again.") from None
        finally:
            if left:
                response.cancel()

    async def stats(self) -> EngineStats:
        """Counts of a replica."""
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException

        try:
            stats: EngineStats = await self._handle.stats.remote()
        except (RayError, RayServeException) as error:
            raise UnavailableError("The engine does not answer.") from error
        return stats


def gateway_app(config: ServingConfig, base: BaseModel, *, local: bool = True) -> Any:
    """The gateway's app, made inside its own process."""
    hide_values()
    if local:
        keep_grpc_local()
    start_tracing(config.traces, "gateway")
    from ray import serve
    from transformers import AutoTokenizer

    from handbill.serving.api import create_app
    from handbill.serving.canaries import Canaries
    from handbill.serving.gateway import Gateway
    from handbill.serving.registry import Registry, Verifier
    from handbill.serving.repository import DatabaseMarks
    from handbill.serving.tenants import open_tenants

    gateway = Gateway(
        config,
        engine=RemoteEngine(serve.get_deployment_handle(ENGINE, app_name=APP)),
        registry=Registry(
            Verifier(config.registry, base, kek=config.kek),
            DatabaseMarks(config.url),
            Canaries(config.url),
        ),
        tenants=open_tenants(config),
        tokenizer=AutoTokenizer.from_pretrained(base.path, local_files_only=True),
    )
    # Serve's proxy sends x-request-id itself.
    return create_app(gateway, answers_request_id=False)


def keep_grpc_local() -> None:
    """Bind Serve's port between replicas to this machine.

    Ray 2.55 opens it on every address and unpickles what it is sent, which would let anyone
    who reaches the machine run code on it. Called in a replica before Serve opens the port.
    """
    from grpc.aio._server import Server  # type: ignore[import-untyped]  # grpc.aio.Server is abstract

    if getattr(Server, "handbill_local", False):
        return
    add_port = Server.add_insecure_port

    def add_local_port(self: Any, address: str) -> int:
        port: int = add_port(self, address.replace("[::]:", "127.0.0.1:"))
        return port

    Server.add_insecure_port = add_local_port
    Server.handbill_local = True
