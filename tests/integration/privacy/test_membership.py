"""Membership inference on a small language model: it works without privacy, and not with it."""

import runpy
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.statistical]

attack = runpy.run_path(str(Path(__file__).parents[3] / "benchmarks" / "membership.py"))["attack"]


def test_without_privacy_shoppers_are_found_so_the_attack_is_a_real_one(tmp_path):
    tried = attack(tmp_path, epsilon=None)
    assert tried.found.auc > 0.9
    assert tried.found.epsilon > 1
    assert tried.found.tpr_at_1_percent > 0.2


def test_with_privacy_something_is_learnt_but_not_who_was_trained_on(tmp_path):
    """About 50 shoppers a side: the area of a guess is 0.5 with standard error 0.058.

    Below 0.8 is five of them, a false alarm of 3e-7 for a guess. The bound passes the claim with
    chance at most 1e-3.
    """
    tried = attack(tmp_path, epsilon=8.0, confidence=0.999)
    before, after = tried.loss
    assert after < before - 0.1
    assert tried.found.auc < 0.8
    assert tried.found.epsilon <= tried.claimed <= 8
