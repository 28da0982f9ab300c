"""The private step: bound every user's influence, sum, add noise, divide, step.

Legend: U users in the step, ``...`` the shape of one parameter.
"""

import logging
from typing import Any

import torch
from opacus.optimizers import DPOptimizer
from opacus.optimizers.optimizer import _check_processed_flag, _mark_as_processed

from handbill.errors import InputError
from handbill.privacy.clipping import AdaptiveClipping, clip_factors
from handbill.privacy.noise import Noise, SecureNoise, grid_for, round_to_grid

log = logging.getLogger(__name__)


class SecureDPOptimizer(DPOptimizer):  # type: ignore[misc]  # opacus carries no types
    """Opacus' optimizer with users as samples, exact clipping and cryptographic noise.

    Before each :meth:`step`, every parameter's ``grad_sample`` holds one gradient per sampled
    user, shape (U, ...) with the same U for all; for a step without users call
    :meth:`no_users`. One user's rows must be in one ``grad_sample``. The step then adds noise
    of stddev ``noise_multiplier * clipping_norm`` to the sum of the clipped gradients and
    divides by the EXPECTED number of users, never by the number that came.

    What changes against Opacus 1.6: norms, sums and noise in float64 (a float32 norm over
    millions of elements is too small by up to 1e-3 and lets users pass the bound); the sum is
    rounded to a grid after the noise; a user with a NaN or infinite gradient counts as zero,
    because no factor can clip it.

    Args:
        optimizer: The optimizer that takes the noisy gradient.
        noise_multiplier: sigma > 0.
        clipping_norm: The bound C on one user's gradient over all parameters together.
        expected_users: Sampling rate times number of users, fixed before sampling.
        noise: ``SecureNoise()`` unless a test says otherwise.
        adapt: Let C follow a quantile of the norms, within the same ``noise_multiplier``.

    ``max_grad_norm`` (Opacus' name) is the C of the next step.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        noise_multiplier: float,
        clipping_norm: float,
        expected_users: float,
        noise: Noise | None = None,
        adapt: AdaptiveClipping | None = None,
    ) -> None:
        for name, value in (
            ("clipping_norm", clipping_norm),
            ("noise_multiplier", noise_multiplier),
            ("expected_users", expected_users),
        ):
            if not 0 < value < float("inf"):
                raise InputError(f"{name}={value} must be a finite number above 0")
        if noise is not None and not isinstance(noise, Noise):
            raise InputError("noise comes from SecureNoise only, not from another generator")
        super().__init__(
            optimizer,
            noise_multiplier=noise_multiplier,
            max_grad_norm=clipping_norm,
            expected_batch_size=None,
            loss_reduction="sum",
        )
        self.max_grad_norm: float = clipping_norm
        self.expected_users = expected_users
        self.adapt = adapt
        self._centred_count = 0.0
        self._gradient_noise = (
            adapt.gradient_noise(noise_multiplier, expected_users=expected_users)
            if adapt
            else noise_multiplier
        )
        self.noise = SecureNoise() if noise is None else noise

    @property
    def grid(self) -> float:
        """What the noisy sum is rounded to a multiple of."""
        return grid_for(self.max_grad_norm)

    def no_users(self) -> None:
        """Prepare a step for which no user was sampled: noise alone, and it counts."""
        for p in self.params:
            p.grad_sample = p.new_zeros((0, *p.shape))

    def clip_and_accumulate(self) -> None:
        """Scale each user to norm at most C over all parameters, and sum, in float64.

        Abadi et al. 2016, arXiv:1607.00133, Algorithm 1, with a user in place of an example.
        """
        samples = self.grad_samples  # raises where a parameter was missed
        if len({len(g) for g in samples}) > 1:
            raise InputError("every parameter needs the gradients of the same users")
        factors = clip_factors(samples, self.max_grad_norm)
        if bool((factors == 0).any()):
            log.warning("nonfinite_user_gradient_dropped")
        self._centred_count += float((factors == 1).sum()) - len(factors) / 2
        for p, grad_U in zip(self.params, samples, strict=True):
            _check_processed_flag(p.grad_sample)
            grad_U64 = torch.nan_to_num(grad_U.double(), nan=0.0, posinf=0.0, neginf=0.0)
            total = torch.einsum("u,u...->...", factors, grad_U64)
            p.summed_grad = total if p.summed_grad is None else p.summed_grad + total
            _mark_as_processed(p.grad_sample)

    def add_noise(self) -> None:
        """Add noise in float64, round to the grid, and only then leave float64."""
        stddev = self._gradient_noise * self.max_grad_norm
        grid = self.grid
        for p in self.params:
            _check_processed_flag(p.summed_grad)
        # All at once, which threads can share; a parameter's own part is too small for that.
        sizes = [p.summed_grad.numel() for p in self.params]
        drawn = torch.split(self.noise.gaussian((sum(sizes),), stddev), sizes)
        for p, noise in zip(self.params, drawn, strict=True):
            total = p.summed_grad
            noisy = round_to_grid(total + noise.view_as(total).to(total.device), grid)
            p.grad = noisy.to(p.dtype).view_as(p)
            _mark_as_processed(p.summed_grad)
        for group in self.original_optimizer.param_groups:  # for optimisers that account for it
            group["noise_stddev"] = stddev / self.expected_users
        if self.adapt:
            self._move_norm(self.adapt)
        self._centred_count = 0.0

    def _move_norm(self, adapt: AdaptiveClipping) -> None:
        users = self.expected_users
        stddev = adapt.count_stddev(self.noise_multiplier, expected_users=users)
        noisy = self._centred_count + float(self.noise.gaussian((1,), stddev))
        self.max_grad_norm = adapt.next_norm(self.max_grad_norm, noisy, expected_users=users)

    def scale_grad(self) -> None:
        """Divide by the expected number of users: the true one would be private."""
        for p in self.params:
            p.grad /= self.expected_users

    def step(self, closure: Any = None) -> Any:
        """Clip, sum, add noise, divide and step; the ledger must hold this step already."""
        if closure is not None:
            raise InputError("a closure would see gradients without noise; call step() alone")
        return super().step()
