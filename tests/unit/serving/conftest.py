import asyncio
import random
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from handbill.generator.adapters import (
    ALL_LINEAR,
    LOCKED_FILE,
    WEIGHTS_FILE,
    Adapter,
    AdapterSpec,
    read_adapter,
    trained_shapes,
    write_adapter,
)
from handbill.generator.artifacts import (
    ArtifactStore,
    load_or_create_key,
    public_pem,
    seal,
    utc_now,
)
from handbill.generator.base_models import BaseModel, load_base, make_tiny_base, resolve_base
from handbill.generator.channels import Channel, write_channel
from handbill.generator.vault import Vault
from handbill.serving.api import create_app
from handbill.serving.config import ServingConfig
from handbill.serving.engine import TorchEngine
from handbill.serving.gateway import Gateway
from handbill.serving.registry import Registry, Verifier
from handbill.serving.repository import Repository
from handbill.serving.sequences import Delta, Sampling, Sequence
from handbill.serving.tenants import open_tenants
from handbill.serving.threaded import ThreadedEngine

TARGETS = (
    ("q_proj", "v_proj", "down_proj"),
    ALL_LINEAR,
    ("q_proj", "v_proj"),
    ("k_proj", "o_proj", "up_proj"),
)
BODIES = {
    "/v1/chat/completions": {
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 6,
        "temperature": 0,
    },
    "/v1/completions": {"prompt": "Once", "max_tokens": 6, "temperature": 0},
    "/v1/copy": {"title": "Oak desk lamp", "shopper": "reads at night", "max_tokens": 6},
}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """What is vLLM's alone is tested where it is installed."""
    ours = collection_path.name == "test_vllm.py" and config.getoption("--engine") != "vllm"
    return True if ours else None


@pytest.fixture(autouse=True)
def seeds(monkeypatch):
    """The same seeds in every run for requests that name none: what a random model writes may be nothing, or a claim."""
    monkeypatch.setattr("secrets.randbits", random.Random(0).getrandbits)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, engine_kind: str) -> BaseModel:
    hidden = 128 if engine_kind == "vllm" else 64  # vLLM's CPU build has no smaller heads than 32
    folder = make_tiny_base(tmp_path_factory.mktemp("base"), layers=3, hidden=hidden)
    return resolve_base(str(folder))


@dataclass
class Adapters:
    """Random adapters by number, of several ranks and layers, written in PEFT's layout."""

    base: BaseModel
    root: Path
    loads: list[str] = field(default_factory=list)

    def folder(self, number: int) -> Path:
        folder = self.root / str(number)
        if not folder.exists():
            spec = AdapterSpec(
                rank=(2, 4, 8)[number % 3],
                alpha=16.0,
                layers=((0, 1, 2), (2,), (1, 2))[number % 3],
                target_modules=TARGETS[number % 4],
                seed=number,
            )
            draws = np.random.default_rng(number)
            tensors = {
                name: draws.standard_normal(shape).astype(np.float32)
                for name, shape in trained_shapes(spec, self.base).items()
            }
            write_adapter(folder, spec=spec, base=self.base, tensors=tensors, card="test\n")
        return folder

    def load(self, name: str) -> Adapter:
        self.loads.append(name)
        return read_adapter(self.folder(int(name)))


@pytest.fixture(scope="session")
def adapters(base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Adapters:
    return Adapters(base, tmp_path_factory.mktemp("adapters"))


@pytest.fixture
def make_engine(
    base: BaseModel, adapters: Adapters, engine_kind: str
) -> Iterator[Callable[..., ThreadedEngine]]:
    engines = []

    def make(**settings: object) -> ThreadedEngine:
        settings = {"load": adapters.load, "max_batch": 8, "slots": 8, "max_rank": 8, **settings}
        if engine_kind == "vllm":
            from handbill.serving.vllm_engine import VllmEngine

            engines.append(VllmEngine(base, **settings))
        else:
            engines.append(TorchEngine(*load_base(base), **settings))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@dataclass
class Publisher:
    """The writing side of a registry."""

    root: Path
    base: BaseModel

    def __post_init__(self) -> None:
        self.key = load_or_create_key(self.root.parent / "keys" / "publisher.pem")
        self.root.mkdir(parents=True, exist_ok=True)
        (self.root / "publisher.pub").write_bytes(public_pem(self.key.public_key()))
        self.store = ArtifactStore(self.root / "store")
        self.vault = Vault(self.root)
        self.vault.create_kek()
        self.serial = 0

    def seal(
        self, adapter: Path, tenant: str = "", *, locked: bool = True, **fields: object
    ) -> str:
        folder = self.root.parent / f"sealing-{len(list(self.store))}"
        folder.mkdir()
        for file in adapter.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        if tenant and locked:
            self.vault.add(tenant)
            weights = (folder / WEIGHTS_FILE).read_bytes()
            (folder / LOCKED_FILE).write_bytes(self.vault.lock(tenant, weights))
            (folder / WEIGHTS_FILE).unlink()
        fields = {
            "kind": "tenant" if tenant else "global",
            "tenant": tenant,
            "version": 1,
            "base_name": self.base.name,
            "base_digest": self.base.digest,
            **fields,
        }
        seal(folder, key=self.key, **fields)
        return self.store.add(folder)

    def point(
        self, tenant: str, digest: str, *, serial: int | None = None, **trial: str | int
    ) -> None:
        self.serial += 1
        channel = Channel(
            tenant=tenant,
            digest=digest,
            serial=serial or self.serial,
            published=utc_now(),
            **trial,
        )
        write_channel(self.root, channel, self.key)


@pytest.fixture
def publisher(tmp_path: Path, base: BaseModel) -> Publisher:
    return Publisher(tmp_path / "registry", base)


@pytest.fixture(scope="session")
def sequence() -> Callable[..., Sequence]:
    """A sequence by number: its prompt, length and seed differ, its text does not end early."""

    def make(number: int, *, adapter: str = "", tenant: str = "shop", **how: object) -> Sequence:
        prompt = tuple(
            int(i) for i in np.random.default_rng(number).integers(3, 259, 5 + 7 * (number % 5))
        )
        how = {"max_tokens": 16 + number % 7, "seed": number, **how}
        return Sequence(tenant=tenant, prompt=prompt, adapter=adapter, sampling=Sampling(**how))

    return make


@pytest.fixture(scope="session")
def write() -> Callable[..., list[str]]:
    """Run sequences on an engine, together or one after the other; their texts."""

    async def one(engine: ThreadedEngine, sequence: Sequence) -> str:
        return "".join([delta.text async for delta in engine.submit(sequence)])

    def run(engine: ThreadedEngine, sequences: list[Sequence], *, together: bool) -> list[str]:
        async def all_of_them() -> list[str]:
            if together:
                return list(await asyncio.gather(*(one(engine, s) for s in sequences)))
            return [await one(engine, s) for s in sequences]

        return asyncio.run(all_of_them())

    return run


@dataclass
class Listening:
    """An engine that also remembers what it was asked."""

    engine: ThreadedEngine
    asked: list = field(default_factory=list)

    def submit(self, sequence):
        self.asked.append(sequence)
        return self.engine.submit(sequence)

    async def stats(self):
        return await self.engine.stats()


class Service:
    """A gateway with two tenants of their own adapters and one on the global model."""

    bodies = BODIES

    def __init__(self, publisher, adapters, make_engine, tmp_path, **settings):
        # The tiny model's tokens are bytes, so its prompts are long.
        settings = {"max_tokens": 700, "max_prompt_tokens": 300, **settings}
        self.config = ServingConfig(registry=publisher.root, state=tmp_path / "serving", **settings)
        self.digests = {"": publisher.seal(adapters.folder(0), version=4)}
        for number, tenant in ((1, "acme"), (2, "bolt")):
            self.digests[tenant] = publisher.seal(adapters.folder(number), tenant, version=number)
        for tenant, digest in self.digests.items():
            publisher.point(tenant, digest)
        verifier = Verifier(publisher.root, publisher.base)
        self.engine = Listening(make_engine(load=verifier.adapter, context_tokens=1000))
        self.tenants = open_tenants(self.config)
        self.keys = {}
        for tenant in ("acme", "bolt", "carl"):
            self.tenants.add(tenant)
            self.keys[tenant] = self.tenants.new_key(tenant).reveal()
        self.tokenizer = AutoTokenizer.from_pretrained(publisher.base.path)
        registry = Registry(verifier)
        registry.refresh()
        self.gateway = Gateway(
            self.config,
            engine=self.engine,
            registry=registry,
            tenants=self.tenants,
            tokenizer=self.tokenizer,
        )
        self.app = create_app(self.gateway)

    @asynccontextmanager
    async def client(self, tenant="acme"):
        headers = {"Authorization": f"Bearer {self.keys[tenant]}"} if tenant else {}
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://test", headers=headers
        ) as client:
            yield client

    def send(self, method, path, *, tenant="acme", **how):
        async def one():
            async with self.client(tenant) as client:
                return await client.request(method, path, **how)

        return asyncio.run(one())

    def post(self, path, body=None, **how):
        return self.send("POST", path, json=BODIES[path] if body is None else body, **how)

    def usage(self, tenant="acme"):
        self.tenants._writer.submit(lambda: None).result()  # what was recorded is written now
        return Repository(self.config.url).usage(tenant)


@pytest.fixture
def make_service(publisher, adapters, make_engine, tmp_path):
    def make(**settings):
        return Service(publisher, adapters, make_engine, tmp_path, **settings)

    return make


@pytest.fixture
def service(make_service):
    return make_service()


class Scripted:
    """An engine that writes given texts, one after the other, in pieces of three characters."""

    def __init__(self, texts):
        self.texts = list(texts)
        self.asked = []
        self.open = 0

    async def submit(self, sequence):
        texts = []
        for index in range(sequence.answers if sequence else 1):
            how = sequence and sequence.sampling.for_answer(index)
            self.asked.append(sequence and replace(sequence, sampling=how, answers=1))
            texts.append(self.texts[(len(self.asked) - 1) % len(self.texts)])
        self.open += 1
        try:
            for index, text in enumerate(texts):
                for at in range(0, len(text), 3):
                    reason = "stop" if at + 3 >= len(text) else None
                    piece = text[at : at + 3]
                    yield Delta(text=piece, n_tokens=1, finish_reason=reason, index=index)
                    await asyncio.sleep(0)
        finally:
            self.open -= 1


@pytest.fixture
def scripted(make_service):
    """A service whose engine writes given texts."""

    def make(*texts, **settings):
        service = make_service(**settings)
        service.gateway._engine = service.engine = Scripted(texts)
        return service

    return make
