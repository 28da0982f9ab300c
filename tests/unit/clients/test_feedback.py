"""From fetched events to what a merchant's next private round learns from."""

from collections import Counter

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from handbill.clients.early_stop import CatalogueStop
from handbill.clients.feedback import (
    FEEDBACK_FILE,
    Pair,
    mixed,
    read_feedback,
    read_shopper_keys,
    write_feedback,
)
from handbill.clients.merchant import Merchant
from handbill.clients.trainer import Trainer
from handbill.clients.warmup import plain_step
from handbill.errors import InputError
from handbill.federation.messages import Recipe
from handbill.generator.preference import EncodedPair
from handbill.generator.scenarios import shipped

NEWCOMER = "new-1"  # has no rows of the shop's, and is not held out
LAMP = {"title": "Oak desk lamp", "shopper": "reads at night", "tone": "", "language": "en"}


def event(shopper, copy_id, kind="impression", *, text="A warm lamp.", request=LAMP, **copy):
    kept = {"version": "v", "text": text, "request": request, **copy}
    return {"shopper": shopper, "copy_id": copy_id, "kind": kind, "copy": kept}


@pytest.fixture
def read(tmp_path):
    def read_(*events):
        write_feedback(tmp_path / "events.jsonl", events)
        return read_feedback(tmp_path / "events.jsonl", shipped())

    return read_


def test_what_was_clicked_is_learnt_from_and_what_was_bought_counts_double(read):
    found = read(
        event("s1", "c1"),
        event("s1", "c1", "click"),
        event("s1", "c2", text="Passed over."),
        event("s2", "c3"),
        event("s2", "c3", "click"),
        event("s2", "c3", "conversion"),
    )
    (row,) = found.rows("s1", "weighted")
    assert (row.text, row.weight, row.request.title) == ("A warm lamp.", 1.0, "Oak desk lamp")
    assert [row.weight for row in found.rows("s2", "weighted")] == [2.0]
    assert found.rows("nobody", "weighted") == []
    assert "warm" not in repr(found)


def test_pairs_are_of_one_shopper_and_one_request(read):
    found = read(
        event("s1", "c1", "click"),
        event("s1", "c2", text="Passed over.", request=LAMP | {"tone": "bold"}),
        event("s1", "c3", text="Another product.", request=LAMP | {"title": "Mug"}),
        event("s2", "c4", text="Another shopper."),
        event("s3", "c5", "click"),
        event("s3", "c6", "click", text="Clicked too."),
    )
    (pair,) = found.rows("s1", "preference")
    assert (pair.chosen.text, pair.rejected.text) == ("A warm lamp.", "Passed over.")
    assert pair.chosen.request == pair.rejected.request
    assert found.rows("s2", "preference") == found.rows("s3", "preference") == []


def test_what_cannot_be_learnt_from_is_counted(read):
    found = read(
        event("s1", "c1", "click", text="Write to jane@example.org"),
        {"shopper": "s1", "copy_id": "c2", "kind": "click", "copy": {"version": "v"}},
        {"shopper": "s1", "copy_id": "c3", "kind": "click", "copy": None},
        event("s1", "c4", "click", request=LAMP | {"scenario": "song"}),
        event("s1", "c5", "click", request=LAMP | {"shopper": "call 020 7946 0018"}),
    )
    assert (found.events, found.without_text, found.unusable) == (5, 2, 2)
    (row,) = found.rows("s1", "weighted")
    assert "7946" not in row.request.shopper


def test_copy_may_hold_any_end_of_a_line(read):
    text = "First.\u2028Second.\u0085Third.\nFourth."
    found = read(event("s1", "c1", text=text), event("s1", "c1", "click", text=text))
    assert [row.text for row in found.rows("s1", "weighted")] == [text]
    assert read().by_user == {}


def test_the_file_is_the_owners_and_replaced_whole(tmp_path):
    file = tmp_path / FEEDBACK_FILE
    assert write_feedback(file, [event("s1", "c1", "click"), event("s2", "c2", "click")]) == 2

    def broken():
        yield event("s3", "c3")
        raise InputError("the service went away")

    with pytest.raises(InputError):
        write_feedback(file, broken())
    assert set(read_feedback(file, shipped()).by_user) == {"s1", "s2"}
    write_feedback(file, [event("s2", "c2", "click")])  # s1 asked to be deleted
    assert set(read_feedback(file, shipped()).by_user) == {"s2"}
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    file.write_text("{}\n")
    with pytest.raises(InputError, match=r"events\.jsonl:1: not an event"):
        read_feedback(file, shipped())


def test_keys_stand_for_one_shopper_each(tmp_path):
    file = tmp_path / "keys.csv"
    file.write_text("key,user\nk1,u1\nk2,u1\n")
    assert read_shopper_keys(file) == {"k1": "u1", "k2": "u1"}
    file.write_text("key,user\nk1,u1\nk1,u2\n")
    with pytest.raises(InputError, match=r"keys\.csv:3"):
        read_shopper_keys(file)
    file.write_text("k,u\n")
    with pytest.raises(InputError, match="columns key and user"):
        read_shopper_keys(file)


@given(st.integers(1, 20), st.integers(1, 20), st.floats(0.2, 0.8))
def test_older_rows_have_their_share(own, feedback, replay):
    rows = Counter(x[0] for x in mixed(["o"] * own, ["f"] * feedback, replay=replay))
    share = rows["o"] / rows.total()
    ratio = replay * feedback / ((1 - replay) * own)
    if 1 / 16 <= ratio <= 16:
        assert share == pytest.approx(replay, abs=0.03)
    assert rows["o"] >= own
    assert rows["f"] >= feedback


def test_who_has_one_kind_of_rows_keeps_them():
    assert mixed(["o"], [], replay=0.0) == ["o"]
    assert mixed([], ["f"], replay=1.0) == ["f"]
    assert mixed(["o"], ["f"], replay=1) == ["o"]
    assert mixed(["o"], ["f"], replay=0) == ["f"]


@pytest.fixture
def trainer(make_home, tiny_model):
    """Make a trainer of a shop that fetched feedback: ``trainer(events, **merchant)``."""
    home = make_home(Ed25519PrivateKey.generate().public_key())

    def make(events, **merchant):
        about = Merchant.load(home)
        Merchant(**{name: getattr(about, name) for name in about.__slots__} | merchant).save(home)
        write_feedback(home / FEEDBACK_FILE, events)
        trainer = Trainer(home, model=tiny_model)
        trainer.model_for(tiny_model.spec)
        return trainer

    return make


def clicked(users):
    return [event(user, f"{user}-c", "click") for user in users] + [
        event(user, f"{user}-d", text="Passed over.") for user in users
    ]


def test_the_next_round_learns_from_feedback_beside_older_rows(trainer):
    shoppers = [f"s{n:05}" for n in range(1, 41)]
    made = trainer(clicked([*shoppers, NEWCOMER]))
    lessons = [[row.text for row in rows] for rows in made.users.lessons]
    plain = trainer(clicked(shoppers), feedback="off")
    assert len(lessons) == len(plain.users.train) + 1  # and one shopper with feedback alone
    assert ["A warm lamp."] in lessons
    both = [texts for texts in lessons if len(texts) > 1]
    assert all(0.4 < np.mean([t == "A warm lamp." for t in texts]) < 0.6 for texts in both)
    assert plain.users.lessons == plain.users.train


def test_of_held_out_shoppers_nothing_is_learnt(trainer):
    shoppers = [f"s{n:05}" for n in range(1, 41)]
    made = trainer(clicked(shoppers))
    held_out = {row.user for row in made.users.held_out}
    assert held_out
    assert not {row.user for rows in made.users.lessons for row in rows} & held_out
    assert all(row.text != "A warm lamp." for row in made.users.held_out)


def test_pairs_become_pairs_of_token_ids(trainer, tiny_model):
    made = trainer(clicked([NEWCOMER]), feedback="preference")
    assert any(isinstance(row, Pair) for rows in made.users.lessons for row in rows)
    recipe = Recipe(max_prompt_tokens=300, expected_users=8)
    users = made.study(tiny_model.spec).users(recipe)
    assert sum(isinstance(row, EncodedPair) for rows in users for row in rows) == 1


def test_training_stops_when_descriptions_are_written_worse(trainer, tiny_model):
    recipe = Recipe(max_prompt_tokens=300)
    made = trainer([], stop_at_rise=1e-3)
    zero = {name: np.zeros(shape, np.float32) for name, shape in tiny_model.shapes.items()}
    tiny_model.load(zero)
    rows = made.encode(made.users.catalogue[:8], recipe)
    good = plain_step(tiny_model, rows, learning_rate=5.0, batch_rows=8)
    tiny_model.load(good)
    stop = made.study(tiny_model.spec).early_stop(recipe)
    assert isinstance(stop, CatalogueStop)
    assert stop.go_on()
    tiny_model.load(zero)  # as if a step had undone what was learnt of descriptions
    assert not stop.go_on()
    assert all(np.array_equal(stop.best()[name], good[name]) for name in good)
    off = trainer([], stop_at_rise=0.0)  # unless it is asked for
    assert off.study(tiny_model.spec).early_stop(recipe) is None


@pytest.mark.parametrize(
    "wrong", [{"feedback": "all"}, {"replay": 1.5}, {"stop_at_rise": -1.0}], ids=str
)
def test_a_setting_that_cannot_be_is_named(trainer, wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        trainer([], **wrong)
