"""Private steps on a model: sample shoppers, one gradient each, clip, add noise, step.

User-level DP-SGD (McMahan et al. 2018, arXiv:1710.06963, with Abadi et al. 2016,
arXiv:1607.00133): a shopper is one sample whatever number of rows the shopper has. Of each
sampled shopper at most ``rows_per_user`` random rows are used; their gradients are averaged and
the average is clipped.
"""

from collections import Counter
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from handbill.errors import InputError
from handbill.privacy.adam import DPAdam
from handbill.privacy.clipping import AdaptiveClipping
from handbill.privacy.events import PrivateSteps
from handbill.privacy.faults import faultpoint
from handbill.privacy.lora_gradients import LoraGradients
from handbill.privacy.noise import Noise
from handbill.privacy.optimizer import SecureDPOptimizer
from handbill.privacy.sampling import poisson_sample

Row = TypeVar("Row", bound=Sized)
Row_contra = TypeVar(
    "Row_contra", bound=Sized, contravariant=True
)  # what a model takes, for the protocol
Batch = list[tuple[int, Row]]  # (number of the user within the group, row), computed at once
Group = list[Batch[Row]]  # of the same users, who are clipped together


class PrivateModel(Protocol[Row_contra]):
    """A model that can be trained privately."""

    model: nn.Module
    trained: dict[str, nn.Parameter]

    def row_losses(self, rows: Sequence[Row_contra]) -> Tensor:
        """Loss of each row, shape (rows,), no row's depending on another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """How private steps are taken; ``event`` is what they cost.

    Attributes:
        clipping_norm: L2 bound of one shopper's gradient.
        expected_users: What the noisy sum is divided by; from public figures, because the exact
            number of shoppers is private.
        batch_rows: Rows computed at once.
        apart: Compute every shopper by itself. In half precision a row's sums are rounded as the
            shape of the batch has it, by up to some percent: in a batch with others, a shopper's
            gradient would depend on who else was sampled, which the clipping does not bound.
        optimizer: ``sgd``, ``adam`` or ``dp-adam``, of the noisy gradients; the last takes the noise out of Adam's second moment.
        adapt: Let the clipping norm follow a quantile of the shoppers' norms.
    """

    event: PrivateSteps
    clipping_norm: float
    expected_users: float
    rows_per_user: int
    batch_rows: int
    learning_rate: float
    optimizer: str = "sgd"
    adapt: AdaptiveClipping | None = None
    apart: bool = False


def take_private_steps(
    model: PrivateModel[Row],
    users: Sequence[Sequence[Row]],
    plan: StepPlan,
    *,
    noise: Noise,
    go_on: Callable[[], bool] = lambda: True,
) -> float:
    """Take ``plan.event.steps`` private steps; the ledger must hold the event already.

    Args:
        model: Trained in place.
        users: Every shopper's rows. Which of them are sampled never leaves this call.
        plan: How to step.
        noise: Source of the samples and of the noise.
        go_on: Asked after each step; the rest is not taken when it says no. It may look at the
            model, which is private already, and at what is public, and at nothing else.

    Returns:
        The clipping norm after the last step: the plan's, or where ``adapt`` brought it.

    Raises:
        InputError: The model holds something whose gradient per user would not be exact.
    """
    optimizer = _optimizer(list(model.trained.values()), plan, noise)
    with LoraGradients(model.model) as gradients:
        for _ in range(plan.event.steps):
            faultpoint("step.before_sample")
            groups = _groups(_sample(users, plan, noise), plan.batch_rows, apart=plan.apart)
            if not groups:
                optimizer.no_users()
            for n, group in enumerate(groups):
                gradients_of(model, gradients, group)
                if n < len(groups) - 1:  # the last one also adds the noise and steps
                    optimizer.signal_skip_step(do_skip=True)
                    optimizer.step()
                    optimizer.zero_grad()
            faultpoint("step.before_noise")
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            faultpoint("step.after_noise")
            if not go_on():
                break
    return optimizer.max_grad_norm


def gradients_of(model: PrivateModel[Row], gradients: LoraGradients, group: Group[Row]) -> None:
    """Put one gradient per shopper of a group into every ``grad_sample``: the mean of the rows'.

    A batch of the group adds to the same shoppers' gradients; clipping their sum bounds a
    shopper whatever the number of rows. Rows clipped one by one would count a shopper k times.
    """
    counts = Counter(user for batch in group for user, _ in batch)
    for batch in group:
        gradients.assign(torch.tensor([user for user, _ in batch]), len(counts))
        losses = model.row_losses([row for _, row in batch])
        weights = torch.tensor([1.0 / counts[user] for user, _ in batch])
        torch.autograd.backward((losses * weights.to(losses)).sum())


def _optimizer(parameters: list[nn.Parameter], plan: StepPlan, noise: Noise) -> SecureDPOptimizer:
    rate = plan.learning_rate
    plain: torch.optim.Optimizer
    match plan.optimizer:
        case "sgd":
            plain = torch.optim.SGD(parameters, lr=rate)
        case "adam":
            plain = torch.optim.Adam(parameters, lr=rate, betas=(0.9, 0.99))
        case "dp-adam":
            plain = DPAdam(parameters, learning_rate=rate)
        case other:
            raise InputError(f"optimizer {other!r}: sgd, adam or dp-adam")
    return SecureDPOptimizer(
        plain,
        noise_multiplier=plan.event.noise_multiplier,
        clipping_norm=plan.clipping_norm,
        expected_users=plan.expected_users,
        noise=noise,
        adapt=plan.adapt,
    )


def _sample(users: Sequence[Sequence[Row]], plan: StepPlan, noise: Noise) -> list[list[Row]]:
    """Sample shoppers, then up to ``rows_per_user`` random rows of each."""
    chosen: list[list[Row]] = []
    for user in poisson_sample(len(users), plan.event.sampling_rate, noise):
        rows = users[int(user)]
        order = noise.uniform(len(rows)).argsort()[: plan.rows_per_user]
        chosen.append([rows[int(i)] for i in order])
    return [rows for rows in chosen if rows]


def _groups(chosen: list[list[Row]], batch_rows: int, *, apart: bool) -> list[Group[Row]]:
    """Cut sampled shoppers into groups that are clipped together, of batches computed together.

    Shoppers with rows of like length come together, so that little is computed on padding (a
    sum does not depend on the order). A shopper with more rows than a batch holds is a group of
    several batches.
    """
    groups: list[Group[Row]] = []
    batch: Batch[Row] = []
    users = 0
    for rows in sorted(chosen, key=lambda rows: max(map(len, rows))):
        if batch and (apart or len(batch) + len(rows) > batch_rows):
            groups.append([batch])
            batch, users = [], 0
        if len(rows) > batch_rows:
            parts = [rows[i : i + batch_rows] for i in range(0, len(rows), batch_rows)]
            groups.append([[(0, row) for row in part] for part in parts])
        else:
            batch += [(users, row) for row in rows]
            users += 1
    return [*groups, [batch]] if batch else groups
