"""The ledger: pays first, refuses over the limit, notices every edit."""

import json
import random
import shutil
import sqlite3
import stat
from dataclasses import replace

import pytest

from handbill.errors import BudgetExhaustedError, InputError, LedgerError
from handbill.privacy.accounting import epsilon
from handbill.privacy.events import PrivateSteps
from handbill.privacy.ledger import Ledger, Row
from handbill.privacy.ledger_file import ROW_COLUMNS

EVENT = PrivateSteps(noise_multiplier=1.0, sampling_rate=0.05, steps=2)
DELTA = 1e-4


def open_ledger(path, *, limit=8.0, delta=DELTA, **kwargs):
    return Ledger(path, epsilon_limit=limit, delta=delta, **kwargs)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "shop" / "ledger.db"


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A ledger with 12 reservations."""
    path = tmp_path_factory.mktemp("filled") / "ledger.db"
    with open_ledger(path) as ledger:
        for number in range(12):
            ledger.reserve(EVENT, run=f"run-{number // 6}", round=number, stage="private")
    return path


def edit(path, *statements):
    db = sqlite3.connect(path)
    for statement, values in statements:
        db.execute(statement, values)
    db.commit()
    db.close()


def test_reservations_are_spent_jointly_and_replayed_on_reopening(path):
    with open_ledger(path) as ledger:
        assert ledger.spent() == 0.0
        assert ledger.remaining() == 8.0
        first = ledger.reserve(EVENT, run="a", round=1, stage="private")
        second = ledger.reserve(EVENT, run="a", round=2, stage="private")
        assert first.epsilon < second.epsilon == ledger.spent()
        assert ledger.head() == second.head
    assert second.epsilon == epsilon([EVENT, EVENT], delta=DELTA)
    with open_ledger(path) as again:
        assert again.spent() == second.epsilon
        assert again.events() == (EVENT, EVENT)
        assert again.remaining() == 8.0 - second.epsilon
        assert again.head() == second.head


def test_over_the_limit_is_refused_and_nothing_is_written(path):
    with open_ledger(path, limit=1.0) as ledger:
        ledger.reserve(EVENT, run="a", round=1, stage="private")
        before = path.read_bytes()
        dear = PrivateSteps(noise_multiplier=0.5, sampling_rate=0.5, steps=10)
        with pytest.raises(BudgetExhaustedError, match=r"over the limit 1\.000"):
            ledger.reserve(dear, run="a", round=2, stage="private")
        assert path.read_bytes() == before
        ledger.reserve(EVENT, run="a", round=2, stage="private")  # what still fits goes on


def test_the_limit_holds_over_many_rounds(path):
    fitting = 0
    while epsilon([EVENT] * (fitting + 1), delta=DELTA) <= 1.5:
        fitting += 1
    assert fitting > 2
    with open_ledger(path, limit=1.5) as ledger:
        for number in range(fitting):
            ledger.reserve(EVENT, run="a", round=number, stage="private")
        for number in range(fitting, fitting + 3):
            with pytest.raises(BudgetExhaustedError):
                ledger.reserve(EVENT, run="a", round=number, stage="private")
        assert ledger.spent() <= 1.5
        assert len(ledger.events()) == fitting


def test_commits_wait_for_the_disk(path):
    with open_ledger(path) as ledger:
        database = ledger._file._db
        assert database.execute("PRAGMA synchronous").fetchone() == (3,)  # EXTRA
        assert database.execute("PRAGMA journal_mode").fetchone() == ("delete",)


def test_the_same_attempt_cannot_be_paid_once_and_drawn_twice(path):
    with open_ledger(path) as ledger:
        ledger.reserve(EVENT, run="a", round=1, stage="private")
        with pytest.raises(LedgerError, match="a new noise draw needs a new attempt"):
            ledger.reserve(EVENT, run="a", round=1, stage="private")
        ledger.reserve(EVENT, run="a", round=1, stage="private", attempt="2")
        ledger.reserve(EVENT, run="a", round=1, stage="tenant")
        assert len(ledger.events()) == 3


def test_one_process_at_a_time_but_readers_may_look(path):
    with open_ledger(path) as ledger:
        with pytest.raises(LedgerError, match="another process"):
            open_ledger(path)
        ledger.reserve(EVENT, run="a", round=1, stage="private")
        with open_ledger(path, read_only=True) as reader:
            assert reader.spent() == ledger.spent()
            with pytest.raises(LedgerError, match="reading only"):
                reader.reserve(EVENT, run="a", round=2, stage="private")
    open_ledger(path).close()


def test_the_file_is_the_owners_alone(path):
    open_ledger(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    open_ledger(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_another_delta_is_refused_and_another_limit_is_noted(path):
    open_ledger(path).close()
    with pytest.raises(LedgerError, match="counts at delta"):
        open_ledger(path, delta=1e-5)
    with open_ledger(path, limit=3.0) as ledger:
        limits = [json.loads(row.event)["epsilon_limit"] for row in ledger.verify()]
    assert limits == [8.0, 3.0]
    with open_ledger(path, limit=3.0) as ledger:
        assert len(ledger.verify()) == 2


@pytest.mark.parametrize("limit", [0.0, -1.0, float("inf"), float("nan")])
def test_senseless_limits_are_refused(path, limit):
    with pytest.raises(InputError, match="epsilon_limit"):
        open_ledger(path, limit=limit)
    assert not path.exists()


def random_edit(rng, path):
    """Change one thing in the rows or in the recorded head."""
    rows = sqlite3.connect(path).execute("SELECT * FROM row ORDER BY seq").fetchall()
    seq = rng.randint(1, len(rows))
    kind = rng.choice(["value"] * 5 + ["delete", "truncate", "swap", "insert", "head", "rehash"])
    if kind == "value":
        column = rng.choice(ROW_COLUMNS)
        old = rows[seq - 1][ROW_COLUMNS.index(column)]
        new = old + rng.randint(100, 999) if isinstance(old, int) else scramble(rng, old)
        edit(path, (f"UPDATE row SET {column} = ? WHERE seq = ?", (new, seq)))  # noqa: S608
    elif kind == "delete":
        edit(path, ("DELETE FROM row WHERE seq = ?", (seq,)))
    elif kind == "truncate":
        edit(path, ("DELETE FROM row WHERE seq >= ?", (seq,)))
    elif kind == "swap":
        other = seq % len(rows) + 1
        moves = [(-1, seq), (seq, other), (other, -1)]
        edit(path, *[("UPDATE row SET seq = ? WHERE seq = ?", move) for move in moves])
    elif kind == "insert":
        copied = (len(rows) + 1, *rows[seq - 1][1:])
        edit(path, ("INSERT INTO row VALUES (?,?,?,?,?,?,?,?,?,?)", copied))
    elif kind == "rehash":  # a cheaper event under a hash that fits; not the last row
        cheap = PrivateSteps(noise_multiplier=9.0, sampling_rate=0.05, steps=2).to_json()
        at = rng.randint(1, len(rows) - 1)
        row = replace(Row(**dict(zip(ROW_COLUMNS, rows[at - 1], strict=True))), event=cheap)
        edit(path, ("UPDATE row SET event = ?, hash = ? WHERE seq = ?", (cheap, row.digest(), at)))
    else:
        column, value = rng.choice([("seq", seq + 100), ("hash", rows[0][1])])
        edit(path, (f"UPDATE head SET {column} = ?", (value,)))  # noqa: S608
    return kind


def scramble(rng, text):
    """Change one character, or add one."""
    position = rng.randint(0, len(text))
    letter = rng.choice("0123456789abcdefxyz")
    new = text[:position] + letter + text[position + 1 :]
    return new if new != text else text + "!"


def test_every_one_of_200_random_edits_is_found(filled, tmp_path):
    rng = random.Random(20)  # the edits, not the noise
    kinds = set()
    for number in range(200):
        copy = tmp_path / f"{number}.db"
        shutil.copy(filled, copy)
        open_ledger(copy).close()  # the copy itself is sound
        kinds.add(random_edit(rng, copy))
        with pytest.raises(LedgerError, match="row"):
            open_ledger(copy)
    assert len(kinds) == 7


def test_the_error_names_the_row(filled, tmp_path):
    copy = tmp_path / "ledger.db"
    shutil.copy(filled, copy)
    cheap = PrivateSteps(noise_multiplier=9.0, sampling_rate=0.05, steps=2).to_json()
    edit(copy, ("UPDATE row SET event = ? WHERE seq = 5", (cheap,)))
    with pytest.raises(LedgerError, match="row 5 was edited"):
        open_ledger(copy)


def test_an_edit_while_open_stops_the_next_reservation(path):
    with open_ledger(path) as ledger:
        ledger.reserve(EVENT, run="a", round=1, stage="private")
        edit(path, ("UPDATE row SET round = 9 WHERE seq = 2", ()))
        with pytest.raises(LedgerError, match="row 2"):
            ledger.reserve(EVENT, run="a", round=2, stage="private")


def test_yesterdays_copy_is_refused_by_a_head_given_out(path, tmp_path):
    with open_ledger(path) as ledger:
        ledger.reserve(EVENT, run="a", round=1, stage="private")
        yesterday = ledger.head()
    backup = shutil.copy(path, tmp_path / "backup.db")
    with open_ledger(path) as ledger:
        today = ledger.reserve(EVENT, run="a", round=2, stage="private").head
        ledger.verify(known_head=yesterday)  # an older head is still in the chain
    shutil.copy(backup, path)
    with pytest.raises(LedgerError, match=today[:16]):
        open_ledger(path, known_head=today)
    path.unlink()
    with pytest.raises(LedgerError, match="gone"):
        open_ledger(path, known_head=today)


def test_a_file_replaced_while_open_is_not_written_to(path, tmp_path):
    with open_ledger(path) as ledger:
        shutil.copy(path, tmp_path / "backup.db")
        (tmp_path / "backup.db").rename(path)
        with pytest.raises(LedgerError, match="replaced"):
            ledger.reserve(EVENT, run="a", round=1, stage="private")


@pytest.mark.parametrize("content", [b"", b"not a database at all" * 100])
def test_an_empty_or_foreign_file_is_damage_not_a_new_ledger(path, content):
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(LedgerError, match=str(path)):
        open_ledger(path)
    assert path.read_bytes() == content


def test_looking_does_not_create(path):
    with pytest.raises(LedgerError, match="no ledger yet"):
        open_ledger(path, read_only=True)
    assert not path.exists()


def test_the_statement_says_it_in_words_and_numbers(filled):
    with open_ledger(filled, read_only=True) as ledger:
        statement = ledger.statement()
        assert statement.epsilon_spent == ledger.spent()
    facts = json.loads(json.dumps(statement.to_dict()))
    assert facts["reservations"] == 12
    assert facts["runs"] == 2
    assert facts["events"] == [json.loads(EVENT.to_json()) | {"steps": 24}]
    assert facts["epsilon_remaining"] == pytest.approx(8.0 - facts["epsilon_spent"])
    assert "12 reservations of 24 private steps in 2 runs" in statement.in_words()


def test_the_statement_of_an_unused_ledger(path):
    with open_ledger(path) as ledger:
        assert "Nothing spent yet" in ledger.statement().in_words()
