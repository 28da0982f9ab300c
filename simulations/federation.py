"""Many merchants in one process: the real round, the real client, a tiny random model.

What is real: every merchant's files, policy, journal and ledger, user-level DP on Opacus with
cryptographic noise, signed messages in both directions, the server's optimiser, gate, registry and
audit chain. What is not: the network (plain calls) and the base model (random, tiny, and shared,
so that memory does not grow with the number of merchants).
"""

import random
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from handbill.clients.merchant import SERVER_KEY, SIGNING_KEY, Merchant, Policy
from handbill.clients.studies import CURVE_ROWS
from handbill.clients.trainer import Trainer
from handbill.errors import InputError
from handbill.federation.messages import Recipe
from handbill.federation.transport import InProcessTransport, Reply
from handbill.generator.adapters import Tensors, read_adapter, zero_update
from handbill.generator.artifacts import load_or_create_key, public_pem, utc_now
from handbill.generator.base_models import BaseModel, make_tiny_base, resolve_base
from handbill.generator.lora import LoraModel
from handbill.server import records
from handbill.server.registry import Registry, open_registry
from handbill.server.runs import adapter_spec
from handbill.server.settings import AdapterSettings, SecureAggregation, ServerSettings
from handbill.server.training import Training
from handbill.simulations.federation_result import (
    MIN_USERS,
    FederationConfig,
    FederationResult,
    Spread,
    read_losses,
    read_rounds,
    read_spending,
)
from handbill.simulations.grammar import SHOPS, Draws, read_vocabulary
from handbill.simulations.market import write_shop

RUN: Final = "simulation"
HELD_OUT: Final = 0.2
_KIB_PER_MIB: Final = 1024  # Linux counts the peak in KiB


class LossyTransport(InProcessTransport):
    """Merchants in this process, some of which never get what is sent to them."""

    def __init__(
        self,
        merchants: Mapping[str, Callable[[bytes], bytes]],
        *,
        dropout: float = 0.0,
        seed: int = 0,
        on_reply: Callable[[], None] = lambda: None,
    ) -> None:
        """Lose each message with chance ``dropout``; call ``on_reply`` for every message."""
        super().__init__(merchants)
        self._dropout, self._on_reply = dropout, on_reply
        self._draws = random.Random(seed)  # noqa: S311 - who drops out is no secret

    def send(self, merchant: str, message: bytes) -> None:
        """Queue a message, or lose it."""
        if self._draws.random() >= self._dropout:
            super().send(merchant, message)
        else:
            self._on_reply()  # there will be none

    def receive(self, timeout_s: float) -> Reply | None:
        """Let the next merchant work and hand back its reply."""
        reply = super().receive(timeout_s)
        if reply is not None:
            self._on_reply()
        return reply


def simulate(
    config: FederationConfig,
    folder: Path | None = None,
    *,
    on_step: Callable[[str], None] = lambda _: None,
) -> FederationResult:
    """Run a federation.

    Args:
        config: What to simulate.
        folder: Where data and homes are written; must be empty or not exist. Without it they
            go to a temporary folder and are removed at the end.
        on_step: Told in words what goes on, for each merchant set up and for each message.

    Raises:
        InputError: ``folder`` holds something.
        RoundError: Too many merchants dropped out for a round to be committed.
    """
    if folder is not None:
        if folder.exists() and any(folder.iterdir()):
            raise InputError(f"{folder}: is not empty; give a new folder")
        return _simulate(config, folder.absolute(), on_step)
    with tempfile.TemporaryDirectory(prefix="handbill-simulation-") as temporary:
        return _simulate(config, Path(temporary), on_step)


def _simulate(
    config: FederationConfig, folder: Path, on_step: Callable[[str], None]
) -> FederationResult:
    started = time.monotonic()
    settings = settings_for(config, make_tiny_base(folder / "base", seed=config.seed))
    base = resolve_base(settings.base)
    model = LoraModel(base, adapter_spec(settings, base))
    registry = open_registry(folder / "server", create=True)
    try:
        settings.save(folder / "server")
        trainers = []
        for number in range(1, config.merchants + 1):
            home = enrolled(config, folder, registry, number)
            trainers.append(Trainer(home, model=model))
            on_step("set up merchants")
        before = _losses(trainers, model, zero_update(model.spec, base), settings.recipe)
        prepare_s = time.monotonic() - started
        transport = LossyTransport(
            {trainer.merchant.id: trainer.handle for trainer in trainers},
            dropout=config.dropout,
            seed=config.seed,
            on_reply=lambda: on_step("train and report"),
        )
        training = Training(folder / "server", transport, registry, settings, model=model)
        training.train(RUN, publish=False)
        after = _losses(trainers, model, _trained(registry, base, model), settings.recipe)
        rounds = read_rounds(registry)
    finally:
        registry.database.close()
    spent = [read_spending(trainer, config.rounds) for trainer in trainers]
    return FederationResult(
        config=config,
        rounds=rounds,
        loss=_loss_by_round(trainers, before, after, config.rounds),
        epsilon={done: Spread.of(some) for done, some in enumerate(zip(*spent, strict=True))},
        delta=trainers[0].policy.delta,
        improved=sum(b > a for b, a in zip(before, after, strict=True)),
        prepare_s=prepare_s,
        seconds=time.monotonic() - started,
        peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _KIB_PER_MIB,
    )


def settings_for(config: FederationConfig, base: Path) -> ServerSettings:
    """A recipe for small shops: a quarter of the shoppers in a step, half of a tiny model."""
    return ServerSettings(
        base=str(base),
        min_reports=max(1, round(config.merchants * (1 - config.dropout) / 2)),
        secure_aggregation=SecureAggregation(enabled=config.secure),
        adapter=AdapterSettings(rank=4, alpha=8.0, layers=1),
        recipe=Recipe(
            rounds=config.rounds,
            personal_steps=0,
            expected_users=_policy(config).users // 4,
            rows_per_user=2,
            batch_rows=32,
        ),
    )


def _policy(config: FederationConfig) -> Policy:
    return Policy.for_users(
        config.users,
        epsilon_limit=config.epsilon,
        epsilon_per_run=config.epsilon,
        spare_rounds=0,  # the epsilon asked for is the one that is spent
        min_users=MIN_USERS // 2,
        held_out=HELD_OUT,
        personal=False,
        secure_aggregation=config.secure,
    )


def enrolled(config: FederationConfig, folder: Path, registry: Registry, number: int) -> Path:
    """Invent a shop in one of the sample market's voices, set up its client, enrol it."""
    words = read_vocabulary(SHOPS[number % len(SHOPS)])
    shop = f"{words['id']}-{number:04}"
    words |= {"id": shop, "name": f"{words['name']} {number}"}
    data, home = folder / "data" / shop, folder / "shops" / shop
    write_shop(data, words, Draws(config.seed, shop), config.users)
    merchant = Merchant(
        id=shop,
        name=words["name"],
        data=str(data),
        server="in-process",
        base=str(folder / "base"),
        threads=1,  # the model is too small to gain by more
    )
    merchant.save(home)
    _policy(config).save(home)
    (home / SERVER_KEY).parent.mkdir()
    shutil.copyfile(registry.root / "publisher.pub", home / SERVER_KEY)
    key = load_or_create_key(home / SIGNING_KEY)
    registry.enrol(
        records.Merchant(
            id=shop,
            name=merchant.name,
            public_key=public_pem(key.public_key()).decode(),
            node_key="",
            enrolled_at=utc_now(),
        )
    )
    return home


def _losses(
    trainers: Sequence[Trainer], model: LoraModel, weights: Tensors, recipe: Recipe
) -> list[float]:
    """Every merchant's held-out loss with these weights."""
    model.load(weights)
    rows = [trainer.encode(trainer.users.held_out[:CURVE_ROWS], recipe) for trainer in trainers]
    return [model.held_out_loss(some, batch=recipe.batch_rows) for some in rows]


def _trained(registry: Registry, base: BaseModel, model: LoraModel) -> Tensors:
    last = registry.last_committed(RUN)
    if last is None:
        return zero_update(model.spec, base)
    adapter = read_adapter(registry.store.path(last.aggregate))
    return {name: adapter.tensors[name].copy() for name in model.shapes}


def _loss_by_round(
    trainers: Sequence[Trainer], before: list[float], after: list[float], rounds: int
) -> dict[int, Spread]:
    """Between the ends, what each merchant that took part measured on what it received."""
    noted = [read_losses(trainer) for trainer in trainers]
    points = {done: [n[done] for n in noted if done in n] for done in range(1, rounds)}
    points = {0: before, **points, rounds: after}
    return {done: Spread.of(losses) for done, losses in points.items() if losses}
