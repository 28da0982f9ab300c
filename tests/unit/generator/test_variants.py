"""A file of variants: judged, counted, gone on with, and never on the side that is measured."""

import json
from collections import Counter
from dataclasses import replace

import pytest

from handbill.errors import InputError
from handbill.generator.copies import Copy, copy_of, read_copies
from handbill.generator.generators import train_generator
from handbill.generator.pairs import split, training_pairs, variant_pairs
from handbill.generator.prompts import CopyRequest
from handbill.generator.training import Schedule
from handbill.generator.variants import (
    AT_ONCE,
    by_paraphrase,
    pieces_of,
    read_variants,
    write_variants,
)


def product(n, *texts):
    return {"id": str(n), "title": "Jug", "brand": "Fernway", "references": list(texts)}


def given(fields):
    return [(copy_of(one, "x", written=False), one) for one in fields]


MANY = given([product(n, f"A warm jug, number {n}.") for n in range(2 * AT_ONCE + 3)])


class Maker:
    """Puts the number of the batch before each piece, and can be cut off."""

    def __init__(self, fail_at=None):
        self.calls, self.fail_at = [], fail_at

    def __call__(self, pieces, batch):
        if batch == self.fail_at:
            raise KeyboardInterrupt
        self.calls.append(batch)
        return [([f"{batch}: {piece.text}"], Counter(alike=1)) for piece in pieces]


def test_a_file_of_variants_is_read_back_and_by_nothing_else(tmp_path):
    out = tmp_path / "out"
    two = given([product(1, "One jug.", "Another jug."), product(2)])
    told = write_variants(two, Maker(), out, settings="s")
    assert (told.pieces, told.varied, told.kept, told.dropped) == (2, 2, 2, {"alike": 2})
    (row,) = map(json.loads, out.read_text().splitlines())
    assert row == {
        "id": "1",
        "title": "Jug",
        "brand": "Fernway",
        "variants": ["0: One jug.", "0: Another jug."],
    }
    read = list(read_variants(out))
    assert [one.text for one in read] == row["variants"]
    assert {one.request.brand for one in read} == {"Fernway"}
    with pytest.raises(InputError, match="unknown field 'variants'"):
        read_copies(out)


def test_what_was_cut_off_goes_on_to_the_same_file(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    write_variants(MANY, Maker(), whole, settings="s")
    with pytest.raises(KeyboardInterrupt):
        write_variants(MANY, Maker(fail_at=1), cut, settings="s")
    assert not cut.exists()
    unfinished = tmp_path / ".cut.unfinished"
    unfinished.write_text(unfinished.read_text() + '{"rows": [')  # a power cut in a line
    with pytest.raises(InputError, match="other settings"):
        write_variants(MANY, Maker(), cut, settings="others")
    with pytest.raises(InputError, match="on other copy"):
        write_variants(MANY[1:], Maker(), cut, settings="s")
    again, seen = Maker(), []
    told = write_variants(MANY, again, cut, settings="s", on_done=seen.append)
    assert again.calls == [1, 2]
    assert seen == [AT_ONCE, 2 * AT_ONCE, len(MANY)]
    assert told.kept == told.pieces == len(MANY)
    assert cut.read_text() == whole.read_text()
    assert {file.name for file in tmp_path.iterdir()} == {"whole", "cut"}


class FakeWriter:
    """Writes what it is told to, for every piece."""

    def __init__(self, *texts):
        self.texts = list(texts)

    def write(self, products, *, n=1, seed=0):
        self.seed = seed
        return [self.texts[:n] for _ in products]


def test_paraphrases_are_kept_or_dropped_for_a_reason():
    piece = Copy(
        id="1",
        text="The oak lamp by Fernway takes 2 bulbs, and is cool.",
        request=CopyRequest(title="Oak lamp", brand="Fernway"),
    )
    writer = FakeWriter(
        piece.text,
        "It is cool and takes 2 bulbs, the oak lamp of Fernway.",
        "Cool, the Fernway oak lamp works with 3 bulbs at once.",
        "",
        "Cool to touch: Fernway made an oak lamp for 2 bulbs.",
        "For 2 bulbs, Fernway has the oak lamp that keeps cool.",
    )
    make = by_paraphrase(writer, {}, per=2, tries=6, seed=1)
    ((kept, dropped),) = make([piece], 3)
    assert kept == [writer.texts[1], writer.texts[4]]
    assert dropped == Counter(alike=1, numbers=1, empty=1, enough=1)
    assert writer.seed == 1_000_003 + 3  # other batches draw otherwise


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("Here's the solution: A lamp of oak.", "A lamp of oak."),
        ("Sure, here it is in other words:\nA lamp of oak.", "A lamp of oak."),
        ("好的，换一种说法：橡木台灯。", "橡木台灯。"),
        ("Here is oak. It is: a lamp.", "Here is oak. It is: a lamp."),
        ("An oak lamp: sure to please.", "An oak lamp: sure to please."),
    ],
)
def test_what_a_chat_model_says_before_is_not_part_of_the_paraphrase(written, kept):
    piece = Copy(id="1", text="The lamp is oak.", request=CopyRequest(title="x"))
    piece = replace(piece, text="橡木做的台灯。") if "橡" in written else piece
    make = by_paraphrase(FakeWriter(written), {}, per=1, tries=1, seed=0)
    ((texts, _),) = make([piece], 0)
    assert texts == [kept]


def test_pieces_are_texts_and_references():
    copy = copy_of({"id": "1", "title": "x", "text": "b", "references": ["a", "b"]}, "x")
    assert [one.text for one in pieces_of(copy)] == ["a", "b"]


@pytest.mark.parametrize("line", ['{"id": "1", "title": "x"}', '{"id": "1", "variants": [1]}'])
def test_what_is_no_file_of_variants_is_said(tmp_path, line):
    (tmp_path / "x").write_text(line)
    with pytest.raises(InputError, match="x:1: variants: must be a list"):
        list(read_variants(tmp_path / "x"))


COPIES = [
    Copy(id=str(n), text=f"这件红色外套第{n}款。", request=CopyRequest(title="外套", language="zh"))
    for n in range(60)
]


def test_variants_of_held_out_products_are_not_learnt_from():
    trained, held_out = split(training_pairs(COPIES))
    more, left_out = variant_pairs(
        [replace(one, text=f"v{one.text}") for one in COPIES], COPIES, trained, held_out
    )
    assert held_out
    assert left_out == len(held_out)
    assert {one.id for one in more} == {one.id for one in trained}
    assert not {one.id for one in more} & {one.id for one in held_out}
    assert variant_pairs([], COPIES, trained, held_out) == ([], 0)
    with pytest.raises(InputError, match="variants of 'other'"):
        variant_pairs([replace(COPIES[0], id="other")], COPIES, trained, held_out)


def test_a_training_with_variants_is_measured_on_the_same_with_the_same_vocabulary(tmp_path):
    plan = Schedule(epochs=2, batch_rows=16, learning_rate=1e-2, checks=1)
    said = []
    variants = [replace(one, text=one.text.replace("红色", "龘靐")) for one in COPIES]

    def train(folder, **how):
        train_generator("causal", COPIES, folder, schedule=plan, tokens=400, **how)
        card = json.loads((folder / "generator.json").read_text())
        return card, (folder / "tokenizer.json").read_text()

    plain, tokens = train(tmp_path / "plain")
    card, same = train(tmp_path / "varied", variants=variants, say=said.append)
    assert tokens == same
    assert card["held_out"] == plain["held_out"]
    assert card["pairs"] == plain["pairs"]
    assert (plain["variants"], card["variants"]) == (0, card["pairs"])
    assert card["steps"] > plain["steps"]
    assert f"{card['held_out']} of copy to stop by are left out" in said[1]
