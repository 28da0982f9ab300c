"""``handbill data augment``, and a generator that is trained on what it wrote."""

import json

import pytest
from typer.testing import CliRunner

from handbill.cli import app
from handbill.errors import InputError
from handbill.generator.base_models import make_tiny_base


@pytest.fixture
def handbill():
    def run(*args):
        result = CliRunner().invoke(app, [*map(str, args)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    return run


@pytest.fixture
def copy(tmp_path):
    rows = [
        {
            "id": str(n),
            "title": "外套",
            "language": "zh",
            "attributes": {"颜色": "红色"},
            "references": [f"这件红色外套，款式{n}，穿着舒适，展现气质。"],
        }
        for n in range(60)
    ]
    file = tmp_path / "copy.jsonl"
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    return file


@pytest.fixture
def words(tmp_path):
    file = tmp_path / "words.tsv"
    file.write_text("舒适\t舒服\n展现\t呈现\n红色\t赤色\n", "utf-8")
    return file


def test_synonyms_are_put_in_and_learnt_from(tmp_path, handbill, copy, words):
    out = tmp_path / "variants.jsonl"
    run = ("data", "augment", copy, "--synonyms", words, "--out", out, "--any-word")
    assert "variants of 60 of 60 pieces; dropped: none " in handbill(*run)
    first = out.read_text(encoding="utf-8")
    rows = [json.loads(line) for line in first.splitlines()]
    assert len(rows) == 60
    for row in rows:
        assert 1 <= len(row["variants"]) <= 2
        assert all("红色外套" in text and f"款式{row['id']}，" in text for text in row["variants"])
    facts = json.loads(handbill(*run, "--json"))
    assert facts["kept"] == sum(len(row["variants"]) for row in rows)
    assert (facts["pieces"], facts["varied"]) == (60, 60)
    assert out.read_text(encoding="utf-8") == first
    handbill(*run, "--seed", 1)
    assert out.read_text(encoding="utf-8") != first
    told = handbill("data", "augment", copy, "--synonyms", words, "--out", out)
    assert "0 variants of 0 of 60 pieces; dropped: none 120" in told  # no piece says 舒服
    handbill(*run)
    train = ("generator", "train", "--kind", "seq2seq", "--data", copy, "--tokens", 400)
    told = handbill(*train, "--epochs", 1, "--out", tmp_path / "g", "--augment", out)
    assert "of copy to stop by are left out" in told
    assert json.loads((tmp_path / "g" / "generator.json").read_text())["variants"] > 0


def test_a_base_model_is_asked_for_paraphrases_and_judged(tmp_path, handbill, copy):
    base = make_tiny_base(tmp_path / "base", layers=1, hidden=16)
    file = tmp_path / "two.jsonl"
    file.write_text("\n".join(copy.read_text("utf-8").splitlines()[:2]), "utf-8")
    out = tmp_path / "variants.jsonl"
    run = ("data", "augment", file, "--kind", "paraphrase", "--generator", base, "--tries", 2)
    facts = json.loads(handbill(*run, "--per", 1, "--out", out, "--json"))
    assert facts["pieces"] == 2
    assert facts["kept"] + sum(facts["dropped"].values()) == 4  # a random model keeps no fact
    assert facts["kept"] == 0
    assert out.read_text() == ""


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ((), "needs --synonyms"),
        (("--kind", "paraphrase"), "needs --generator"),
        (("--generator", "x"), "is for --kind paraphrase"),
        (("--kind", "paraphrase", "--synonyms", "x"), "is for --kind synonyms"),
        (("--synonyms", "nowhere"), "nowhere: cannot be read"),
    ],
)
def test_what_is_missing_is_said(tmp_path, copy, options, match):
    args = ["data", "augment", str(copy), "--out", str(tmp_path / "x"), *options]
    with pytest.raises(InputError, match=match):
        CliRunner().invoke(app, args, catch_exceptions=False)
    assert not (tmp_path / "x").exists()


def test_products_without_copy_have_nothing_to_vary(tmp_path, words):
    (tmp_path / "p").write_text('{"id": "1", "title": "Jug"}')
    args = ["data", "augment", str(tmp_path / "p"), "--out", "x", "--synonyms", str(words)]
    with pytest.raises(InputError, match="no copy to vary"):
        CliRunner().invoke(app, args, catch_exceptions=False)
