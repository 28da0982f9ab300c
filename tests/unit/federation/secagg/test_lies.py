"""A server that lies gets refusals: each lie it could profit from, told to an honest merchant."""

import copy
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from handbill.errors import ProtocolError
from handbill.federation.sealed import seal, unseal
from handbill.federation.secagg.ring import Ring
from handbill.federation.secagg.session import SessionKeys

ME, OTHER, THIRD = "shop-00", "shop-01", "shop-02"


def changed(request, table, **entries):
    """A request with some entries of its table replaced, or taken out where None is given."""
    fields = json.loads(request)
    fields[table] = {n: v for n, v in (fields[table] | entries).items() if v is not None}
    return json.dumps(fields).encode()


def named(name, value):
    return {name: value}


@pytest.mark.parametrize("victim", [ME, "shop-03", "shop-05"])
@pytest.mark.parametrize("field", ["encryption", "masking", "commitment", "merchant"])
@pytest.mark.parametrize("signer", ["the server", "another merchant"])
def test_a_swapped_key_is_refused_by_everybody(open_session, victim, field, signer):
    session = open_session()
    keys = {
        "the server": Ed25519PrivateKey.generate(),
        "another merchant": session.identities[OTHER],
    }
    body = unseal(session.advert(victim), "secagg/advert", session.roster[victim])
    body[field] = (
        THIRD if field == "merchant" else SessionKeys().encryption.private_bytes_raw().hex()
    )
    forged = seal("secagg/advert", body, keys[signer]).decode()
    request = changed(session.server.share_request(), "adverts", **named(victim, forged))
    for name in session.names:
        with pytest.raises(ProtocolError, match=r"not signed|what this merchant advertised"):
            session.participants[name].share(request)


def test_an_older_advert_of_its_own_is_refused_by_a_merchant(open_session):
    session = open_session()
    old = SessionKeys().advertise(ME, session.identities[ME]).decode()
    request = changed(session.server.share_request(), "adverts", **named(ME, old))
    with pytest.raises(ProtocolError, match="what this merchant advertised"):
        session.participants[ME].share(request)


def test_one_merchant_under_two_names_is_refused(open_session):
    session = open_session()
    twin = session.advert(OTHER).decode()
    request = changed(session.server.share_request(), "adverts", **named(THIRD, twin))
    with pytest.raises(ProtocolError, match="not signed"):
        session.participants[ME].share(request)


def test_a_key_that_comes_twice_is_refused(open_session):
    session = open_session()
    again = session.keys[OTHER].advertise(THIRD, session.identities[THIRD]).decode()
    request = changed(session.server.share_request(), "adverts", **named(THIRD, again))
    with pytest.raises(ProtocolError, match="same key"):
        session.participants[ME].share(request)


def test_a_merchant_that_is_not_on_the_roster_is_refused(open_session):
    session = open_session()
    roster = {name: key for name, key in session.roster.items() if name != OTHER}
    with pytest.raises(ProtocolError, match="shop-01 is not on the roster"):
        session.participant(ME, roster=roster).share(session.server.share_request())


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4])
def test_a_shrunken_cohort_is_refused(open_session, count):
    session = open_session()
    gone = dict.fromkeys(session.names[max(count, 1) :])
    if count == 0:
        gone[ME] = None
    with pytest.raises(ProtocolError, match=r"5 to 256|what this merchant advertised"):
        session.participants[ME].share(changed(session.server.share_request(), "adverts", **gone))


@pytest.mark.parametrize(
    "told", [{"context": b"x" * 32}, {"ring": Ring(bits=24)}, {"ring": Ring(bound=2.0)}]
)
def test_who_is_told_of_another_model_or_scale_sends_no_vector(open_session, told):
    session = open_session()
    session.participants[ME] = session.participant(ME, **told)
    session.share()
    for name in session.names:
        with pytest.raises(ProtocolError, match="does not open"):
            session.participants[name].mask(
                session.server.mask_request(name), session.vectors[name]
            )


def test_who_is_shown_another_cohort_sends_no_vector(open_session):
    session = open_session()
    request = session.server.share_request()
    fewer = changed(request, "adverts", **{"shop-05": None})
    for name in session.names:
        answer = session.participants[name].share(fewer if name == ME else request)
        if name == ME:
            answer = changed(answer, "shares", **{"shop-05": "A" * 198 + "=="})
            answer = changed(answer, "hashes", **{"shop-05": "a" * 64})
        session.server.shared(name, answer)
    with pytest.raises(ProtocolError, match=r"did not advertise|does not open"):
        session.participants[ME].mask(session.server.mask_request(ME), session.vectors[ME])


def test_a_share_that_was_changed_moved_or_sent_back_does_not_open(open_session):
    session = open_session()
    session.share()
    shares = json.loads(session.server.mask_request(ME))["shares"]
    from_me = json.loads(session.server.mask_request(OTHER))["shares"][ME]
    lies = (shares[OTHER][:-8] + "AAAAAAA=", shares[THIRD], from_me, "", "%", "é")
    for lie in lies:
        me = copy.copy(session.participants[ME])
        request = changed(session.server.mask_request(ME), "shares", **named(OTHER, lie))
        with pytest.raises(ProtocolError, match=r"does not open|malformed"):
            me.mask(request, session.vectors[ME])


def test_too_few_sharers_get_no_vector(open_session):
    session = open_session()
    session.share()
    request = changed(session.server.mask_request(ME), "shares", **{OTHER: None, THIRD: None})
    with pytest.raises(ProtocolError, match="too few"):
        session.participants[ME].mask(request, session.vectors[ME])


def survivors(*names):
    return json.dumps({"survivors": names}).encode()


@pytest.mark.parametrize(
    ("proposed", "reason"),
    [
        (range(1, 6), "not to hold this merchant's"),
        (range(4), "5 at least"),
        ((0, 1, 2, 3, 3), "twice"),
        ((0, 1, 2, 3, 4, 9), "shared no secrets"),
    ],
)
def test_a_sum_that_may_not_be_opened_is_not_signed_for(open_session, proposed, reason):
    session = open_session()
    session.share(), session.mask()
    with pytest.raises(ProtocolError, match=reason):
        session.participants[ME].agree(survivors(*(f"shop-{n:02d}" for n in proposed)))
    assert session.burnt == []


def test_a_second_set_is_signed_for_only_if_it_is_smaller(open_session):
    session = open_session(7)
    session.share(), session.mask()
    me, names = session.participants[ME], session.names
    me.agree(survivors(*names[:6]))
    for other in (names[:6], names, [*names[:5], names[6]]):
        with pytest.raises(ProtocolError, match="another set"):
            me.agree(survivors(*other))
    assert session.burnt == [ME]


def test_a_vector_is_burnt_before_the_signature_leaves(open_session):
    session = open_session()
    session.share(), session.mask()
    session.participants[ME]._burn = lambda: (_ for _ in ()).throw(OSError("disk full"))
    with pytest.raises(OSError, match="disk full"):
        session.participants[ME].agree(session.server.agree_request())


def agreed(open_session, count=7):
    session = open_session(count)
    session.share(), session.mask(), session.agree()
    return session, session.server.unmask_request()


@pytest.mark.parametrize("missing", [OTHER, ME])
def test_without_everybodys_signature_nothing_is_opened(open_session, missing):
    session, request = agreed(open_session)
    with pytest.raises(ProtocolError, match="did not sign for this set"):
        session.participants[ME].unmask(changed(request, "agreements", **{missing: None}))


def test_a_signature_for_another_set_opens_nothing(open_session):
    session, request = agreed(open_session)
    fewer = survivors(*session.names[:6])
    other = session.participants[OTHER].agree(fewer).decode()
    with pytest.raises(ProtocolError, match="another set of survivors"):
        session.participants[ME].unmask(changed(request, "agreements", **named(OTHER, other)))


def test_a_forged_signature_opens_nothing(open_session):
    session, request = agreed(open_session)
    agreements = json.loads(request)["agreements"]
    body = unseal(agreements[OTHER].encode(), "secagg/survivors", session.roster[OTHER])
    forged = seal("secagg/survivors", body, Ed25519PrivateKey.generate()).decode()
    with pytest.raises(ProtocolError, match="not signed"):
        session.participants[ME].unmask(changed(request, "agreements", **named(OTHER, forged)))


def test_a_sum_is_opened_once(open_session):
    session, request = agreed(open_session)
    me = session.participants[ME]
    answer = json.loads(me.unmask(request))
    assert not answer["seeds"].keys() & answer["maskings"].keys()
    with pytest.raises(ProtocolError, match="asked for after"):
        me.unmask(request)
    with pytest.raises(ProtocolError, match="asked for after"):
        me.agree(survivors(*session.names[:6]))


def test_signatures_of_another_session_open_nothing(open_session):
    session, request = agreed(open_session)
    again, _ = agreed(open_session)
    again.participants[ME]._roster = session.roster
    with pytest.raises(ProtocolError, match="another set of survivors or session"):
        again.participants[ME].unmask(request)


def test_steps_come_in_one_order_and_once(open_session):
    session = open_session()
    me, request = session.participants[ME], session.server.share_request()
    for too_early in (
        lambda: me.mask(b"{}", None),
        lambda: me.agree(b"{}"),
        lambda: me.unmask(b"{}"),
    ):
        with pytest.raises(ProtocolError, match="asked for after advertised"):
            too_early()
    session.share()
    with pytest.raises(ProtocolError, match="shared asked for after"):
        me.share(request)
    session.mask()
    with pytest.raises(ProtocolError, match="masked asked for after"):
        me.mask(session.server.mask_request(ME), session.vectors[ME])


@pytest.mark.parametrize(
    "junk", [b"", b"[]", b"{}", b"\xff", b'{"adverts": 3}', b'{"adverts": {"a": 1}}', b"[" * 99_999]
)
def test_junk_is_refused_and_not_choked_on(open_session, junk):
    with pytest.raises(ProtocolError):
        open_session().participants[ME].share(junk)


@pytest.mark.parametrize("field", ["encryption", "masking"])
def test_a_key_of_low_order_is_refused_by_name(open_session, field):
    session = open_session()
    body = unseal(session.advert(OTHER), "secagg/advert", session.roster[OTHER])
    forged = seal("secagg/advert", body | {field: "00" * 32}, session.identities[OTHER]).decode()
    request = changed(session.server.share_request(), "adverts", **named(OTHER, forged))
    me = session.participants[ME]

    def go_on():
        me.share(request)
        me._held = {OTHER: (b"", b"")}
        list(me._session.pair_keys(ME, me._keys.masking, {OTHER}))

    with pytest.raises(ProtocolError, match="shop-01 advertised is of low order"):
        go_on()


def test_keys_do_not_show_in_a_log(open_session):
    keys = open_session().keys[ME]
    assert repr(keys) == "SessionKeys()"
