"""The clipping norm follows a quantile of the users' gradient norms, paid from the same noise."""

from dataclasses import dataclass
from math import exp, inf

import torch
from torch import Tensor

from handbill.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveClipping:
    """How the norm moves (Andrew et al. 2021, arXiv:1905.03871, algorithm 1).

    Each step also counts, with noise, how many users stayed within the norm C, and moves it:
    ``C <- C exp(-rate (share within - quantile))``. Count and gradient are one Gaussian mechanism:
    the count's part is taken from the gradient's noise (their theorem 1), so that a step costs
    exactly what it costs with a fixed norm.

    Attributes:
        quantile: The share of users that should not be clipped, in (0, 1).
        rate: How fast the norm moves; 1 moves it by at most a factor e in a step.
        count_noise: Noise stddev on the count, as a share of the expected users; never less than
            twice the step's noise multiplier, so that the gradient pays at most 4 % for the count.
    """

    quantile: float = 0.5
    rate: float = 0.5
    count_noise: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.quantile < 1:
            raise InputError(f"clipping quantile={self.quantile} not in (0, 1)")
        if not (0 < self.rate < inf and 0 < self.count_noise < inf):
            raise InputError("adaptive clipping: rate and count_noise must be finite, above 0")

    def gradient_noise(self, noise_multiplier: float, *, expected_users: float) -> float:
        """The noise multiplier left for the gradient: ``(sigma^-2 - (2 sigma_b)^-2)^(-1/2)``."""
        count = self.count_stddev(noise_multiplier, expected_users=expected_users)
        return float((noise_multiplier**-2 - (2 * count) ** -2) ** -0.5)

    def count_stddev(self, noise_multiplier: float, *, expected_users: float) -> float:
        """The noise sigma_b on the count, of which one user moves 1/2."""
        return max(self.count_noise * expected_users, 2 * noise_multiplier)

    def next_norm(self, norm: float, noisy_count: float, *, expected_users: float) -> float:
        """The norm for the next step.

        Args:
            norm: The norm C of this step.
            noisy_count: Sum over the step's users of 1/2 where the user stayed within C and -1/2
                where not, plus its noise.
            expected_users: What sums are divided by.
        """
        within = noisy_count / expected_users + 0.5
        return norm * exp(-self.rate * (within - self.quantile))


def clip_factors(samples: list[Tensor], clipping_norm: float) -> Tensor:
    """Return min(1, C / norm) per user, shape (U,), float64; 0 for a gradient not finite.

    Args:
        samples: For each parameter the users' gradients, shape (U, ...).
        clipping_norm: C, the bound on the norm over all parameters together.
    """
    users = len(samples[0])
    squares = torch.zeros(users, dtype=torch.float64, device=samples[0].device)
    for grad_U in samples:  # per parameter: no flat copy of all of them
        flat = grad_U.reshape(users, grad_U[0].numel() if users else 0).double()
        squares += (flat * flat).sum(dim=1)
    finite = torch.isfinite(squares)
    # The tiny constant keeps rounding of the quotient on the safe side, and 0 / 0 away.
    factors = (clipping_norm / (squares.sqrt() * (1 + 1e-12) + 1e-30)).clamp(max=1.0)
    return torch.where(finite, factors, torch.zeros_like(factors))
