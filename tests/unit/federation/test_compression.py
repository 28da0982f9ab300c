"""Eight bits a number: how far off one is, and that sums over rounds do not drift."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handbill.clients.journal import Journal
from handbill.errors import ProtocolError
from handbill.federation.compression import compress, expand, shapes_of

SHAPES = {"b": (40, 3), "c": (5, 2)}


@given(st.integers(0, 2**32), st.floats(1e-12, 1e12))
def test_no_number_is_off_by_more_than_half_a_step_of_its_column(seed, scale):
    draws = np.random.default_rng(seed)
    update = {
        name: (scale * draws.standard_normal(shape)).astype(np.float32)
        for name, shape in SHAPES.items()
    }
    found = expand(compress(update), SHAPES)
    for name, value in update.items():
        step = np.abs(value).max(axis=0) / 127
        assert (np.abs(found[name] - value) <= 0.501 * step).all()


def test_columns_of_zeros_and_updates_that_were_rounded_before_stay_as_they_are(random_update):
    update = random_update(SHAPES)
    update["b"][:, 1] = 0.0
    once = expand(compress(update), SHAPES)
    assert not once["b"][:, 1].any()
    twice = expand(compress(once), SHAPES)
    for name in SHAPES:
        np.testing.assert_allclose(twice[name], once[name], rtol=1e-6)


def test_it_takes_a_quarter_of_the_bytes(random_update):
    update = random_update({"b": (576, 8)})
    assert sum(v.nbytes for v in compress(update).values()) < 0.26 * update["b"].nbytes


@pytest.mark.parametrize(
    "spoil",
    [
        lambda packed: packed.pop("scale:b"),
        lambda packed: packed.update(b=packed["b"][:-1]),
        lambda packed: packed.update(b=packed["b"].astype(np.float32)),
        lambda packed: packed.update({"scale:b": packed["scale:b"].astype(np.float64)}),
        lambda packed: packed.update(d=packed["b"]),
    ],
)
def test_what_was_not_packed_so_is_refused(random_update, spoil):
    packed = compress(random_update(SHAPES))
    spoil(packed)
    with pytest.raises(ProtocolError, match="not packed in eight bits"):
        expand(packed, SHAPES)


def drift(updates, send):
    """How far the sum of what was sent is from the sum of the updates, in steps of the rounding."""
    sent, total = 0.0, 0.0
    for update in updates:
        sent, total = sent + send(update)["b"], total + update["b"]
    return np.abs(sent - total).max() / (max(np.abs(u["b"]).max() for u in updates) / 127)


def test_with_error_feedback_a_sum_over_rounds_is_never_off_by_more_than_a_rounding(
    tmp_path, random_update
):
    # The same small numbers beside a large one, each time: plain rounding loses them each time.
    update = random_update({"b": (40, 3)}, scale=0.003)
    update["b"][0] = 1.0
    updates = [update] * 40
    journal = Journal(tmp_path)
    assert drift(updates, lambda one: journal.round_off("run", one)) <= 1.0
    assert drift(updates, lambda one: expand(compress(one), shapes_of(one))) > 10


def test_what_one_run_owes_is_not_paid_in_another(tmp_path, random_update):
    first, second = random_update(SHAPES, 1), random_update(SHAPES, 2)
    journal = Journal(tmp_path)
    journal.round_off("run-1", first)
    fresh = expand(compress(second), SHAPES)
    for name, value in journal.round_off("run-2", second).items():
        np.testing.assert_array_equal(value, fresh[name])
