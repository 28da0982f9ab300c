"""The roster: a log that can be added to, and neither rewritten nor forged."""

import json
from dataclasses import asdict, replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from handbill.errors import ProtocolError
from handbill.federation.roster import Roster
from handbill.federation.sealed import seal

OPERATOR = Ed25519PrivateKey.generate()
KEYS = {name: Ed25519PrivateKey.generate().public_key() for name in ("ann", "bob", "cem")}


def roster(*changes, operator=OPERATOR):
    log = Roster()
    for action, name in changes:
        key = KEYS[name].public_bytes_raw().hex()
        line = log.next_line(action, name, key, time="2026-01-01T00:00:00+00:00", operator=operator)
        log = Roster.read([*log.lines, line], operator.public_key())
    return log


LOG = roster(("enrol", "ann"), ("enrol", "bob"), ("revoke", "ann"), ("enrol", "cem"))


def test_members_are_those_enrolled_and_not_revoked():
    assert dict(LOG.members) == {"bob": KEYS["bob"], "cem": KEYS["cem"]}
    assert Roster().members == {}
    assert Roster().head == ""


def test_a_longer_log_extends_a_shorter_one_and_no_other():
    shorter = Roster.read(LOG.lines[:2], OPERATOR.public_key())
    assert LOG.extends(shorter)
    assert LOG.extends(LOG)
    assert not shorter.extends(LOG)
    assert not roster(("enrol", "bob"), ("enrol", "ann"), ("enrol", "cem")).extends(shorter)


@pytest.mark.parametrize("number", range(4))
def test_a_line_that_is_missing_moved_or_twice_is_found(number):
    lines = list(LOG.lines)
    broken = [
        lines[:number] + lines[number + 1 :] + lines[:0],
        [*lines[: number + 1], lines[number], *lines[number + 1 :]],
        [lines[number], *lines[:number], *lines[number + 1 :]],
    ]
    for some in broken:
        if some == lines or some == lines[:number]:
            continue  # the first in its place, or only the end cut off: extends() is for that
        with pytest.raises(ProtocolError, match="does not follow"):
            Roster.read(some, OPERATOR.public_key())


def test_a_line_by_another_hand_is_refused():
    forged = roster(("enrol", "ann"), operator=Ed25519PrivateKey.generate())
    with pytest.raises(ProtocolError, match="not signed"):
        Roster.read(forged.lines, OPERATOR.public_key())


@pytest.mark.parametrize(
    "wrong",
    [
        {"action": "promote"},
        {"merchant": "../ann"},
        {"merchant": ""},
        {"key": "ab"},
        {"key": 7},
        {"number": 2},
        {"previous": "00" * 32},
    ],
)
def test_a_line_without_sense_is_refused_even_if_it_is_signed(wrong):
    body = asdict(replace(LOG.entries[0], **wrong))
    with pytest.raises(ProtocolError, match="line 1"):
        Roster.read([seal("roster", body, OPERATOR).decode()], OPERATOR.public_key())


@pytest.mark.parametrize("junk", ["", "{}", "[]", "null", '{"body": 1, "signature": "zz"}'])
def test_junk_is_refused(junk):
    with pytest.raises(ProtocolError):
        Roster.read([junk], OPERATOR.public_key())
    with pytest.raises(ProtocolError):
        Roster.read([*LOG.lines, junk], OPERATOR.public_key())


def test_every_bit_of_a_line_counts():
    line = LOG.lines[0].encode()
    for place in range(0, len(line), 3):
        changed = bytearray(line)
        changed[place] ^= 1
        with pytest.raises(ProtocolError):
            Roster.read([changed.decode(errors="replace")], OPERATOR.public_key())


def test_a_statement_of_another_kind_is_no_line():
    line = seal("secagg/advert", asdict(LOG.entries[0]), OPERATOR).decode()
    with pytest.raises(ProtocolError, match="not signed"):
        Roster.read([line], OPERATOR.public_key())
    assert json.loads(line)["body"]
