"""The audit lets the real build pass and refutes every broken one, with fresh noise each time.

At confidence 0.999 the real build is accused with chance at most 1e-3 by theorem, 3e-5 in fact
(binomial, from the accuracy 0.621 of the best guess at this noise). A broken build escapes with
chance below 1e-4; ``not_composed`` comes nearest, with 1.2e-5.
"""

import contextlib
import runpy
from pathlib import Path

import numpy as np
import pytest

from handbill.errors import InputError
from handbill.generator.adapters import AdapterSpec
from handbill.generator.lora import LoraModel
from handbill.generator.prompts import EncodedExample
from handbill.privacy.accounting import epsilon
from handbill.privacy.canaries import AuditPlan, CanaryModel, audit_mechanism, audit_model
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
    # Replayed, every guess is right; of the 250 surest that shows 3.2, whatever the coins said. At
    # the usual delta the bound also pays 2 canaries * delta, as much as its error: then only guesses
    # at all canaries are left, and how many of those are right depends on how many were members.
    result = audited(BROKEN["fixed_seed"], canaries=1000, delta=1e-9)
    assert result.attacks["direct"]["gaussian"] < result.claimed
    assert result.attacks["replay"]["one_run"] > result.claimed


def test_any_model_can_be_audited_and_has_its_weights_again(tiny_base):
    """Canaries of random tokens on a language model overlap: a sound build passes, no more."""
    model = LoraModel(tiny_base, AdapterSpec(rank=8, alpha=16.0, layers=(0, 1)))
    draws = np.random.default_rng(0)
    canaries = [
        [EncodedExample(tuple(draws.integers(10, 250, 8).tolist()), 2)] * 2 for _ in range(300)
    ]
    before = model.tensors()
    plan = AuditPlan(canaries=300, rows=2, rounds=4, steps=2, confidence=0.999)
    rounds = []
    result = audit_model(model, canaries, plan, on_round=lambda: rounds.append(1))
    assert not result.refuted
    assert len(rounds) == 2 * plan.rounds
    assert all(np.array_equal(value, before[name]) for name, value in model.tensors().items())


def test_a_plan_that_can_show_nothing_is_refused():
    with pytest.raises(InputError, match="fewer than 100"):
        AuditPlan(canaries=20)
    with pytest.raises(InputError, match="3 canaries; the plan wants 4000"):
        audit_model(CanaryModel(3), [[CanaryModel.canary(n)] for n in range(3)], AuditPlan())
