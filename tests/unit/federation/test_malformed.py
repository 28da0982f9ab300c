"""Any malformed message is one ProtocolError, whoever signed it, and what is read can be stored."""

import hashlib
import json
import re
import struct
import tracemalloc
from dataclasses import asdict, fields, replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save

from handbill.errors import ProtocolError
from handbill.federation.aggregation import MeanAccumulator
from handbill.federation.fields import printable, read_as, read_object
from handbill.federation.grid import from_record, to_record
from handbill.federation.messages import (
    MESSAGE_LABEL,
    AuditHead,
    Instruction,
    Receipt,
    Recipe,
    Report,
    Signed,
    open_signed,
    sign,
)
from handbill.federation.payload import read_tensors, write_tensors
from handbill.federation.secagg.ring import Ring
from handbill.generator.adapters import AdapterSpec
from handbill.generator.artifacts import canonical_json
from handbill.generator.interest_spec import InterestSpec

KEY = Ed25519PrivateKey.generate()
TENSORS = {"b": np.arange(6, dtype=np.float32).reshape(3, 2), "a": np.ones((1, 2), np.float32)}
REPORT = Report(
    merchant="shop-a",
    run="run-1",
    round=2,
    attempt=0,
    stage="personal",
    parent="sha256:" + "0" * 64,
    ledger_head="ab" * 32,
    prompts="sha256:" + "1" * 64,
    privacy={
        "merchant": "shop-a",
        "epsilon": 2.5,
        "delta": 1e-5,
        "steps": 3,
        "unit": "user-within-one-merchant",
        "adjacency": "add-remove",
        "events": [{"noise_multiplier": 1.0, "steps": 3}],
    },
)
INSTRUCTION = Instruction(
    merchant="shop-a",
    run="run-1",
    round=2,
    attempt=0,
    stage="global",
    parent="",
    base_digest="sha256:" + "1" * 64,
    spec=AdapterSpec(rank=2, alpha=4.0, layers=(0, 3)),
    recipe=Recipe(rounds=3, clipping_norm=0.25),
    receipt=Receipt(run="run-0", round=5, stage="personal", head="cd" * 32),
    audit=AuditHead(seq=7, hash="ef" * 32),
    expires_at=1.8e9,
    phase="share",
    ring=Ring(),
)
MESSAGES = {"report": REPORT, "instruction": INSTRUCTION}


def header_of(message):
    return json.loads(sign(message, TENSORS, KEY).header)


def opened(header, payload, kind):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    signed = Signed(header, KEY.sign(MESSAGE_LABEL + header), payload)
    return open_signed(Signed.from_bytes(signed.to_bytes()), KEY.public_key(), kind)


def opened_with(message, payload=None, **body):
    header = header_of(message)
    header["body"] |= body
    payload = write_tensors(TENSORS) if payload is None else payload
    header["payload_sha256"] = hashlib.sha256(payload).hexdigest()
    return opened(header, payload, type(message))


@pytest.mark.parametrize("name", MESSAGES)
def test_what_is_not_changed_is_read(name):
    message, tensors = opened_with(MESSAGES[name])
    assert message == MESSAGES[name]
    assert all(np.array_equal(tensors[n], TENSORS[n]) for n in TENSORS)
    spec = replace(INSTRUCTION, spec=InterestSpec(buckets=64))
    assert opened_with(spec)[0] == spec


WRONG = {
    str: [None, 7, True, ["text"], {"text": 1}, "\x00", "two\nlines", "\ud800"],
    int: [None, "7", 7.5, 2.0, True, [7], 2**63, -(2**63) - 1, 10**400],
    float: [None, "7", True, [7.0], float("nan"), float("inf"), -float("inf"), 10**400],
    dict: ["text", 7, [], {"deep": {"deep": [float("nan")]}}, {"NUL": "\x00"}],
}
OBJECTS = {"spec", "recipe", "receipt", "ring", "audit", "privacy"}
FLOATS = {"expires_at"}
INTS = {"round", "attempt"}


def cases():
    for name, message in MESSAGES.items():
        for field in fields(message):
            kind = dict if field.name in OBJECTS else int if field.name in INTS else str
            for value in WRONG[float if field.name in FLOATS else kind]:
                if not (value is None and field.name in {"receipt", "ring", "audit"}):
                    yield name, field.name, value
    for object_ in ("spec", "recipe", "receipt", "ring", "audit"):
        inside = json.loads(canonical_json(header_of(INSTRUCTION)["body"][object_]))
        for field, good in inside.items():
            # A whole number is a float too; a list's own elements come below.
            wrong = WRONG.get(type(good), ["text", 7, None, {}, ["a", 1, None]])
            for value in wrong:
                if not (type(good) is int and value == 2.0):
                    yield "instruction", object_, inside | {field: value}
        yield "instruction", object_, inside | {"more": 1}
        if object_ not in {"recipe", "ring"}:  # all of whose fields have defaults
            yield "instruction", object_, {}


@pytest.mark.parametrize(("name", "field", "value"), list(cases()), ids=lambda v: repr(v)[:30])
def test_every_field_of_a_wrong_type_is_refused_though_well_signed(name, field, value):
    with pytest.raises(ProtocolError):
        opened_with(MESSAGES[name], **{field: value})


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


def places(value, path=()):
    """Every path into a JSON value."""
    yield path
    inside = {} if not isinstance(value, dict | list) else value
    for key, inner in inside.items() if isinstance(inside, dict) else enumerate(inside):
        yield from places(inner, (*path, key))


def put(value, path, new):
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = put(value[path[0]], path[1:], new)
    return copy


@pytest.mark.parametrize("name", MESSAGES)
@given(data=st.data())
def test_a_message_changed_anywhere_is_refused_or_can_be_stored_and_shown(name, data):
    header = header_of(MESSAGES[name])
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(list(places(header))))
        header = put(header, path, data.draw(anything))
    payload = write_tensors(TENSORS)
    try:
        message, _ = opened(header, payload, type(MESSAGES[name]))
    except ProtocolError:
        return
    stored = canonical_json(asdict(message))  # UTF-8 without NaN
    assert not re.search(rb"\\u00[01]", stored)


@given(st.binary(max_size=200), st.integers(0, 400), st.integers(0, 400))
def test_tensors_changed_anywhere_are_refused_or_what_the_library_reads(noise, start, stop):
    payload = write_tensors(TENSORS)
    payload = payload[:start] + noise + payload[max(start, stop) :]
    try:
        _, values = opened_with(REPORT, payload)
    except ProtocolError:
        return
    expected = load(payload)
    assert values.keys() == expected.keys()
    for name, value in values.items():
        assert value.dtype == expected[name].dtype
        np.testing.assert_array_equal(value, expected[name])


def safetensors(size=24, **entries):
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + bytes(size)


def entry(dtype="F32", shape=(3, 2), begin=0, end=24):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "payload",
    [
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 99_999) + b"[" * 99_999,
        safetensors(b=entry(shape=[2**40, 2**40])),
        safetensors(b=entry(shape=[10**30])),
        safetensors(b=entry(shape=[2**46], end=2**48)),
        safetensors(b=entry(shape=[-3, -2])),
        safetensors(b=entry(shape=[3.0, 2])),
        safetensors(b=entry(shape=[True, 6])),
        safetensors(b=entry(shape=[1] * 64 + [6])),
        safetensors(b=entry(begin=-24, end=0)),
        safetensors(b=entry(end=float("nan"))),
        safetensors(b=entry(dtype="F64", shape=[3])),
        safetensors(b=entry(dtype=["F32"])),
        safetensors(b=entry(begin=0, end=24) | {"more": 1}),
        safetensors(b=[]),
        safetensors(size=48, b=entry(begin=24, end=48)),  # a gap
        safetensors(size=48, b=entry()),  # a rest
        safetensors(a=entry(), b=entry()),  # twice the same bytes
        safetensors(b=entry(), __metadata__={"a": "b"}),
        struct.pack("<Q", 9) + b'{"":0,"":0}'[:9],
    ],
)
def test_tensors_that_are_not_as_their_header_says_are_refused(payload):
    with pytest.raises(ProtocolError):
        read_tensors(payload)


def test_tensors_are_read_in_place_and_our_own_are_aligned():
    for length in range(70):
        report = replace(REPORT, run="r" * length)
        message = sign(report, TENSORS, KEY).to_bytes()
        _, values = open_signed(Signed.from_bytes(message), KEY.public_key(), Report)
        for value in values.values():
            assert np.shares_memory(value, np.frombuffer(message, np.uint8))
            assert value.flags.aligned
            assert not value.flags.writeable


def test_a_reply_is_held_once_while_it_is_read_and_added_up():
    update = {"b": np.ones((1024, 1024), np.float32)}
    total = MeanAccumulator({"b": (1024, 1024)}, max_norm=1e9)
    total.add(update)  # the sum's own memory
    content = to_record(sign(REPORT, update, KEY).to_bytes())
    tracemalloc.start()
    try:
        signed = Signed.from_bytes(from_record(content))
        total.add(open_signed(signed, KEY.public_key(), Report)[1])
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 0.2 * update["b"].nbytes  # beside the reply itself


def test_tensors_of_somebody_who_does_not_align_them_are_read_all_the_same():
    payload = b"x" + save(TENSORS)
    for name, value in read_tensors(memoryview(payload)[1:]).items():
        assert value.flags.aligned
        np.testing.assert_array_equal(value, TENSORS[name])


def test_empty_tensors_and_none_are_read():
    assert read_tensors(write_tensors({})) == {}
    empty = {"a": np.zeros((0, 4), np.float32), "b": np.zeros(0, np.uint8)}
    found = read_tensors(write_tensors(empty))
    assert {n: (v.shape, v.dtype) for n, v in found.items()} == {
        n: (v.shape, v.dtype) for n, v in empty.items()
    }


@pytest.mark.parametrize(
    "data",
    [
        b'{"a":1,"a":2}',
        b'{"a":NaN}',
        b'{"a":-Infinity}',
        b'{"a":1e999}',
        b'{"a":9223372036854775808}',
        b'{"a":"\\u0000"}',
        b'{"\\n":1}',
        b'{"a":"\\ud800"}',
        b'{"a":"\xed\xa0\x80"}',
        b"\xef\xbb\xbf{}",
        '{"a":1}'.encode("utf-16"),
        b'{"a":' + b"[" * 17 + b"]" * 17 + b"}",
        b'{"a":' + b"[" * 900 + b"]" * 900 + b"}",
        b"[" * 99_999,
        b"[]",
        b"7",
        b'{"a":"' + b"x" * 2**22 + b'"}',
    ],
    ids=lambda data: repr(data[:16]),
)
def test_json_that_could_not_be_stored_or_shown_is_refused(data):
    with pytest.raises(ProtocolError):
        read_object(data)


def test_sound_json_is_read():
    fields = {"a": [1, -1.5, True, None, "\u5c0f\u5e97 caf\u00e9", {"b": [[]]}], "": 2**63 - 1}
    assert read_object(canonical_json(fields)) == fields


def test_a_dataclass_is_read_from_fields_of_exactly_its_types():
    assert read_as(Ring, {"bits": 24, "bound": 2}) == Ring(bits=24, bound=2.0)
    for wrong in ({"bits": 24.0}, {"bits": 25}, {"bits": "24"}, {"more": 1}, [], None):
        with pytest.raises(ProtocolError, match="ring"):
            read_as(Ring, wrong)


@given(st.text(max_size=600))
def test_what_is_shown_of_a_text_is_short_and_one_printable_line(text):
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown) == min(len(text), 500)
    shown.encode()
