"""What goes into a simulated federation, and what its server and merchants wrote down."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from handbill.clients.merchant import LEDGER_FILE, PROGRESS_FILE
from handbill.clients.trainer import Trainer
from handbill.errors import InputError
from handbill.privacy import accounting
from handbill.privacy.events import PrivateSteps
from handbill.privacy.ledger import Ledger
from handbill.server.registry import Registry

MIN_USERS: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class FederationConfig:
    """A simulated federation.

    Attributes:
        users: Shoppers of each merchant; a fifth of them is held out.
        epsilon: Every merchant's limit, and what its noise is calibrated for.
        seed: Of data, model and dropouts. The privacy noise has no seed: no two runs are equal.
        dropout: Chance of each merchant to stay silent in a round; with secure sums, of each of
            a round's messages to be lost.
        secure: Whether the server learns sums alone.
    """

    merchants: int = 100
    rounds: int = 5
    users: int = 60
    epsilon: float = 8.0
    seed: int = 7
    dropout: float = 0.0
    secure: bool = False

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
class Spread:
    """A number over merchants; ``low`` and ``high`` leave a tenth of them out on either side."""

    mean: float
    low: float
    high: float
    largest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Sum up at least one value."""
        ordered = sorted(values)
        tenth = len(ordered) // 10
        return cls(
            mean=statistics.fmean(ordered),
            low=ordered[tenth],
            high=ordered[len(ordered) - 1 - tenth],
            largest=ordered[-1],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FederationResult:
    """What a simulation ended with.

    Attributes:
        loss: Held-out loss in nats a token, by number of rounds done, from 0 on.
        epsilon: What the merchants' own ledgers say is spent, by number of rounds done.
        improved: Merchants whose held-out loss fell.
        prepare_s: Seconds to write and open every merchant.
        peak_mib: Largest resident memory of this process.
    """

    config: FederationConfig
    rounds: tuple[RoundResult, ...]
    loss: dict[int, Spread]
    epsilon: dict[int, Spread]
    delta: float
    improved: int
    prepare_s: float
    seconds: float
    peak_mib: float

    @property
    def clients_per_s(self) -> float:
        """Over all rounds together."""
        return sum(r.reports for r in self.rounds) / sum(r.seconds for r in self.rounds)

    @property
    def dropouts(self) -> int:
        """Reports that were asked for and never came, in committed rounds."""
        return sum(r.cohort - r.reports for r in self.rounds)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "clients_per_s": self.clients_per_s, "dropouts": self.dropouts}


def read_rounds(registry: Registry) -> tuple[RoundResult, ...]:
    """The committed rounds, in order."""
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


def read_losses(trainer: Trainer) -> dict[int, float]:
    """What a merchant noted for itself: its loss by number of rounds done."""
    path = trainer.home / PROGRESS_FILE
    facts = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return {f["round"] - 1: f["held_out_loss"] for f in facts if f["event"] == "received"}


def read_spending(trainer: Trainer, rounds: int) -> list[float]:
    """Epsilon that a merchant's ledger holds after 0, 1, ... rounds."""
    path, policy = trainer.home / LEDGER_FILE, trainer.policy
    if not path.is_file():
        return [0.0] * (rounds + 1)  # it never heard of a round
    with Ledger(
        path, epsilon_limit=policy.epsilon_limit, delta=policy.delta, read_only=True
    ) as ledger:
        paid = [row for row in ledger.verify() if row.kind == "reserve"]
    return [
        accounting.epsilon(
            [PrivateSteps.from_json(row.event) for row in paid if row.round <= done],
            delta=policy.delta,
        )
        for done in range(rounds + 1)
    ]
