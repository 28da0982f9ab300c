import random
from dataclasses import asdict, replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from handbill.errors import ArtifactError, InputError
from handbill.federation.messages import AuditHead
from handbill.server.audit import (
    AuditEntry,
    chain_problems,
    next_entry,
    parse_head,
    read_head,
    sign_head,
)


def grow(count, *, results=None):
    chain: list[AuditEntry] = []
    head = None
    for number in range(count):
        result = results[number] if results else f"sha256:{number:064x}"
        entry = next_entry(
            head,
            time=f"2026-01-01T00:00:{number:02d}+00:00",
            actor="server",
            action="round.commit",
            object_=f"run/global/{number}",
            result=result,
        )
        chain.append(entry)
        head = AuditHead(seq=entry.seq, hash=entry.hash)
    return chain, head


def test_an_untouched_chain_has_no_problems():
    chain, head = grow(30)
    assert chain_problems(chain, signed=head) == []
    assert chain_problems([]) == []


def test_a_head_signed_earlier_still_holds_after_the_chain_grew():
    chain, _ = grow(30)
    assert chain_problems(chain, signed=AuditHead(seq=10, hash=chain[9].hash)) == []


def test_one_hundred_random_edits_are_all_found():
    chain, head = grow(30)
    draw = random.Random(20)
    fields = ("seq", "prev_hash", "hash", "time", "actor", "action", "object", "result")
    for _ in range(100):
        edited = list(chain)
        place = draw.randrange(len(edited))
        kind = draw.choice(["edit", "drop", "double", "swap"])
        if kind == "edit":
            name = draw.choice(fields)
            old = getattr(edited[place], name)
            new = old + 1 if isinstance(old, int) else flip(draw, old)
            edited[place] = replace(edited[place], **{name: new})
        elif kind == "drop":
            del edited[place]
        elif kind == "double":
            edited.insert(place, edited[place])
        else:
            other = (place + 1) % len(edited)
            edited[place], edited[other] = edited[other], edited[place]
        assert chain_problems(edited, signed=head), (kind, place)


def flip(draw, text):
    place = draw.randrange(len(text))
    return text[:place] + chr(ord(text[place]) ^ 1) + text[place + 1 :]


def test_an_edited_entry_with_its_hash_computed_anew_breaks_the_next_one():
    chain, _ = grow(5)
    facts = asdict(chain[2]) | {"actor": "someone"}
    forged = next_entry(
        AuditHead(seq=2, hash=chain[1].hash),
        time=facts["time"],
        actor="someone",
        action=facts["action"],
        object_=facts["object"],
        result=facts["result"],
    )
    problems = chain_problems([*chain[:2], forged, *chain[3:]])
    assert problems == ["audit entry 4: does not follow the entry before it"]


def test_a_history_written_anew_is_found_by_the_signed_head():
    _, head = grow(5)
    other, _ = grow(5, results=["other"] * 5)
    assert chain_problems(other) == []
    assert "history rewritten" in chain_problems(other, signed=head)[0]


def test_a_cut_end_is_found_by_the_signed_head():
    chain, head = grow(5)
    assert "cut off" in chain_problems(chain[:3], signed=head)[0]


def test_a_head_of_another_key_or_edited_is_refused():
    key = Ed25519PrivateKey.generate()
    _, head = grow(3)
    document = sign_head(head, key)
    assert read_head(document, key.public_key()) == head
    with pytest.raises(ArtifactError, match="publisher"):
        read_head(document, Ed25519PrivateKey.generate().public_key())
    with pytest.raises(ArtifactError, match="publisher"):
        read_head(document.replace(b'"seq":3', b'"seq":2'), key.public_key())
    with pytest.raises(ArtifactError, match="publisher"):
        read_head(b"", key.public_key())


def test_a_head_as_a_merchant_prints_it_can_be_read():
    assert parse_head("7:" + "ab" * 32) == AuditHead(seq=7, hash="ab" * 32)


@pytest.mark.parametrize("text", ["", "7", "7:", "seven:" + "ab" * 32, "7:" + "zz" * 32])
def test_what_is_no_head_is_refused(text):
    with pytest.raises(InputError, match="SEQ:HASH"):
        parse_head(text)
