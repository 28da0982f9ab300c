"""The service in this process: the real gateway, engine, database and API, without sockets or Ray."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from handbill.errors import HandbillError
from handbill.generator.base_models import BaseModel, load_base
from handbill.serving.api import create_app
from handbill.serving.config import ServingConfig
from handbill.serving.engine import TorchEngine
from handbill.serving.gateway import Gateway
from handbill.serving.registry import Registry, Verifier
from handbill.serving.tenants import open_tenants
from handbill.simulations.small_base import PROMPT_TOKENS

_AT_ONCE: Final = 8
_PAGE: Final = 1000
_BATCH: Final = 300
T = TypeVar("T")


class InProcessService:
    """Serves a registry's adapters to tenants, asked as a tenant asks.

    Args:
        folder: For the service's own files.
        base: The base model.
        registry: The operator's registry folder.
        tenants: Ids; each is given a key.
        max_prompt_tokens: Longest prompt.
    """

    def __init__(
        self,
        folder: Path,
        base: BaseModel,
        registry: Path,
        *,
        tenants: Sequence[str],
        max_prompt_tokens: int = PROMPT_TOKENS,
    ) -> None:
        config = ServingConfig(
            registry=registry,
            state=folder / "serving",
            base=str(base.path),
            max_prompt_tokens=max_prompt_tokens,
            max_batch=32,
            queue_limit=1024,
            requests_per_minute=1e9,
            burst=1_000_000,
            concurrent=4 * _AT_ONCE,
            max_body_bytes=1 << 20,
        )
        verifier = Verifier(registry, base)
        model, tokenizer = load_base(base)
        self._engine = TorchEngine(model, tokenizer, load=verifier.adapter, max_batch=32, slots=4)
        self._registry = Registry(verifier)
        found = open_tenants(config)
        self._keys: dict[str, str] = {}
        for tenant in tenants:
            found.add(tenant)
            self._keys[tenant] = found.new_key(tenant).reveal()
        self._gateway = Gateway(
            config,
            engine=self._engine,
            registry=self._registry,
            tenants=found,
            tokenizer=tokenizer,
        )
        self._app = create_app(self._gateway)

    def refresh(self) -> None:
        """Look for what was published."""
        self._registry.refresh()

    def close(self) -> None:
        """Stop the engine; let go of the database."""
        self._gateway.close()
        self._engine.close()

    def write(
        self, tenant: str, requests: Sequence[Mapping[str, Any]]
    ) -> list[list[tuple[str, str]]]:
        """Ask for copy, several requests at once; ids and texts of what was served to each."""
        return [
            [(piece["copy_id"], piece["text"]) for piece in answer["copies"] if piece["text"]]
            for answer in self.answers(tenant, requests)
        ]

    def answers(self, tenant: str, requests: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Ask for copy, several requests at once; the answers, without copies where all was blocked."""

        async def ask_all(client: Any) -> list[dict[str, Any]]:
            few = asyncio.Semaphore(_AT_ONCE)

            async def one(request: Mapping[str, Any]) -> dict[str, Any]:
                async with few:
                    answer = await client.post("/v1/copy", json=dict(request))
                if answer.status_code == 422:  # everything it wrote was blocked
                    return {"copies": []}
                return _checked(answer)

            return list(await asyncio.gather(*map(one, requests)))

        return self._as(tenant, ask_all)

    def send(self, tenant: str, events: Sequence[Mapping[str, Any]]) -> None:
        """Send events."""

        async def send_all(client: Any) -> None:
            for start in range(0, len(events), _BATCH):
                batch = list(events[start : start + _BATCH])
                answer = _checked(await client.post("/v1/events", json={"events": batch}))
                if answer["accepted"] != len(batch):
                    raise HandbillError(f"{tenant}: {len(batch) - answer['accepted']} not taken")

        self._as(tenant, send_all)

    def export(self, tenant: str) -> list[dict[str, Any]]:
        """All events of a tenant."""

        async def pages(client: Any) -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = []
            after: int | None = 0
            while after is not None:
                query = {"after": after, "limit": _PAGE}
                page = _checked(await client.get("/v1/events", params=query))
                found += page["data"]
                after = page["next"]
            return found

        return self._as(tenant, pages)

    def _as(self, tenant: str, work: Callable[[Any], Coroutine[Any, Any, T]]) -> T:
        import httpx

        async def run() -> T:
            async with httpx.AsyncClient(
                transport=httpx.ASGITransport(self._app),
                base_url="http://in-process",
                headers={"Authorization": f"Bearer {self._keys[tenant]}"},
                timeout=600,
            ) as client:
                return await work(client)

        return asyncio.run(run())


def _checked(answer: Any) -> dict[str, Any]:
    if answer.is_error:
        raise HandbillError(f"{answer.status_code}: {answer.text[:200]}")
    body: dict[str, Any] = answer.json()
    return body
