"""One round: who does not answer well is left out and named, and the others' round goes on."""

import hashlib
import json
import time
from collections import deque
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from handbill.errors import HandbillError, InputError, RoundError
from handbill.federation import rounds
from handbill.federation.aggregation import MeanAccumulator
from handbill.federation.compression import compress
from handbill.federation.messages import (
    MESSAGE_LABEL,
    Instruction,
    Receipt,
    Recipe,
    Report,
    Signed,
    most_bytes,
    open_signed,
    sign,
)
from handbill.federation.payload import payload_bytes
from handbill.federation.rounds import RoundPlan, run_round
from handbill.federation.transport import InProcessTransport, Reply
from handbill.generator.adapters import AdapterSpec

SERVER = Ed25519PrivateKey.generate()
KEYS = {name: Ed25519PrivateKey.generate() for name in ("ann", "bob", "cem", "dee")}
SHAPES = {"b": (2, 2)}
WEIGHTS = {"b": np.zeros((2, 2), np.float32)}


class Merchant:
    """Answers like a good client; a test's ``change`` spoils the answer."""

    def __init__(self, name, *, value=1.0, change=None, tensors=None, key=None):
        self.name, self.value, self.change = name, value, change or {}
        self.tensors, self.key = tensors, key or KEYS[name]
        self.asked = []

    def __call__(self, message):
        asked, _ = open_signed(Signed.from_bytes(message), SERVER.public_key(), Instruction)
        self.asked.append(asked)
        fields = {
            "merchant": self.name,
            "run": asked.run,
            "round": asked.round,
            "attempt": asked.attempt,
            "stage": asked.stage,
            "parent": asked.parent,
            "ledger_head": self.name.encode().hex().ljust(64, "0"),
        }
        fields |= self.change
        fields["privacy"] = {
            "merchant": fields["merchant"],
            "epsilon": 1.0,
            "delta": 1e-5,
            "steps": 1,
            "unit": "user-within-one-merchant",
            "adjacency": "add-remove",
        }
        tensors = self.tensors or {"b": np.full((2, 2), self.value, np.float32)}
        return sign(Report(**fields), tensors, self.key).to_bytes()


def plan(**given):
    fields = {
        "run": "run-1",
        "round": 3,
        "attempt": 1,
        "parent": "sha256:" + "0" * 64,
        "base_digest": "sha256:" + "1" * 64,
        "spec": AdapterSpec(rank=2, layers=(0,)),
        "recipe": Recipe(),
        "cohort": {name: key.public_key() for name, key in KEYS.items()},
        "min_reports": 2,
        **given,
    }
    return RoundPlan(**fields)


def take(transport, *, weights=WEIGHTS, on_reply=None, **given):
    total = MeanAccumulator(SHAPES, max_norm=100.0)
    outcome = run_round(
        transport,
        plan(**given),
        weights,
        key=SERVER,
        fold=lambda _, update: total.add(update),
        on_reply=on_reply,
    )
    return outcome, total


def merchants(**special):
    everyone = {name: Merchant(name, value=float(n)) for n, name in enumerate(KEYS, start=1)}
    return everyone | special


def test_every_good_report_is_folded_in_and_counted():
    seen = []
    asked = merchants()
    outcome, total = take(InProcessTransport(asked), on_reply=lambda *fact: seen.append(fact))
    assert outcome.reporters == list(KEYS)
    assert outcome.failures == {}
    assert total.count == 4
    np.testing.assert_array_equal(total.mean()["b"], np.float32(2.5))
    assert outcome.ledger_heads["ann"] == b"ann".hex().ljust(64, "0")
    assert [statement["merchant"] for statement in outcome.privacy] == list(KEYS)
    assert seen == [(name, "") for name in KEYS]
    assert outcome.bytes_up > 4 * 16
    assert outcome.bytes_down > 4 * 16


def test_everybody_is_asked_for_this_round_and_for_nothing_else():
    asked = merchants()
    take(InProcessTransport(asked), weights={"b": np.full((2, 2), 7, np.float32)})
    for name, merchant in asked.items():
        (instruction,) = merchant.asked
        assert instruction.merchant == name
        assert (instruction.run, instruction.round, instruction.attempt) == ("run-1", 3, 1)
        assert instruction.recipe == Recipe()


def test_everybody_gets_its_own_receipt_or_none():
    asked = merchants()
    receipts = {
        name: Receipt(
            run="run-0", round=2, stage="personal", head=name.encode().hex().ljust(64, "0")
        )
        for name in ("ann", "bob")
    }
    take(InProcessTransport(asked), receipts=receipts)
    got = {name: merchant.asked[0].receipt for name, merchant in asked.items()}
    assert got == {**receipts, "cem": None, "dee": None}


def refuses(message):
    raise HandbillError("my policy says no")


NAN = {"b": np.full((2, 2), np.nan, np.float32)}
WRONG = {
    "another's key": (Merchant("bob", key=KEYS["cem"]), "not signed"),
    "the server's key": (Merchant("bob", key=SERVER), "not signed"),
    "another round": (Merchant("bob", change={"round": 2}), "of another round"),
    "another run": (Merchant("bob", change={"run": "run-0"}), "of another run"),
    "another attempt": (Merchant("bob", change={"attempt": 0}), "of another attempt"),
    "another stage": (Merchant("bob", change={"stage": "personal"}), "of another stage"),
    "another parent": (Merchant("bob", change={"parent": ""}), "of another parent"),
    "for another": (Merchant("bob", change={"merchant": "cem"}), "of another merchant"),
    "not finite": (Merchant("bob", tensors=NAN), "NaN or infinity"),
    "too large": (Merchant("bob", value=1e6), "larger"),
    "other tensors": (Merchant("bob", tensors={"c": NAN["b"]}), "exactly the adapter's"),
    "refusal": (refuses, "my policy says no"),
    "nothing": (lambda _: b"", "cut short"),
    "junk": (lambda _: b"junk" * 100, "cut short|not signed"),
    "the question": (lambda message: message, "not signed"),
}


@pytest.mark.parametrize(("bob", "reason"), WRONG.values(), ids=WRONG.keys())
def test_a_bad_merchant_is_left_out_and_named_and_the_round_goes_on(bob, reason):
    outcome, total = take(InProcessTransport(merchants(bob=bob)))
    assert outcome.reporters == ["ann", "cem", "dee"]
    assert list(outcome.failures) == ["bob"]
    with pytest.raises(HandbillError, match=reason):
        raise HandbillError(outcome.failures["bob"])
    assert "bob" not in outcome.ledger_heads
    np.testing.assert_allclose(total.mean()["b"], (1 + 3 + 4) / 3, rtol=1e-6)


def test_a_report_of_an_earlier_round_cannot_be_replayed():
    kept = []

    def remember(message):
        kept.append(Merchant("bob")(message))
        return kept[0]

    transport = InProcessTransport(merchants(bob=remember))
    first, _ = take(transport, round=3)
    second, _ = take(transport, round=4)
    assert "bob" in first.reporters
    assert "bob" not in second.reporters
    assert "of another round" in second.failures["bob"]


class Scripted:
    """A network that loses, repeats and delays: hands out given replies, then nothing."""

    def __init__(self, merchants, order):
        self.asked, self.order, self.sent = merchants, deque(order), {}
        self.forgotten = False

    def merchants(self):
        return list(self.asked)

    def send(self, merchant, message):
        self.sent[merchant] = message

    def receive(self, timeout_s):
        if not self.order:
            return None
        name = self.order.popleft()
        return Reply(name, message=self.asked.get(name, lambda _: b"")(self.sent.get(name)))

    def forget(self):
        self.forgotten = True


def test_who_stays_silent_is_named_and_not_waited_for_in_the_next_round():
    transport = Scripted(merchants(), ["cem", "ann"])
    outcome, total = take(transport)
    assert outcome.reporters == ["cem", "ann"]
    assert sorted(outcome.failures) == ["bob", "dee"]
    assert all("no report within" in reason for reason in outcome.failures.values())
    assert total.count == 2
    assert transport.forgotten


def test_a_report_counts_once_however_often_it_comes_and_a_strangers_never():
    transport = Scripted(merchants(), ["ann", "ann", "eve", "bob", "ann"])
    outcome, total = take(transport)
    assert outcome.reporters == ["ann", "bob"]
    assert total.count == 2
    assert "eve" not in outcome.failures


class Losing(InProcessTransport):
    """Loses the first message to each merchant, and takes a little time like a real network."""

    def __init__(self, merchants):
        super().__init__(merchants)
        self.sent = {}

    def send(self, merchant, message):
        self.sent.setdefault(merchant, []).append(message)
        if len(self.sent[merchant]) > 1:
            super().send(merchant, message)

    def receive(self, timeout_s):
        reply = super().receive(timeout_s)
        if reply is None and timeout_s > 0:
            time.sleep(timeout_s)  # nothing came in this time; something may be sent again
        return reply


def test_who_does_not_answer_is_asked_the_same_again():
    transport = Losing(merchants())
    outcome, total = take(transport, deadline_s=1.6)
    assert outcome.reporters == ["ann", "bob", "cem", "dee"]
    assert total.count == 4
    for copies in transport.sent.values():
        assert len(copies) == 2
        assert copies[0] == copies[1]


def test_what_comes_after_the_deadline_does_not_count():
    with pytest.raises(RoundError, match="0 good reports, 2 needed"):
        take(InProcessTransport(merchants()), deadline_s=0.0)


def test_too_few_good_reports_stop_the_round_and_every_reason_is_given():
    bad = merchants(bob=refuses, cem=refuses, dee=lambda _: b"")
    with pytest.raises(RoundError, match=r"1 good reports, 2 needed") as caught:
        take(InProcessTransport(bad))
    for name in ("bob: my policy", "cem: my policy", "dee: message is cut short"):
        assert name in str(caught.value)


def test_just_enough_good_reports_are_enough():
    outcome, _ = take(InProcessTransport(merchants(bob=refuses, cem=refuses)))
    assert outcome.reporters == ["ann", "dee"]


@pytest.mark.parametrize("least", [0, 5])
def test_a_round_nobody_could_complete_is_not_planned(least):
    with pytest.raises(InputError, match="min_reports"):
        replace(plan(), min_reports=least)


def test_a_round_waits_for_no_more_than_are_enough():
    asked, seen = merchants(), []
    outcome, total = take(
        InProcessTransport(asked), enough_reports=3, on_reply=lambda *fact: seen.append(fact)
    )
    assert outcome.reporters == ["ann", "bob", "cem"]
    assert total.count == 3
    assert outcome.failures == {"dee": "3 others were enough"}
    assert seen[-1] == ("dee", "3 others were enough")


def test_those_who_fail_are_none_of_the_enough():
    outcome, _ = take(InProcessTransport(merchants(ann=refuses)), enough_reports=3)
    assert outcome.reporters == ["bob", "cem", "dee"]
    assert outcome.failures == {"ann": "my policy says no"}


def signed_by(name, header, payload=b""):
    """What a member of the federation can send who does not use our code."""
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return Signed(header, KEYS[name].sign(MESSAGE_LABEL + header), payload).to_bytes()


def spoilt(message, **changes):
    """A good report of bob's, signed again with other fields of its body."""
    header = json.loads(Signed.from_bytes(message).header)
    header["body"] |= changes
    return signed_by("bob", header, Signed.from_bytes(message).payload)


DEEP = json.loads("[" * 200 + "]" * 200)
STATEMENT = {
    "merchant": "bob",
    "epsilon": 1.0,
    "delta": 1e-5,
    "steps": 1,
    "unit": "user-within-one-merchant",
    "adjacency": "add-remove",
}


@pytest.mark.parametrize(
    "says",
    [
        lambda good: b"",
        lambda good: b"\xff" * 100,
        lambda good: (2**31).to_bytes(4, "big") + bytes(100),
        lambda good: signed_by("bob", b"[" * 100_000),
        lambda good: signed_by("bob", {"type": "Report"}),
        lambda good: spoilt(good, round=True),
        lambda good: spoilt(good, phase=["train"]),
        lambda good: spoilt(good, ledger_head=DEEP),
        lambda good: spoilt(good, **{"\ud800\x1b[31m": 1}),
        lambda good: spoilt(good, privacy=STATEMENT | {"more": DEEP}),
        lambda good: spoilt(good, privacy=STATEMENT | {"more": "\x00"}),
        lambda good: spoilt(good, privacy=STATEMENT | {"steps": 10**400}),
        lambda good: spoilt(good, privacy=STATEMENT | {"epsilon": 1e400}),
    ],
)
def test_one_merchants_garbage_is_its_own_failure_and_the_round_is_the_others(says):
    good = Merchant("bob")
    outcome, total = take(InProcessTransport(merchants(bob=lambda message: says(good(message)))))
    assert outcome.reporters == ["ann", "cem", "dee"]
    assert total.count == 3
    assert list(outcome.failures) == ["bob"]
    assert outcome.failures["bob"].isprintable()


def test_the_helper_that_spoils_reports_makes_good_ones_where_nothing_is_wrong():
    good = Merchant("bob")
    bob = lambda message: spoilt(good(message), privacy=STATEMENT)  # noqa: E731
    assert take(InProcessTransport(merchants(bob=bob)))[0].reporters == list(KEYS)


@pytest.mark.parametrize("error", [TypeError, KeyError, RecursionError, MemoryError, ValueError])
def test_a_report_malformed_in_a_way_that_no_check_names_is_its_senders_failure(error):
    def fold(report, tensors):
        if report.merchant == "bob":
            raise error("a shopper")

    outcome = run_round(InProcessTransport(merchants()), plan(), WEIGHTS, key=SERVER, fold=fold)
    assert outcome.reporters == ["ann", "cem", "dee"]
    assert outcome.failures == {"bob": f"its report cannot be used ({error.__name__})"}


def test_a_disk_that_is_full_is_not_a_merchants_failure():
    def fold(report, tensors):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        run_round(InProcessTransport(merchants()), plan(), WEIGHTS, key=SERVER, fold=fold)


def test_what_a_merchant_says_of_its_failure_is_one_line_that_any_database_takes():
    def bob(message):
        raise HandbillError("no\x00 day\x1b[31m\nfor \ud800" + "x" * 9999)

    outcome, _ = take(InProcessTransport(merchants(bob=bob)))
    assert outcome.failures["bob"].startswith("no? day?[31m?for ?xxx")
    assert len(outcome.failures["bob"]) == 500


def as_long_as_can_be(message, room, *, over=0):
    """Bob's good report with spaces in its headers wherever they are allowed."""
    signed = Signed.from_bytes(message)
    payload = bytes(signed.payload)
    length = int.from_bytes(payload[:8], "little")
    spaces = b" " * (payload_bytes(room) - len(payload) + over)
    head = (length + len(spaces)).to_bytes(8, "little") + payload[8 : 8 + length]
    payload = head + spaces + payload[8 + length :]
    header = json.loads(signed.header) | {"payload_sha256": hashlib.sha256(payload).hexdigest()}
    return signed_by("bob", json.dumps(header).encode().ljust(256 * 1024), payload)


@pytest.mark.parametrize("compression", ["none", "int8"])
@pytest.mark.parametrize("over", [0, 1])
def test_a_report_longer_than_the_rounds_shapes_allow_is_not_read(monkeypatch, compression, over):
    update = {"b": np.ones((2, 2), np.float32)}
    tensors = update if compression == "none" else compress(update)
    room = {name: value.nbytes for name, value in tensors.items()}
    good = Merchant("bob", tensors=tensors)

    def bob(message):
        long = as_long_as_can_be(good(message), room, over=over)
        assert len(long) == most_bytes(room) + over
        return long

    everyone = {name: Merchant(name, tensors=tensors) for name in KEYS} | {"bob": bob}
    opened = []

    def keeping(signed, key, kind):
        opened.append(key)
        return open_signed(signed, key, kind)

    monkeypatch.setattr(rounds, "open_signed", keeping)
    outcome = run_round(
        InProcessTransport(everyone),
        plan(compression=compression),
        WEIGHTS,
        key=SERVER,
        fold=lambda *_: None,
    )
    if over:
        assert "was not read" in outcome.failures.pop("bob")
    assert outcome.failures == {}
    assert len(opened) == len(KEYS) - over


def test_a_ping_has_no_room_for_tensors():
    bob = Merchant("bob", tensors={"b": np.zeros(70_000, np.float32)})
    outcome, _ = take(InProcessTransport(merchants(bob=bob)), weights={}, min_reports=1)
    assert "was not read" in outcome.failures["bob"]
