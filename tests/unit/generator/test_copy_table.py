"""Measures of copy: the libraries' figures, coverage, invented facts, candidates chosen by them."""

import json
import math
from dataclasses import replace

import pytest
import torch

from handbill.errors import InputError
from handbill.generator.copies import Copy, copy_of, read_copies
from handbill.generator.copy_table import HUMAN, METRICS, measure, rounded, self_bleu
from handbill.generator.fidelity import attribute_coverage, unsupported_facts, vocabulary
from handbill.generator.metrics import rouge_l
from handbill.generator.perplexity import Perplexity
from handbill.generator.prompts import CopyRequest
from handbill.generator.rerank import Weights, rerank

COAT = (("material", "wool"), ("colour", "navy blue"))
JACKET = (("材质", "羊毛"), ("版型", "宽松"), ("颜色", "白色"))


def copy(text="", number=1, references=(), attributes=COAT, language="en", **given):
    request = CopyRequest(title="Coat", language=language, **given)
    return Copy(
        id=str(number),
        text=text,
        request=request,
        references=tuple(references),
        attributes=attributes,
    )


def test_a_copy_equal_to_its_reference_is_perfect_and_a_foreign_one_is_not():
    texts = ["A navy blue coat of wool for cold days.", "Soft wool keeps the wind away all day."]
    same = [copy(text, n, [text]) for n, text in enumerate(texts)]
    other = [copy("Lamps shine brightly at night here.", n, [text]) for n, text in enumerate(texts)]
    table = measure({"same": same, "other": other})
    assert table.keys() == {"same", "other", HUMAN}
    assert all(row.keys() == METRICS.keys() for row in table.values())
    assert table["same"]["bleu"] == pytest.approx(100)
    assert table["same"]["chrf"] == pytest.approx(100)
    assert table["same"]["rouge_2"] == 1
    assert table["other"]["bleu"] < 5
    assert table["other"]["rouge_l"] == 0
    assert table[HUMAN]["bleu"] is None  # there is one reference only
    assert table[HUMAN]["coverage"] == table["same"]["coverage"] == 0.75
    assert table["other"]["self_bleu"] == pytest.approx(100)
    assert table["same"]["perplexity"] is table["same"]["positive"] is None
    assert rounded({"a": math.nan, "b": 1 / 3, "c": None}) == {"a": None, "b": 0.3333, "c": None}


def test_chinese_is_compared_by_character():
    one = [copy("白色外套很舒服", 1, ["白色外套舒服"], JACKET, "zh")]
    row = measure({"ours": one})["ours"]
    assert row["rouge_l"] == pytest.approx(rouge_l("白色外套很舒服", "白色外套舒服"))
    assert row["bleu"] > 40
    assert row["chars"] == 7
    assert row["words"] < 7


def test_several_references_may_differ_in_number():
    rows = [copy("Warm wool.", 1, ["Warm wool.", "x"]), copy("Blue.", 2, ["Blue."]), copy("No.", 3)]
    row = measure({"ours": rows})
    assert row["ours"]["chrf"] == pytest.approx(100)
    assert row[HUMAN]["copies"] == 2


def test_coverage_is_word_for_word_whatever_the_case():
    assert attribute_coverage(copy(), "WOOL in Navy\nBlue") == 1
    assert attribute_coverage(copy(), "woollen, blue") == 0
    assert attribute_coverage(copy(attributes=()), "wool") is None
    assert attribute_coverage(copy(attributes=JACKET), "羊毛的宽松外套") == pytest.approx(2 / 3)


def test_facts_that_nobody_gave_are_counted():
    known = vocabulary(
        [copy(attributes=JACKET), copy(attributes=(("材质", "棉麻"), ("版型", "宽松款")))]
    )
    wool = copy(attributes=JACKET)
    assert unsupported_facts(wool, "羊毛外套，宽松，白色", known) == 0
    assert unsupported_facts(wool, "棉麻外套", known) == 1
    assert unsupported_facts(wool, "棉麻外套，宽松款，打五折", known) == 3
    assert unsupported_facts(copy(attributes=()), "棉麻外套", known) == 0
    assert unsupported_facts(copy(price="20"), "Only $20, was $40, 50% off", {}) == 2
    assert unsupported_facts(copy(attributes=(("weight", "900 g"),)), "It weighs 0.9 kg.", {}) == 0


def test_self_bleu_needs_two_and_tells_repeats():
    assert self_bleu(["one"]) is None
    varied = ["a red lamp for desks", "warm wool socks here", "tea with mint leaves today"]
    assert self_bleu(["the same words again here"] * 3) == pytest.approx(100)
    assert self_bleu(varied) < 20


def test_perplexity_is_the_exponential_of_the_models_own_loss(tiny_base):
    judge = Perplexity(str(tiny_base.path))
    text = "A coat for cold days"
    ids = torch.tensor([judge._tokenizer(text, add_special_tokens=False)["input_ids"]])
    start = judge._tokenizer.bos_token_id
    start = judge._tokenizer.eos_token_id if start is None else start
    whole = torch.cat([torch.tensor([[start]]), ids], 1)
    loss = judge._model(whole, labels=whole).loss
    assert judge([text]) == pytest.approx(math.exp(loss), rel=1e-4)
    assert judge([text, ""]) == pytest.approx(judge([text]))
    with pytest.raises(InputError, match="no text has a token"):
        judge([""])


def test_the_best_candidate_tells_the_facts_and_no_others():
    candidates = (
        "A coat.",
        "A navy blue coat of wool, 50% off.",
        "The best wool coat in the world, navy blue, guaranteed to cure colds.",
        "A navy blue coat of wool.",
    )
    one = Copy(
        id="1", text="", request=CopyRequest(title="Coat"), attributes=COAT, candidates=candidates
    )
    ranked = rerank(one)
    assert [entry.index for entry in ranked] == [3, 1, 0, 2]
    assert ranked[0].parts == {"coverage": 1, "faithful": 1, "lawful": 1, "fresh": 1}
    assert ranked[-1].parts["lawful"] == 0
    assert 0 <= ranked[-1].score < ranked[0].score == 1
    broken = rerank(replace(one, candidates=("Wool, navy bl� coat.", "A coat.")))
    assert [entry.index for entry in broken] == [1, 0]
    again = rerank(one, before=["A navy blue coat of wool."], weights=Weights(fresh=10))
    assert again[0].index != 3
    critical = rerank(one, critic=lambda text: float(text == "A coat."), weights=Weights(critic=20))
    assert critical[0].index == 0
    with pytest.raises(InputError, match="no candidates"):
        rerank(copy("x"))
    with pytest.raises(InputError, match="tone: a weight is 0 or more"):
        Weights(tone=-1)


def test_tone_is_how_near_the_sentiment_is_to_what_is_wanted():
    class Judge:
        def score(self, text):
            return 0.9 if "lovely" in text else 0.2

    texts = ("A coat.", "A lovely coat.")
    one = Copy(id="1", text="", request=CopyRequest(title="Coat"), candidates=texts)
    assert rerank(one, sentiment=Judge())[0].index == 1
    assert rerank(one, sentiment=Judge(), wanted=0.1)[0].index == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"id": "1", "title": "C", "text": "x", "colour": "red"}, "unknown field 'colour'"),
        ({"title": "C", "text": "x"}, "id is missing"),
        ({"id": 1, "title": "C"}, "text is missing"),
        ({"id": 1, "text": "x"}, "title is missing"),
        ({"id": 1, "title": "", "text": "x"}, "title: a request for copy needs"),
        ({"id": 1, "title": "C", "text": ["x"]}, "text: must be a text"),
        ({"id": 1, "title": "C", "text": "x", "references": "y"}, "references: must be a list"),
        ({"id": 1, "title": "C", "text": "x", "attributes": {"a": 1}}, "attributes: must be an"),
    ],
)
def test_a_field_that_is_wrong_is_named(fields, message):
    with pytest.raises(InputError, match=f"^f:3: {message}"):
        copy_of(fields, "f:3")


def test_a_file_of_copy_names_its_bad_line(tmp_path):
    file = tmp_path / "ours.jsonl"
    line = json.dumps({"id": 1, "title": "C", "text": "x", "attributes": [["a", "b"]]})
    file.write_text(f"{line}\n\n{{\n")
    with pytest.raises(InputError, match=r"ours.jsonl:3: not valid JSON"):
        read_copies(file)
    file.write_text(f"{line}\n{line}\n")
    with pytest.raises(InputError, match=r"id '1' is on records 1 and 2"):
        read_copies(file)
    file.write_text("\n")
    with pytest.raises(InputError, match="holds no copy"):
        read_copies(file)
