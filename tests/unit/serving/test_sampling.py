from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import (
    MinNewTokensLengthLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from handbill.errors import InputError
from handbill.serving.sampling import Chooser, _draw, _penalised
from handbill.serving.sequences import Sampling


@pytest.mark.parametrize(("size", "top_p"), [(50, 0.3), (50, 0.8), (50, 0.95), (400, 0.99)])
def test_the_nucleus_is_the_one_of_transformers(size, top_p):
    logits = torch.randn(size, generator=torch.Generator().manual_seed(1)) * 0.5
    kept = TopPLogitsWarper(top_p)(torch.zeros(1, 1, dtype=torch.long), logits[None])[0]
    allowed = set(torch.isfinite(kept).nonzero().flatten().tolist())
    drawn = {_draw(logits, 0, top_p, u) for u in np.linspace(0, 1, 40_001, endpoint=False)}
    assert drawn <= allowed
    assert len(allowed - drawn) <= 1  # a token rarer than the grid is fine


def test_draws_follow_the_distribution():
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    grid = np.linspace(0, 1, 10_000, endpoint=False)
    counts = np.bincount([_draw(logits, 0, 1.0, u) for u in grid], minlength=4) / len(grid)
    assert counts == pytest.approx(torch.softmax(logits, 0).numpy(), abs=2e-4)


def test_the_penalty_is_the_one_of_transformers():
    logits = torch.randn(20, generator=torch.Generator().manual_seed(2))
    seen = {3, 5, 19}
    wanted = RepetitionPenaltyLogitsProcessor(1.4)(torch.tensor([[3, 5, 19, 3]]), logits[None])[0]
    assert torch.equal(_penalised(logits, seen, 1.4), wanted)


@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_the_likeliest_k_are_those_of_transformers(top_p):
    logits = torch.randn(300, generator=torch.Generator().manual_seed(3))
    ids = torch.zeros(1, 1, dtype=torch.long)
    kept = TopPLogitsWarper(top_p)(ids, TopKLogitsWarper(9)(ids, logits[None]))[0]
    allowed = set(torch.isfinite(kept).nonzero().flatten().tolist())
    drawn = {_draw(logits, 9, top_p, u) for u in np.linspace(0, 1, 5_001, endpoint=False)}
    assert drawn == allowed


@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_run_of_tokens_comes_twice_and_the_bans_are_those_of_transformers(size):
    generator = torch.Generator().manual_seed(size)
    prompt = (1, 2, 3, 1, 2)
    chooser = Chooser(Sampling(no_repeat_ngram_size=size, max_tokens=20), prompt)
    tokens = list(prompt)
    for _ in range(20):
        logits = torch.randn(24, generator=generator) + torch.tensor([3.0] * 5 + [0.0] * 19)
        wanted = NoRepeatNGramLogitsProcessor(size)(torch.tensor([tokens]), logits[None])
        tokens.append(chooser.choose(logits))
        assert tokens[-1] == int(wanted.argmax())
    runs = list(zip(*(tokens[i:] for i in range(size)), strict=False))
    assert len(set(runs[len(prompt) :])) == len(runs[len(prompt) :])


def test_when_every_token_is_banned_the_row_still_gets_one():
    chooser = Chooser(Sampling(no_repeat_ngram_size=1, temperature=1.0), (0, 1, 2))
    assert chooser.choose(torch.zeros(4)) == 3
    assert chooser.choose(torch.zeros(4)) in range(4)


def test_the_answer_does_not_end_before_min_tokens():
    logits = torch.tensor([0.0, 1.0, 5.0, 4.0])
    chooser = Chooser(Sampling(min_tokens=2), (1,), ends={2, 3})
    processor = MinNewTokensLengthLogitsProcessor(1, 2, [2, 3])
    tokens = [1]
    for _ in range(4):
        wanted = int(processor(torch.tensor([tokens]), logits[None]).argmax())
        tokens.append(chooser.choose(logits))
        assert tokens[-1] == wanted
    assert tokens == [1, 1, 1, 2, 2]


def test_frequency_counts_every_time_and_presence_once_and_the_prompt_never():
    logits = torch.tensor([1.0, 0.9, -9.0])
    often = Chooser(Sampling(frequency_penalty=0.3), (0, 0, 0))
    assert [often.choose(logits) for _ in range(8)] == [0, 1, 0, 1, 0, 1, 0, 1]
    once = Chooser(Sampling(presence_penalty=0.5), (0, 0, 0))
    assert [once.choose(logits) for _ in range(8)] == [0, 1, 0, 0, 0, 0, 0, 0]


def test_a_bias_moves_its_own_token_only():
    logits = torch.tensor([1.0, 0.9, 0.0, -5.0])
    assert Chooser(Sampling(logit_bias=((3, 6.5),)), (1,)).choose(logits) == 3
    assert Chooser(Sampling(logit_bias=((0, -100.0), (1, -100.0))), (1,)).choose(logits) == 2
    assert logits.tolist() == pytest.approx([1.0, 0.9, 0.0, -5.0])


def test_what_should_be_said_is_said_and_the_text_may_end_after_it():
    logits = torch.tensor([0.0, 1.0, 0.5, 0.0, 0.9])  # 0 ends
    how = Sampling(phrases=(((2, 3),),), insist=2.0)
    chooser = Chooser(how, (2, 3), ends={0})  # what the prompt says is not said yet
    assert [chooser.choose(logits) for _ in range(3)] == [2, 3, 1]
    alone = Chooser(
        Sampling(phrases=(((2,),),), insist=2.0, repetition_penalty=2.0), (2,), ends={0}
    )
    assert alone.choose(logits) == 2
    held = Chooser(replace(how, insist=0.6, repetition_penalty=2.0), (2, 3), ends={0})
    assert held.choose(logits) == 2  # to say what the prompt says is no repetition
    idle = Chooser(replace(how, insist=0.0), (1,), ends={0})
    assert idle.choose(logits) == 1
    ending = torch.tensor([1.5, 1.0, -9.0, 0.0, 0.9])
    assert Chooser(how, (1,), ends={0}).choose(ending) == 1
    assert idle.choose(ending) == 0


@pytest.mark.parametrize("temperature", [1e-6, 1e-12, 1e-45, 5e-324])
def test_the_smallest_temperatures_draw_the_likeliest(temperature):
    logits = torch.tensor([-1e30, 5.0, 4.0, 2.0])
    assert Chooser(Sampling(temperature=temperature), (1,)).choose(logits) == 1


def test_the_last_draw_of_all_still_names_a_token():
    assert _draw(torch.zeros(7), 0, 1.0, np.nextafter(1.0, 0.0)) == 6


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
        {"top_k": -1},
        {"frequency_penalty": 2.5},
        {"presence_penalty": float("nan")},
        {"no_repeat_ngram_size": -1},
        {"insist": -1.0},
        {"insist": 10.5},
        {"min_tokens": 65},
        {"logit_bias": ((-1, 0.0),)},
        {"logit_bias": ((1, 101.0),)},
        {"logit_bias": tuple((i, 0.0) for i in range(1025))},
        {"stop": ("",)},
        {"stop": tuple("abcde")},
    ],
)
def test_settings_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Sampling(**wrong)
