"""What may be said about a merchant's privacy: generated from ledger events, never typed.

``DPStatement`` goes into every artifact's manifest; ``LedgerStatement`` is what the merchant
sees. Both carry the events, so that anybody can compute epsilon again.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final

from handbill.errors import InputError
from handbill.privacy import accounting, software
from handbill.privacy.events import PrivateSteps, merge
from handbill.privacy.noise import SECURE_RNG

COVERS: Final = ("adapter weights trained on shoppers' rows",)
DOES_NOT_COVER: Final = (
    "base model",
    "warm-up on the catalogue, which holds no shopper",
    "inputs at inference time",
    "facts about the shop as a whole",
)
UNIT: Final = "user-within-one-merchant"
ADJACENCY: Final = "add-remove"
SETTING: Final = "local-to-merchant"
COMPOSITION: Final = "adds"


@dataclass(frozen=True, slots=True, kw_only=True)
class DPStatement:
    """The guarantee of one merchant for everything its ledger holds.

    Made by :func:`dp_statement`; the fields follow NIST SP 800-226's questions: unit,
    adjacency, setting, parameters, what is covered, how it composes, how it was computed.
    """

    epsilon: float
    delta: float
    events: tuple[PrivateSteps, ...]
    rounds: int
    clipping_norm: float
    cross_check: dict[str, Any]
    covers: tuple[str, ...] = COVERS
    does_not_cover: tuple[str, ...] = DOES_NOT_COVER
    hyperparameters: str = "chosen on public or invented data only"
    rng: str = SECURE_RNG
    software: dict[str, str] = field(default_factory=dict)
    software_digests: dict[str, str] = field(default_factory=dict)
    unit: str = UNIT
    adjacency: str = ADJACENCY
    setting: str = SETTING
    accountant: str = "PRV (opacus, arXiv:2106.02848)"
    composition_across_merchants: str = COMPOSITION

    @property
    def steps(self) -> int:
        """All private steps, over all rounds and runs."""
        return sum(event.steps for event in self.events)

    def to_dict(self) -> dict[str, Any]:
        """Return the machine-readable form, fit for JSON."""
        mechanisms = [
            {
                "sampling": f"poisson({event.sampling_rate:g})",
                "noise_multiplier": event.noise_multiplier,
                "sampling_rate": event.sampling_rate,
                "steps": event.steps,
            }
            for event in self.events
        ]
        facts = asdict(self) | {"events": mechanisms, "steps": self.steps}
        for name in _LISTS:
            facts[name] = list(facts[name])
        return facts

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> "DPStatement":
        """Read what :meth:`to_dict` wrote, as a manifest of anybody may hold it.

        Fields that are not of a statement (a manifest adds the merchant's id) are left out, fields
        that later versions added may be missing. Nothing is computed again:
        :func:`handbill.privacy.recompute.recompute` does that.

        Raises:
            InputError: Naming the field that is missing or no such value, or a promise of another
                kind than this version can explain.
        """
        known = {f.name for f in fields(cls)}
        given = {name: value for name, value in facts.items() if name in known}
        try:
            given["events"] = tuple(
                PrivateSteps(**{name: event[name] for name in _EVENT}) for event in given["events"]
            )
            for name in _LISTS:
                given[name] = tuple(map(str, given[name]))
            for name in ("epsilon", "delta", "clipping_norm"):
                given[name] = float(given[name])
                if not 0 <= given[name] < math.inf:
                    raise ValueError(f"{name}={given[name]}")  # noqa: TRY301 - one message for all
            given["rounds"] = int(given["rounds"])
            for name in ("cross_check", "software", "software_digests"):
                given[name] = dict(given.get(name) or {})
            statement = cls(**given)
        except KeyError as error:
            raise InputError(f"DP statement: {error.args[0]!r} is missing") from None
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f"DP statement: {error}") from None
        for name, only in _PROMISE.items():
            if getattr(statement, name) != only:
                raise InputError(
                    f"DP statement: {name}={getattr(statement, name)!r}, where this version of "
                    f"handbill can explain {only!r} only"
                )
        return statement

    def in_words(self) -> str:
        """Return the plain sentences that go with the numbers."""
        if not self.events:
            return "Nothing was learnt from this shop's shoppers (epsilon 0)."
        return (
            "Whatever the server or other merchants do, what can be learnt about one of your "
            "customers from the adapters you sent is bounded by "
            f"epsilon = {self.epsilon:.2f} (delta = {self.delta:.1e}), after {self.rounds} rounds "
            f"and {self.steps} private steps, whatever number of rows the customer has. This holds "
            "for one customer of one merchant, not for your business as a whole; for somebody who "
            "is a customer of several merchants the epsilons add. "
            f"Not covered: {', '.join(self.does_not_cover)}."
        )


_LISTS: Final = ("covers", "does_not_cover")
_EVENT: Final = ("noise_multiplier", "sampling_rate", "steps")
_PROMISE: Final = {
    "unit": UNIT,
    "adjacency": ADJACENCY,
    "setting": SETTING,
    "composition_across_merchants": COMPOSITION,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Spending:
    """What one stage of one run reserved with one mechanism.

    ``repeated`` of its reservations paid for a round a second time.
    """

    run: str
    stage: str
    rounds: int
    repeated: int
    steps: int
    noise_multiplier: float
    sampling_rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerStatement:
    """The state of a ledger. Times are UTC, ISO 8601, empty while nothing was reserved."""

    epsilon_spent: float
    epsilon_limit: float
    delta: float
    reservations: int = 0
    steps: int = 0
    runs: int = 0
    first: str = ""
    last: str = ""
    head: str = ""
    events: tuple[PrivateSteps, ...] = ()
    spending: tuple[Spending, ...] = ()

    @property
    def epsilon_remaining(self) -> float:
        """Limit minus spent, at least 0."""
        return max(0.0, self.epsilon_limit - self.epsilon_spent)

    def to_dict(self) -> dict[str, Any]:
        """Return the machine-readable form, equal events added up."""
        facts = asdict(self) | {"epsilon_remaining": self.epsilon_remaining}
        facts["events"] = [asdict(event) for event in merge(self.events)]
        return facts

    def in_words(self) -> str:
        """Return the state in sentences."""
        if not self.reservations:
            return (
                f"Nothing spent yet. The limit is epsilon {self.epsilon_limit:.2f} "
                f"at delta {self.delta:.1e}."
            )
        return (
            f"Spent epsilon {self.epsilon_spent:.2f} of {self.epsilon_limit:.2f} at delta "
            f"{self.delta:.1e}, {self.epsilon_remaining:.2f} left: {self.reservations} "
            f"reservations of {self.steps} private steps in {self.runs} runs, from {self.first} "
            f"to {self.last}. Every row is intact; the last one is {self.head[:16]}. Reserved "
            f"counts as spent, for good."
        )


def spending(paid: Iterable[tuple[str, str, int, PrivateSteps]]) -> tuple[Spending, ...]:
    """Sum up reservations, each (run, stage, round, event), in the order they began."""
    groups: dict[tuple[str, str, float, float], list[tuple[int, int]]] = {}
    for run, stage, number, event in paid:
        key = (run, stage, event.noise_multiplier, event.sampling_rate)
        groups.setdefault(key, []).append((number, event.steps))
    return tuple(
        Spending(
            run=run,
            stage=stage,
            rounds=len({number for number, _ in some}),
            repeated=len(some) - len({number for number, _ in some}),
            steps=sum(steps for _, steps in some),
            noise_multiplier=sigma,
            sampling_rate=rate,
        )
        for (run, stage, sigma, rate), some in groups.items()
    )


def dp_statement(
    events: Iterable[PrivateSteps],
    *,
    delta: float,
    rounds: int,
    clipping_norm: float,
    covers: tuple[str, ...] = COVERS,
    does_not_cover: tuple[str, ...] = DOES_NOT_COVER,
    hyperparameters: str = "chosen on public or invented data only",
    rng: str = SECURE_RNG,
) -> DPStatement:
    """Compute the statement from the ledger's events and the recipe's facts.

    Args:
        events: ALL events of the merchant's ledger: a guarantee for a part of them would leave
            out what the other part told about the same shoppers.
        delta: The ledger's delta.
        rounds: Number of rounds that the merchant sent something in.
        clipping_norm: Bound on one user's gradient.
        covers: What was trained under the guarantee.
        does_not_cover: What was not.
        hyperparameters: Where learning rate, clipping norm and the like come from.
        rng: Description of the noise really used (``Noise.description``).
    """
    merged = merge(events)
    if rounds < 0 or not clipping_norm > 0:
        raise InputError(f"rounds={rounds}, clipping_norm={clipping_norm}: not of this world")
    epsilon = accounting.epsilon(merged, delta=delta)
    return DPStatement(
        epsilon=epsilon,
        delta=delta,
        events=merged,
        rounds=rounds,
        clipping_norm=clipping_norm,
        cross_check={
            "accountant": "RDP (opacus), a looser upper bound",
            "epsilon": accounting.rdp_epsilon(merged, delta=delta),
        },
        covers=covers,
        does_not_cover=does_not_cover,
        hyperparameters=hyperparameters,
        rng=rng,
        software=dict(software.versions()),
        software_digests=dict(software.digests()),
    )
