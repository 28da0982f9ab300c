"""A market that learns from clicks: serve, see what is clicked, train privately on it, serve again.

Everything between is the product's own: a federation of three shops trains with user-level DP (real
client, ledger, rounds, gate), its adapter is published, served by the real engine behind the real
API, shoppers' events come back through ``/v1/events``, each shop fetches its own as its client
does, and the next run learns from them beside older rows. Invented are the shops, the small base
model and the shoppers, who click by a rule that is known here and to no part of the product: copy
is clicked more often when its first sentence speaks to the shopper ("you"), and when it is short. So
the true click rate of what is served can be computed and not only counted.

Copy is measured on shoppers nothing is learnt from. ``control`` is a run like the one with feedback,
with as much budget, before there is any.
"""

import csv
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from handbill.clients.budget import Budget
from handbill.clients.descriptions import PRODUCT_FIELDS
from handbill.clients.feedback import FEEDBACK_FILE, write_feedback
from handbill.clients.journal import Journal
from handbill.clients.merchant import SERVER_KEY, SIGNING_KEY, Merchant, Policy
from handbill.clients.trainer import Trainer
from handbill.federation.aggregation import ServerOptimizer
from handbill.federation.messages import Recipe
from handbill.federation.transport import InProcessTransport
from handbill.generator.artifacts import load_or_create_key, public_pem, utc_now
from handbill.generator.base_models import resolve_base
from handbill.generator.lora import LoraModel
from handbill.server import records
from handbill.server.registry import open_registry
from handbill.server.runs import adapter_spec
from handbill.server.settings import AdapterSettings, SecureAggregation, ServerSettings
from handbill.server.training import Training
from handbill.simulations.grammar import SHOPS, Draws, read_vocabulary
from handbill.simulations.market import write_shop
from handbill.simulations.served import InProcessService
from handbill.simulations.small_base import COPY_TOKENS, PROMPT_TOKENS, make_small_base

SHORT_WORDS: Final = 40  # two of five pieces of the shops' own copy are
_SPEAKS: Final = re.compile(r"\byou", re.IGNORECASE)
COPY: Final = {
    "temperature": 0.9,
    "top_p": 0.9,
    "repetition_penalty": 1.0,
    "max_tokens": COPY_TOKENS,
}
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackMarket:
    """What to simulate.

    Attributes:
        shoppers: Of each shop.
        pieces: Of copy that each shopper meets.
        rounds: Private rounds of each run.
        epsilon: Of each run; together they cost less than their sum.
        replay: Share of older rows, see :func:`~handbill.clients.feedback.mixed`.
        objective: What is learnt from feedback.
        base_steps: Of the base model's own training, where none is given.
    """

    seed: int = 0
    shoppers: int = 300
    pieces: int = 8
    rounds: int = 8
    epsilon: float = 4.0
    replay: float = 0.25
    objective: str = "weighted"
    base_steps: int = 700


@dataclass(frozen=True, slots=True, kw_only=True)
class MarketResult:
    """True click rates by arm, and what was done for them.

    Attributes:
        ctr: Mean chance of a click of served copy: ``before``, ``after``, ``control``.
        epsilon: Of the shop that spent most, over all runs, the control's too.
        delta: Of the same.
    """

    market: FeedbackMarket
    ctr: Mapping[str, float]
    epsilon: float
    delta: float
    impressions: int
    clicks: int
    samples: Sequence[Mapping[str, str]]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "ctr": dict(self.ctr)}


def chance_of_click(text: str) -> float:
    """How likely a shopper is to click a piece of copy: the rule of the simulated market."""
    speaks = bool(_SPEAKS.search(text.partition(". ")[0]))
    short = len(text.split()) <= SHORT_WORDS
    return (0.03, 0.1, 0.4)[speaks + short]


def run_market(
    market: FeedbackMarket, *, base: Path | None = None, say: Say = lambda _: None
) -> MarketResult:
    """Run the loop once, in a temporary folder.

    Args:
        market: What to simulate.
        base: A base model that :func:`~handbill.simulations.small_base.make_small_base` made; one
            is made if none is given.
        say: Told what goes on.
    """
    with tempfile.TemporaryDirectory(prefix="handbill-feedback-") as name:
        folder = Path(name)
        made = base or make_small_base(folder / "base", steps=market.base_steps, say=say)
        return _Loop(market, folder, made, say).run()


class _Loop:
    def __init__(self, market: FeedbackMarket, folder: Path, base: Path, say: Say) -> None:
        self.market, self.folder, self.say = market, folder, say
        self.base = resolve_base(str(base))
        self.settings = ServerSettings(
            base=str(base),
            min_reports=len(SHOPS),
            secure_aggregation=SecureAggregation(enabled=False),
            adapter=AdapterSettings(rank=8, alpha=16.0, layers=3),
            recipe=Recipe(
                rounds=market.rounds,
                personal_steps=0,
                expected_users=self._policy().users // 4,
                rows_per_user=4,
                batch_rows=32,
                max_prompt_tokens=PROMPT_TOKENS,
                max_copy_tokens=COPY_TOKENS,
            ),
            # The small model is soon drowned: each step is what the noisy mean says, and no more.
            optimizer=ServerOptimizer(kind="fedavg", learning_rate=2.0),
            gate_nats=10.0,  # the probe is of real shops, which the small base cannot write for
        )
        self.model = LoraModel(self.base, adapter_spec(self.settings, self.base))
        self.registry = open_registry(folder / "server", create=True)
        self.settings.save(folder / "server")
        self.homes = {shop: self._enrolled(shop) for shop in SHOPS}

    def run(self) -> MarketResult:
        """Train, serve, listen, train again; then measure."""
        service = InProcessService(self.folder, self.base, self.registry.root, tenants=SHOPS)
        try:
            ctr, samples = {}, []
            self._train("first")
            service.refresh()
            ctr["before"], before = self._measured(service)
            events = {shop: self._lived(service, shop) for shop in SHOPS}
            self._train("control")
            service.refresh()
            ctr["control"], _ = self._measured(service)
            for shop, home in self.homes.items():
                write_feedback(home / FEEDBACK_FILE, service.export(shop))
            self._train("second")
            service.refresh()
            ctr["after"], after = self._measured(service)
            samples = [{"before": b, "after": a} for b, a in zip(before, after, strict=False)][:6]
        finally:
            service.close()
            self.registry.database.close()
        self.say(", ".join(f"{name} {rate:.3f}" for name, rate in ctr.items()))
        spent, delta = max(self._spent(home) for home in self.homes.values())
        return MarketResult(
            market=self.market,
            ctr=ctr,
            epsilon=spent,
            delta=delta,
            impressions=sum(seen for seen, _ in events.values()),
            clicks=sum(clicked for _, clicked in events.values()),
            samples=samples,
        )

    def _train(self, run: str) -> None:
        """One run over all shops; its adapter is published."""
        self.say(f"run {run}")
        trainers = [Trainer(home, model=self.model) for home in self.homes.values()]
        transport = InProcessTransport({t.merchant.id: t.handle for t in trainers})
        training = Training(
            self.folder / "server", transport, self.registry, self.settings, model=self.model
        )
        training.train(run, publish=True)

    def _lived(self, service: InProcessService, shop: str) -> tuple[int, int]:
        """Every shopper to be learnt from meets copy and clicks or does not; events are sent."""
        draws = Draws("clicks", self.market.seed, shop)
        held_out = self._held_out(shop)
        asked = [r for r in self._requests(shop) if r["shopper_key"] not in held_out]
        events: list[dict[str, Any]] = []
        clicks = 0
        for request, pieces in zip(asked, service.write(shop, asked), strict=True):
            shopper = request["shopper_key"]
            for copy_id, text in pieces:
                event = {"copy_id": copy_id, "shopper": shopper}
                events.append(event | {"id": f"{copy_id}-i", "kind": "impression"})
                if draws.chance(chance_of_click(text)):
                    events.append(event | {"id": f"{copy_id}-c", "kind": "click"})
                    clicks += 1
        service.send(shop, events)
        self.say(f"{shop}: {len(events) - clicks} impressions, {clicks} clicks")
        return len(events) - clicks, clicks

    def _measured(self, service: InProcessService) -> tuple[float, list[str]]:
        """The true click rate of what is served to shoppers that nothing is learnt from."""
        chances, texts = [], []
        for shop in SHOPS:
            held_out = self._held_out(shop)
            asked = [r for r in self._requests(shop) if r["shopper_key"] in held_out]
            for pieces in service.write(shop, asked):
                chances += [chance_of_click(text) for _, text in pieces]
                texts += [text for _, text in pieces[:1]]
        self.say(f"true click rate {np.mean(chances):.3f} over {len(chances)} pieces of copy")
        return float(np.mean(chances)), texts

    def _requests(self, shop: str) -> list[dict[str, Any]]:
        """One request for each shopper: a product of the catalogue, the same in every arm."""
        folder = self.folder / "data" / shop
        products = [p for p in _table(folder / "products.csv") if p["description"]]
        products = [p for p in products if p["price"].startswith("£")]
        draws = Draws("products", self.market.seed, shop)
        asked = []
        for number, row in enumerate(_table(folder / "shoppers.csv")):
            product = draws.pick(products)
            known = {name: product[name] for name in PRODUCT_FIELDS}
            asked.append(
                {
                    **known,
                    "shopper": row["interests"],
                    "shopper_key": row["shopper_id"],
                    "n": self.market.pieces,
                    "seed": number,
                    "feedback": True,
                    **COPY,
                }
            )
        return asked

    def _held_out(self, shop: str) -> set[str]:
        trainer = Trainer(self.homes[shop], model=self.model)
        return {row.user for row in trainer.users.held_out}

    def _spent(self, home: Path) -> tuple[float, float]:
        budget = Budget(home, Policy.load(home), Journal(home / "journal"))
        found = budget.statement(self.settings.recipe, rng="")
        return float(found["epsilon"]), float(found["delta"])

    def _policy(self) -> Policy:
        return Policy.for_users(
            self.market.shoppers,
            epsilon_limit=3 * self.market.epsilon,
            epsilon_per_run=self.market.epsilon,
            spare_rounds=0,
            held_out=0.2,
            min_users=10,
            personal=False,
            secure_aggregation=False,
            max_sampling_rate=0.3,
        )

    def _enrolled(self, shop: str) -> Path:
        """Invent a shop, set up its client, enrol it."""
        words = read_vocabulary(shop)
        data, home = self.folder / "data" / shop, self.folder / "shops" / shop
        write_shop(data, words, Draws(self.market.seed, shop), self.market.shoppers)
        merchant = Merchant(
            id=shop,
            name=words["name"],
            data=str(data),
            server="in-process",
            base=str(self.base.path),
            threads=1,
            feedback=self.market.objective,
            replay=self.market.replay,
        )
        merchant.save(home)
        self._policy().save(home)
        (home / SERVER_KEY).parent.mkdir(parents=True)
        (home / SERVER_KEY).write_bytes((self.registry.root / "publisher.pub").read_bytes())
        key = load_or_create_key(home / SIGNING_KEY)
        self.registry.enrol(
            records.Merchant(
                id=shop,
                name=merchant.name,
                public_key=public_pem(key.public_key()).decode(),
                node_key="",
                enrolled_at=utc_now(),
            )
        )
        return home


def _table(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))
