"""What every engine keeps: prompts that begin alike are run once, for one tenant and one adapter."""

import asyncio
from itertools import pairwise

from handbill.serving.sequences import Sampling, Sequence


def test_answers_are_the_same_with_and_without_token_for_token(make_engine, sequence, write):
    asked = []
    for number in range(8):  # prompts that begin alike, with branches; twice the same at the end
        whole = sequence(4, adapter=str(number % 2), max_tokens=24, temperature=number % 3 / 2)
        prompt = 3 * whole.prompt  # an engine may share whole blocks of positions only
        prompt = (*prompt[: len(prompt) - 3 * (number % 4)], *range(20, 20 + 2 * number))
        asked.append(
            Sequence(tenant="acme", prompt=prompt, adapter=whole.adapter, sampling=whole.sampling)
        )
    asked += asked[-2:]
    cached = make_engine(prefix_cache_bytes=2**24)
    found = write(cached, asked, together=False)
    again = write(cached, asked, together=True)
    plain = make_engine(prefix_cache_bytes=0)
    assert found == again == write(plain, asked, together=False)
    assert asyncio.run(cached.stats()).prefix_hits >= 16
    assert asyncio.run(plain.stats()).prefix_hits == 0


def test_the_same_prompt_by_another_tenant_is_a_miss(make_engine, write):
    engine = make_engine(prefix_cache_bytes=2**24)

    def ask(tenant):
        prompt = tuple(range(10, 90))
        text = write(
            engine, [Sequence(tenant=tenant, prompt=prompt, sampling=Sampling())], together=True
        )
        stats = asyncio.run(engine.stats())
        return text, stats.prefix_hits, stats.prefix_misses

    answers = [ask(tenant) for tenant in ("acme", "acme", "bolt", "bolt")]
    assert [counts for _, *counts in answers] == [[0, 1], [1, 1], [1, 2], [2, 2]]
    assert all(one[0] == other[0] for one, other in pairwise(answers))
