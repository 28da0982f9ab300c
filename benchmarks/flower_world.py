"""A server and merchants on this machine as real programs over Flower, for benchmarks."""

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from handbill.clients.merchant import Policy
from handbill.clients.run import init_merchant
from handbill.federation.messages import Recipe
from handbill.federation.supervision import Children
from handbill.generator.adapters import AdapterSpec, top_layers, trained_shapes
from handbill.generator.base_models import make_tiny_base, resolve_base
from handbill.server.operate import enrol, init_server
from handbill.server.settings import AdapterSettings, ServerSettings
from handbill.simulations.grammar import SHOPS, Draws, read_vocabulary
from handbill.simulations.market import write_shop

HANDBILL: Final = (sys.executable, "-m", "handbill.cli")
SHOPPERS: Final = 80


@dataclass
class World:
    """A server and merchants on this machine, enrolled and not running."""

    home: Path
    settings: ServerSettings
    shops: list[str]
    numbers: int

    @property
    def server(self) -> Path:
        """The server's folder."""
        return self.home / "server"

    def shop(self, shop: str) -> Path:
        """A merchant's folder."""
        return self.home / "shops" / shop


def make_world(home: Path, merchants: int, *, rounds: int, port: int) -> World:
    """Invent the shops, make every key and enrol everybody."""
    base = make_tiny_base(home / "base", layers=4, hidden=256)
    adapter = AdapterSettings(rank=128, alpha=128.0, layers=0)
    settings = ServerSettings(
        port=port,
        base=str(base),
        min_reports=merchants,
        adapter=adapter,
        recipe=Recipe(rounds=rounds, personal_steps=0, expected_users=2, max_copy_tokens=16),
    )
    kit = init_server(home / "server", settings)
    shops = [f"shop-{number:02}" for number in range(1, merchants + 1)]
    for number, shop in enumerate(shops):
        words = read_vocabulary(SHOPS[number % len(SHOPS)]) | {"id": shop, "name": shop}
        write_shop(home / "market" / shop, words, Draws(1, shop), SHOPPERS)
        folder = home / "shops" / shop
        enrol(
            home / "server",
            init_merchant(folder, data=home / "market", shop=shop, kit=kit, threads=1),
        )
        policy = replace(Policy.load(folder), epsilon_limit=40.0, secure_aggregation=False)
        policy.save(folder)
    resolved = resolve_base(str(base))
    spec = AdapterSpec(rank=adapter.rank, layers=top_layers(resolved, adapter.layers))
    shapes = trained_shapes(spec, resolved).values()
    return World(home, settings, shops, sum(rows * columns for rows, columns in shapes))


@contextmanager
def running_server(world: World) -> Iterator[Children]:
    """``handbill server run``."""
    with Children(world.home / "logs") as children:
        _start(children, world, "server", "server", "run")
        _wait_for_log(children, world, "server", "server ready")
        yield children


@contextmanager
def running_merchants(world: World) -> Iterator[Children]:
    """``handbill client run`` for each."""
    with Children(world.home / "logs") as merchants:
        for shop in world.shops:
            _start(merchants, world, shop, "client", "run", "--shop", shop)
        for shop in world.shops:
            _wait_for_log(merchants, world, shop, "is ready")
        yield merchants


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _start(children: Children, world: World, name: str, *words: str) -> None:
    children.start(name, [*HANDBILL, *words, "--home", str(world.home)])


def _wait_for_log(children: Children, world: World, name: str, words: str) -> None:
    log = world.home / "logs" / f"{name}.log"
    children.wait_for(lambda: words in log.read_text(), f"{name} was ready", timeout_s=600)
