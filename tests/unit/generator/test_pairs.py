"""What a generator learns from is aligned with what its text states."""

from dataclasses import replace

import pytest

from handbill.errors import InputError
from handbill.generator.copies import Copy
from handbill.generator.fidelity import vocabulary
from handbill.generator.pairs import aligned, split, training_pairs
from handbill.generator.prompts import CopyRequest

ROWS = [
    Copy(
        id=f"{colour}{cloth}",
        text=f"这件{colour}外套，{cloth}材质，穿着舒适。",
        request=CopyRequest(title="外套", language="zh", scenario="product_description"),
        attributes=(("颜色", colour), ("材质", cloth)),
    )
    for colour in ("红色", "白色")
    for cloth in ("棉", "羊毛")
]


def test_pairs_ask_for_what_the_copy_states():
    known = vocabulary(ROWS)
    one = replace(ROWS[0], text="红色外套，羊毛材质")
    assert aligned(one, known).attributes == (("颜色", "红色"), ("材质", "羊毛"))
    pairs = training_pairs([replace(one, references=("白色",))])
    assert [pair.text for pair in pairs] == ["白色", "红色外套，羊毛材质"]
    with pytest.raises(InputError, match="no copy to learn from"):
        training_pairs([replace(one, text="")])
    with pytest.raises(InputError, match="too few"):
        split(pairs)
