"""Adam for noisy gradients: the noise's own variance is taken out of the second moment."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from handbill.errors import InputError


class DPAdam(torch.optim.Optimizer):
    """Adam whose second moment is corrected for DP noise (Tang et al. 2024, arXiv:2312.14334).

    Adam divides by the root of a running mean of squared gradients. Of a private gradient that is
    mostly the noise's variance phi, the same for every coordinate, so Adam turns into SGD with
    momentum. Subtracting it (their equation 5) leaves an estimate of the gradient's own square::

        step = rate * m_hat / sqrt(max(v_hat - phi_hat, floor * phi_hat))

    Without noise it is Adam. Post-processing: it costs no privacy.

    Args:
        parameters: What to train.
        learning_rate: The rate.
        betas: Decay of the running means of the gradient and of its square.
        floor: Least second moment, as a share of phi: a coordinate without signal must not be
            divided by next to nothing. The paper's floor is absolute; this one needs no tuning
            when the noise changes.

    ``group["noise_stddev"]``, the noise's stddev in the gradient as the optimiser sees it, is set by
    :class:`~handbill.privacy.optimizer.SecureDPOptimizer` in every step.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        learning_rate: float,
        betas: tuple[float, float] = (0.9, 0.99),
        floor: float = 0.1,
    ) -> None:
        if not (learning_rate > 0 and 0 <= betas[0] < 1 and 0 <= betas[1] < 1 and floor > 0):
            raise InputError(
                f"DPAdam: learning_rate={learning_rate}, betas={betas} and floor={floor} must be "
                "positive, the betas below 1"
            )
        defaults = {"lr": learning_rate, "betas": betas, "floor": floor, "noise_stddev": 0.0}
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # no closure, no loss
        """Take one step along the noisy gradients."""
        if closure is not None:
            raise InputError("a closure would see gradients without noise; call step() alone")
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state |= {
                        "t": 0,
                        "m": torch.zeros_like(p),
                        "v": torch.zeros_like(p),
                        "phi": 0.0,
                    }
                state["t"] += 1
                state["m"].lerp_(p.grad, 1 - beta1)
                state["v"].lerp_(p.grad.square(), 1 - beta2)
                state["phi"] += (1 - beta2) * (group["noise_stddev"] ** 2 - state["phi"])
                left = 1 - beta2 ** state["t"]
                phi = state["phi"] / left
                second = (state["v"] / left - phi).clamp_(min=max(group["floor"] * phi, 1e-16))
                rate = group["lr"] / (1 - beta1 ** state["t"])
                p.addcdiv_(state["m"], second.sqrt_(), value=-rate)
