"""``handbill generator``: from products with copy to a generator, and from it to copy that can be chosen from."""

import json

import pytest
from typer.testing import CliRunner

from handbill.cli import app
from handbill.errors import InputError
from handbill.generator.base_models import make_tiny_base
from handbill.generator.causal import CausalWriter

COLOURS = ("红色", "白色", "黑色", "蓝色", "绿色", "灰色")


def lines(path, *, copy):
    rows = []
    for n in range(60):
        colour = COLOURS[n % len(COLOURS)]
        row = {"id": str(n), "title": "外套", "language": "zh", "attributes": {"颜色": colour}}
        if copy:
            row["references"] = [f"这件{colour}外套，款式{n}，穿着舒适。"]
        rows.append(json.dumps(row, ensure_ascii=False))
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


@pytest.fixture
def handbill(tmp_path):
    def run(*args):
        result = CliRunner().invoke(app, [*map(str, args)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    return run


def test_copy_is_learnt_from_written_chosen_and_measured(tmp_path, handbill):
    known, asked = lines(tmp_path / "known", copy=True), lines(tmp_path / "asked", copy=False)
    options = ("--data", known, "--tokens", 400, "--epochs", 1)
    train = ("generator", "train", *options)
    facts = handbill(*train, "--kind", "seq2seq", "--out", tmp_path / "s", "--json")
    assert json.loads(facts[facts.index("{") :])["schedule"]["epochs"] == 1
    out = handbill(*train, "--kind", "gan", "--start", tmp_path / "s", "--out", tmp_path / "g")
    assert f"wrote {tmp_path / 'g'}: gan" in out
    write = ("generator", "write", asked, "--generator", tmp_path / "g")
    several = tmp_path / "several"
    handbill(*write, "--candidates", 3, "--out", several)
    rows = [json.loads(line) for line in several.read_text(encoding="utf-8").splitlines()]
    assert [len(row["candidates"]) for row in rows] == [3] * 60
    assert rows[0]["attributes"] == {"颜色": "红色"}
    chosen = tmp_path / "chosen"
    told = handbill(
        "evaluate", "rerank", several, "--critic", tmp_path / "g", "--out", chosen, "--json"
    )
    parts = json.loads(told.splitlines()[0])["ranked"][0]["parts"]
    assert 0 < parts["critic"] < 1
    told = handbill("evaluate", "run", chosen, "--out", tmp_path / "table")
    assert all(metric in told for metric in ("self_bleu", "perplexity", "unsupported"))  # none cut
    assert "coverage" in json.loads((tmp_path / "table" / "table.json").read_text())["metrics"]


def test_what_cannot_be_trained_is_said(tmp_path):
    asked = lines(tmp_path / "asked", copy=False)
    train = ["generator", "train", "--data", str(asked), "--out", str(tmp_path / "x")]
    with pytest.raises(InputError, match="no copy to learn from"):
        CliRunner().invoke(app, train, catch_exceptions=False)
    with pytest.raises(InputError, match="not one of causal, seq2seq, cvae, gan"):
        CliRunner().invoke(app, [*train, "--kind", "rnn"], catch_exceptions=False)
    assert not (tmp_path / "x").exists()


def test_a_base_model_is_shortened_and_writes(tmp_path, handbill):
    known, asked = lines(tmp_path / "known", copy=True), lines(tmp_path / "asked", copy=False)
    folder = make_tiny_base(tmp_path / "base", layers=4, hidden=32)
    shorten = ("generator", "shorten", "--base", folder, "--data", known, "--layers", 3)
    told = handbill(*shorten, "--steps", 2, "--out", tmp_path / "short")
    assert "base: 4 layers, their influence measured" in told
    assert "3 layers of base; held-out loss: whole " in told
    facts = handbill(*shorten, "--steps", 0, "--out", tmp_path / "cut", "--json")
    found = json.loads(facts[facts.index("{") :])
    assert len(found["dropped"]) == 1
    assert set(found["held_out_loss"]) == {"whole", "cut"}
    handbill(
        "generator", "write", asked, "--generator", tmp_path / "short", "--out", tmp_path / "x"
    )
    assert len((tmp_path / "x").read_text(encoding="utf-8").splitlines()) == 60
    with pytest.raises(InputError, match="holds a trained generator"):
        handbill(*shorten, "--out", tmp_path / "short")


OWN = """
[haiku]
about = "three lines"
en = { instruction = "Write a haiku." }
zh = { instruction = "写一首俳句。" }
"""


def test_a_generator_is_asked_in_the_words_of_the_scenarios_it_was_trained_with(
    tmp_path, handbill, monkeypatch
):
    known, asked = lines(tmp_path / "known", copy=True), lines(tmp_path / "asked", copy=False)
    for file in (known, asked):
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        file.write_text("\n".join(json.dumps({**row, "scenario": "haiku"}) for row in rows))
    own = tmp_path / "own.toml"
    own.write_text(OWN, encoding="utf-8")
    options = ("--data", known, "--tokens", 400, "--epochs", 1, "--out", tmp_path / "g")
    with pytest.raises(InputError, match=r"known:1: scenario: 'haiku' is not one of"):
        handbill("generator", "train", *options)
    handbill("generator", "train", *options, "--scenarios", own)
    own.unlink()  # the folder has its own copy

    prompts = []
    sample = CausalWriter._sample

    def watched(self, products, ids, n):
        prompts.extend(self._tokenizer.decode(one) for one in ids)
        return sample(self, products, ids, n)

    monkeypatch.setattr(CausalWriter, "_sample", watched)
    write = ("generator", "write", asked, "--out", tmp_path / "x", "--generator")
    handbill(*write, tmp_path / "g")
    assert len(prompts) == 60
    assert all("写一首俳句。" in prompt for prompt in prompts)
    with pytest.raises(InputError, match=r"asked:1: scenario: 'haiku' is not one of"):
        handbill(*write, make_tiny_base(tmp_path / "base"))
    handbill("evaluate", "run", tmp_path / "x", "--out", tmp_path / "table")
