"""Honest sessions: the sum of who is left, exact to the integer, whoever drops out and when."""

import itertools
import re

import numpy as np
import pytest

from handbill.errors import ProtocolError, RoundError
from handbill.federation.fields import read_object
from handbill.federation.secagg.aggregator import CheatedError
from handbill.federation.secagg.ring import Ring
from handbill.federation.secagg.session import SessionKeys, threshold


@pytest.mark.parametrize("bits", [24, 32])
@pytest.mark.parametrize("count", [5, 6, 23])
def test_the_sum_is_exact(open_session, count, bits):
    session = open_session(count, ring=Ring(bits=bits))
    session.share(), session.mask(), session.agree(), session.unmask()
    opened = session.server.finish()
    assert np.array_equal(opened.total, session.sum_of(session.names))
    assert opened.survivors == tuple(session.names)
    assert session.burnt == session.names


PHASES = ("advertise", "share", "mask", "agree", "unmask")


@pytest.mark.parametrize("lost", range(4))
@pytest.mark.parametrize("phase", PHASES)
def test_ten_merchants_lose_up_to_three_at_any_phase(open_session, phase, lost):
    names = [f"shop-{n:02d}" for n in range(10)]
    left = {p: names[lost:] if i >= PHASES.index(phase) else names for i, p in enumerate(PHASES)}
    session = open_session(10, advertised=left["advertise"])
    session.share(left["share"])
    session.mask(left["mask"])
    if phase == "agree" and lost:
        session.agree(left["agree"])
        with pytest.raises(RoundError, match="did not agree"):
            session.server.unmask_request()
        session.agree(left["agree"], lost=names[:lost])
    else:
        session.agree(left["agree"] if phase != "unmask" else names)
    session.unmask(left["unmask"])
    opened = session.server.finish()
    inside = names if phase == "unmask" else names[lost:]
    assert opened.survivors == tuple(inside)
    assert np.array_equal(opened.total, session.sum_of(inside))


@pytest.mark.parametrize("phase", PHASES[1:])
def test_a_fourth_loss_of_ten_keeps_the_sum_closed(open_session, phase):
    session = open_session(10)
    names, left = session.names, session.names[4:]

    def go_on():
        session.share(left if phase == "share" else names)
        session.mask(left if phase in {"share", "mask"} else names)
        session.agree(names if phase == "unmask" else left, lost=names[: 4 * (phase == "agree")])
        session.unmask(left)
        session.server.finish()

    with pytest.raises((ProtocolError, RoundError), match=r"too few|at least|needed"):
        go_on()


def test_losses_at_several_phases_add_up(open_session):
    session = open_session(10)
    names = session.names
    session.share(names[1:])
    session.mask(names[2:])
    session.agree(names[3:])
    session.agree(names[3:], lost=names[:3])
    session.unmask(names[3:])
    opened = session.server.finish()
    assert np.array_equal(opened.total, session.sum_of(names[3:]))


def test_a_merchant_may_be_lost_twice_more_while_agreeing_and_no_more(open_session):
    session = open_session(13)
    names = session.names
    session.share(), session.mask()
    session.agree(names[1:])
    session.agree(names[2:], lost=names[:1])
    session.agree(names[2:], lost=names[:2])
    with pytest.raises(RoundError, match="again and again"):
        session.server.agree_request(names[:3])


def test_the_threshold_is_over_two_thirds():
    for count in range(5, 257):
        assert 3 * threshold(count) > 2 * count
        assert 3 * (threshold(count) - 1) <= 2 * count
    assert [threshold(n) for n in (5, 6, 10, 50, 100)] == [4, 5, 7, 34, 67]


def lie(answer):
    """Every share changed in one place."""
    return re.sub(rb'"[0-9a-f]{131}([0-9a-f])"', rb'"' + b"5" * 131 + rb'\1"', answer)


@pytest.mark.parametrize("liars", [1, 2])
def test_who_gives_a_wrong_share_is_refused_and_the_sum_is_right(open_session, liars):
    session = open_session(10)
    session.share(), session.mask(session.names[1:]), session.agree(session.names[1:])
    request = session.server.unmask_request()
    for number, name in enumerate(session.names[1:]):
        answer = session.participants[name].unmask(request)
        if number in range(0, 2 * liars, 2):
            with pytest.raises(ProtocolError, match=r"not the share that shop-0\d gave it"):
                session.server.unmasked(name, lie(answer))
        else:
            session.server.unmasked(name, answer)
    opened = session.server.finish()
    assert np.array_equal(opened.total, session.sum_of(session.names[1:]))


def test_with_too_many_wrong_shares_there_is_no_sum(open_session):
    session = open_session(6)  # threshold 5: with two liars only four good shares are left
    session.share(), session.mask(), session.agree()
    request = session.server.unmask_request()
    for name in session.names[:2]:
        answer = session.participants[name].unmask(request)
        with pytest.raises(ProtocolError, match="not the share"):
            session.server.unmasked(name, lie(answer))
    for name in session.names[2:]:
        session.server.unmasked(name, session.participants[name].unmask(request))
    with pytest.raises(RoundError, match="4 merchants helped to unmask the sum, 5 needed"):
        session.server.finish()


@pytest.mark.parametrize("kind", ["seeds", "maskings"])
def test_who_shared_something_else_than_its_secrets_is_named_for_certain(open_session, kind):
    session = open_session(10)
    cheat = session.names[4]
    advert, honest, other = session.advert(cheat), session.keys[cheat], SessionKeys()

    class Others(SessionKeys):
        def advertise(self, *_):
            return advert

    session.participants[cheat]._keys = Others(
        honest.encryption,
        honest.masking if kind == "seeds" else other.masking,
        other.seed if kind == "seeds" else honest.seed,
    )
    session.share()
    inside = session.names if kind == "seeds" else [n for n in session.names if n != cheat]
    session.mask(inside), session.agree(inside), session.unmask(inside)
    with pytest.raises(CheatedError, match="shop-04 shared something else") as caught:
        session.server.finish()
    assert caught.value.merchants == (cheat,)


def test_no_two_sessions_share_a_word_of_a_mask(open_session):
    def masked(session):
        session.share()
        for name in session.names:
            request = session.server.mask_request(name)
            yield session.participants[name].mask(request, np.zeros(40, np.uint32))[-160:]

    seen = list(itertools.chain(masked(open_session()), masked(open_session())))
    words = np.frombuffer(b"".join(seen), np.uint32)
    # 480 words of 2^32: two are equal by chance once in 37 000 runs.
    assert len(np.unique(words)) == words.size


def test_what_is_sent_beside_the_vector_is_small(open_session):
    session = open_session(100, dimension=10)
    request = session.server.share_request()
    answer = session.participants[session.names[0]].share(request)
    assert len(request) < 60_000
    assert len(answer) < 30_000
    assert len(read_object(answer)["shares"]) == 99
