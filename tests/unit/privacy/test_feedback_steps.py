"""Private steps on feedback: whatever a shopper's weights and pairs, one bounded gradient."""

import numpy as np
import pytest
import torch

from handbill.generator.adapters import AdapterSpec
from handbill.generator.lora import LoraModel
from handbill.generator.preference import EncodedPair, PreferenceModel
from handbill.generator.prompts import EncodedExample
from handbill.privacy.events import PrivateSteps
from handbill.privacy.noise import TestingNoise
from handbill.privacy.training import StepPlan, take_private_steps

NORM = 0.05


@pytest.fixture(scope="module")
def model(tiny_base):
    model = LoraModel(tiny_base, AdapterSpec(rank=2, alpha=4.0, layers=(0, 1)), dtype="float64")
    draws = np.random.default_rng(0)
    model.start = {
        name: (0.3 * draws.standard_normal(shape)).astype(np.float32)
        for name, shape in model.shapes.items()
    }
    return model


def row(seed, *, n_prompt=3, weight=1.0):
    draws = np.random.default_rng(seed)
    length = int(draws.integers(6, 14))
    return EncodedExample(tuple(draws.integers(10, 250, length).tolist()), n_prompt, weight)


def pair(seed):
    return EncodedPair(row(seed), row(seed + 500))


USERS = [
    [row(1, weight=2.0), row(2)],
    [pair(3), row(4)],
    [pair(5), pair(6), pair(7)],
    [row(8, weight=0.5)],
]


class BatchReference(PreferenceModel):
    """A preference over the batch's mean, as objectives with a common reference point have it."""

    def row_losses(self, rows):
        losses = super().row_losses(rows)
        return losses * losses.detach().sum()


def learner(model, users, kind=PreferenceModel):
    model.load(model.start)
    pairs = [one for rows in users for one in rows if isinstance(one, EncodedPair)]
    return kind(model, pairs)


def flat(model):
    return torch.cat([p.detach().flatten().double() for p in model.trained.values()])


def moved(model, users, *, kind=PreferenceModel, batch_rows=5, clipping_norm=NORM, **given):
    """How far one private step without noise to speak of moves the weights."""
    trained = learner(model, users, kind)
    before = flat(model)
    plan = StepPlan(
        event=PrivateSteps(noise_multiplier=1e-12, sampling_rate=1.0, steps=given.pop("steps", 1)),
        clipping_norm=clipping_norm,
        expected_users=1.0,
        rows_per_user=100,
        batch_rows=batch_rows,
        learning_rate=1.0,
    )
    noise = TestingNoise(1, i_know_this_is_not_private=True)
    take_private_steps(trained, users, plan, noise=noise, **given)
    return before - flat(model)


@pytest.mark.parametrize("batch_rows", [1, 2, 100])
@pytest.mark.parametrize("clipping_norm", [NORM, 10.0])
def test_rows_and_pairs_are_clipped_as_one_gradient_of_their_shopper(
    model, batch_rows, clipping_norm
):
    expected = 0
    for rows in USERS:
        trained = learner(model, USERS)
        parameters = list(model.trained.values())
        grads = [torch.autograd.grad(trained.row_losses([one])[0], parameters) for one in rows]
        mean = torch.stack([torch.cat([g.flatten() for g in grad]) for grad in grads]).mean(0)
        expected = expected + mean * min(1.0, clipping_norm / float(mean.norm()))
    got = moved(model, USERS, batch_rows=batch_rows, clipping_norm=clipping_norm)
    assert float((got - expected).norm() / expected.norm()) < 1e-4


def influence(model, extra, kind=PreferenceModel):
    with_extra = moved(model, [*USERS, extra], kind=kind, batch_rows=100)
    return float((with_extra - moved(model, USERS, kind=kind, batch_rows=100)).norm()) / NORM


@pytest.mark.parametrize(
    "extra",
    [[row(20, weight=1e6)] * 9, [pair(21)] * 12, [pair(22), row(23, weight=0.0)]],
    ids=["huge weights", "many pairs", "a pair and nothing"],
)
def test_a_shopper_moves_the_sum_by_at_most_the_clipping_norm(model, extra):
    assert influence(model, extra) <= 1 + 1e-4


def test_a_loss_that_looks_at_the_batch_would_fail_that_test(model):
    """In a batch of its own the extra shopper changes everybody's loss, here below the norm."""
    small = [[row(n, weight=1e-3)] for n in range(30, 60)]
    extra = [row(61, weight=1e3)]

    def shift(kind):
        moves = [
            moved(model, users, kind=kind, batch_rows=100) for users in (small, [*small, extra])
        ]
        return float((moves[1] - moves[0]).norm()) / NORM

    assert shift(PreferenceModel) <= 1 + 1e-4
    assert shift(BatchReference) > 2


def test_a_weight_is_how_much_a_row_counts(model):
    model.load(model.start)
    plain, double = model.row_losses([row(1), row(1, weight=2.0)]).tolist()
    assert double == pytest.approx(2 * plain)


def test_preference_begins_at_log_two_and_moves_towards_what_was_chosen(model):
    pairs = [pair(n) for n in range(40, 46)]
    trained = learner(model, [pairs])
    assert trained.row_losses(pairs).tolist() == pytest.approx([np.log(2)] * len(pairs))
    before = [model.held_out_loss([p.rejected]) - model.held_out_loss([p.chosen]) for p in pairs]
    moved(model, [[one] for one in pairs], clipping_norm=1.0, steps=10)
    after = [model.held_out_loss([p.rejected]) - model.held_out_loss([p.chosen]) for p in pairs]
    assert np.mean(np.array(after) - before) > 0.05


def test_no_further_step_is_taken_when_there_is_reason_to_stop(model):
    answers = iter([True, False])
    two = moved(model, USERS, steps=9, go_on=lambda: next(answers))
    assert torch.allclose(two, moved(model, USERS, steps=2))
