"""The ring: sums of encoded vectors are sums of the numbers, whatever the order."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from handbill.errors import InputError, NonFiniteUpdateError, ProtocolError
from handbill.federation.secagg.ring import MOST_PARTICIPANTS, Ring

vectors = arrays(np.float32, st.integers(0, 50), elements=st.floats(-3, 3, width=32))
rings = st.builds(Ring, bits=st.sampled_from([24, 32]), bound=st.floats(0.01, 10))


@given(rings, vectors)
def test_a_number_moves_by_less_than_a_step(ring, values):
    back = ring.mean(ring.encode(values), 1)
    cut = np.clip(values, -ring.bound, ring.bound)
    assert np.all(np.abs(back - cut) <= ring.step * 1.001 + 1e-6 * ring.bound)


@given(rings)
def test_the_largest_sum_fits(ring):
    top = np.full(3, 2**ring.value_bits - 1, np.uint32)
    total = np.zeros(3, np.uint32)
    for _ in range(MOST_PARTICIPANTS):
        total += top
    ring.reduce(total)
    assert np.all(ring.mean(total, MOST_PARTICIPANTS) <= ring.bound)
    assert np.all(ring.mean(total, MOST_PARTICIPANTS) >= ring.bound * 0.99)


def test_rounding_keeps_the_mean():
    # 40 000 draws between two numbers of the ring: five standard deviations are 0.0125 steps.
    ring = Ring(bits=24)
    value = np.float32(0.3 * ring.step)
    back = ring.mean(ring.encode(np.full(40_000, value)), 1)
    assert len(np.unique(back)) == 2
    assert abs(float(back.mean()) - float(value)) < 0.0125 * ring.step


@given(rings, vectors)
def test_a_vector_survives_the_wire(ring, values):
    words = ring.encode(values)
    ring.reduce(words)
    data = ring.to_bytes(words)
    assert len(data) == values.size * ring.bits // 8
    assert np.array_equal(ring.from_bytes(data, values.size), words)


def test_a_vector_of_another_length_is_refused():
    with pytest.raises(ProtocolError, match="3 numbers"):
        Ring().from_bytes(bytes(16), 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_no_ring_holds_is_refused(bad):
    with pytest.raises(NonFiniteUpdateError):
        Ring().encode(np.array([0.0, bad], np.float32))


def test_a_mask_left_in_the_sum_is_seen():
    with pytest.raises(ProtocolError, match="mask"):
        Ring().mean(np.array([0, 2**31], np.uint32), 5)


@pytest.mark.parametrize(
    ("name", "value"),
    [("bits", 16), *(("bound", bound) for bound in (0.0, 1e-4, 101.0, np.inf, np.nan))],
)
def test_a_ring_that_cannot_be_is_refused_by_name(name, value):
    with pytest.raises(InputError, match=name):
        Ring(**{name: value})
