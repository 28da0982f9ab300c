"""What is our own engine's alone; what every engine keeps: test_engine_contract.py."""

import pytest

from handbill.errors import InputError
from handbill.generator.base_models import load_base
from handbill.serving.cache import PromptCache
from handbill.serving.engine import TorchEngine


def test_answers_to_one_prompt_run_it_once(make_engine, sequence, write, monkeypatch):
    counts = []
    extend = PromptCache.extend
    monkeypatch.setattr(PromptCache, "extend", lambda self, n: counts.append(n) or extend(self, n))
    wanted = [sequence(4, seed=seed, temperature=1.0, adapter="1") for seed in range(4)]
    together = write(make_engine(prefill_tokens=5), wanted, together=True)
    assert sum(counts) == len(wanted[0].prompt)
    assert together == write(make_engine(), wanted, together=False)
    assert len(set(together)) == 4


def test_the_same_prompt_of_another_tenant_is_run_anew(make_engine, sequence, write, monkeypatch):
    counts = []
    extend = PromptCache.extend
    monkeypatch.setattr(PromptCache, "extend", lambda self, n: counts.append(n) or extend(self, n))
    wanted = [sequence(4, tenant=tenant) for tenant in ("acme", "bolt")]
    assert len(set(write(make_engine(), wanted, together=True))) == 1
    assert sum(counts) == 2 * len(wanted[0].prompt)


def test_a_tokenizer_with_tokens_the_model_does_not_know_is_refused(base, adapters):
    model, tokenizer = load_base(base)
    tokenizer.add_tokens(["<unknown>"])
    with pytest.raises(InputError, match="a token it does not know"):
        TorchEngine(model, tokenizer, load=adapters.load)
