"""Once around: train privately, serve, hear what is clicked, train on it, serve again."""

import pytest

from handbill.simulations.feedback import FeedbackMarket, chance_of_click, run_market

pytestmark = pytest.mark.integration


def test_the_loop_closes_and_every_run_is_paid_for():
    said = []
    market = FeedbackMarket(shoppers=25, pieces=2, rounds=1, epsilon=8.0, base_steps=8)
    result = run_market(market, say=said.append)
    assert result.ctr.keys() == {"before", "control", "after"}
    assert all(0.03 <= rate <= 0.4 for rate in result.ctr.values())
    assert result.impressions > 80  # 3 shops, about 20 shoppers each, 2 pieces
    assert 0 < result.clicks < result.impressions
    assert 8 < result.epsilon <= 24  # three runs of at most 8, from one ledger
    assert [line for line in said if line.startswith("run ")] == [
        "run first",
        "run control",
        "run second",
    ]


def test_the_rule_of_clicking():
    long = " ".join(["word"] * 41)
    texts = (f"For you. {long}", long, "A lamp for your desk.", "A lamp. It suits you.")
    assert [chance_of_click(text) for text in texts] == [0.1, 0.03, 0.4, 0.1]
