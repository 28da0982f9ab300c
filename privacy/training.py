"""Private steps on a model: sample shoppers, one gradient each, clip, add noise, step.

User-level DP-SGD (McMahan et al. 2018, arXiv:1710.06963, with Abadi et al. 2016,
arXiv:1607.00133): a shopper is one sample whatever number of rows the shopper has. Of each
sampled shopper at most ``rows_per_user`` random rows are used; their gradients are averaged and
the average is clipped. Per-row gradients come from Opacus' hooks.
"""

import warnings
from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import torch
from opacus.grad_sample.grad_sample_module import GradSampleHooks
from torch import Tensor, nn

from handbill.errors import InputError
from handbill.privacy.events import PrivateSteps
from handbill.privacy.noise import Noise
from handbill.privacy.optimizer import SecureDPOptimizer, user_gradients
from handbill.privacy.sampling import poisson_sample

Row = TypeVar("Row", bound=Sized)
Row_contra = TypeVar(
    "Row_contra", bound=Sized, contravariant=True
)  # what a model takes, for the protocol
Batch = list[tuple[int, Row]]  # (index of the sampled user, row)


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
        batch_rows: Rows computed at once; a shopper's rows are never split.
    """

    event: PrivateSteps
    clipping_norm: float
    expected_users: float
    rows_per_user: int
    batch_rows: int
    learning_rate: float
    optimizer: Literal["sgd", "adam"] = "sgd"


def take_private_steps(
    model: PrivateModel[Row], users: Sequence[Sequence[Row]], plan: StepPlan, *, noise: Noise
) -> None:
    """Take ``plan.event.steps`` private steps; the ledger must hold the event already.

    Args:
        model: Trained in place.
        users: Every shopper's rows. Which of them are sampled never leaves this call.
        plan: How to step.
        noise: Source of the samples and of the noise.

    Raises:
        InputError: The model holds something whose per-row gradient would not be exact.
    """
    parameters = list(model.trained.values())
    _check_exact(model)
    optimizer = _optimizer(parameters, plan, noise)
    # The hooks work on modules in training mode only: of an adapter, the trained linear layers.
    hooks = GradSampleHooks(model.model, loss_reduction="sum", strict=False)
    try:
        for _ in range(plan.event.steps):
            batches = list(_batches(users, plan, noise))
            if not batches:
                optimizer.no_users()
            for n, batch in enumerate(batches):
                _gradients(model, parameters, batch)
                if n < len(batches) - 1:  # the last one also adds the noise and steps
                    optimizer.signal_skip_step(do_skip=True)
                    optimizer.step()
                    optimizer.zero_grad()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    finally:
        hooks.cleanup()


def _optimizer(parameters: list[nn.Parameter], plan: StepPlan, noise: Noise) -> SecureDPOptimizer:
    plain: torch.optim.Optimizer
    if plan.optimizer == "adam":
        plain = torch.optim.Adam(parameters, lr=plan.learning_rate, betas=(0.9, 0.99))
    else:
        plain = torch.optim.SGD(parameters, lr=plan.learning_rate)
    return SecureDPOptimizer(
        plain,
        noise_multiplier=plan.event.noise_multiplier,
        clipping_norm=plan.clipping_norm,
        expected_users=plan.expected_users,
        noise=noise,
    )


def _batches(users: Sequence[Sequence[Row]], plan: StepPlan, noise: Noise) -> Iterator[Batch[Row]]:
    """Sample shoppers, then up to ``rows_per_user`` rows of each; whole shoppers a batch.

    Shoppers with rows of like length come together, so that little is computed on padding; a
    sum does not depend on the order.
    """
    chosen: list[list[Row]] = []
    for user in poisson_sample(len(users), plan.event.sampling_rate, noise):
        rows = users[int(user)]
        order = noise.uniform(len(rows)).argsort()[: plan.rows_per_user]
        chosen.append([rows[int(i)] for i in order])
    chosen.sort(key=lambda rows: max(map(len, rows)))
    batch: Batch[Row] = []
    for index, some in enumerate(chosen):
        if batch and len(batch) + len(some) > plan.batch_rows:
            yield batch
            batch = []
        batch += [(index, row) for row in some]
    if batch:
        yield batch


def _gradients(model: PrivateModel[Row], parameters: list[nn.Parameter], batch: Batch[Row]) -> None:
    """Put one gradient per shopper of the batch into every ``grad_sample``."""
    numbers = {user: n for n, user in enumerate(dict.fromkeys(user for user, _ in batch))}
    row_user = torch.tensor([numbers[user] for user, _ in batch])
    weights = 1.0 / torch.bincount(row_user)[row_user].double()
    loss = model.row_losses([row for _, row in batch]).sum()
    with warnings.catch_warnings():
        # The lowest adapted layer has no input that needs a gradient, and needs none.
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        torch.autograd.backward(loss)
    for parameter in parameters:
        rows: Any = parameter.grad_sample  # type: ignore[attr-defined]  # Opacus' hooks set it
        where = rows.device
        parameter.grad_sample = user_gradients(  # type: ignore[attr-defined]
            rows, row_user.to(where), weights.to(where), len(numbers)
        )
        parameter.grad = None


def _check_exact(model: PrivateModel[Any]) -> None:
    trained = {id(parameter) for parameter in model.trained.values()}
    for name, module in model.model.named_modules():
        if isinstance(module, nn.Dropout) and module.training and module.p > 0:
            raise InputError(f"{name}: dropout must be off in private training")
        for own, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            if id(parameter) not in trained or not isinstance(module, nn.Linear):
                raise InputError(
                    f"{name}.{own}: only the adapter's linear layers can be trained privately"
                )
