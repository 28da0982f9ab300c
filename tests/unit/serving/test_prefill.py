import torch
from hypothesis import given
from hypothesis import strategies as st

from handbill.serving.cache import PromptCache, Shape
from handbill.serving.prefill import Key, Prefill, Prompt

SHAPE = Shape(layers=1, heads=1, head_size=2, device=torch.device("cpu"), dtype=torch.float32)


def start(prefill, *lengths):
    for number, length in enumerate(lengths):
        key = Key(str(number), "", tuple(range(length)))
        prefill.add(Prompt(key=key, cache=PromptCache(SHAPE, length), changes={}, rows=[number]))


def turns(prefill):
    """Which prompts end, turn by turn, until all are run."""
    ended = []
    while len(prefill):
        shares = prefill.shares()
        ended.append([])
        for prompt, count in shares:
            prompt.cache.extend(count)
            if not prompt.left:
                prefill.remove(prompt)
                ended[-1] += prompt.rows
        yield sum(count for _, count in shares), ended[-1]


@given(budget=st.integers(1, 20), lengths=st.lists(st.integers(1, 50), min_size=1, max_size=6))
def test_a_turn_runs_its_budget_while_there_is_so_much_and_all_is_run_once(budget, lengths):
    prefill = Prefill(budget)
    start(prefill, *lengths)
    run = list(turns(prefill))
    assert sum(count for count, _ in run) == sum(lengths)
    assert all(count == budget for count, _ in run[:-1])
    assert sorted(number for _, ended in run for number in ended) == list(range(len(lengths)))


def test_a_short_prompt_behind_a_long_one_gets_in_at_once_and_the_long_one_gets_on():
    prefill = Prefill(16)
    start(prefill, 100, 8, 30, 7)
    run = [ended for _, ended in turns(prefill)]
    assert run[0] == [3]
    assert run[1] == [1]
    assert run[-1] == [0]
    assert len(run) == -(-145 // 16)


def test_the_oldest_gets_on_however_many_short_ones_come():
    prefill = Prefill(8)
    start(prefill, 40)
    gone = []
    for number in range(10):  # 40 tokens, half of 8 a turn
        for extra in ("a", "b"):
            key = Key(f"late {number}{extra}", "", (1, 2, 3))
            cache = PromptCache(SHAPE, 3)
            prefill.add(Prompt(key=key, cache=cache, changes={}, rows=[key.tenant]))
        gone += next(turns(prefill))[1]
    assert 0 in gone


def test_a_prompt_is_dropped_with_its_last_answer():
    prefill = Prefill(8)
    start(prefill, 5, 5)
    next(iter(prefill._prompts.values())).rows.append(7)
    prefill.drop(0)
    assert list(prefill) == [7, 1]
    prefill.drop(7)
    assert list(prefill) == [1]
    assert len(prefill._prompts) == 1
