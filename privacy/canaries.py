"""Canary shoppers through the real mechanism: what does one round after the other give away?

A canary is a made-up shopper of the worst kind: a gradient thousands of times too long, in a
direction nobody else has, repeated over several rows. A fair coin decides for each whether it is
in. The rounds are then the product's own: noise is calibrated, every round is reserved in a
:class:`~handbill.privacy.ledger.Ledger`, shoppers are Poisson sampled, clipped, hidden by
cryptographic noise (:func:`~handbill.privacy.training.take_private_steps`). Afterwards an attacker
who sees every update guesses who was in, and :mod:`handbill.privacy.audit` bounds epsilon from
below. What it can and cannot show: ``docs/audit.md``.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Generic, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from handbill.errors import InputError
from handbill.privacy.accounting import calibrate_noise
from handbill.privacy.audit import gaussian_bound, one_run_bound
from handbill.privacy.events import PrivateSteps
from handbill.privacy.ledger import Ledger
from handbill.privacy.noise import SecureNoise
from handbill.privacy.training import PrivateModel, Row, StepPlan, take_private_steps

LOUD: Final = 1000.0  # a canary's gradient before clipping, in clipping norms
_CLIPPING_NORM: Final = 1.0
_RANK: Final = 16
_AT_ONCE: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditPlan:
    """What is audited.

    Attributes:
        canaries: Canary shoppers; about half of them will be in.
        rows: Of each canary.
        rounds: Each is reserved in the ledger and trained by itself.
        steps: Private steps of one round.
        epsilon: What noise is calibrated to, for all rounds together.
        delta: Of the claim. Small, because the one-run bound pays for it once per canary.
        confidence: The verdict accuses a sound mechanism with chance at most one minus this.
    """

    canaries: int = 4000
    rows: int = 4
    rounds: int = 16
    steps: int = 2
    sampling_rate: float = 0.5
    epsilon: float = 3.0
    delta: float = 1e-6
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if self.canaries < 100:
            raise InputError(f"canaries={self.canaries}: fewer than 100 can show nothing")
        if self.rows < 1 or self.rounds < 1 or self.steps < 1:
            raise InputError("rows, rounds and steps must be at least 1")
        if not 0 < self.confidence < 1:
            raise InputError(f"confidence={self.confidence} must lie between 0 and 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditResult:
    """What was claimed and what the attacks showed, all at the plan's delta.

    Attributes:
        inside: How many canaries were in.
        claimed: Epsilon of the ledger's events.
        attacks: For each attack ``one_run``, which assumes nothing about the mechanism, and
            ``gaussian``, which takes canaries for independent and the noise for Gaussian.
    """

    plan: AuditPlan
    noise_multiplier: float
    inside: int
    claimed: float
    attacks: dict[str, dict[str, float]]

    @property
    def one_run(self) -> float:
        """Of the best attack."""
        return max(bounds["one_run"] for bounds in self.attacks.values())

    @property
    def gaussian(self) -> float:
        """Of the best attack."""
        return max(bounds["gaussian"] for bounds in self.attacks.values())

    @property
    def audited(self) -> float:
        """The larger of the two bounds; together they are wrong with 1 - confidence."""
        return max(self.one_run, self.gaussian)

    @property
    def refuted(self) -> bool:
        """Whether the claim is false."""
        return self.audited > self.claimed

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        bounds = {name: getattr(self, name) for name in ("one_run", "gaussian", "audited")}
        return asdict(self) | bounds | {"refuted": self.refuted}

    def in_words(self) -> str:
        """The verdict in sentences."""
        plan = self.plan
        claim = f"the claimed epsilon {self.claimed:.2f} (delta {plan.delta:g})"
        if self.refuted:
            return (
                f"BROKEN: the attacks show epsilon of at least {self.audited:.2f}, above {claim}. "
                f"A sound mechanism is accused so with chance at most {1 - plan.confidence:.2g}. "
                "Do not train on shoppers with this build."
            )
        return (
            f"No fault found: the attacks show epsilon of at least {self.audited:.2f}, "
            f"{self.audited / self.claimed:.0%} of {claim}. This does not prove the claim; it says "
            "that this build, on this machine, is not grossly broken."
        )


@dataclass(frozen=True, slots=True)
class Weighted(Generic[Row]):
    """A row whose loss is multiplied: loud for a canary, 0 for one that stays out."""

    row: Row
    weight: float

    def __len__(self) -> int:
        return len(self.row)


class _WeightedModel(Generic[Row]):
    """A model that takes :class:`Weighted` rows."""

    def __init__(self, inner: PrivateModel[Row]) -> None:
        self.model, self.trained, self._inner = inner.model, inner.trained, inner

    def row_losses(self, rows: Sequence[Weighted[Row]]) -> Tensor:
        losses = self._inner.row_losses([one.row for one in rows])
        return losses * torch.tensor([one.weight for one in rows], device=losses.device)


class CanaryModel:
    """One LoRA layer whose rows have gradients of norm 1, orthogonal between canaries.

    A row names one element of B; its loss is minus that element's effect on the output. A is the
    identity and frozen, B starts at zero, as in an adapter of ours.
    """

    def __init__(self, canaries: int) -> None:
        from peft import LoraConfig, get_peft_model

        outputs = -(-canaries // _RANK)
        config = LoraConfig(r=_RANK, lora_alpha=_RANK, target_modules=["0"])
        base = nn.Sequential(nn.Linear(_RANK, outputs, bias=False))
        self.model: nn.Module = get_peft_model(cast(Any, base), config)
        self.trained: dict[str, nn.Parameter] = {}
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(".lora_B." in name)
            if ".lora_A." in name:
                nn.init.eye_(parameter)
            elif ".lora_B." in name:
                self.trained[name] = parameter

    def row_losses(self, rows: Sequence[tuple[int, int]]) -> Tensor:
        """Loss of each row (output, input), shape (rows,)."""
        output_R, input_R = torch.tensor(rows).T
        out: Tensor = self.model(nn.functional.one_hot(input_R, _RANK).float())
        return -out[torch.arange(len(rows)), output_R]

    @staticmethod
    def canary(number: int) -> tuple[int, int]:
        """The row of one canary."""
        return divmod(number, _RANK)


def audit_mechanism(plan: AuditPlan, *, on_round: Callable[[], None] = lambda: None) -> AuditResult:
    """Audit private training as installed on this machine, on :class:`CanaryModel`.

    Args:
        plan: How.
        on_round: Called after each of ``2 * plan.rounds`` rounds.
    """
    model = CanaryModel(plan.canaries)
    canaries = [[model.canary(n)] * plan.rows for n in range(plan.canaries)]
    return audit_model(model, canaries, plan, on_round=on_round)


def audit_model(
    model: PrivateModel[Row],
    canaries: Sequence[Sequence[Row]],
    plan: AuditPlan,
    *,
    on_round: Callable[[], None] = lambda: None,
) -> AuditResult:
    """Train any model on canaries, attack the training, compare with what the ledger claims.

    The score of a canary is how far training lowered its loss: for losses linear in the weights
    that is the update along the canary's gradient, summed over all rounds. Two attackers try:
    ``direct`` looks at that alone; ``replay`` runs the same program again without any canary and
    takes the difference, which removes noise that comes from a seed.

    The bound is good in so far as canaries have gradients orthogonal to each other.

    Args:
        model: Trained from its present weights, which it has again afterwards.
        canaries: The rows of each canary, ``plan.canaries`` of them.
        plan: How.
        on_round: Called after each of ``2 * plan.rounds`` rounds.
    """
    if len(canaries) != plan.canaries:
        raise InputError(f"{len(canaries)} canaries; the plan wants {plan.canaries}")
    inside = np.random.default_rng().random(plan.canaries) < 0.5  # seeded by the operating system
    sigma = calibrate_noise(
        epsilon=plan.epsilon,
        delta=plan.delta,
        sampling_rate=plan.sampling_rate,
        steps=plan.rounds * plan.steps,
    )
    event = PrivateSteps(noise_multiplier=sigma, sampling_rate=plan.sampling_rate, steps=plan.steps)
    with (
        tempfile.TemporaryDirectory() as folder,
        Ledger(Path(folder) / "ledger.db", epsilon_limit=plan.epsilon, delta=plan.delta) as ledger,
    ):

        def pay(number: int) -> None:
            ledger.reserve(event, run="audit", round=number, stage="private")

        falls = _falls(model, canaries, inside, plan, event, before=pay, after=on_round)
        claimed = ledger.spent()
    nobody = np.zeros_like(inside)
    twin = _falls(model, canaries, nobody, plan, event, before=lambda _: None, after=on_round)
    scores = {"direct": falls, "replay": falls - twin}
    # Two attacks with two bounds each share the error.
    confidence = 1 - (1 - plan.confidence) / 4
    attacks = {
        name: {
            bound.__name__.removesuffix("_bound"): bound(
                values, inside, delta=plan.delta, confidence=confidence
            )
            for bound in (one_run_bound, gaussian_bound)
        }
        for name, values in scores.items()
    }
    return AuditResult(
        plan=plan,
        noise_multiplier=sigma,
        inside=int(inside.sum()),
        claimed=claimed,
        attacks=attacks,
    )


def _falls(
    model: PrivateModel[Row],
    canaries: Sequence[Sequence[Row]],
    inside: NDArray[np.bool_],
    plan: AuditPlan,
    event: PrivateSteps,
    *,
    before: Callable[[int], None],
    after: Callable[[], None],
) -> NDArray[np.float64]:
    """Train, and return how far each canary's loss fell, shape (canaries,)."""
    # A canary that is out stays as a blank shopper without a gradient: to the mechanism the same
    # as nobody, and every world has as many shoppers, so that a replay draws the same numbers.
    users = [
        [Weighted(row, LOUD * _CLIPPING_NORM if there else 0.0) for row in rows]
        for rows, there in zip(canaries, inside, strict=True)
    ]
    steps = StepPlan(
        event=event,
        clipping_norm=_CLIPPING_NORM,
        expected_users=plan.sampling_rate * len(users),
        rows_per_user=plan.rows,
        batch_rows=_AT_ONCE,
        learning_rate=1.0,
    )
    start = {name: parameter.detach().clone() for name, parameter in model.trained.items()}
    noise = SecureNoise()
    first = _losses(model, canaries)
    for number in range(1, plan.rounds + 1):
        before(number)
        take_private_steps(_WeightedModel(model), users, steps, noise=noise)
        after()
    falls = first - _losses(model, canaries)
    with torch.no_grad():
        for name, parameter in model.trained.items():
            parameter.copy_(start[name])
    return falls


@torch.no_grad()
def _losses(model: PrivateModel[Row], canaries: Sequence[Sequence[Row]]) -> NDArray[np.float64]:
    """Mean loss of each canary's rows, shape (canaries,)."""
    means = []
    for begin in range(0, len(canaries), _AT_ONCE):
        some = canaries[begin : begin + _AT_ONCE]
        losses = model.row_losses([row for rows in some for row in rows]).double().cpu().numpy()
        ends = np.cumsum([len(rows) for rows in some])[:-1]
        means += [part.mean() for part in np.split(losses, ends)]
    return np.array(means)
