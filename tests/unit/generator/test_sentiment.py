"""The sentiment model: learns from reviews, survives its file, refuses what is none."""

import json
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from typer.testing import CliRunner

from handbill.cli import app
from handbill.errors import InputError
from handbill.generator.sentiment import FORMAT, N_BUCKETS, SentimentModel, buckets_of
from handbill.generator.sentiment_training import Labelled, highest_of, label_of, train_sentiment

GOOD = ("warm", "soft", "lovely", "works well", "很好", "喜欢", "舒服", "质量不错")
BAD = ("cold", "torn", "awful", "not warm", "很差", "失望", "退货", "质量不好")
THINGS = ("the coat", "this lamp", "my kettle", "衣服", "手机", "水果")


def reviews(n, seed=0):
    draw = random.Random(seed)
    for number in range(n):
        content = number % 2 == 0
        words = draw.choice(GOOD if content else BAD)
        yield Labelled(f"{draw.choice(THINGS)} {words}, number {number}", content, "reviews")


@pytest.fixture(scope="module")
def model():
    return train_sentiment(reviews(400))


def test_it_tells_content_from_discontent_in_both_languages(model):
    told = [(model.score(one.text) > 0.5) == one.content for one in reviews(200, seed=1)]
    assert sum(told) >= 198
    assert model.score("a warm coat") > 0.5 > model.score("a coat that is not warm")
    assert model.score("质量不错") > 0.5 > model.score("质量不好")
    assert model.score("") == model.score("...") == 0.5
    assert model.about == {"content": 200, "discontent": 200, "sources": {"reviews": 400}}


def test_both_classes_count_the_same_however_many_there_are():
    rows = [one for one in reviews(2000) if one.content or int(one.text.split()[-1]) % 20 == 1]
    few = train_sentiment(rows)
    assert few.about["discontent"] == 100
    told = [few.score(one.text) < 0.5 for one in reviews(200, seed=2) if not one.content]
    assert sum(told) >= 95


def test_a_model_survives_its_file(model, tmp_path):
    file = tmp_path / "deep" / "model.safetensors"
    model.save(file)
    again = SentimentModel.load(file)
    for one in reviews(50, seed=3):
        assert again.score(one.text) == pytest.approx(model.score(one.text), abs=0.01)
    assert again.about == model.about
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize(
    ("weights", "metadata", "message"),
    [
        (np.zeros(8), {"format": FORMAT, "about": "{}"}, "damaged"),
        (np.full(N_BUCKETS, np.nan), {"format": FORMAT, "about": "{}"}, "damaged"),
        (np.zeros(N_BUCKETS), {"format": FORMAT, "about": "{"}, "damaged"),
        (np.zeros(N_BUCKETS), {"format": "other/1"}, "not a sentiment model of the format"),
    ],
)
def test_a_file_that_is_no_model_is_refused(tmp_path, weights, metadata, message):
    file = tmp_path / "model.safetensors"
    tensors = {"weights": weights, "idf": np.ones(N_BUCKETS), "bias": np.zeros(1)}
    save_file(tensors, file, metadata=metadata)
    with pytest.raises(InputError, match=message):
        SentimentModel.load(file)
    file.write_bytes(b"pickle")
    with pytest.raises(InputError, match="damaged"):
        SentimentModel.load(file)
    with pytest.raises(InputError, match="train one with `handbill sentiment train`"):
        SentimentModel.load(tmp_path / "gone")


@given(st.text(max_size=200))
def test_any_text_has_a_score(text):
    buckets = buckets_of(text)
    assert all(0 <= bucket < N_BUCKETS and n > 0 for bucket, n in buckets.items())
    model = SentimentModel(np.ones(N_BUCKETS, np.float32), np.ones(N_BUCKETS, np.float32), 0.0, {})
    assert 0 <= model.score(text) <= 1


def test_ratings_become_labels():
    stars = [label_of(str(n), highest=5) for n in range(1, 6)]
    assert stars == [False, False, None, True, True]
    assert [label_of(word, highest=1) for word in ("0", "1", "差评", "Positive")] == [
        False, True, False, True,
    ]  # fmt: skip
    assert highest_of(["3", "", "5", "good"]) == 5
    assert highest_of(["0", "好评"]) == 1
    with pytest.raises(InputError, match="not a rating"):
        label_of("so so", highest=5)


def test_too_few_reviews_are_refused():
    with pytest.raises(InputError, match="15 reviews of content and 15 of discontent people"):
        train_sentiment(reviews(30))


def test_the_command_trains_measures_and_scores(tmp_path):
    file = tmp_path / "reviews.jsonl"
    rows = [
        {"user": f"u{n}", "review": one.text, "stars": 5 if one.content else 1}
        for n, one in enumerate(reviews(400))
    ]
    rows += [{"user": "u", "review": "so so", "stars": 3}, {"user": "u", "review": "", "stars": 5}]
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    model = tmp_path / "m.safetensors"

    def run(*args):
        result = CliRunner().invoke(
            app, ["sentiment", *map(str, args), "--model", str(model)], catch_exceptions=False
        )
        assert result.exit_code == 0, result.output
        return result.output

    facts = json.loads(run("train", file, "--group", "user", "--json"))
    (found,) = facts["held_out"]
    trained = facts["trained_on"]
    assert trained["content"] + trained["discontent"] + found["held_out"] == 400
    assert 20 <= found["held_out"] <= 60
    assert found["accuracy"] > 0.95
    lines = run("score", "a lovely coat", "很差").splitlines()
    assert float(lines[0].split()[0]) > 0.5 > float(lines[1].split()[0])
    with pytest.raises(
        InputError, match=r"name the column with --label; it has user, review, stars"
    ):
        run("train", file, "--label", "score")
    file.write_text('{"user": "u", "review": "fine", "stars": "so so"}\n')
    with pytest.raises(InputError, match=r"reviews.jsonl:1: stars: not a rating"):
        run("train", file)
