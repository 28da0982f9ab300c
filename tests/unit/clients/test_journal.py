"""The journal: rounds only go forward, and an update is remembered until it is sent."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handbill.clients.journal import Journal
from handbill.errors import ProtocolError
from handbill.federation.messages import AuditHead, Instruction, Receipt, Recipe
from handbill.generator.adapters import AdapterSpec

UPDATE = {"b": np.arange(4, dtype=np.float32).reshape(2, 2)}


def asked(round_number=1, attempt=0, *, run="run-1", stage="global", parent=""):
    return Instruction(
        merchant="shop-a",
        run=run,
        round=round_number,
        attempt=attempt,
        stage=stage,
        parent=parent,
        base_digest="",
        spec=AdapterSpec(rank=2, layers=(0,)),
        recipe=Recipe(),
    )


def latest_stage(place):
    return "personal" if place[0] else "global"


places = st.tuples(st.sampled_from(["global", "personal"]), st.integers(1, 4), st.integers(0, 3))


@given(st.lists(places, max_size=12))
def test_exactly_what_comes_after_everything_before_is_admitted(tmp_path_factory, order):
    folder = tmp_path_factory.mktemp("journal")
    latest = None
    for stage, number, attempt in order:
        instruction = asked(number, attempt, stage=stage)
        place = (stage == "personal", number, attempt)
        if latest is None or place > latest:
            Journal(folder).admit(instruction, str(place))  # a new one each time: on the disk
            latest = place
        else:
            with pytest.raises(ProtocolError, match="asked for before"):
                Journal(folder).admit(instruction, "another message")
        Journal(folder).admit(asked(latest[1], latest[2], stage=latest_stage(latest)), str(latest))


def test_runs_do_not_stand_in_each_others_way(tmp_path):
    journal = Journal(tmp_path)
    journal.admit(asked(5, run="run-1"), "a")
    journal.admit(asked(1, run="run-2"), "b")
    with pytest.raises(ProtocolError):
        journal.admit(asked(4, run="run-1"), "c")
    journal.admit(asked(5, run="run-1"), "a")


def test_what_an_older_version_wrote_down_still_stops_a_replay(tmp_path):
    (tmp_path / "last.json").write_text('{"run-1": [false, 1, 0]}')
    with pytest.raises(ProtocolError, match="asked for before"):
        Journal(tmp_path).admit(asked(1), "a")
    Journal(tmp_path).admit(asked(2), "b")


def test_an_update_comes_back_exactly_and_only_for_its_own_round(tmp_path):
    Journal(tmp_path).keep(asked(), UPDATE)
    journal = Journal(tmp_path)
    np.testing.assert_array_equal(journal.recall(asked(attempt=3))["b"], UPDATE["b"])
    for other in (asked(2), asked(run="run-2"), asked(stage="personal"), asked(parent="sha256:1")):
        assert journal.recall(other) is None


def test_only_the_newest_updates_are_kept(tmp_path):
    journal = Journal(tmp_path)
    for number in range(1, 20):
        journal.keep(asked(number), UPDATE)
    assert journal.recall(asked(19)) is not None
    assert journal.recall(asked(3)) is None
    assert len(list(tmp_path.glob("*.safetensors"))) == 4


def test_what_an_update_was_learnt_with_is_remembered(tmp_path):
    journal = Journal(tmp_path)
    journal.keep(asked(1), UPDATE)
    journal.keep(asked(2), UPDATE, prompts="sha256:1")
    assert Journal(tmp_path).learnt_with(asked(1)) == ""
    assert Journal(tmp_path).learnt_with(asked(2)) == "sha256:1"


def test_what_a_crash_left_half_written_is_nothing(tmp_path):
    journal = Journal(tmp_path)
    journal.keep(asked(1), UPDATE)
    (kept,) = tmp_path.glob("*.safetensors")
    kept.rename(kept.with_suffix(".new"))  # killed before the new name
    assert journal.recall(asked(1)) is None
    journal.keep(asked(1), UPDATE)
    assert journal.recall(asked(1)) is not None


def test_the_ledgers_head_is_remembered(tmp_path):
    assert Journal(tmp_path).head() == ""
    Journal(tmp_path).keep_head("ab" * 32)
    Journal(tmp_path).keep_head("cd" * 32)
    assert Journal(tmp_path).head() == "cd" * 32


def test_the_servers_last_receipt_is_remembered(tmp_path):
    assert Journal(tmp_path).receipt() is None
    for number in (1, 2):
        receipt = Receipt(run="run-1", round=number, stage="global", head="ab" * 32)
        Journal(tmp_path).keep_receipt(receipt)
        assert Journal(tmp_path).receipt() == receipt


def test_only_its_owner_may_look_into_a_new_journal(tmp_path):
    Journal(tmp_path / "journal")
    assert (tmp_path / "journal").stat().st_mode & 0o077 == 0


def head(seq, digit="a"):
    return AuditHead(seq=seq, hash=digit * 64)


def test_the_operators_audit_chain_may_only_grow(tmp_path):
    assert Journal(tmp_path).audit_head() is None
    for good in (head(3), head(3), head(4), head(40, "b")):
        Journal(tmp_path).keep_audit_head(good)
        assert Journal(tmp_path).audit_head() == good
    for bad in (head(39, "b"), head(40, "c"), head(3, "b"), head(1)):
        with pytest.raises(ProtocolError, match=r"audit-head\.json: .*changed behind us"):
            Journal(tmp_path).keep_audit_head(bad)
    assert Journal(tmp_path).audit_head() == head(40, "b")


def test_a_message_that_was_under_way_may_bring_a_head_that_was_seen(tmp_path):
    for good in (head(3), head(4), head(3), head(4)):
        Journal(tmp_path).keep_audit_head(good)
    assert Journal(tmp_path).audit_head() == head(4)


def test_only_so_many_heads_are_remembered_and_each_is_evidence(tmp_path):
    for seq in range(1, 41):
        Journal(tmp_path).keep_audit_head(head(seq))
    Journal(tmp_path).keep_audit_head(head(25))
    with pytest.raises(ProtocolError, match="changed behind us"):
        Journal(tmp_path).keep_audit_head(head(24))
    kept = json.loads((tmp_path / "audit-head.json").read_text())
    assert [kept["seq"], *(one["seq"] for one in kept["before"])] == list(range(40, 24, -1))


def test_of_a_burnt_update_nothing_is_left(tmp_path):
    journal = Journal(tmp_path)
    journal.keep(asked(1), UPDATE)
    journal.burn(asked(1))
    assert list(tmp_path.iterdir()) == []
    assert Journal(tmp_path).recall(asked(1, attempt=3)) is None
    journal.burn(asked(1))  # again
    newer = {"b": UPDATE["b"] + 1}
    journal.keep(asked(1, attempt=1), newer)
    np.testing.assert_array_equal(Journal(tmp_path).recall(asked(1))["b"], newer["b"])


def test_what_an_older_version_had_burnt_and_kept_is_gone_too(tmp_path):
    journal = Journal(tmp_path)
    for number in (1, 2):
        journal.keep(asked(number), UPDATE)
    (first, _) = sorted(tmp_path.glob("*.safetensors"), key=lambda file: file.stat().st_mtime_ns)
    first.with_suffix(".burnt").touch()
    assert Journal(tmp_path).recall(asked(1)) is None
    assert Journal(tmp_path).recall(asked(2)) is not None
    assert list(tmp_path.glob("*.burnt")) == []


@pytest.mark.parametrize(
    "changed",
    [
        {"recipe": Recipe(learning_rate=999.0)},
        {"recipe": Recipe(rounds=6)},
        {"spec": AdapterSpec(rank=4, layers=(0,))},
        {"base_digest": "sha256:other"},
    ],
    ids=lambda changed: next(iter(changed)),
)
@pytest.mark.parametrize("stage", ["global", "personal", "deliver"])
def test_a_run_keeps_the_terms_it_began_with(tmp_path, changed, stage):
    Journal(tmp_path).admit(asked(1), "a")
    other = replace(asked(2, stage=stage), **changed)
    with pytest.raises(ProtocolError, match="another recipe, adapter or base model"):
        Journal(tmp_path).admit(other, "b")
    Journal(tmp_path).admit(replace(other, run="run-2"), "b")
    Journal(tmp_path).admit(asked(2, stage=stage), "b")
