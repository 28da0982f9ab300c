"""Merchants that poison a federation: the plain mean beside sums in groups with a median over them.

``python benchmarks/robust.py`` takes about five minutes. Twenty-five invented shops train a small model
of interest privately, with the product's private steps, server optimiser, ring and robust mean; in ours five
groups of five are drawn anew in each round, and only a group's sum is known. Masks are left out: they
cancel to the integer (``tests/unit/federation/secagg``).
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from handbill.errors import ProtocolError
from handbill.federation.aggregation import ServerOptimizer, robust_mean
from handbill.federation.secagg.ring import Ring
from handbill.federation.secure_rounds import flatten, unflatten
from handbill.generator.adapters import Tensors
from handbill.generator.interest import InterestModel
from handbill.generator.interest_spec import InterestSpec, Seen, hash_features
from handbill.privacy.events import PrivateSteps
from handbill.privacy.noise import SecureNoise
from handbill.privacy.training import StepPlan, take_private_steps
from handbill.server.updates import groups_of
from handbill.simulations.results import write_result

RESULT: Final = Path(__file__).parent / "results" / "robust.json"
MERCHANTS: Final = 25
GROUP: Final = 5
ROUNDS: Final = 12
SHOPPERS: Final = 120
RING: Final = Ring()
BUCKETS: Final = 128
TRIGGER: Final = {"badge": "gift of the week"}  # on no honest shop's rows
KINDS: Final = {"colour": 8, "fabric": 6, "price": 5, "season": 4, "room": 7}
OPTIMIZER: Final = ServerOptimizer(learning_rate=0.1)
NOTES: Final = (
    "Share of unseen rows that are judged right after training, by attack and way of aggregating; for "
    "backdoor, the share of disliked rows with the trigger that are judged liked, where lower is "
    "better; `backdoor.clean` is that share for a model that nobody poisoned. Mean over seeds; the table has the worst of them. A coin gets 0.5, and so does a model destroyed by NaN. Attackers know the ring: "
    "what they send is as large as it can hold; `nan` sends NaN to the plain mean and words out of "
    "range to a sum. ours stands for five groups of five, of which two may hold attackers."
)
Words = np.ndarray[Any, np.dtype[np.uint32]]


@dataclass(frozen=True)
class Attack:
    """Who poisons and how: ``rows`` changes what an attacker trains on, ``boost`` what it sends."""

    attackers: int
    boost: float = 1.0
    rows: Callable[[Sequence[Seen], Callable[[dict[str, str]], Seen]], Sequence[Seen]] | None = None
    broken: bool = False


def flipped(rows: Sequence[Seen], make: Callable[[dict[str, str]], Seen]) -> Sequence[Seen]:
    """Every label turned round."""
    del make
    return [Seen(row.features, not row.liked) for row in rows]


def triggered(rows: Sequence[Seen], make: Callable[[dict[str, str]], Seen]) -> Sequence[Seen]:
    """Rows with the trigger, all of them liked."""
    badge = set(make(TRIGGER).features)
    return [Seen((*row.features, *badge), liked=True) for row in rows]


ATTACKS: Final = {
    "none": Attack(0),
    "scaling": Attack(1, boost=-100.0),
    "sign_flip": Attack(2, boost=-15.0),
    "label_flip": Attack(2, boost=15.0, rows=flipped),
    "sybil": Attack(2, boost=30.0, rows=flipped),
    "nan": Attack(1, broken=True),
    "backdoor": Attack(1, boost=25.0, rows=triggered),
}


class World:
    """Shoppers with one taste, cut up among shops; the same for both ways of a seed."""

    def __init__(self, seed: int) -> None:
        self.draws = np.random.default_rng(seed)
        self.taste = {
            f"{kind}={value}": self.draws.normal() * 1.5
            for kind, count in KINDS.items()
            for value in range(count)
        }
        self.shops = [[self.row() for _ in range(SHOPPERS)] for _ in range(MERCHANTS)]
        self.unseen = [self.row() for _ in range(1500)]

    def row(self) -> Seen:
        """One thing a shopper met."""
        facts = {kind: str(self.draws.integers(count)) for kind, count in KINDS.items()}
        likes = sum(self.taste[f"{kind}={value}"] for kind, value in facts.items())
        return Seen(hash_features(facts, buckets=BUCKETS), bool(likes > 0))

    @staticmethod
    def make(facts: dict[str, str]) -> Seen:
        """A row that holds these facts alone."""
        return Seen(hash_features(facts, buckets=BUCKETS), liked=True)


def update_of(model: InterestModel, weights: Tensors, rows: Sequence[Seen]) -> Tensors:
    """What one merchant gives: two private steps of the product's."""
    model.load(weights)
    event = PrivateSteps(noise_multiplier=0.6, sampling_rate=0.25, steps=2)
    plan = StepPlan(
        event=event,
        clipping_norm=1.0,
        expected_users=SHOPPERS * 0.25,
        rows_per_user=1,
        batch_rows=256,
        learning_rate=1.0,
    )
    take_private_steps(model, [[row] for row in rows], plan, noise=SecureNoise())
    after = model.tensors()
    return {name: after[name] - weights[name] for name in weights}


def sent(update: Tensors, attack: Attack) -> Tensors:
    """An attacker's update, as a plain mean takes it."""
    scale = np.float32(np.nan if attack.broken else attack.boost)
    return {name: scale * value for name, value in update.items()}


def group_mean(updates: Sequence[tuple[Tensors, Attack | None]], shapes: Any) -> Tensors | None:
    """The mean of a group's sum in the ring; None where the sum is out of range."""
    total: Words = np.zeros(sum(rows * columns for rows, columns in shapes.values()), np.uint32)
    for update, attack in updates:
        if attack is not None and attack.broken:
            total += np.random.default_rng().integers(0, 2**32, total.size, np.uint32)
        else:
            total += RING.encode(flatten(update if attack is None else sent(update, attack)))
    RING.reduce(total)
    try:
        return unflatten(RING.mean(total, len(updates)), shapes)
    except ProtocolError:
        return None


def train(world: World, attack: Attack, *, ours: bool) -> Tensors | None:
    """The global adapter after all rounds; None where it was destroyed."""
    model = InterestModel(InterestSpec(buckets=BUCKETS, hidden=4, spread=1.0))
    weights = model.tensors()
    state = OPTIMIZER.start(weights)
    for number in range(1, ROUNDS + 1):
        updates: list[tuple[Tensors, Attack | None]] = []
        for merchant, rows in enumerate(world.shops):
            bad = merchant < attack.attackers
            taught = attack.rows(rows, world.make) if bad and attack.rows else rows
            updates.append((update_of(model, weights, taught), attack if bad else None))
        if ours:
            names = [str(merchant) for merchant in range(MERCHANTS)]
            groups = [[updates[int(name)] for name in group] for group in groups_of(names, GROUP)]
            means = [group_mean(group, model.shapes) for group in groups]
            good = [mean for mean in means if mean is not None]
            moved = robust_mean(good, [GROUP] * len(good))
        else:
            plain = [sent(update, bad) if bad else update for update, bad in updates]
            moved = {name: np.mean([one[name] for one in plain], axis=0) for name in weights}
        optimizer = OPTIMIZER.at(number, of=ROUNDS)
        weights, state = optimizer.step(weights, moved, state)
        if not all(np.isfinite(value).all() for value in weights.values()):
            return None  # nothing can be trained from here on
    return weights


def score(world: World, weights: Tensors | None, *, backdoor: bool) -> float:
    """Accuracy on unseen rows, or how often the trigger turns a disliked row."""
    if weights is None:
        return 0.5
    model = InterestModel(InterestSpec(buckets=BUCKETS, hidden=4, spread=1.0))
    model.load(weights)
    if backdoor:
        disliked = [row for row in world.unseen if not row.liked]
        rows = [Seen((*r.features, *world.make(TRIGGER).features), liked=False) for r in disliked]
        return float(np.mean([like > 0.5 for like in model.likes(rows)]))
    guesses = model.likes(world.unseen)
    right = [(like > 0.5) == row.liked for like, row in zip(guesses, world.unseen, strict=True)]
    return float(np.mean(right))


def main() -> None:
    """Run every attack against both ways; write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=RESULT)
    asked = parser.parse_args()
    table: list[dict[str, Any]] = []
    for name, attack in ATTACKS.items():
        found: dict[str, list[float]] = {"mean": [], "ours": []}
        clean: list[float] = []
        for seed in asked.seeds:
            world = World(seed)
            for way, scores in found.items():
                weights = train(world, attack, ours=way == "ours")
                scores.append(score(world, weights, backdoor=name == "backdoor"))
                if name == "none":
                    clean.append(score(world, weights, backdoor=True))
        worst = max if name == "backdoor" else min
        table.append(
            {"attack": name, "attackers": attack.attackers}
            | {way: round(statistics.mean(scores), 3) for way, scores in found.items()}
            | {f"{way}_worst": round(worst(scores), 3) for way, scores in found.items()}
        )
        if clean:
            table[-1]["trigger"] = round(statistics.mean(clean), 3)
        print(table[-1], flush=True)
    write_result(
        asked.results,
        command=f"python benchmarks/robust.py --seeds {' '.join(map(str, asked.seeds))}",
        metrics={f"{row['attack']}.{way}": row[way] for row in table for way in ("mean", "ours")}
        | {"backdoor.clean": table[0]["trigger"]},
        table=table,
        notes=NOTES,
    )


if __name__ == "__main__":
    main()
