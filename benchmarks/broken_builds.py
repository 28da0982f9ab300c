"""Builds of handbill that are broken on purpose: each breaks one promise of ``docs/privacy.md``.

``BROKEN`` maps a name to a context manager; the audit has to refute what runs inside it. Nothing
in the product can be switched to any of this.
"""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Final
from unittest import mock

import torch

from handbill.privacy import canaries
from handbill.privacy.ledger import Ledger
from handbill.privacy.noise import SecureNoise, TestingNoise
from handbill.privacy.optimizer import SecureDPOptimizer
from handbill.privacy.training import take_private_steps


def noise_quarter() -> AbstractContextManager[Any]:
    """A quarter of the noise that was paid for."""

    class Quarter(SecureNoise):
        def gaussian(self, like: Any, stddev: float) -> torch.Tensor:
            return super().gaussian(like, stddev / 4)

    return mock.patch.object(canaries, "SecureNoise", Quarter)


def no_clipping() -> AbstractContextManager[Any]:
    """Shoppers' gradients are added up as they are."""
    whole = SecureDPOptimizer.clip_and_accumulate

    def unclipped(self: SecureDPOptimizer) -> None:
        bound, self.max_grad_norm = self.max_grad_norm, 1e12
        whole(self)
        self.max_grad_norm = bound

    return mock.patch.object(SecureDPOptimizer, "clip_and_accumulate", unclipped)


def fixed_seed() -> AbstractContextManager[Any]:
    """Noise from a seed that everybody who has the program knows."""
    public = functools.partial(TestingNoise, 42, i_know_this_is_not_private=True)
    return mock.patch.object(canaries, "SecureNoise", public)


def example_level() -> AbstractContextManager[Any]:
    """Rows are sampled and clipped one by one, as if each were a shopper's only one."""

    def by_row(model: Any, users: Any, plan: Any, *, noise: Any) -> None:
        take_private_steps(model, [[row] for rows in users for row in rows], plan, noise=noise)

    return mock.patch.object(canaries, "take_private_steps", by_row)


def not_composed() -> AbstractContextManager[Any]:
    """The claim is that of the last round alone."""
    every = Ledger.events
    return mock.patch.object(Ledger, "events", lambda self: every(self)[-1:])


BROKEN: Final[dict[str, Callable[[], AbstractContextManager[Any]]]] = {
    build.__name__: build
    for build in (noise_quarter, no_clipping, fixed_seed, example_level, not_composed)
}
