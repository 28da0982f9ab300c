"""The audit lets the real build pass and refutes every broken one, with fresh noise each time.

At confidence 0.999 the real build is accused with chance at most 1e-3 by theorem, 3e-5 in fact
(binomial, from the accuracy 0.621 of the best guess at this noise). A broken build escapes with
chance below 1e-4; ``not_composed`` comes nearest, with 1.2e-5.
"""

import contextlib
import runpy
from pathlib import Path

import pytest

from handbill.privacy.accounting import epsilon
from handbill.privacy.canaries import AuditPlan, audit_mechanism
from handbill.privacy.events import PrivateSteps

pytestmark = pytest.mark.statistical

FOUND_IN = Path(__file__).parents[3] / "benchmarks" / "broken_builds.py"
BROKEN = runpy.run_path(str(FOUND_IN))["BROKEN"]


@pytest.fixture(autouse=True)
def _one_thread():
    import torch

    torch.set_num_threads(1)


def audited(build=contextlib.nullcontext, **given):
    with build():
        return audit_mechanism(AuditPlan(**{"canaries": 2000, "confidence": 0.999} | given))


def test_the_real_build_is_not_accused_and_its_bound_is_near_the_claim():
    result = audited()
    assert not result.refuted
    paid = PrivateSteps(noise_multiplier=result.noise_multiplier, sampling_rate=0.5, steps=16 * 2)
    assert result.claimed == epsilon([paid], delta=result.plan.delta)
    assert 0.98 * 3 < result.claimed <= 3
    # Its mean is 0.62 of the claim, its standard deviation 0.09: fails with chance 2e-8.
    assert result.gaussian > 0.15 * result.claimed
    assert 0 <= result.one_run < result.claimed


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_build_is_refuted(name):
    canaries = 1000 if name == "example_level" else 2000  # it takes a row for a shopper
    result = audited(BROKEN[name], canaries=canaries)
    assert result.refuted
    assert result.in_words().startswith("BROKEN")


def test_a_fixed_seed_is_seen_by_running_the_program_again_and_only_so():
    result = audited(BROKEN["fixed_seed"], canaries=1000)
    assert result.attacks["direct"]["gaussian"] < result.claimed
    assert result.attacks["replay"]["one_run"] > result.claimed
