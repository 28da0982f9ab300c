"""What a run would cost and how loud its noise would be, worked out before anything is spent."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, Final

from handbill.errors import BudgetExhaustedError, InputError
from handbill.privacy import accounting
from handbill.privacy.events import PrivateSteps
from handbill.privacy.utility import weakest_that_learnt

_ENOUGH: Final = 2 / 3  # doubling the shoppers pays while it cuts the noise to this or less
_WEAK: Final = 3.0  # signal to noise so many times below every run that learnt is called too weak
_DROWNED: Final = 3.0  # signal to noise below which a direction cannot be told from chance


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """A run as it is wished for.

    Attributes:
        users: Shoppers of a merchant to train on (a public, rounded figure).
        epsilon: What the whole run may cost one of them, its spare rounds included.
        delta: The chance left out of the bound.
        rounds: Private rounds for the global adapter.
        local_steps: Private steps in a round.
        personal_steps: Private steps for the merchant's own adapter, after the last round.
        spare_rounds: Rounds that may have to be trained and paid for a second time.
        expected_users: Shoppers in a step, on average.
        merchants: How many merchants of this kind train together; their noise averages out.
        clipping_norm: Bound C on one shopper's gradient.
    """

    users: int
    epsilon: float
    delta: float
    rounds: int
    local_steps: int = 1
    personal_steps: int = 0
    spare_rounds: int = 0
    expected_users: int
    merchants: int = 1
    clipping_norm: float = 1.0

    def __post_init__(self) -> None:
        for name in ("users", "rounds", "local_steps", "expected_users", "merchants"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("personal_steps", "spare_rounds"):
            if getattr(self, name) < 0:
                raise InputError(f"{name}={getattr(self, name)} must be at least 0")
        if not 0 < self.clipping_norm < math.inf:
            raise InputError(f"clipping_norm={self.clipping_norm} must be above 0")
        if self.expected_users > self.users:
            raise InputError(
                f"{self.users} shoppers to train on are fewer than one step wants "
                f"(expected_users={self.expected_users}); lower expected_users"
            )

    @property
    def sampling_rate(self) -> float:
        """Chance of each shopper to be in one step."""
        return self.expected_users / self.users

    @property
    def steps(self) -> int:
        """Private steps of the whole run."""
        return self.rounds * self.local_steps + self.personal_steps

    @property
    def most_steps(self) -> int:
        """Private steps of the whole run with its spare rounds."""
        return self.steps + self.spare_rounds * self.local_steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """An outline with its noise.

    Attributes:
        noise_multiplier: The smallest that keeps the run and its spare rounds within the
            outline's epsilon.
        epsilon: What the run costs if no round is repeated.
        epsilon_at_most: What it costs with all spare rounds, just below the outline's.
        epsilon_one_round: What one round alone would cost; rounds compose jointly and cost less
            together than so many times this.
    """

    outline: Outline
    noise_multiplier: float
    epsilon: float
    epsilon_at_most: float
    epsilon_one_round: float

    @property
    def noise(self) -> float:
        """Noise stddev of a round's mean gradient in each coordinate, in clipping norms.

        Noise multiplier over expected users, and over the root of the number of merchants whose
        updates are averaged.
        """
        outline = self.outline
        return self.noise_multiplier / outline.expected_users / math.sqrt(outline.merchants)

    @property
    def noise_stddev(self) -> float:
        """The same in the unit of gradients."""
        return self.noise * self.outline.clipping_norm

    @property
    def global_steps(self) -> int:
        """Private steps that go into the global adapter, of each merchant."""
        return self.outline.rounds * self.outline.local_steps

    @property
    def signal_to_noise(self) -> float:
        """How far all global steps together can stand above their noise, at best.

        At best: every shopper's gradient has the clipping norm and points the same way. Signal
        grows with the steps, noise with their root.
        """
        return math.sqrt(self.global_steps) / self.noise

    @property
    def compute(self) -> int:
        """Shoppers' gradients that a merchant computes, on average."""
        return self.outline.expected_users * self.outline.steps

    def in_words(self) -> str:
        """Return what the signal-to-noise ratio means."""
        ratio, known = self.signal_to_noise, weakest_that_learnt()
        best = f"at best {ratio:,.0f} standard deviations of noise"
        if ratio < _DROWNED:
            return f"{best}: noise drowns whatever shoppers have in common; nothing can be learnt"
        if ratio < known / _WEAK:
            return f"{best}, where the measured runs that learnt had {known:,.0f} or more: too weak"
        return f"{best}; the measured runs that learnt had {known:,.0f} or more"

    def warnings(self) -> list[str]:
        """Say what speaks against the plan, if anything."""
        outline = self.outline
        if self.signal_to_noise >= weakest_that_learnt() / _WEAK:
            return []
        return [
            f"{outline.users:,} shoppers are too few to learn from at epsilon {outline.epsilon:g}: "
            f"{self.in_words()}. More merchants, fewer steps or a larger epsilon would help"
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {
            **asdict(self.outline),
            "epsilon_limit": self.outline.epsilon,
            "sampling_rate": self.outline.sampling_rate,
            "steps": self.outline.steps,
            "noise_multiplier": self.noise_multiplier,
            "epsilon": self.epsilon,
            "epsilon_at_most": self.epsilon_at_most,
            "epsilon_one_round": self.epsilon_one_round,
            "noise": self.noise,
            "noise_stddev": self.noise_stddev,
            "signal_to_noise": self.signal_to_noise,
            "compute": self.compute,
        }


def make_plan(outline: Outline) -> Plan:
    """Calibrate the noise for an outline and work out what it costs.

    Raises:
        InputError: No amount of noise reaches its epsilon.
    """
    rate = outline.sampling_rate
    try:
        sigma = accounting.calibrate_noise(
            epsilon=outline.epsilon,
            delta=outline.delta,
            sampling_rate=rate,
            steps=outline.most_steps,
        )
    except BudgetExhaustedError as error:
        raise InputError(
            f"epsilon={outline.epsilon:g} at delta {outline.delta:.2e} cannot be reached in "
            f"{outline.most_steps} steps with any amount of noise (the accountant's own error alone is "
            f"{error.after:.4f}); ask for more"
        ) from None

    def cost(steps: int) -> float:
        event = PrivateSteps(noise_multiplier=sigma, sampling_rate=rate, steps=steps)
        return accounting.epsilon([event], delta=outline.delta)

    return Plan(
        outline=outline,
        noise_multiplier=sigma,
        epsilon=cost(outline.steps),
        epsilon_at_most=cost(outline.most_steps),
        epsilon_one_round=cost(outline.local_steps),
    )


def alternatives(
    plan: Plan, *, most_users: int, on_plan: Callable[[], None] = lambda: None
) -> list[Plan]:
    """Plan the same budget with fewer and more shoppers a step, and with twice the rounds.

    Args:
        plan: What to vary.
        most_users: No step may be expected to use more shoppers.
        on_plan: Called after each.

    Returns:
        By rounds, then by shoppers a step, rising by doubling; ``plan`` is among them.
    """
    outline, plans = plan.outline, []
    first = max(1, outline.expected_users // 2)
    sizes = [first, outline.expected_users, *(outline.expected_users * 2**n for n in (1, 2, 3))]
    for rounds in (outline.rounds, 2 * outline.rounds):
        for size in sorted({n for n in sizes if n <= max(most_users, outline.expected_users)}):
            plans.append(make_plan(replace(outline, rounds=rounds, expected_users=size)))
            on_plan()
    return plans


def suggest(plans: Sequence[Plan]) -> Plan:
    """Return the plan with the fewest shoppers a step that more would not make much quieter.

    Args:
        plans: Plans with the same rounds and rising shoppers a step, each about twice the last.

    Returns:
        The first whose noise per step does not fall to two thirds with the next one's shoppers,
        at twice the compute; the last where it always does.
    """
    for plan, larger in pairwise(plans):
        if larger.noise > _ENOUGH * plan.noise:
            return plan
    return plans[-1]
