"""Pages: what they are given is text, whatever it holds."""

import re

import pytest

from handbill.privacy.document import (
    Code,
    Document,
    Items,
    Note,
    Section,
    Table,
    Text,
    to_html,
    to_markdown,
)

EVIL = "<script>alert(1)</script> [a](http://b) | `c` *d*\n# e"
PAGE = Document(
    EVIL,
    EVIL,
    (
        Section(EVIL, (Text(EVIL), Note(EVIL), Items((EVIL, "two")))),
        Section("below", (Table(("x", EVIL), ((EVIL, "1"), ("2", "3"))), Code("a < b"))),
    ),
)


def test_html_escapes_everything_and_fetches_nothing():
    html = to_html(PAGE)
    assert "<script" not in html
    assert html.count("&lt;script&gt;") == 9  # the title stands twice
    assert "a &lt; b" in html
    assert not re.search(r"(?:src|href)\s*=|url\(|@import", html)
    assert "default-src 'none'" in html


def test_markdown_escapes_everything_outside_code():
    lines = to_markdown(PAGE).splitlines()
    assert not [line for line in lines if re.search(r"(?<!\\)[<`\[]", line) and line[:3] != "```"
                and line != "a < b"]  # fmt: skip
    assert [line for line in lines if line.startswith("#")] == [
        line for line in lines if re.match(r"##? (\\<script|below)", line)
    ]
    (head,) = [line for line in lines if line.startswith("| x |")]
    assert len(re.findall(r"(?<!\\)\|", head)) == 3


@pytest.mark.parametrize("render", [to_html, to_markdown])
def test_blocks_come_in_order(render):
    text = render(PAGE)
    assert text.index("two") < text.index("below") < text.rindex("a ")
