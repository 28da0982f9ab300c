import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from handbill.generator.adapters import (
    ALL_LINEAR,
    Adapter,
    AdapterSpec,
    read_adapter,
    trained_shapes,
    write_adapter,
)
from handbill.generator.artifacts import (
    ArtifactStore,
    Channel,
    load_or_create_key,
    public_pem,
    seal,
    utc_now,
    write_channel,
)
from handbill.generator.base_models import BaseModel, load_base, make_tiny_base, resolve_base
from handbill.serving.engine import TorchEngine
from handbill.serving.sequences import Sampling, Sequence


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return resolve_base(str(make_tiny_base(tmp_path_factory.mktemp("base"), layers=3)))


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
                target_modules=ALL_LINEAR if number % 2 else ("q_proj", "v_proj", "down_proj"),
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
def make_engine(base: BaseModel, adapters: Adapters) -> Iterator[Callable[..., TorchEngine]]:
    engines = []

    def make(**settings: object) -> TorchEngine:
        model, tokenizer = load_base(base)
        settings = {"load": adapters.load, "max_batch": 8, "slots": 8, **settings}
        engines.append(TorchEngine(model, tokenizer, **settings))
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
        self.serial = 0

    def seal(self, adapter: Path, tenant: str = "", **fields: object) -> str:
        folder = self.root.parent / f"sealing-{len(list(self.store))}"
        folder.mkdir()
        for file in adapter.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
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

    def point(self, tenant: str, digest: str, *, serial: int | None = None) -> None:
        self.serial += 1
        channel = Channel(
            tenant=tenant, digest=digest, serial=serial or self.serial, published=utc_now()
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

    async def one(engine: TorchEngine, sequence: Sequence) -> str:
        return "".join([delta.text async for delta in engine.submit(sequence)])

    def run(engine: TorchEngine, sequences: list[Sequence], *, together: bool) -> list[str]:
        async def all_of_them() -> list[str]:
            if together:
                return list(await asyncio.gather(*(one(engine, s) for s in sequences)))
            return [await one(engine, s) for s in sequences]

        return asyncio.run(all_of_them())

    return run
