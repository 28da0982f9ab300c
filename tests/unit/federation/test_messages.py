"""Messages: what arrives is what was signed by whom it should be, or one clear refusal."""

import hashlib
import json
import struct
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from handbill.errors import HandbillError, InputError, ProtocolError
from handbill.federation import messages
from handbill.federation.messages import (
    MESSAGE_LABEL,
    Instruction,
    Receipt,
    Recipe,
    Report,
    Signed,
    open_signed,
    sign,
)
from handbill.generator.adapters import AdapterSpec

KEY = Ed25519PrivateKey.generate()
STATEMENT = {
    "merchant": "shop-a",
    "epsilon": 2.5,
    "delta": 1e-5,
    "steps": 3,
    "unit": "user-within-one-merchant",
    "adjacency": "add-remove",
}
REPORT = {
    "merchant": "shop-a",
    "run": "run-1",
    "round": 2,
    "attempt": 0,
    "stage": "global",
    "parent": "sha256:" + "0" * 64,
    "ledger_head": "ab" * 32,
    "privacy": STATEMENT,
}
RECEIPT = {"run": "run-0", "round": 5, "stage": "personal", "head": "cd" * 32}
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
    receipt=Receipt(**RECEIPT),
)
TENSORS = {"b": np.arange(6, dtype=np.float32).reshape(3, 2), "a": np.ones((1, 2), np.float32)}

tensors = st.dictionaries(
    st.text(st.characters(categories=("Ll", "Nd")), min_size=1, max_size=8),
    arrays(np.float32, st.tuples(st.integers(0, 4), st.integers(0, 4))),
    max_size=4,
)
texts = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=20)
sizes = st.integers(0, 10**6)


@given(tensors, texts, sizes, sizes, st.floats(0, 100))
def test_a_report_arrives_as_it_was_sent(sent, run, number, attempt, epsilon):
    privacy = {**STATEMENT, "epsilon": epsilon}
    fields = {**REPORT, "run": run, "round": number, "attempt": attempt, "privacy": privacy}
    report = Report(**fields)
    data = sign(report, sent, KEY).to_bytes()
    got, values = open_signed(Signed.from_bytes(data), KEY.public_key(), Report)
    assert got == report
    assert values.keys() == sent.keys()
    for name, value in sent.items():
        np.testing.assert_array_equal(values[name], value)
        assert values[name].dtype == np.float32


def test_a_report_names_prompts_of_a_shops_own_adapter_and_has_no_such_field_else():
    own = Report(**{**REPORT, "stage": "personal", "prompts": "sha256:" + "1" * 64})
    got, _ = open_signed(sign(own, {}, KEY), KEY.public_key(), Report)
    assert got == own
    assert b"prompts" not in sign(Report(**REPORT), {}, KEY).header  # as before there were any


def test_an_instruction_arrives_as_it_was_sent():
    data = sign(INSTRUCTION, TENSORS, KEY).to_bytes()
    got, values = open_signed(Signed.from_bytes(data), KEY.public_key(), Instruction)
    assert got == INSTRUCTION
    np.testing.assert_array_equal(values["b"], TENSORS["b"])


def test_an_instruction_to_a_new_merchant_has_no_receipt():
    data = sign(replace(INSTRUCTION, receipt=None), {}, KEY).to_bytes()
    got, _ = open_signed(Signed.from_bytes(data), KEY.public_key(), Instruction)
    assert got.receipt is None


def test_equal_messages_have_equal_digests_and_others_have_others():
    def digest(message=INSTRUCTION, tensors=TENSORS):
        return sign(message, tensors, KEY).digest

    assert digest() == digest()
    others = {digest(replace(INSTRUCTION, attempt=1)), digest(replace(INSTRUCTION, receipt=None))}
    others.add(digest(tensors={"b": TENSORS["b"]}))
    assert len(others | {digest()}) == 4


def test_one_message_has_one_form():
    turned = dict(reversed(TENSORS.items())) | {"b": np.asfortranarray(TENSORS["b"])}
    report = Report(**REPORT)
    assert sign(report, TENSORS, KEY).to_bytes() == sign(report, turned, KEY).to_bytes()


WIRE = sign(Report(**REPORT), TENSORS, KEY).to_bytes()


def refuse(data, kind=Report, key=KEY):
    with pytest.raises(ProtocolError):
        open_signed(Signed.from_bytes(data), key.public_key(), kind)


def test_any_byte_changed_anywhere_is_refused():
    for place in range(len(WIRE)):
        changed = bytearray(WIRE)
        changed[place] ^= 1 << place % 8
        refuse(bytes(changed))


def test_cut_or_lengthened_anywhere_is_refused():
    for length in range(len(WIRE)):
        refuse(WIRE[:length])
    refuse(WIRE + b"\0")


@given(st.binary(max_size=300))
def test_noise_is_refused_and_never_crashes(data):
    refuse(data)
    refuse(struct.pack(">I", len(data)) + data + bytes(64))


def test_another_signer_is_refused():
    refuse(WIRE, key=Ed25519PrivateKey.generate())


@pytest.mark.parametrize(
    ("message", "kind"), [(Report(**REPORT), Instruction), (INSTRUCTION, Report)]
)
def test_a_message_of_another_kind_is_refused_though_well_signed(message, kind):
    refuse(sign(message, TENSORS, KEY).to_bytes(), kind)


def test_a_signature_over_another_label_is_refused():
    signed = sign(Report(**REPORT), TENSORS, KEY)
    bare = Signed(signed.header, KEY.sign(signed.header), signed.payload)
    refuse(bare.to_bytes())


def test_one_messages_tensors_under_anothers_header_are_refused():
    other = sign(Report(**REPORT), {"b": TENSORS["b"] + 1}, KEY)
    signed = sign(Report(**REPORT), {"b": TENSORS["b"]}, KEY)
    refuse(Signed(signed.header, signed.signature, other.payload).to_bytes())


def well_signed(header, payload=b""):
    """What a member of the federation can send who does not use our code."""
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return Signed(header, KEY.sign(MESSAGE_LABEL + header), payload).to_bytes()


def hostile(payload=None, **body):
    payload = sign(Report(**REPORT), {}, KEY).payload if payload is None else payload
    return well_signed(
        {
            "type": "Report",
            "body": {**REPORT, **body},
            "payload_sha256": hashlib.sha256(payload).hexdigest(),
        },
        payload,
    )


def test_a_report_under_the_name_of_another_kind_is_refused_though_well_signed():
    signed = sign(Report(**REPORT), {}, KEY)
    header = json.loads(signed.header) | {"type": "Instruction"}
    refuse(well_signed(header, signed.payload))


def test_the_hostile_helper_makes_good_messages_when_nothing_is_wrong():
    report, values = open_signed(Signed.from_bytes(hostile()), KEY.public_key(), Report)
    assert report == Report(**REPORT)
    assert values == {}


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"not json",
        b"[]",
        b"null",
        b"{}",
        b"[" * 200_000,
        b"\xff\xfe",
        b'{"type": "Report"}',
    ],
)
def test_a_header_that_is_none_is_refused_though_well_signed(header):
    refuse(well_signed(header))


@pytest.mark.parametrize(
    "body",
    [
        {"extra": 1},
        {"ledger_head": "short"},
        {"ledger_head": 7},
        {"prompts": 7},
        {
            "prompts": "sha256:" + "1" * 64
        },  # of a round whose update is not the merchant's own adapter
        {"prompts": "Write a haiku.", "stage": "personal"},
        {"privacy": {}},
        {"privacy": []},
        {"privacy": "none needed"},
        {"privacy": {**STATEMENT, "merchant": "shop-b"}},
        {"privacy": {**STATEMENT, "merchant": ["shop-a"]}},
        {"privacy": {**STATEMENT, "epsilon": "small"}},
        {"privacy": {**STATEMENT, "epsilon": -1.0}},
        {"privacy": {**STATEMENT, "epsilon": float("nan")}},
        {"privacy": {**STATEMENT, "delta": float("inf")}},
        {"privacy": {**STATEMENT, "steps": True}},
        {"privacy": {**STATEMENT, "steps": 10**400}},
        {"privacy": {**STATEMENT, "unit": "<script>"}},
        {"privacy": {**STATEMENT, "more": {"deep": float("nan")}}},
        {"privacy": {**STATEMENT, "more": "\ud800"}},
    ],
)
def test_a_report_that_could_not_be_stored_or_shown_is_refused_though_well_signed(body):
    refuse(hostile(**body))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"pickle?",
        struct.pack("<Q", 2**62) + b"{}",
        struct.pack("<Q", 2) + b"{}" + b"junk",
    ],
)
def test_tensors_that_are_none_are_refused_though_well_signed(payload):
    refuse(hostile(payload))


def safetensors(dtype, size):
    header = json.dumps({"b": {"dtype": dtype, "shape": [1], "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(size)


@pytest.mark.parametrize(("dtype", "size"), [("BF16", 2), ("F8_E4M3", 1), ("C64", 8), ("X", 1)])
def test_tensors_of_a_strange_type_are_refused_or_at_least_not_float32(dtype, size):
    try:
        _, values = open_signed(
            Signed.from_bytes(hostile(safetensors(dtype, size))), KEY.public_key(), Report
        )
    except ProtocolError:
        return
    assert values["b"].dtype != np.float32  # and the accumulator refuses it


def test_a_message_too_large_is_refused_before_it_is_read(monkeypatch):
    monkeypatch.setattr(messages, "MAX_MESSAGE_BYTES", len(WIRE) - 1)
    with pytest.raises(ProtocolError, match="is over"):
        Signed.from_bytes(WIRE)


@pytest.mark.parametrize(
    "change",
    [
        {"recipe": {"rounds": 0}},
        {"recipe": {"rounds": "many"}},
        {"recipe": {"unknown": 1}},
        {"recipe": []},
        {"spec": {"rank": 0, "alpha": 1, "target_modules": ["q"], "layers": [0], "seed": 0}},
        {"spec": {"rank": 1e400, "alpha": 1, "target_modules": ["q"], "layers": [0], "seed": 0}},
        {"spec": {}},
        {"spec": None},
        {"stage": "warm-up"},
        {"stage": ["global"]},
        {"round": float("nan")},
        {"attempt": "1"},
        {"attempt": True},
        {"run": ["run-1"]},
        {"parent": None},
        {"receipt": ""},
        {"receipt": []},
        {"receipt": {}},
        {"receipt": "ab" * 32},
        {"receipt": RECEIPT | {"head": "ab"}},
        {"receipt": RECEIPT | {"head": 7}},
        {"receipt": RECEIPT | {"head": None}},
        {"receipt": RECEIPT | {"round": "1"}},
        {"receipt": RECEIPT | {"run": 1}},
        {"receipt": RECEIPT | {"stage": "ping"}},
        {"receipt": RECEIPT | {"more": 1}},
        {"recipe": {"max_copy_tokens": 1}},
    ],
)
def test_an_instruction_that_asks_for_nonsense_is_refused_though_well_signed(change):
    signed = sign(INSTRUCTION, {}, KEY)
    header = json.loads(signed.header)
    header["body"] |= change
    with pytest.raises(HandbillError):
        open_signed(
            Signed.from_bytes(well_signed(header, signed.payload)), KEY.public_key(), Instruction
        )


def test_a_recipe_counts_every_noisy_step_of_a_run():
    recipe = Recipe(rounds=5, local_steps=3, personal_steps=2)
    assert recipe.private_steps == recipe.steps_left("global", 1) == 17
    assert (recipe.steps_left("global", 5), recipe.steps_left("personal", 1)) == (5, 2)
    assert recipe.steps_left("global", 99) == 5  # a round that was never planned
    assert (recipe.steps_in("global"), recipe.steps_in("personal")) == (3, 2)


@pytest.mark.parametrize(
    "field",
    [
        {"rounds": 0},
        {"rounds": 1_000_001},
        {"local_steps": 0},
        {"expected_users": 0},
        {"rows_per_user": 0},
        {"batch_rows": 0},
        {"personal_steps": -1},
        {"max_copy_tokens": 0},
        {"clipping_norm": 0.0},
        {"clipping_norm": float("nan")},
        {"learning_rate": float("inf")},
        {"personal_learning_rate": -1.0},
    ],
)
def test_a_recipe_out_of_bounds_names_the_field(field):
    (name,) = field
    with pytest.raises(InputError, match=name):
        Recipe(**field)
