import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from handbill.errors import ArtifactError
from handbill.generator.adapters import Adapter
from handbill.generator.base_models import load_base
from handbill.serving.bank import BASE, AdapterBank
from handbill.serving.cache import PromptCache
from handbill.serving.llama import Llama, Span

DOWN = "base_model.model.model.layers.2.mlp.down_proj"


@pytest.fixture
def model(base):
    return Llama(load_base(base)[0], positions=64)


def pair(module, *, rank=2, width=128, out=64):
    a, b = np.ones((rank, width), np.float32), np.ones((out, rank), np.float32)
    return {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}


@settings(max_examples=30, deadline=None)
@given(steps=st.lists(st.tuples(st.booleans(), st.integers(0, 7)), max_size=60))
def test_an_adapter_in_use_is_never_evicted_and_counts_always_agree(base, adapters, steps):
    bank = AdapterBank(Llama(load_base(base)[0], positions=64).stacks, slots=3, max_rank=8)
    users: dict[str, list[int]] = {}
    for joins, number in steps:
        name = str(number)
        if joins:
            if name not in bank:
                if not bank.has_room:
                    assert sum(1 for slots in users.values() if slots) == 3
                    continue
                bank.put(name, bank.prepare(adapters.load(name)))
            users.setdefault(name, []).append(bank.acquire(name))
        elif users.get(name):
            users[name].pop()
            bank.release(name)
        for held, slots in users.items():
            assert bank.users(held) == len(slots) or (not slots and held not in bank)
            assert not slots or (held in bank and len(set(slots)) == 1)
        live = [held[0] for held in users.values() if held]
        assert len(set(live)) == len(live)
        assert 0 not in live
        assert len(bank) <= 3


def test_the_least_recently_used_idle_adapter_goes_first(model, adapters):
    bank = AdapterBank(model.stacks, slots=2, max_rank=8)
    for name in ("0", "1"):
        bank.put(name, bank.prepare(adapters.load(name)))
    bank.acquire("0")
    bank.release("0")
    bank.put("2", bank.prepare(adapters.load("2")))
    assert ("0" in bank, "1" in bank, "2" in bank) == (True, False, True)


def test_only_the_modules_that_adapters_name_are_changed(model, adapters):
    bank = AdapterBank(model.stacks, slots=2, max_rank=8)
    bank.put("4", bank.prepare(adapters.load("4")))  # q, v and down of layer 2
    changed = bank.changes(bank.acquire("4"))
    assert set(changed) == {
        model.stacks[f"model.layers.2.{name}"][0] for name in ("self_attn.q_proj", "mlp.down_proj")
    }
    assert not bank.changes(BASE)
    assert not bank.gather([BASE, BASE], 2)


@pytest.mark.parametrize(
    ("tensors", "rank", "match"),
    [
        (pair("base_model.model.model.layers.9.mlp.down_proj"), 2, "no linear layer"),
        (pair("base_model.model.model.norm"), 2, "no linear layer"),
        (pair("model.layers.2.mlp.down_proj"), 2, "expected base_model.model"),
        (pair(DOWN, width=64), 2, r"\(64, 64\), base \(64, 128\)"),
        (pair(DOWN, rank=16), 16, "rank 16"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(model, tensors, rank, match):
    bank = AdapterBank(model.stacks, slots=1, max_rank=8)
    good = pair(DOWN, rank=2)
    with pytest.raises(ArtifactError, match=match):
        bank.prepare(Adapter(rank=rank, alpha=4.0, tensors={**good, **tensors}))


def logits(model, changes):
    """Of a text without and with the changes, in one forward."""
    ids = torch.arange(3, 13).repeat(2)
    spans = [Span(PromptCache(model.cache_shape, 10).extend(10), each) for each in ({}, changes)]
    return model.forward(ids, spans, range(20)).view(2, 10, -1)


def test_an_adapter_that_left_its_slot_leaves_nothing_behind(model, adapters):
    bank = AdapterBank(model.stacks, slots=1, max_rank=8)
    bank.put("2", bank.prepare(adapters.load("2")))  # rank 8, layers 1 and 2
    bank.put("0", bank.prepare(adapters.load("0")))  # rank 2, q, v and down
    found = logits(model, bank.changes(bank.acquire("0")))
    fresh = AdapterBank(model.stacks, slots=1, max_rank=8)
    fresh.put("0", fresh.prepare(adapters.load("0")))
    assert torch.allclose(found[1], logits(model, fresh.changes(fresh.acquire("0")))[1], atol=1e-5)
    assert not torch.allclose(found[1], found[0], atol=1e-2)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.lists(st.integers(0, 5), min_size=1, max_size=3), st.integers(1, 3)),
        max_size=12,
    )
)
def test_what_is_gathered_row_by_row_is_what_each_adapter_adds(base, adapters, rows):
    """Rows join, leave, move and pause; slots are filled anew in between; ranks differ."""
    model = Llama(load_base(base)[0], positions=8)
    bank = AdapterBank(model.stacks, slots=3, max_rank=8)
    stacks = {stack for stack, _ in model.stacks.values()}
    for names, most in rows:
        count = min(most, len(names))
        running = [str(name) if name else "" for name in names]
        held = []
        for name in running:
            if name not in bank:
                bank.put(name, bank.prepare(adapters.load(name)))
            held.append(bank.acquire(name))
        together = bank.gather(held, count)
        for stack in stacks:
            x = torch.randn(count, stack.product.width)
            found = stack(x, [(slice(0, count), together)])
            alone = [
                stack(x[i : i + 1], [(slice(0, 1), bank.changes(one))])
                for i, one in enumerate(held[:count])
            ]
            assert torch.allclose(found, torch.cat(alone), atol=1e-4)
        for name in running:
            bank.release(name)


def test_filling_a_slot_anew_does_not_change_rows_that_are_gathered(model, adapters):
    bank = AdapterBank(model.stacks, slots=1, max_rank=8)
    bank.put("0", bank.prepare(adapters.load("0")))
    x = torch.randn(2, 64)
    stack, _ = model.stacks["model.layers.0.self_attn.q_proj"]
    spans = [(slice(0, 2), bank.gather([bank.acquire("0"), BASE], 2))]
    before = stack(x, spans)
    bank.release("0")
    bank.put("1", bank.prepare(adapters.load("1")))
    assert torch.equal(stack(x, spans), before)
    assert not torch.equal(before[0], stack(x, [])[0])
    assert torch.equal(before[1], stack(x, [])[1])
    spans = [(slice(0, 2), bank.gather([bank.acquire("1"), BASE], 2))]
    assert not torch.equal(stack(x, spans)[0], before[0])  # the same slot, another adapter


def test_the_place_for_what_rows_add_is_little_larger_than_the_rows(model, adapters):
    bank = AdapterBank(model.stacks, slots=2, max_rank=8)
    for name in ("0", "1"):
        bank.put(name, bank.prepare(adapters.load(name)))
    held = [bank.acquire("0"), bank.acquire("1")]
    for rows in (3, 17, 40):  # a batch of sixteen and its spare row have no room for 32
        changes = bank.gather((held * rows)[:rows], rows)
        assert changes
        assert all(rows <= len(stack._rows_b) < rows + 4 for stack in changes)
