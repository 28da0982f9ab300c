"""Synonyms come from files of three forms, and of a thesaurus only what is safe to put into copy."""

import pytest

from handbill.errors import InputError
from handbill.generator.synonyms import read_synonyms

# (index line, data line) by part of speech, in the form of wndb(5WN): an invented lexicon.
WORDNET = {
    "adj": [
        "sturdy a 1 0 1 1 00000010",
        "robust a 1 0 1 1 00000010",
        "stouthearted a 1 0 1 0 00000010",  # never met in a text
        "london a 1 0 1 1 00000020",
        "parisian a 1 0 1 1 00000020",
        "light a 1 0 1 1 00000030",
        "airy a 1 0 1 1 00000030",
        "only a 1 0 1 1 00000040",
        "lone a 1 0 1 1 00000040",
    ],
    "adv": ["swiftly r 2 1 \\ 2 1 00000050 00000060", "rapidly r 1 0 1 1 00000050"],
    "verb": ["furnish v 1 0 1 1 00000070", "well-furnish v 1 0 1 1 00000070"],
    "noun": [
        "fabric n 1 0 1 1 00000080",
        "cloth n 1 0 1 1 00000080",
        "light n 1 0 1 1 00000090",
    ],
}
DATA = {
    "adj": [
        "00000010 00 a 03 sturdy 0 robust 0 stouthearted 0 000 | strong",
        "00000020 01 a 02 London 0 parisian 0 000 | of a town",
        "00000030 00 s 02 light 0 airy 0 000 | of little weight",
        "00000040 00 s 02 only 0 lone 0 000 | without others",
    ],
    "adv": ["00000050 02 r 02 swiftly 0 rapidly 0 000 | fast"],
    "verb": ["00000070 40 v 02 furnish 0 well-furnish 0 000 | give"],
    "noun": ["00000080 06 n 02 fabric 0 cloth 0 000 | woven"],
}


def test_lines_of_our_own_are_read_as_they_stand(tmp_path):
    file = tmp_path / "own"
    file.write_text("# ours\nSturdy\trobust\tbuilt to last\n\nsturdy\tsolid\n舒适\t舒服\n", "utf-8")
    assert read_synonyms(file) == {
        "sturdy": ("robust", "built to last", "solid"),
        "舒适": ("舒服",),
    }


def test_of_a_thesaurus_words_of_one_group_as_long_as_each_other_are_taken(tmp_path):
    file = tmp_path / "cilin"
    lines = (
        "Ed33C01= 精致 精巧 精美 细 小巧玲珑",
        "Ed33C02= 精美 美好",  # 精美 has two senses
        "Bq01A01= 面料 布料",  # things
        "Aa01A01= 顾客 客人",  # persons
        "Ed40A01# 温暖 凉爽",  # related, no synonyms
        "Ed41A01@ 独特",
    )
    file.write_text("\n".join(lines), "utf-8")
    assert read_synonyms(file) == {"精致": ("精巧",), "精巧": ("精致",)}


def test_own_lines_go_before_a_thesaurus(tmp_path):
    file = tmp_path / "both"
    file.write_text("精致\t细腻\nEd33C01= 精致 精巧\n", "utf-8")
    assert read_synonyms(file) == {"精致": ("细腻",), "精巧": ("精致",)}


def wordnet(folder, licence="  1 This is a licence.\n"):
    for part, lines in WORDNET.items():
        (folder / f"index.{part}").write_text(licence + "\n".join(lines) + "\n", "utf-8")
        (folder / f"data.{part}").write_text(licence + "\n".join(DATA[part]) + "\n", "utf-8")
    return folder


def test_of_wordnet_words_of_one_part_of_speech_that_texts_have_are_taken(tmp_path):
    assert read_synonyms(wordnet(tmp_path)) == {
        "sturdy": ("robust",),
        "robust": ("sturdy",),
        "swiftly": ("rapidly",),
        "rapidly": ("swiftly",),
    }


@pytest.mark.parametrize(
    ("text", "match"),
    [("", "holds no synonyms"), ("sturdy robust\n", ":1: not a word"), ("a\t\n", ":1: not a word")],
)
def test_what_is_no_file_of_synonyms_is_said(tmp_path, text, match):
    file = tmp_path / "x"
    file.write_text(text, "utf-8")
    with pytest.raises(InputError, match=match):
        read_synonyms(file)


def test_what_cannot_be_read_is_said(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        read_synonyms(tmp_path / "nothing")
    with pytest.raises(InputError, match="cannot be read"):
        read_synonyms(tmp_path)  # a folder without WordNet
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        read_synonyms(tmp_path / "bytes")
