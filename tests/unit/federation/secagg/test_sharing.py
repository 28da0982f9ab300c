"""Shamir's sharing: enough shares give the secret back, and fewer say nothing."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handbill.federation.secagg.sharing import PRIME, SHARE_BYTES, Interpolation, split

secrets = st.binary(min_size=32, max_size=32)


@given(secrets, st.integers(1, 12), st.data())
def test_any_enough_shares_give_the_secret_back(secret, points, data):
    threshold = data.draw(st.integers(1, points))
    shares = dict(enumerate(split(secret, points=points, threshold=threshold), start=1))
    chosen = data.draw(st.permutations(sorted(shares)))[:threshold]
    value = Interpolation(tuple(chosen)).value(shares)
    assert value.to_bytes(32, "big") == secret


@given(secrets, secrets)
def test_one_share_too_few_fits_every_secret(secret, other):
    # For any other secret there is a last share that makes it the right one.
    shares = dict(enumerate(split(secret, points=5, threshold=4), start=1))
    known = Interpolation((1, 2, 3, 4)).value(shares | {4: bytes(SHARE_BYTES)})
    weight = (Interpolation((1, 2, 3, 4)).value({1: b"", 2: b"", 3: b"", 4: b"\1"})) % PRIME
    last = (int.from_bytes(other, "big") - known) * pow(weight, -1, PRIME) % PRIME
    forged = shares | {4: last.to_bytes(SHARE_BYTES, "big")}
    assert Interpolation((1, 2, 3, 4)).value(forged) == int.from_bytes(other, "big")


def test_two_sharings_of_one_secret_have_nothing_in_common():
    one, two = (split(b"s" * 32, points=9, threshold=3) for _ in range(2))
    assert not set(one) & set(two)


@pytest.mark.parametrize("threshold", [2, 5])
def test_with_one_share_too_few_the_secret_does_not_come_out(threshold):
    secret = random.Random(7).randbytes(32)
    shares = dict(enumerate(split(secret, points=5, threshold=threshold), start=1))
    few = Interpolation(tuple(range(1, threshold))).value(shares)
    assert few != int.from_bytes(secret, "big")
