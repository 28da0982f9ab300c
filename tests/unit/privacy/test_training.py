"""Private steps on a real (tiny) model: one bounded gradient per shopper, nothing left behind."""

import numpy as np
import pytest
import torch

from handbill.errors import InputError
from handbill.generator.adapters import AdapterSpec
from handbill.generator.lora import LoraModel
from handbill.generator.prompts import EncodedExample
from handbill.privacy.events import PrivateSteps
from handbill.privacy.noise import TestingNoise
from handbill.privacy.training import StepPlan, take_private_steps

ALL = 1.0  # sampling rate: every shopper is in the step
NO_NOISE = 1e-12


@pytest.fixture(scope="module")
def model(tiny_base):
    return adapted(tiny_base, "float64")


def adapted(base, dtype):
    """Both layers adapted, B not zero: so that every gradient flows."""
    model = LoraModel(base, AdapterSpec(rank=2, alpha=4.0, layers=(0, 1)), dtype=dtype)
    draws = np.random.default_rng(0)
    model.start = {
        name: (0.3 * draws.standard_normal(shape)).astype(np.float32)
        for name, shape in model.shapes.items()
    }
    return model


def row(seed, length=12):
    draws = np.random.default_rng(seed)
    n_prompt = int(draws.integers(1, length - 1))
    return EncodedExample(tuple(draws.integers(10, 250, length).tolist()), n_prompt)


def shoppers(*counts, seed=0):
    """Shoppers with so many rows each, of different lengths."""
    return [
        [row(1000 * seed + 50 * user + n, length=6 + (user + n) % 9) for n in range(count)]
        for user, count in enumerate(counts)
    ]


def plan(**given):
    event = PrivateSteps(
        noise_multiplier=given.pop("noise_multiplier", NO_NOISE),
        sampling_rate=given.pop("sampling_rate", ALL),
        steps=given.pop("steps", 1),
    )
    fields = {
        "clipping_norm": 1.0,
        "expected_users": 1.0,
        "rows_per_user": 100,
        "batch_rows": 5,
        "learning_rate": 1.0,
        **given,
    }
    return StepPlan(event=event, **fields)


def flat(model):
    return torch.cat([p.detach().flatten().double() for p in model.trained.values()])


def moved(model, users, *, noise=None, **given):
    """How far private steps move the weights; with SGD at rate 1, minus the noisy mean."""
    model.load(model.start)
    before = flat(model)
    noise = noise or TestingNoise(1, i_know_this_is_not_private=True)
    take_private_steps(model, users, plan(**given), noise=noise)
    return before - flat(model)


def naive_user_gradient(model, rows):
    """The mean of a shopper's row gradients, one row at a time, by plain autograd."""
    model.load(model.start)
    parameters = list(model.trained.values())
    grads = [torch.autograd.grad(model.row_losses([one])[0], parameters) for one in rows]
    return torch.stack([torch.cat([g.flatten() for g in grad]) for grad in grads]).mean(dim=0)


def naive_sum(model, users, clipping_norm):
    total = 0
    for rows in users:
        gradient = naive_user_gradient(model, rows)
        total = total + gradient * min(1.0, clipping_norm / float(gradient.norm()))
    return total


@pytest.mark.parametrize("clipping_norm", [1e-2, 0.4, 1e3])
@pytest.mark.parametrize("batch_rows", [1, 2, 4, 100])  # shoppers have up to 5 rows
def test_the_step_is_the_sum_of_clipped_gradients_taken_one_shopper_at_a_time(
    model, clipping_norm, batch_rows
):
    users = shoppers(1, 3, 2, 1, 5, 2)
    expected = naive_sum(model, users, clipping_norm)
    got = moved(model, users, clipping_norm=clipping_norm, batch_rows=batch_rows)
    error = float((got - expected).norm()) / float(expected.norm())
    assert error < max(1e-5, 2e-6 * clipping_norm)  # the noise grid is clipping_norm / 2**20


def test_the_middle_bound_above_clips_some_shoppers_and_not_others(model):
    norms = [float(naive_user_gradient(model, rows).norm()) for rows in shoppers(1, 3, 2, 1, 5, 2)]
    assert min(norms) < 0.4 < max(norms)


def influence(model, extra, *, example_level=False, clipping_norm=0.05):
    """How far adding one shopper moves the sum that the noise hides."""
    others = shoppers(1, 2, 1, seed=3)
    worlds = [[*others, extra], others]
    if example_level:  # the classic mistake: clip rows, not shoppers
        worlds = [[[one] for rows in world for one in rows] for world in worlds]
    with_extra, without = (moved(model, w, clipping_norm=clipping_norm) for w in worlds)
    return float((with_extra - without).norm()) / clipping_norm


@pytest.mark.parametrize("count", [1, 12])
def test_a_shopper_moves_the_sum_by_at_most_the_clipping_norm_with_any_number_of_rows(model, count):
    alike = [row(77)] * count
    assert influence(model, alike) == pytest.approx(1.0, abs=1e-4)
    assert influence(model, shoppers(count, seed=8)[0]) <= 1 + 1e-4


def test_clipping_rows_instead_of_shoppers_would_fail_that_test(model):
    assert influence(model, [row(77)] * 12, example_level=True) > 11.9


class Watched:
    """The model, noting the batches it is asked for; ``fail`` breaks it in the middle."""

    def __init__(self, model, *, fail=False):
        self.model, self.trained, self._inner = model.model, model.trained, model
        self.batches, self.fail = [], fail

    @property
    def rows(self):
        return [one for batch in self.batches for one in batch]

    def row_losses(self, rows):
        if self.fail:
            raise InputError("broken on purpose")
        self.batches.append(rows)
        return self._inner.row_losses(rows)


def test_of_a_shopper_with_many_rows_only_some_are_used_and_not_always_the_same(model):
    users = shoppers(12, 1, 2)
    used = set()
    for seed in range(8):
        watched = Watched(model)
        noise = TestingNoise(seed, i_know_this_is_not_private=True)
        take_private_steps(watched, users, plan(rows_per_user=2), noise=noise)
        assert sorted(sum(one in rows for one in watched.rows) for rows in users) == [1, 2, 2]
        assert len(set(watched.rows)) == len(watched.rows)
        used |= set(watched.rows) & set(users[0])
    assert len(used) > 4
    assert not set(watched.rows) - {one for rows in users for one in rows}


def test_a_batch_is_never_larger_than_asked_also_when_a_shopper_is(model):
    watched, noise = Watched(model), TestingNoise(0, i_know_this_is_not_private=True)
    take_private_steps(watched, shoppers(2, 7, 2, 1, 2), plan(batch_rows=4), noise=noise)
    sizes = [len(batch) for batch in watched.batches]
    assert sum(sizes) == 14
    assert max(sizes) == 4


def test_apart_no_shopper_shares_a_batch_and_in_bfloat16_none_moves_by_another(tiny_base):
    half = adapted(tiny_base, "bfloat16")
    one, other = [row(1, length=9)], [row(2, length=40), row(3, length=12)]
    watched, noise = Watched(half), TestingNoise(0, i_know_this_is_not_private=True)
    take_private_steps(watched, [one, other, one], plan(apart=True), noise=noise)
    assert sorted(len(batch) for batch in watched.batches) == [1, 1, 2]

    both = moved(half, [one, other], apart=True)
    alone = moved(half, [one], apart=True) + moved(half, [other], apart=True)
    assert float((both - alone).norm()) < 1e-4 * float(alone.norm())


def test_the_sum_is_divided_by_the_expected_number_of_shoppers_not_by_those_who_came(model):
    users = shoppers(1, 2, 1)
    whole, half = (moved(model, users, expected_users=n) for n in (5.0, 10.0))
    torch.testing.assert_close(whole, 2 * half, rtol=1e-5, atol=1e-7)


class CountedNoise(TestingNoise):
    """Counts how often noise is drawn."""

    def __init__(self):
        super().__init__(5, i_know_this_is_not_private=True)
        self.drawn = []

    def gaussian(self, like, stddev):
        self.drawn.append(stddev)
        return super().gaussian(like, stddev)


def test_a_step_in_which_nobody_was_sampled_is_taken_on_noise_alone(model):
    noise = CountedNoise()
    change = moved(
        model,
        shoppers(1, 1, 1),
        noise=noise,
        sampling_rate=1e-9,
        noise_multiplier=2.0,
        clipping_norm=0.5,
        expected_users=4.0,
    )
    assert len(noise.drawn) == 1
    assert (change != 0).float().mean() > 0.99
    assert float(change.std()) == pytest.approx(2.0 * 0.5 / 4.0, rel=0.1)


@pytest.mark.parametrize("batch_rows", [1, 100])
def test_noise_is_drawn_once_a_step_however_many_batches(model, batch_rows):
    noise = CountedNoise()
    moved(
        model,
        shoppers(2, 2, 2, 2),
        noise=noise,
        steps=3,
        batch_rows=batch_rows,
        noise_multiplier=1.5,
        clipping_norm=0.5,
    )
    assert noise.drawn == [1.5 * 0.5] * 3


def test_adam_steps_too(model):
    users = shoppers(2, 1, 3)
    change = moved(model, users, steps=1, optimizer="adam", learning_rate=1e-2)
    gradient = naive_sum(model, users, 1.0)
    strong = gradient.abs() > 1e-3
    torch.testing.assert_close(change[strong], 1e-2 * gradient[strong].sign(), rtol=1e-3, atol=1e-7)


def leftovers(model):
    hooks = [n for n, m in model.model.named_modules() if m._forward_hooks or "forward" in vars(m)]
    marks = [p for p in model.model.parameters() if getattr(p, "grad_sample", None) is not None]
    return hooks, marks


@pytest.mark.parametrize("fail", [False, True])
def test_nothing_is_left_on_the_model(model, fail):
    noise = TestingNoise(0, i_know_this_is_not_private=True)
    watched = Watched(model, fail=fail)
    before = leftovers(model)
    try:
        take_private_steps(watched, shoppers(1, 2), plan(), noise=noise)
    except InputError:
        assert fail
    assert leftovers(model) == before
    assert not before[1]
    assert all(p.grad is None for p in model.trained.values())
    # a second private training is as good as the first, and plain use is too
    assert float(moved(model, shoppers(1, 2)).norm()) > 0
    assert model.held_out_loss([row(1)]) > 0


def test_what_is_not_the_adapters_is_never_moved(model):
    others = {n: p.clone() for n, p in model.model.named_parameters() if ".lora_B." not in n}
    moved(model, shoppers(1, 2), noise_multiplier=1.0)
    for name, parameter in model.model.named_parameters():
        if name in others:
            assert torch.equal(parameter, others[name])


def test_a_model_with_another_trainable_weight_is_refused(model):
    weight = model.model.get_parameter("base_model.model.model.norm.weight")
    weight.requires_grad_(True)
    try:
        with pytest.raises(InputError, match=r"norm\.weight: only A and B of LoRA"):
            moved(model, shoppers(1))
    finally:
        weight.requires_grad_(False)
