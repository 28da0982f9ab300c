"""Many merchants in one process: the real round, the real client, a tiny random model.

What is real: every merchant's files, policy, journal and ledger, user-level DP on Opacus with
cryptographic noise, signed messages in both directions, the server's optimiser, gate, registry and
audit chain. What is not: the network (plain calls) and the base model (random, tiny, and shared,
so that memory does not grow with the number of merchants).
"""

import json
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from handbill.clients.merchant import SERVER_KEY, SIGNING_KEY, Merchant, Policy
from handbill.clients.trainer import CURVE_ROWS, LEDGER_FILE, PROGRESS_FILE, Trainer
from handbill.errors import InputError
from handbill.federation.aggregation import ServerOptimizer
from handbill.federation.messages import Recipe
from handbill.federation.transport import InProcessTransport, Reply
from handbill.generator.adapters import Tensors, read_adapter, zero_update
from handbill.generator.artifacts import load_or_create_key, public_pem, utc_now
from handbill.generator.base_models import BaseModel, make_tiny_base, resolve_base
from handbill.generator.lora import LoraModel
from handbill.privacy.ledger import Ledger
from handbill.server import records
from handbill.server.registry import Registry, open_registry
from handbill.server.settings import AdapterSettings, ServerSettings
from handbill.server.training import Training, adapter_spec
from handbill.simulations.grammar import SHOPS, Draws, read_vocabulary
from handbill.simulations.market import write_shop

RUN: Final = "simulation"
MIN_USERS: Final = 20
HELD_OUT: Final = 0.2
_MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class FederationConfig:
    """A simulated federation.

    Attributes:
        users: Shoppers of each merchant; a fifth of them is held out.
        epsilon: Every merchant's limit, and what its noise is calibrated for.
        seed: Of data, model and dropouts. The privacy noise has no seed: no two runs are equal.
        dropout: Chance of each merchant to stay silent in a round.
    """

    merchants: int = 100
    rounds: int = 5
    users: int = 60
    epsilon: float = 8.0
    seed: int = 7
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (("merchants", 1), ("rounds", 1), ("users", MIN_USERS)):
            if getattr(self, name) < least:
                raise InputError(f"{name}={getattr(self, name)}: at least {least} needed")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout={self.dropout} not in [0, 1)")


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundResult:
    """One committed round: seconds from instruct to the last report, bytes of all merchants."""

    number: int
    cohort: int
    reports: int
    seconds: float
    bytes_down: int
    bytes_up: int

    @property
    def clients_per_s(self) -> float:
        """Merchants that trained and reported, a second."""
        return self.reports / self.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """Held-out loss over merchants, nats a token, after ``round`` rounds."""

    round: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FederationResult:
    """What a simulation ended with.

    Attributes:
        curve: ``low`` and ``high`` leave a tenth of the merchants out on either side.
        improved: Merchants whose held-out loss fell.
        epsilons: What each merchant's own ledger says it spent.
        prepare_s: Seconds to write and open every merchant.
        peak_mib: Resident memory of this process at the end.
    """

    config: FederationConfig
    rounds: tuple[RoundResult, ...]
    curve: tuple[CurvePoint, ...]
    improved: int
    epsilons: tuple[float, ...]
    delta: float
    prepare_s: float
    seconds: float
    peak_mib: float

    @property
    def clients_per_s(self) -> float:
        """Over all rounds together."""
        return sum(r.reports for r in self.rounds) / sum(r.seconds for r in self.rounds)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        facts = asdict(self)
        del facts["epsilons"]
        return {
            **facts,
            "clients_per_s": self.clients_per_s,
            "epsilon": {
                "min": min(self.epsilons),
                "median": statistics.median(self.epsilons),
                "max": max(self.epsilons),
            },
        }


class LossyTransport(InProcessTransport):
    """Merchants in this process, some of which never get what is sent to them."""

    def __init__(
        self,
        merchants: Mapping[str, Callable[[bytes], bytes]],
        *,
        dropout: float = 0.0,
        seed: int = 0,
        on_reply: Callable[[], None] | None = None,
    ) -> None:
        """Lose each message with chance ``dropout``; call ``on_reply`` after every reply."""
        super().__init__(merchants)
        self._dropout, self._on_reply = dropout, on_reply
        self._draws = random.Random(seed)  # noqa: S311 - who drops out is no secret

    def send(self, merchant: str, message: bytes) -> None:
        """Queue a message, or lose it."""
        if self._draws.random() >= self._dropout:
            super().send(merchant, message)

    def receive(self, timeout_s: float) -> Reply | None:
        """Let the next merchant work and hand back its reply."""
        reply = super().receive(timeout_s)
        if reply is not None and self._on_reply:
            self._on_reply()
        return reply


def simulate(
    config: FederationConfig,
    folder: Path | None = None,
    *,
    on_reply: Callable[[], None] | None = None,
) -> FederationResult:
    """Run a federation.

    Args:
        config: What to simulate.
        folder: Where data and homes are written; must be empty or not exist. Without it they
            go to a temporary folder and are removed at the end.
        on_reply: Called after every merchant's reply; for progress.

    Raises:
        InputError: ``folder`` holds something.
        RoundError: Too many merchants dropped out for a round to be committed.
    """
    if folder is not None:
        if folder.exists() and any(folder.iterdir()):
            raise InputError(f"{folder}: is not empty; give a new folder")
        return _simulate(config, folder.absolute(), on_reply)
    with tempfile.TemporaryDirectory(prefix="handbill-simulation-") as temporary:
        return _simulate(config, Path(temporary), on_reply)


def _simulate(
    config: FederationConfig, folder: Path, on_reply: Callable[[], None] | None
) -> FederationResult:
    started = time.monotonic()
    settings = _settings(config, make_tiny_base(folder / "base", seed=config.seed))
    base = resolve_base(settings.base)
    model = LoraModel(base, adapter_spec(settings, base))
    registry = open_registry(folder / "server", create=True)
    try:
        settings.save(folder / "server")
        trainers = [_merchant(config, folder, settings, registry, n, model) for n in _numbers(config)]
        handlers = {trainer.merchant.id: trainer.handle for trainer in trainers}
        before = _losses(trainers, model, zero_update(model.spec, base), settings.recipe)
        prepare_s = time.monotonic() - started
        transport = LossyTransport(
            handlers, dropout=config.dropout, seed=config.seed, on_reply=on_reply
        )
        Training(folder / "server", transport, registry, settings, model=model).train(
            RUN, publish=False
        )
        after = _losses(trainers, model, _trained(registry, base, model), settings.recipe)
        rounds = _rounds(registry)
    finally:
        registry.database.close()
    return FederationResult(
        config=config,
        rounds=rounds,
        curve=_curve(trainers, before, after, config.rounds),
        improved=sum(b > a for b, a in zip(before, after, strict=True)),
        epsilons=tuple(_spent(trainer) for trainer in trainers),
        delta=trainers[0].policy.delta,
        prepare_s=prepare_s,
        seconds=time.monotonic() - started,
        peak_mib=psutil.Process().memory_info().rss / _MIB,
    )


def _settings(config: FederationConfig, base: Path) -> ServerSettings:
    """A recipe for small shops: a quarter of the shoppers in a step, short rows."""
    return ServerSettings(
        base=str(base),
        min_reports=max(1, round(config.merchants * (1 - config.dropout) / 2)),
        adapter=AdapterSettings(rank=4, alpha=8.0, layers=1),
        recipe=Recipe(
            rounds=config.rounds,
            personal_steps=0,
            expected_users=_policy(config).users // 4,
            rows_per_user=2,
            max_prompt_tokens=128,  # the tiny model's tokens are bytes
            max_copy_tokens=64,
            batch_rows=16,
        ),
        optimizer=ServerOptimizer(learning_rate=4e-2),
    )


def _policy(config: FederationConfig) -> Policy:
    return Policy.for_users(
        config.users,
        epsilon_limit=config.epsilon,
        epsilon_per_run=config.epsilon,
        min_users=MIN_USERS // 2,
        held_out=HELD_OUT,
        personal=False,
    )


def _numbers(config: FederationConfig) -> range:
    return range(1, config.merchants + 1)


def _merchant(
    config: FederationConfig,
    folder: Path,
    settings: ServerSettings,
    registry: Registry,
    number: int,
    model: LoraModel,
) -> Trainer:
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
        base=settings.base,
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
    return Trainer(home, model=model)


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
    return {name: adapter.tensors[name] for name in model.shapes}


def _rounds(registry: Registry) -> tuple[RoundResult, ...]:
    with registry.database.begin() as uow:
        committed = [r for r in uow.rounds.all() if r.status == "committed"]
    return tuple(
        RoundResult(
            number=r.number,
            cohort=len(r.cohort),
            reports=len(r.survivors),
            seconds=r.seconds,
            bytes_down=r.bytes_down,
            bytes_up=r.bytes_up,
        )
        for r in sorted(committed, key=lambda r: r.number)
    )


def _curve(
    trainers: Sequence[Trainer], before: list[float], after: list[float], rounds: int
) -> tuple[CurvePoint, ...]:
    """Loss by round; between the ends, as each merchant that took part noted it for itself."""
    noted: dict[int, list[float]] = {number: [] for number in range(1, rounds)}
    for trainer in trainers:
        path = trainer.home / PROGRESS_FILE
        facts = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
        seen = {f["round"] - 1: f["held_out_loss"] for f in facts if f["event"] == "received"}
        for number, losses in noted.items():
            if number in seen:
                losses.append(seen[number])
    points = {0: before, **noted, rounds: after}
    return tuple(_point(number, losses) for number, losses in points.items() if losses)


def _point(number: int, losses: list[float]) -> CurvePoint:
    ordered = sorted(losses)
    tenth = len(ordered) // 10
    return CurvePoint(
        round=number,
        mean=statistics.fmean(losses),
        low=ordered[tenth],
        high=ordered[len(ordered) - 1 - tenth],
    )


def _spent(trainer: Trainer) -> float:
    path, policy = trainer.home / LEDGER_FILE, trainer.policy
    if not path.is_file():
        return 0.0  # it never heard of a round
    with Ledger(
        path, epsilon_limit=policy.epsilon_limit, delta=policy.delta, read_only=True
    ) as ledger:
        return ledger.spent()
