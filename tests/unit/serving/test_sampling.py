import numpy as np
import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor, TopPLogitsWarper

from handbill.errors import InputError
from handbill.serving.sampling import Chooser, _draw, _penalised
from handbill.serving.sequences import Sampling


@pytest.mark.parametrize(("size", "top_p"), [(50, 0.3), (50, 0.8), (50, 0.95), (400, 0.99)])
def test_the_nucleus_is_the_one_of_transformers(size, top_p):
    logits = torch.randn(size, generator=torch.Generator().manual_seed(1)) * 0.5
    kept = TopPLogitsWarper(top_p)(torch.zeros(1, 1, dtype=torch.long), logits[None])[0]
    allowed = set(torch.isfinite(kept).nonzero().flatten().tolist())
    drawn = {_draw(logits, top_p, u) for u in np.linspace(0, 1, 40_001, endpoint=False)}
    assert drawn <= allowed
    assert len(allowed - drawn) <= 1  # a token rarer than the grid is fine


def test_draws_follow_the_distribution():
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    grid = np.linspace(0, 1, 10_000, endpoint=False)
    counts = np.bincount([_draw(logits, 1.0, u) for u in grid], minlength=4) / len(grid)
    assert counts == pytest.approx(torch.softmax(logits, 0).numpy(), abs=2e-4)


def test_the_penalty_is_the_one_of_transformers():
    logits = torch.randn(20, generator=torch.Generator().manual_seed(2))
    seen = {3, 5, 19}
    wanted = RepetitionPenaltyLogitsProcessor(1.4)(torch.tensor([[3, 5, 19, 3]]), logits[None])[0]
    assert torch.equal(_penalised(logits, seen, 1.4), wanted)


def test_the_last_draw_of_all_still_names_a_token():
    assert _draw(torch.zeros(7), 1.0, np.nextafter(1.0, 0.0)) == 6


def test_a_row_takes_one_number_per_token_whatever_the_logits():
    a, b = (Chooser(Sampling(temperature=1.0, seed=9), (1,)) for _ in range(2))
    a.choose(torch.randn(8))
    b.choose(torch.randn(8))
    last = torch.randn(8)
    assert a.choose(last) == b.choose(last)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"max_tokens": 0},
        {"repetition_penalty": 0.0},
        {"stop": ("",)},
        {"stop": tuple("abcde")},
    ],
)
def test_settings_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Sampling(**wrong)
