"""One merchant that sends what no honest one sends is refused when it does, and the others go on."""

import json
from contextlib import suppress

import numpy as np
import pytest

from handbill.errors import ProtocolError, RoundError
from handbill.federation.sealed import seal
from handbill.federation.secagg.aggregator import Aggregator, RefusedShareError
from handbill.federation.secagg.participant import BadShareError
from handbill.federation.secagg.session import SessionKeys

BAD = "shop-03"
LOW_ORDER = [
    "00" * 32,
    "01" + "00" * 31,
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
]


def bad_adverts(session):
    """Adverts of one merchant that an honest one would not send, by what is wrong with them."""
    key, good = session.identities[BAD], json.loads(json.loads(session.advert(BAD))["body"])
    of_another = json.loads(json.loads(session.advert("shop-00"))["body"])["masking"]
    top_bit = f"{int(good['masking'][-2:], 16) | 128:02x}"
    forms = {
        "the same key twice": good | {"masking": good["encryption"]},
        "a key of another": good | {"masking": of_another},
        "capitals": good | {"encryption": good["encryption"].upper()},
        "spaces": good | {"masking": " " + good["masking"]},
        "a short key": good | {"masking": good["masking"][:-2]},
        "a long key": good | {"encryption": good["encryption"] + "00"},
        "no commitment": good | {"commitment": ""},
        "a second name of a point": good | {"masking": good["masking"][:-2] + top_bit},
        "more than there should be": good | {"note": "hello"},
        "another name": good | {"merchant": "shop-00"},
        "a long name": good | {"merchant": BAD + "x" * 2000},
        **{f"low order {n}": good | {"masking": point} for n, point in enumerate(LOW_ORDER)},
        **{
            f"low order {n}, to encrypt": good | {"encryption": point}
            for n, point in enumerate(LOW_ORDER)
        },
    }
    sealed = {name: seal("secagg/advert", body, key) for name, body in forms.items()}
    sound = seal("secagg/advert", good, key)
    return sealed | {
        "another signer": seal("secagg/advert", good, session.identities["shop-00"]),
        "another kind": seal("secagg/masked", good, key),
        "with a space": sound.replace(b'":"', b'": "', 1),
        "with a field": sound[:-1] + b',"x":"' + b"y" * 5_000_000 + b'"}',
        "with a small field": sound[:-1] + b',"x":"\\ud800"}',
        "in UTF-16": sound.decode().encode("utf-16"),
        "nothing": b"",
    }


def test_an_advert_that_others_would_refuse_is_refused_when_it_comes(open_session):
    session = open_session()
    left, taken = [name for name in session.names if name != BAD], []
    for what, advert in bad_adverts(session).items():
        server = session.server = Aggregator(
            session.roster, context=b"c" * 32, ring=session.ring, dimension=session.dimension
        )
        for name in left:
            server.advertised(name, session.advert(name))
        with suppress(ProtocolError):
            server.advertised(BAD, advert)
            taken.append(what)
        assert BAD not in json.loads(server.share_request())["adverts"]
    assert taken == []
    session.share(left), session.mask(left), session.agree(left), session.unmask(left)
    assert np.array_equal(session.server.finish().total, session.sum_of(left))


def test_a_merchant_off_the_roster_is_refused(open_session):
    session = open_session()
    with pytest.raises(ProtocolError, match="eve is not on the roster"):
        session.server.advertised("eve", SessionKeys().advertise("eve", session.identities[BAD]))


@pytest.mark.parametrize("table", ["shares", "hashes"])
@pytest.mark.parametrize(
    "text", [None, "", "AAAA", "a" * 63, "é" * 64, "\ud800", 7, "A" * 200, "A" * 5_000]
)
def test_shares_of_another_form_are_refused_when_they_come(open_session, table, text):
    session = open_session()
    request = session.server.share_request()
    answer = json.loads(session.participants[BAD].share(request))
    answer[table]["shop-00"] = text
    if text is None:
        del answer[table]["shop-00"]
    with pytest.raises(ProtocolError, match=f"{table}|cannot be stored"):
        session.server.shared(BAD, json.dumps(answer).encode())


def spoilt(session, victims, of=BAD):
    """Everybody shares; the shares of one do not open for its victims."""
    request = session.server.share_request()
    for name in session.names:
        answer = json.loads(session.participants[name].share(request))
        for victim in victims if name == of else ():
            answer["hashes"][victim] = "0" * 64
        session.server.shared(name, json.dumps(answer).encode())


def test_few_whose_share_does_not_open_are_left_out_and_nobody_is_blamed(open_session):
    session = open_session(10)
    victims, left = session.names[:3], session.names[3:]
    spoilt(session, victims)
    for name in victims:
        with pytest.raises(BadShareError, match="share from shop-03 does not open") as caught:
            session.mask([name])
        with pytest.raises(RefusedShareError, match="shop-03"):
            session.server.refused(name, caught.value.complaint)
    assert session.server.accused() == []
    session.mask(left), session.agree(left), session.unmask(left)
    assert np.array_equal(session.server.finish().total, session.sum_of(left))


def test_who_is_accused_by_more_than_may_lie_is_to_blame(open_session):
    session = open_session(10)
    victims = session.names[:3] + session.names[4:5]
    spoilt(session, victims)
    for name in victims:
        with pytest.raises(BadShareError) as caught:
            session.mask([name])
        with pytest.raises(RefusedShareError):
            session.server.refused(name, caught.value.complaint)
    assert session.server.accused() == [BAD]
    with pytest.raises(
        ProtocolError, match="asked for after"
    ):  # and who complained goes no further
        session.participants[victims[0]].unmask(b"{}")
    with pytest.raises(ProtocolError, match="shared no secrets"):
        session.participants[victims[0]].agree(json.dumps({"survivors": session.names}).encode())


def test_a_complaint_of_another_session_or_about_oneself_is_refused(open_session):
    session, other = open_session(), open_session()
    session.share(), other.share()
    for transcript, giver in (
        (other.server._session.transcript, "shop-00"),
        (session.server._session.transcript, BAD),
        (session.server._session.transcript, "eve"),
        (session.server._session.transcript, ["shop-00"]),
    ):
        body = {"transcript": transcript.hex(), "giver": giver}
        complaint = seal("secagg/complaint", body, session.identities[BAD])
        with pytest.raises(ProtocolError, match="complaint"):
            session.server.refused(BAD, complaint)
    assert session.server.accused() == []


def test_with_too_few_shares_nobody_is_asked_for_a_vector(open_session):
    session = open_session()
    session.share(session.names[:4])
    with pytest.raises(RoundError, match="4 merchants shared their secrets, 5 needed"):
        session.server.mask_request("shop-00")
