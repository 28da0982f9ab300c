"""From DP events to epsilon, and from epsilon to noise.

The accountant is Opacus' PRV (Gopi, Lee and Wutschitz 2021, arXiv:2106.02848): it convolves
the privacy loss distributions of all events numerically and returns an upper bound that
exceeds the truth by at most its ``eps_error``. It assumes what handbill really does: Poisson
sampling, add-or-remove-one-user adjacency, the Gaussian mechanism. The GDP accountant is
refused: its central limit approximation reports up to 46 % too little.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from opacus.accountants import PRVAccountant, RDPAccountant
from opacus.accountants.analysis.prv import Domain, PoissonSubsampledGaussianPRV
from opacus.accountants.analysis.rdp import compute_rdp

from handbill.errors import BudgetExhaustedError, InputError
from handbill.privacy.events import PrivateSteps, merge

PRV: Final = "prv"
SMALLEST_DELTA: Final = 1e-12  # below it the rounding of the Fourier transform counts
LARGEST_DELTA: Final = 0.1

# Accuracies of epsilon, coarse to fine. Each is a valid upper bound; finer costs tenfold.
_EPS_ERRORS: Final = (0.1, 0.01, 0.001)
_GOOD_ENOUGH: Final = 0.005  # stop refining where the error is this share of epsilon
_MOST_POINTS: Final = 4_000_000  # of the discretised loss: 32 MB an array, seconds
_NOISE_STEPS: Final = 10_000  # calibrated noise is a multiple of 1/10,000: equal rounds merge
_MOST_NOISE: Final = 1e4

_ORDERS: Final = np.array([1.5, *range(2, 11), *range(12, 64)])  # all of them Opacus' own

_History: TypeAlias = tuple[tuple[float, float, int], ...]  # (sigma, q, steps), merged


def epsilon(events: Iterable[PrivateSteps], *, delta: float, accountant: str = PRV) -> float:
    """Bound the privacy loss of all ``events`` together, jointly composed.

    Args:
        events: What happened, in any order. None costs nothing.
        delta: The chance left out of the bound, per user.
        accountant: Only ``"prv"``; the argument exists to refuse others by name.

    Returns:
        An upper bound on epsilon, within 0.5 % or 0.001 of the exact value where epsilon is
        below some hundreds; ``math.inf`` where there is so little noise that the bound would
        mean nothing (epsilon above some 700).

    Raises:
        InputError: An accountant that under-reports, a delta out of range, or events that
            the accountant cannot bound.
    """
    if accountant != PRV:
        raise InputError(_refusal(accountant))
    _check_delta(delta)
    merged = merge(events)
    if not merged:
        return 0.0
    return _prv_epsilon(_history(merged), delta)


def rdp_epsilon(events: Iterable[PrivateSteps], *, delta: float) -> float:
    """Bound the same loss by Renyi DP (Mironov 2017): looser, computed another way.

    The cross-check of a statement: the PRV bound must not lie above it by more than its own
    ``eps_error``, nor far below.
    """
    _check_delta(delta)
    merged = merge(events)
    if not merged:
        return 0.0
    return _rdp_epsilon(_history(merged), delta)


def calibrate_noise(
    *,
    epsilon: float,
    delta: float,
    sampling_rate: float,
    steps: int,
    already: Sequence[PrivateSteps] = (),
) -> float:
    """Find the smallest noise multiplier that keeps everything within ``epsilon``.

    Args:
        epsilon: The target for ``already`` and the new steps together; never passed, and
            met from below within 1 %.
        delta: As in :func:`epsilon`.
        sampling_rate: Chance of each user to be in one step.
        steps: Number of new steps.
        already: Events spent before.

    Raises:
        BudgetExhaustedError: ``already`` leaves nothing for any amount of noise.
        InputError: A target that is not a positive finite number, or other bad arguments.
    """
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise InputError(f"epsilon={epsilon} must be a positive finite number")
    _check_delta(delta)
    PrivateSteps(noise_multiplier=1.0, sampling_rate=sampling_rate, steps=steps)  # checks
    return _calibrated(epsilon, delta, float(sampling_rate), steps, _history(merge(already)))


def default_delta(users: int) -> float:
    """Return ``min(1e-3, users ** -1.1)``.

    Below one over the number of users, so that "publish one user's rows in the clear" is no
    (0, delta) mechanism; never looser than one in a thousand, however small the shop.
    Small print: delta is published, so ``users`` should be a public, rounded figure.
    """
    if isinstance(users, bool) or not isinstance(users, int) or users < 1:
        raise InputError(f"users={users!r} must be a whole number, at least 1")
    return max(SMALLEST_DELTA, min(1e-3, float(users**-1.1)))


def _history(merged: Sequence[PrivateSteps]) -> _History:
    return tuple((e.noise_multiplier, e.sampling_rate, e.steps) for e in merged)


class _PRVAccountant(PRVAccountant):  # type: ignore[misc]  # opacus carries no types
    """Opacus' accountant, with the size of its mesh bounded from fewer Renyi orders.

    Any Renyi order gives a valid tail bound, so the mesh only gets a little wider; Opacus tries
    150 orders, most of them fractional, and spends nine tenths of its time there.
    """

    def _get_domain(
        self,
        prvs: Sequence[PoissonSubsampledGaussianPRV],
        num_self_compositions: Sequence[int],
        eps_error: float,
        delta_error: float,
    ) -> Domain:
        history = tuple(
            (prv.noise_multiplier, prv.sample_rate, steps)
            for prv, steps in zip(prvs, num_self_compositions, strict=True)
        )
        half_width, mesh = _mesh(history, eps_error, delta_error)
        return Domain.create_aligned(-half_width, half_width, mesh)


@lru_cache(maxsize=4096)
def _prv_epsilon(history: _History, delta: float) -> float:
    """Refine from coarse to fine until the error no longer matters or the cost does."""
    best, failure = math.inf, ""
    for eps_error in _EPS_ERRORS:
        delta_error = delta / 1000
        half_width, mesh = _mesh(history, eps_error, delta_error)
        if 2 * half_width / mesh > _MOST_POINTS:
            break
        accountant = _PRVAccountant()
        accountant.history = list(history)
        try:
            with np.errstate(all="ignore"):  # log(1 - q) at q = 1 is -inf, as it should be
                bound = float(
                    accountant.get_epsilon(delta, eps_error=eps_error, delta_error=delta_error)
                )
        except (RuntimeError, ValueError) as error:
            failure = str(error)  # another mesh often succeeds
            continue
        if math.isfinite(bound):  # else exp(epsilon) overflows: no useful bound
            best = min(best, bound)
        if eps_error <= _GOOD_ENOUGH * best:
            break
    if math.isinf(best) and failure:
        raise InputError(
            f"the PRV accountant cannot bound these events at delta {delta:.2e} ({failure}); "
            f"use a larger delta, more noise or fewer steps"
        )
    return max(0.0, best)


def _mesh(history: _History, eps_error: float, delta_error: float) -> tuple[float, float]:
    """Return half width and step of the discretised loss (arXiv:2106.02848, remark 5.6)."""
    total = sum(steps for _, _, steps in history)
    curves = [(_renyi_curve(sigma, q), steps) for sigma, q, steps in history]
    tails = [_tail(sum((c * n for c, n in curves), np.zeros(len(_ORDERS))), delta_error / 4)]
    tails += [_tail(curve, delta_error / (8 * total)) for curve, _ in curves]
    mesh = eps_error / math.sqrt(total * math.log(12 / delta_error) / 2)
    return max(*tails, eps_error) + 3, mesh  # + 3 as Opacus and the authors' own code do


def _tail(curve: NDArray[np.float64], delta: float) -> float:
    """Turn a Renyi curve into (epsilon, delta): Canonne, Kamath and Steinke 2020, prop. 12."""
    bounds = curve - (math.log(delta) + np.log(_ORDERS)) / (_ORDERS - 1) + np.log1p(-1 / _ORDERS)
    return float(np.nanmin(bounds))


@lru_cache(maxsize=4096)
def _renyi_curve(sigma: float, q: float) -> NDArray[np.float64]:
    curve = compute_rdp(q=q, noise_multiplier=sigma, steps=1, orders=_ORDERS)
    return np.asarray(curve, dtype=np.float64)


@lru_cache(maxsize=4096)
def _rdp_epsilon(history: _History, delta: float) -> float:
    accountant = RDPAccountant()
    accountant.history = list(history)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "optimal order is the largest": still valid
        return max(0.0, float(accountant.get_epsilon(delta)))


@lru_cache(maxsize=256)
def _calibrated(
    target: float, delta: float, sampling_rate: float, steps: int, already: _History
) -> float:
    def cost(sigma: float) -> float:
        new = PrivateSteps(noise_multiplier=sigma, sampling_rate=sampling_rate, steps=steps)
        old = (PrivateSteps(noise_multiplier=s, sampling_rate=q, steps=n) for s, q, n in already)
        return _prv_epsilon(_history(merge([*old, new])), delta)

    spent = _prv_epsilon(already, delta) if already else 0.0
    if spent >= target:
        raise BudgetExhaustedError(after=spent, limit=target, delta=delta)
    low, high = _bracket(cost, target)
    if math.isinf(high):
        raise BudgetExhaustedError(after=cost(_MOST_NOISE), limit=target, delta=delta)
    return _search(cost, target, low, high)


def _bracket(cost: Callable[[float], float], target: float) -> tuple[float, float]:
    """Find noise that costs too much and noise that does not; ``inf`` where none is enough."""
    low, high = 0.0, 1.0
    while cost(high) > target:
        low, high = high, high * 2
        if low >= _MOST_NOISE:
            return low, math.inf
    while low == 0.0:
        lower = high / 2
        if cost(lower) > target:
            low = lower
        else:
            high = lower
    return low, high


def _search(cost: Callable[[float], float], target: float, low: float, high: float) -> float:
    """Close in on the target from the private side, on a grid of noise multipliers."""
    # Whole grid points, so that rounding the answer cannot undo the search.
    below, above = math.floor(low * _NOISE_STEPS), math.ceil(high * _NOISE_STEPS)
    tries = 0
    while above - below > 1 and cost(above / _NOISE_STEPS) < target * (1 - _GOOD_ENOUGH):
        tries += 1
        middle = math.isqrt(max(below, 1) * above)
        dear = cost(below / _NOISE_STEPS) if below else math.inf
        cheap = cost(above / _NOISE_STEPS)
        if tries % 3 and dear < math.inf and cheap > 0:  # else halve, so that it ends
            aim = target * (1 - _GOOD_ENOUGH / 2)
            share = math.log(cheap / aim) / math.log(cheap / dear)
            middle = round(above * (below / above) ** share)
        middle = min(max(middle, below + 1), above - 1)
        if cost(middle / _NOISE_STEPS) > target:
            below = middle
        else:
            above = middle
    return above / _NOISE_STEPS


def _check_delta(delta: float) -> None:
    if not SMALLEST_DELTA <= delta <= LARGEST_DELTA:
        raise InputError(
            f"delta={delta} must lie in [{SMALLEST_DELTA}, {LARGEST_DELTA}]; "
            f"take one below 1 / number of users"
        )


def _refusal(accountant: str) -> str:
    if accountant.lower() == "gdp":
        return (
            "accountant 'gdp' is refused: its central limit approximation under-reports epsilon "
            "(by up to 46 % in our measurements); use 'prv'"
        )
    return f"accountant {accountant!r} is not known; use {PRV!r}"
