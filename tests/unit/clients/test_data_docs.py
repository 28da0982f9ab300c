"""docs/data.md names every key a description may have, and its example is one that works."""

import re
import tomllib
from pathlib import Path

from handbill.clients.cleaning import EVENT_KINDS
from handbill.clients.descriptions import DATABASE_KEYS, KEYS, PLACE_KEYS, SHOP_KEYS
from handbill.clients.markets import KNOWN
from handbill.clients.tables import ENCODINGS
from handbill.generator.scenarios import shipped
from handbill.simulations.market import SHOP_TOML

TEXT = (Path(__file__).resolve().parents[3] / "docs" / "data.md").read_text(encoding="utf-8")


def test_every_key_is_in_the_table_of_keys():
    for section, keys in {**KEYS, "shop": (("id",), SHOP_KEYS)}.items():
        (line,) = re.findall(rf"^\| `\[{section}\]` .*$", TEXT, re.MULTILINE)
        assert {key for part in keys for key in part} <= set(re.findall(r"`(\w+)`", line))


def test_every_scenario_kind_and_known_set_is_named():
    for name in (*shipped().all, *EVENT_KINDS, *(path.stem for path in KNOWN.iterdir())):
        assert re.search(rf"\b{name}\b", TEXT), name


def blocks():
    return [tomllib.loads(block) for block in re.findall(r"```toml\n(.*?)```", TEXT, re.S)]


def test_every_example_has_known_keys_only():
    assert len(blocks()) == 5
    for block in blocks():
        assert block.get("shop", {}).keys() <= set(SHOP_KEYS)
        for section, keys in block.items():
            if section in KEYS:
                assert keys.keys() <= {*PLACE_KEYS, "where", *KEYS[section][0], *KEYS[section][1]}
        assert block.get("database", {}).keys() <= set(DATABASE_KEYS)
    assert all(name in TEXT.lower() for name in (*ENCODINGS, *DATABASE_KEYS))


def test_the_example_is_what_the_sample_market_writes():
    example = next(block for block in blocks() if {"shop", "events"} <= block.keys())
    written = tomllib.loads(
        SHOP_TOML.format(id="fern-kettle", name="Fern & Kettle", trade="tea and kettles")
    )
    assert {section: example[section] for section in ("shop", "rows", "shoppers", "events")} == {
        section: written[section] for section in ("shop", "rows", "shoppers", "events")
    }
    assert example["products"].items() <= written["products"].items()
