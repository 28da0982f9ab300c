"""What becomes of each record: languages, times, published copy, encodings, bounded memory."""

import subprocess
import sys

import pytest

from handbill.clients.checks import check_shop
from handbill.clients.cleaning import month_of
from handbill.clients.descriptions import PROTECTION, read_description
from handbill.clients.shop import load_shop
from handbill.clients.spool import Spool
from handbill.errors import InputError

SHOP = """
[shop]
id = "corner-shop"
[rows]
file = "copy.csv"
user = "who"
item = "what"
text = "copy"
title = "title"
language = "lang"
time = "at"
"""
PUBLISHED = """
[published]
file = "ads.csv"
text = "ad"
title = "name"
language = "lang"
"""


def make(folder, *, copy="", toml=SHOP, ads="", encoding="utf-8"):
    (folder / "shop.toml").write_text(toml)
    header = "who,what,title,copy,lang,at\n"
    (folder / "copy.csv").write_text(header + copy, encoding=encoding)
    (folder / "ads.csv").write_text("ad,name,lang\n" + ads)
    return folder


def test_a_row_may_have_its_own_language_and_time(tmp_path):
    rows = "u,p,Mug,Good,zh_CN,2025-03-01\nv,p,Mug,Good,,\nw,p,Mug,好,中文,1740823200000\n"
    bad = "x,p,Mug,Good,a tongue,\ny,p,Mug,Good,,noon\n"
    make(tmp_path, copy=rows + bad)
    shop = load_shop(tmp_path)
    assert [row.request.language for row in shop.rows] == ["zh-CN", "en", "zh"]
    assert [reject.reason for reject in shop.rejects] == [
        "lang: not a language tag such as en or zh",
        "at: not a time; use ISO 8601 or seconds since 1970",
    ]
    report = check_shop(read_description(tmp_path / "shop.toml"))
    assert report.languages == {"zh-CN": 1, "en": 1, "zh": 1}
    assert report.months == {"2025-03": 2}
    assert report.other_script == 1


@pytest.mark.parametrize(
    ("time", "month"),
    [
        ("2025-03-01T10:00:00Z", "2025-03"),
        ("2025/3/1 10:00", "2025-03"),
        ("2025年3月1日", "2025-03"),
        ("1740823200", "2025-03"),
        ("1740823200.5", "2025-03"),
        ("1740823200000", "2025-03"),
        ("2025-13-01", ""),
        ("2025/2/30", ""),
        ("99999999999999", "5138-11"),
        ("noon", ""),
        ("", ""),
    ],
)
def test_times_are_read_as_shops_write_them(time, month):
    assert month_of(time) == month


def test_published_copy_is_learnt_from_as_a_catalogue_is_and_names_no_shopper(tmp_path):
    ads = "Warm mugs.,Mug,\nWarm mugs.,Mug,\n好杯子,杯子,zh\nCall 138 1234 5678,Mug,\n,Mug,\nx,,\n"
    make(tmp_path, copy="u,p,Mug,Good,,\n", toml=SHOP + PUBLISHED, ads=ads)
    shop = load_shop(tmp_path)
    assert [(row.user, row.text, row.request.language) for row in shop.catalogue] == [
        ("", "Warm mugs.", "en"),
        ("", "好杯子", "zh"),
    ]
    assert {row.request.scenario for row in shop.catalogue} == {"product_description"}
    assert [str(reject) for reject in shop.rejects] == [
        "ads.csv:3: the same row as line 2",
        "ads.csv:5: ad: personal data (phone)",
        "ads.csv:6: ad: empty",
        "ads.csv:7: empty title: neither the row nor its product has one",
    ]
    report = check_shop(read_description(tmp_path / "shop.toml"))
    assert (report.published, report.rows_usable) == (2, 1)
    assert report.protection == {"shopper": 1, "catalogue": 2}
    assert {table for table, kind in PROTECTION.items() if kind == "shopper"} == {
        "rows", "shoppers", "events",
    }  # fmt: skip

    make(tmp_path, toml=SHOP + PUBLISHED + 'user = "who"\n')
    with pytest.raises(InputError, match=r"unknown key published.user"):
        load_shop(tmp_path)
    make(tmp_path, toml=SHOP + PUBLISHED.replace('title = "name"\n', ""))
    with pytest.raises(InputError, match=r"published.title is missing"):
        load_shop(tmp_path)


@pytest.mark.parametrize("encoding", ["gb18030", "gbk", "big5", "shift_jis", "utf-8"])
def test_a_table_may_have_another_encoding(tmp_path, encoding):
    toml = SHOP.replace('file = "copy.csv"', f'file = "copy.csv"\nencoding = "{encoding}"')
    make(tmp_path, copy="u,p,杯子,好,zh,\n", toml=toml, encoding=encoding)
    (row,) = load_shop(tmp_path).rows
    assert (row.request.title, row.text) == ("杯子", "好")


def test_a_byte_that_is_not_of_the_encoding_costs_its_row_only(tmp_path):
    toml = SHOP.replace('file = "copy.csv"', 'file = "copy.csv"\nencoding = "gb18030"')
    make(tmp_path, copy="u,p,杯子,好,zh,\nv,p,杯子,X,zh,\n", toml=toml, encoding="gb18030")
    file = tmp_path / "copy.csv"
    file.write_bytes(file.read_bytes().replace(b"X", b"\xff"))
    shop = load_shop(tmp_path)
    assert [row.user for row in shop.rows] == ["u"]
    assert "not valid" in shop.rejects[0].reason
    (tmp_path / "shop.toml").write_text(toml.replace("gb18030", "klingon"))
    with pytest.raises(InputError, match=r"rows\.encoding: 'klingon' is not one of utf-8, gb18030"):
        load_shop(tmp_path)


def test_what_is_masked_is_counted(tmp_path):
    make(tmp_path, copy="u,p,Mug a.weaver@example.org 14 Old Mill Lane,Good,,\n")
    report = check_shop(read_description(tmp_path / "shop.toml"))
    assert report.masked == {"address": 1, "email": 1}


def test_a_spool_holds_more_than_its_cache():
    with Spool(cache_kib=64) as spool:
        for n in range(20_000):
            assert spool.put("products", f"p{n}", n + 2, {"title": f"Mug number {n}"}) == 0
            assert spool.first_seen((f"row {n}",), n + 2) == n + 2
            spool.count("user", f"u{n % 7000}")
        assert spool.fields("products", "p19") == {"title": "Mug number 19"}
        assert spool.put("products", "p19", 9, {}) == 21
        assert spool.first_seen(("row 4",), 9) == 6
        assert spool.histogram("user") == {2: 1000, 3: 6000}
        assert [key for key, _ in spool.all_fields("products")][:2] == ["p0", "p1"]


MEASURE = """
import sys
from pathlib import Path
import psutil
from handbill.clients import spool
from handbill.clients.checks import check_shop
from handbill.clients.descriptions import read_description
from handbill.clients.shop import load_shop

spool.Spool.__init__.__kwdefaults__["cache_kib"] = 1024
memory = psutil.Process().memory_info

def grown(rows, read):
    with (folder / "copy.csv").open("w") as out:
        out.write("who,what,title,copy,lang,at\\n")
        out.writelines(f"u{n // 3},p{n % 99},Mug,Mug {n},,2025-03-01\\n" for n in range(rows))
    before = memory().rss
    kept = read(read_description(folder / "shop.toml"))
    assert rows in (getattr(kept, "rows_usable", 0), getattr(kept, "n_read", 0))
    return memory().rss - before

folder = Path(sys.argv[1])
peaks = []
def check(source):
    return check_shop(source, progress=lambda _: peaks.append(memory().rss))

grown(2_000, check)  # what is loaded once
start = memory().rss
peaks.clear()
grown(20_000, check)
print(max(peaks) - start, grown(20_000, load_shop))
"""


def test_memory_of_a_check_does_not_grow_with_the_table(tmp_path):
    make(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)], check=True, capture_output=True, text=True
    )
    checked, loaded = (int(size) / 2**20 for size in done.stdout.split())
    assert checked < 3  # MiB
    assert loaded > 5  # the same rows, kept
