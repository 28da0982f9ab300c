import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from rich.console import Console

from handbill.simulations.report import (
    PROBE,
    DemoReport,
    Explained,
    Overhead,
    Sample,
    ShopResult,
    data_size,
    duration,
    number,
    render_report,
    small,
    summary,
)
from handbill.simulations.report_terminal import terminal_tables

HOSTILE = "<script>alert(1)</script> & $x^{$ [bold]'\"</text>"


def shop(name="Lantern Books", **facts):
    given = {
        "id": "lantern",
        "name": name,
        "users": 1200,
        "rows": 3400,
        "loss_base": 3.234,
        "loss_global": 2.711,
        "loss_personal": 2.604,
        "rouge_base": 0.14,
        "rouge_personal": 0.21,
        "distinct2_base": 0.81,
        "distinct2_personal": 0.66,
        "epsilon": 5.62,
        "delta": 2.04e-4,
        "epsilon_limit": 8.0,
        "rounds": 6,
        "bytes_up": 5_230_000,
        "bytes_down": 999,
        "train_seconds": 93.4,
        **facts,
    }
    return ShopResult(**given)


def report(*shops, **facts):
    shops = list(shops) or [shop(), shop("Corner Table", epsilon=6.01)]
    given = {
        "name": "Three shops",
        "data": "the sample market (invented)",
        "base": "smollm2-135m",
        "shops": shops,
        "curve": {s.name: [(0, 3.2), (1, 2.9), (2, 2.7)] for s in shops}
        | {PROBE: [(0, 3.3), (2, 2.8)]},
        "seconds": 311.0,
        "stages": {"check the data": 3.1, "train together": 302.0},
        "peak_memory_mib": {"server": 812.0, "trainer": 1630.4},
        "samples": [
            Sample(shop="Lantern Books", title="The Salt Road", before="A book.", after="A walk.")
        ],
        "overhead": Overhead(cold_s=9.1, warm_s=0.84),
        "commands": ["curl http://127.0.0.1:8000/v1/copy", "handbill models list"],
        "created": "2026-01-01T00:00:00+00:00",
        "versions": {"torch": "2.13.0"},
        **facts,
    }
    return DemoReport(**given)


class Page(HTMLParser):
    """Collects elements, text, and every attribute that could fetch something."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.links = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for n, v in attrs if n in {"src", "href", "xlink:href", "action", "data"}]
        self.links += re.findall(r"url\(([^)]*)\)", " ".join(v or "" for _, v in attrs))

    def handle_data(self, data):
        self.text.append(data)


def page_of(tmp_path, wanted):
    html = render_report(wanted, tmp_path / "new" / "report.html").read_text()
    return html, Page(html)


def test_the_page_says_what_the_served_copy_comes_from(tmp_path):
    parts = [("interest", "likes <tea>", 3.14, 75.0), ("fact", "oak", -0.2, 0.0)]
    told = Explained(shop="Lantern Books", text="For tea & reading.", parts=parts)
    html, page = page_of(tmp_path, report(explained=[told]))
    text = " ".join(" ".join(page.text).split())
    for fact in ("For tea & reading.", "interest: likes <tea>", "+3.14", "fact: oak", "-0.20"):
        assert fact in text
    assert "width: 75.0%" in html
    assert "Why the copy" not in page_of(tmp_path, report())[0]


def test_the_page_holds_every_fact(tmp_path):
    _, page = page_of(tmp_path, report())
    text = " ".join(" ".join(page.text).split())
    for fact in (
        "Three shops",
        "Lantern Books",
        "3.23",
        "2.71",
        "2.60",
        "0.14",
        "0.21",
        "0.66",
        "5.62",
        "6.01",
        "2.0 × 10⁻⁴",
        "5.2 MB",
        "999 B",
        "1 min 33 s",
        "5 min 2 s",
        "1,630 MiB",
        "A book.",
        "A walk.",
        "epsilon = 5.62",
        "curl http://127.0.0.1:8000/v1/copy",
        "torch 2.13.0",
    ):
        assert fact in text, fact


def test_the_page_fetches_nothing(tmp_path):
    html, page = page_of(tmp_path, report())
    assert page.links
    assert all(link.startswith("#") for link in page.links)
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(page.tags)
    assert "default-src 'none'" in html
    assert "@import" not in html
    outside_text = re.sub(r"<code>.*?</code>", "", html)
    assert "http" not in outside_text.replace("http-equiv", "")


def test_the_curve_is_drawn_once_for_wide_and_once_for_narrow_screens(tmp_path):
    html, page = page_of(tmp_path, report())
    assert page.tags.count("svg") == 2
    assert html.count("stroke: var(--s1)") == html.count("stroke: var(--s2)") == 2
    assert "#0101" not in html
    assert "#0404" not in html
    ids = re.findall(r"<clipPath id=\"([^\"]+)\"", html)
    assert len(set(ids)) == len(ids)


def test_names_and_copy_are_escaped(tmp_path):
    wanted = report(
        shop(HOSTILE),
        name=HOSTILE,
        data=HOSTILE,
        samples=[
            Sample(shop=HOSTILE, title=HOSTILE, shopper=HOSTILE, before=HOSTILE, after=HOSTILE)
        ],
        commands=[HOSTILE],
        seconds=1.0,
        stages={HOSTILE: 1.0},
        versions={HOSTILE: HOSTILE},
    )
    html, page = page_of(tmp_path, wanted)
    assert "script" not in page.tags
    assert "&lt;script&gt;alert(1)" in html
    assert HOSTILE in "".join(page.text)


def test_what_was_not_measured_is_a_dash_and_empty_parts_are_left_out(tmp_path):
    wanted = report(
        shop(loss_personal=None, rouge_personal=None, distinct2_personal=None),
        samples=[],
        commands=[],
        overhead=None,
        peak_memory_mib={},
    )
    html, _ = page_of(tmp_path, wanted)
    assert "–" in html
    assert "Before and after" not in html
    assert "What to try next" not in html
    assert "2.71" in summary(wanted)[1]


def test_the_summary_says_when_things_went_wrong():
    good = " ".join(summary(report()))
    assert "the loss fell for every shop" in good
    assert "within every shop's own limit" in good
    assert "no connection off" in good
    bad = report(
        shop(), shop("Worse", loss_personal=3.9, epsilon=8.2), sockets_off_machine=2, overhead=None
    )
    said = " ".join(summary(bad))
    assert "fell for 1 of 2 shops" in said
    assert "OVER the limit" in said
    assert "2 connections off" in said


def test_a_shop_over_its_limit_is_marked(tmp_path):
    over, _ = page_of(tmp_path, report(shop(epsilon=9.0)))
    assert 'class="meter over"' in over
    assert "width: 100%" in over
    within, _ = page_of(tmp_path, report(shop(epsilon=4.0)))
    assert 'class="meter over"' not in within
    assert "width: 50.0%" in within


def test_the_terminal_shows_the_same_in_80_columns_with_markup_as_text():
    wanted = replace(
        report(shop("A [bold]shop"), shop()),
        samples=[Sample(shop="A", title="T", shopper="likes [red]tea", before="[/] b", after="a")],
    )
    console = Console(width=80, record=True, file=io.StringIO())
    for table in terminal_tables(wanted):
        console.print(table)
    text = console.export_text()
    assert max(len(line) for line in text.splitlines()) <= 80
    for fact in ("3.23 → 2.71 → 2.60", "0.14 → 0.21", "5.62 of 8.00", "2.0e-04", "[bold]shop"):
        assert fact in text
    assert "[red]tea" in text
    assert "[/] b" in text
    assert "handbill models list" not in text  # printed apart, unwrapped, so that it can be pasted


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (number(2.345), "2.35"),
        (number(1234.5), "1,234"),
        (number(None), "–"),
        (small(1e-5), "1.0\xa0×\xa010⁻⁵"),
        (data_size(0), "0\xa0B"),
        (data_size(12_300), "12.3\xa0kB"),
        (data_size(4.2e9), "4.2\xa0GB"),
        (duration(0.834), "0.83\xa0s"),
        (duration(9.12), "9.1\xa0s"),
        (duration(59.6), "60\xa0s"),
        (duration(119.7), "2\xa0min\xa00\xa0s"),
    ],
)
def test_numbers_have_sensible_digits(shown, expected):
    assert shown == expected
