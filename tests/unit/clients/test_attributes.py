"""A product's attributes: from the shop's own columns into the prompts that the service makes of them."""

import pytest
from transformers import AutoTokenizer

from handbill.clients.behaviour import read_behaviour
from handbill.clients.descriptions import read_description
from handbill.clients.shop import load_shop
from handbill.errors import InputError
from handbill.generator.prompts import fit_prompt
from handbill.serving.copy_body import CopyBody

SHOP = """
[shop]
id = "coats"
language = "{language}"
[rows]
file = "copy.csv"
user = "who"
item = "what"
text = "copy"
[products]
file = "products.csv"
item = "id"
title = "name"
description = "about"
attributes = {{ "颜色" = "farbe", material = "stoff" }}
"""
PRODUCTS = (
    "id,name,about,stoff,farbe\n"
    "p1,Coat,For rain.,wool,red\np2,Cap,,cotton,\np3,Tie,Plain.,,\n"
    "p4,Bag,,by a.weaver@example.org,\n"
)
GIVEN = {
    "p1": {"颜色": "red", "material": "wool"},
    "p2": {"material": "cotton"},
    "p3": {},
    "p4": {"material": "by [email]"},
}
ABOUT = {"p1": "For rain.", "p3": "Plain."}


@pytest.fixture
def folder(tmp_path):
    def make(language="en", **given):
        rows = "".join(f"u1,{item},Wear it {item}.\n" for item in GIVEN)
        files = {"shop.toml": SHOP.format(language=language), "products.csv": PRODUCTS}
        files["copy.csv"] = f"who,what,copy\n{rows}"
        for name, text in {**files, **given}.items():
            (tmp_path / name).write_text(text)
        return tmp_path

    return make


@pytest.mark.parametrize("language", ["en", "zh"])
def test_training_and_serving_put_attributes_into_the_same_prompt(folder, tiny_base, language):
    tokenizer = AutoTokenizer.from_pretrained(tiny_base.path)
    shop = load_shop(folder(language))
    scenarios = shop.info.scenarios
    assert len(shop.rows) == len(GIVEN)
    for row in shop.rows:
        body = CopyBody(
            title=row.request.title,
            description=ABOUT.get(row.item, ""),
            attributes=GIVEN[row.item],
            language=language,
        )
        served = body.request(scenarios)
        assert row.request == served
        learnt, asked = (
            fit_prompt(tokenizer, request, max_tokens=512, scenarios=scenarios).text()
            for request in (row.request, served)
        )
        assert learnt == asked
        assert all(f"{name} {value}" in learnt for name, value in GIVEN[row.item].items())


def test_the_catalogue_is_learnt_from_with_its_attributes(folder):
    shop = load_shop(folder())
    coat, tie = shop.catalogue
    assert (coat.text, coat.request.description) == ("For rain.", "颜色 red; material wool")
    assert (tie.text, tie.request.description) == ("Plain.", "")
    behaviour = read_behaviour(read_description(folder() / "shop.toml"))
    described = [product.description for product in behaviour.catalogue]
    assert described[0] == "For rain.; 颜色 red; material wool"
    assert [deed.product for deed in behaviour.shoppers["u1"].past] == list(behaviour.catalogue)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ('{ colour = "hue" }', r"products\.attributes\.colour: products\.csv has no column 'hue'"),
        ('{ colour = "" }', r"products\.attributes\.colour must be a text in quotes"),
        ('"farbe"', r"products\.attributes must be a table such as"),
    ],
)
def test_a_wrong_mapping_is_named(folder, wrong, message):
    right = SHOP.format(language="en").splitlines()
    right[-1] = f"attributes = {wrong}"
    with pytest.raises(InputError, match=message):
        load_shop(folder(**{"shop.toml": "\n".join(right)}))
