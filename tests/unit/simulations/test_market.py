"""The sample market: the same bytes everywhere, sound English, and nothing a shop may not say."""

import hashlib
import re
from collections import Counter
from pathlib import Path

import pytest

from handbill.clients.checks import check_shop
from handbill.clients.markets import find_shops
from handbill.clients.shop import ShopData, load_shop, split_users
from handbill.errors import InputError
from handbill.generator.claims.checker import blocks, check
from handbill.simulations.grammar import SHOPS, read_vocabulary
from handbill.simulations.market import write_sample_market

# Changes only when the vocabulary, the grammar or the layout of the files changes on purpose.
DIGEST = "60c03f6e1693fcb9bc47b44c0193e2d01042abf87506179466424f69dd2efbc1"

# Superlatives and absolute claims that advertising law does not let a shop make.
FORBIDDEN = re.compile(
    r"\b(best|first|only|most|number one|no\. ?1|top choice|leading|perfect|unique|ultimate|guaranteed?|"
    r"always|never|cures?|heals?|cheapest|lowest|finest|greatest|world|customers?|reviews?|rated)\b",
    re.IGNORECASE,
)


def digest_of(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(folder).as_posix()}\0".encode())
            digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("market")
    assert [path.name for path in write_sample_market(folder)] == list(SHOPS)
    return folder


@pytest.fixture(scope="module")
def shops(market: Path) -> list[ShopData]:
    return [load_shop(market / shop) for shop in SHOPS]


def test_the_same_seed_gives_the_same_bytes(market, tmp_path):
    assert digest_of(market) == DIGEST
    write_sample_market(tmp_path)
    write_sample_market(tmp_path)  # a second call replaces, it does not add
    assert digest_of(tmp_path) == DIGEST
    write_sample_market(tmp_path, seed=8)
    assert digest_of(tmp_path) != DIGEST


def test_more_shops_are_others_in_the_same_trades(market, tmp_path):
    written = write_sample_market(tmp_path, shops=5)
    assert [path.name for path in written] == [*SHOPS, "fern-kettle-2", "margin-ink-2"]
    assert [source.info.id for source in find_shops(tmp_path)] == sorted(p.name for p in written)
    for shop in SHOPS:
        assert digest_of(tmp_path / shop) == digest_of(market / shop)
    first, other = (load_shop(tmp_path / name) for name in ("fern-kettle", "fern-kettle-2"))
    assert other.info.name == f"{first.info.name} 2"
    assert digest_of(tmp_path / "fern-kettle") != digest_of(tmp_path / "fern-kettle-2")


def test_every_shop_is_fit_for_private_training(market):
    for source in find_shops(market):
        report = check_shop(source)
        assert report.warnings == ()
        assert report.users == 400
        assert 40 <= report.items <= 60
        assert report.rows_per_user_median == 2
        assert report.rows_per_user_max >= 12
        assert set(report.events) == {"view", "cart", "purchase"}


def test_the_bad_rows_are_named_and_nothing_else_is(shops):
    for shop in shops:
        assert shop.n_read == len(shop.rows) + 6
        assert Counter(reject.table for reject in shop.rejects) == {
            "rows": 6,
            "products": 1,
            "events": 1,
        }


def test_copy_is_twenty_to_forty_five_words_without_claims(shops):
    for shop in shops:
        for row in shop.rows:
            assert 20 <= len(row.text.split()) <= 45
            assert not FORBIDDEN.search(row.text), row.text


def test_copy_reads_as_sentences(shops):
    for shop in shops:
        for row in shop.rows:
            assert row.text[-1] == "."
            assert not re.search(r"[{}]|  |\ba [aeio]|\ban [^aeiou0-9\W]|\bthe The\b", row.text)
            assert all(
                s[0].isupper() or s[0] == '"' for s in re.split(r"(?<=[.]) (?=\D)", row.text)
            )


def test_copy_speaks_of_this_product_and_this_shopper(shops):
    for shop in shops:
        interests = read_vocabulary(shop.info.id)["interests"]
        for row in shop.rows:
            assert row.request.title in row.text
            known = row.request.shopper.lower()
            assert any(i in row.text and i.lower() in known for i in interests), row


def test_held_out_copy_is_not_in_the_training_rows(shops):
    texts = [row.text for shop in shops for row in shop.rows]
    assert len(set(texts)) == len(texts)
    for shop in shops:
        train, held_out = split_users(shop, held_out_fraction=0.15, seed_label="test")
        words = [set(row.text.split()) for row in train.rows]
        for row in held_out.rows[:40]:
            mine = set(row.text.split())
            assert max(len(mine & other) / len(mine | other) for other in words) < 1


def test_shops_share_sentence_shapes_and_differ_in_voice(shops):
    shared = read_vocabulary("shared")["taste_after"]
    for shop in shops:
        texts = " ".join(row.text for row in shop.rows)
        assert all(shape.split("{")[0] in texts for shape in shared)
        for other in set(SHOPS) - {shop.info.id}:
            closings = read_vocabulary(other)["closings"]
            assert not any(closing in texts for closing in closings)


def test_every_interest_is_served_by_a_product():
    for shop in SHOPS:
        words = read_vocabulary(shop)
        assert set(words["interests"]) == {i for kind in words["kinds"] for i in kind["suits"]}


def test_a_market_says_that_it_is_invented(market):
    assert "Everything in this folder is invented" in (market / "README.md").read_text()


def test_what_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(InputError, match="at least 10 needed"):
        write_sample_market(tmp_path, shoppers_per_shop=9)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_sample_market(tmp_path / "file")


def test_the_invented_copy_is_copy_that_may_be_served(shops):
    rows = [row for shop in shops for row in shop.rows]
    blocked = [row.text for row in rows if blocks(check(row.text, product=row.request))]
    assert len(rows) > 200
    assert blocked == []
