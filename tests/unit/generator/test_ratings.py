"""The rating sheet is blind and shows both orders; answers are read back and judged soundly."""

import csv
import io
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score
from typer.testing import CliRunner

from handbill.cli import app
from handbill.errors import InputError
from handbill.generator.copies import Copy
from handbill.generator.prompts import CopyRequest
from handbill.generator.ratings import (
    MIN_LINES_BETWEEN,
    Answer,
    _kappa,
    judge_ratings,
    make_sheet,
    read_answers,
    read_key,
    write_sheet,
)


def systems(*names, copies=10):
    return {
        name: [
            Copy(
                id=f"i{n}",
                text=f"text {n} {'long ' * len(name)}",
                request=CopyRequest(title=f"Coat {n}", shopper="likes tea"),
                attributes=(("material", "wool"),),
            )
            for n in range(copies)
        ]
        for name in names
    }


def rows_of(sheet):
    return list(csv.DictReader(io.StringIO(sheet, newline="")))


@given(st.integers(1, 12), st.integers(2, 3), st.integers(0, 5))
def test_every_pair_stands_in_both_orders_and_nobody_is_named(items, n_systems, seed):
    names = ("base", "ours-private", "human")[:n_systems]
    sheet, key = make_sheet(systems(*names), items=items, seed=seed)
    pairs = {(line.id, line.a, line.b) for line in key}
    assert len(pairs) == len(key) == min(items, 10) * (n_systems * (n_systems - 1))
    assert all((item, b, a) in pairs for item, a, b in pairs)
    rows = rows_of(sheet)
    assert [row["line"] for row in rows] == [line.line for line in key]
    assert not any(name in sheet for name in names)
    assert "likes tea" not in sheet
    assert all("material: wool" in row["product"] for row in rows)
    half = len(key) // 2
    if half > 2 * MIN_LINES_BETWEEN:
        places = {(line.id, line.a, line.b): n for n, line in enumerate(key)}
        assert all(
            abs(places[item, a, b] - places[item, b, a]) > MIN_LINES_BETWEEN
            for item, a, b in places
        )


def test_the_same_seed_gives_the_same_sheet_and_which_stands_first_is_drawn():
    both = systems("base", "ours")
    assert make_sheet(both, items=10, seed=1) == make_sheet(both, items=10, seed=1)
    assert make_sheet(both, items=10, seed=1) != make_sheet(both, items=10, seed=2)
    _, key = make_sheet(both, items=10, seed=1)
    assert {line.a for line in key[:10]} == {"base", "ours"}


def test_a_cell_is_no_formula_and_holds_nothing_personal():
    both = systems("a1", "b1", copies=1)
    request = CopyRequest(title="=HYPERLINK(1)")
    both["a1"] = [Copy(id="i0", text="+1 great, call 138 1234 5678", request=request)]
    (one, _) = rows_of(make_sheet(both, items=1)[0])
    texts = {one["a"], one["b"]}
    assert "'+1 great, call [phone]" in texts


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(InputError, match="two systems or more"):
        make_sheet(systems("only"), items=3)
    other = {
        **systems("base"),
        "ours": [Copy(id="x", text="t", request=CopyRequest(title="C"))],
    }
    with pytest.raises(InputError, match="no id is in the files of all systems"):
        make_sheet(other, items=3)


def answered(key, prefers, score=lambda text: 3):
    return [
        Answer(
            line=line.line,
            better=prefers(line),
            a_score=score(line.a),
            b_score=score(line.b),
        )
        for line in key
    ]


def judged(*raters, items=10):
    _, key = make_sheet(systems("base", "ours"), items=items)
    named = {f"r{n}": answered(key, *rater) for n, rater in enumerate(raters)}
    return judge_ratings({line.line: line for line in key}, named)


def likes(system):
    return lambda line: "a" if line.a == system else "b"


def test_raters_of_one_mind_agree_and_the_preferred_system_wins():
    scores = {"ours": 5, "base": 2}.get
    found = judged((likes("ours"), scores), (likes("ours"), scores))
    assert found["agreement"] == {"alpha_better": 1, "alpha_score": 1, "kappa_better": 1}
    assert found["order"] == {"first_chosen": 0.5, "both_orders_agree": 1}
    (pair,) = found["pairs"]
    assert (pair["one"], pair["one_wins"], pair["other_wins"], pair["ties"]) == ("base", 0, 20, 0)
    assert pair["p_value"] < 1e-4


def test_raters_of_opposite_minds_do_not():
    found = judged((likes("ours"),), (likes("base"),))
    assert found["agreement"]["kappa_better"] == pytest.approx(-1)
    assert found["agreement"]["alpha_better"] < -0.8
    assert found["agreement"]["alpha_score"] is None  # all scores are 3
    assert found["pairs"][0]["p_value"] == 1


def test_a_rater_who_takes_what_stands_first_has_no_vote():
    found = judged((lambda line: "a",))
    assert found["order"] == {"first_chosen": 1, "both_orders_agree": 0}
    (pair,) = found["pairs"]
    assert (pair["one_wins"], pair["other_wins"], pair["ties"]) == (0, 0, 10)
    assert pair["p_value"] is None
    assert found["agreement"]["alpha_better"] is None


def test_chance_is_no_agreement():
    draw = random.Random(1)
    found = judged(*[(lambda _: draw.choice("ab="),)] * 2, items=10)
    assert abs(found["agreement"]["alpha_better"]) < 0.5


@given(st.lists(st.tuples(st.sampled_from("ab="), st.sampled_from("ab=")), min_size=2, max_size=30))
def test_kappa_is_that_of_scikit_learn(answers):
    one = {n: answer for n, (answer, _) in enumerate(answers)}
    other = {n: answer for n, (_, answer) in enumerate(answers)}
    ours = _kappa(one, other)
    if ours is not None:
        assert ours == pytest.approx(cohen_kappa_score(list(one.values()), list(other.values())))


def test_a_sheet_is_filled_read_and_its_faults_are_named(tmp_path):
    write_sheet(tmp_path, systems("base", "ours"), items=3, seed=0)
    key = read_key(tmp_path / "key.json")
    assert (tmp_path / "ratings.csv").read_bytes().startswith(b"\xef\xbb\xbf")
    sheet = tmp_path / "rater-1.csv"

    def fill(**cells):
        rows = rows_of((tmp_path / "ratings.csv").read_text("utf-8-sig"))
        for row in rows:
            row["better"] = "A" if row["line"] != "2" else ""
        rows[0] |= cells
        with sheet.open("w", newline="", encoding="utf-8-sig") as out:
            writer = csv.DictWriter(out, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
        return read_answers(sheet, key)

    answers = fill(a_score="4")
    assert [answer.line for answer in answers] == ["1", "3", "4", "5", "6"]
    assert answers[0] == Answer(line="1", better="a", a_score=4, b_score=0)
    for cells, message in (
        ({"better": "first"}, "better: must be a, b or ="),
        ({"a_score": "6"}, "a_score: must be 1 to 5"),
        ({"line": "99"}, "line: '99' is not on this sheet"),
        ({"line": "3"}, "line: 3 is there twice"),
    ):
        with pytest.raises(InputError, match=message) as refused:
            fill(**cells)
        assert "rater-1.csv:" in str(refused.value)
    with pytest.raises(InputError, match="no line is answered"):
        read_answers(tmp_path / "ratings.csv", key)
    with pytest.raises(InputError, match="not the key of a rating sheet"):
        read_key(sheet)


def test_the_commands_from_copy_to_agreement(tmp_path):
    def write(name, text):
        rows = [
            {
                "id": n,
                "title": "Coat",
                "attributes": {"material": "wool"},
                "reference": f"Wool coat {n}.",
                **text(n),
            }
            for n in range(8)
        ]
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return file

    def run(*args):
        result = CliRunner().invoke(app, ["evaluate", *map(str, args)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    many = write("many", lambda n: {"candidates": [f"A coat {n}.", f"A wool coat {n}."]})
    chosen = tmp_path / "ours.jsonl"
    assert "8 of them not the first" in run("rerank", many, "--out", chosen)
    worse = write("worse", lambda n: {"text": f"A  coat of the the best , number {n}."})
    assert "8 of them changed" in run("polish", worse, "--out", tmp_path / "better.jsonl")
    first = (tmp_path / "better.jsonl").read_text().splitlines()[0]
    assert json.loads(first)["text"] == "A coat of the best, number 0."
    base = write("base", lambda n: {"text": f"A coat {n}."})
    out = tmp_path / "evaluation"
    facts = json.loads(run("run", chosen, f"plain={base}", "--out", out, "--items", 4, "--json"))
    assert list(facts["systems"]) == ["ours", "plain", "reference"]
    assert facts["systems"]["ours"]["coverage"] == 1
    assert facts["systems"]["plain"]["coverage"] == 0
    assert facts["systems"]["ours"]["bleu"] > facts["systems"]["plain"]["bleu"]
    assert "| BLEU against the references, 0 to 100 |" in (out / "table.md").read_text()
    rows = rows_of((out / "ratings.csv").read_text("utf-8-sig"))
    for row in rows:
        row["better"] = "a" if "wool" in row["a"] else "b"
    for rater in ("rater-1", "rater-2"):
        with (tmp_path / f"{rater}.csv").open("w", newline="") as filled:
            writer = csv.DictWriter(filled, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
    sheets = [tmp_path / "rater-1.csv", tmp_path / "rater-2.csv"]
    found = json.loads(run("agreement", out, *sheets, "--json"))
    assert found["agreement"]["alpha_better"] == 1
    assert found["pairs"][0]["one_wins"] == 8
    assert "Krippendorff" in run("agreement", out, *sheets)
    with pytest.raises(InputError, match="has no text; `handbill evaluate rerank` chooses one"):
        run("run", many, "--out", out)
