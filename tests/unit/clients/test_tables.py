"""Every record of a table comes out once, with the line it starts on, readable or not."""

import csv
import gzip
import io
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from handbill.clients.tables import MAX_RECORD_LINES, NESTED, Record, columns_of, read_table
from handbill.errors import InputError

# Quotes, separators and line feeds are what CSV can get wrong; \r would make two conventions
# of counting lines disagree.
cells = st.text(
    st.one_of(
        st.sampled_from("\",\n\t;'{}"),
        st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")),
    ),
    max_size=12,
)


def records_of(content: bytes, name: str) -> list[Record]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return list(read_table(path))


def without_line_ends(text: str) -> str:
    return text.replace("\r", "").replace("\n", "")


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(st.tuples(cells, cells), max_size=8), st.sampled_from(["csv", "tsv", "csv.gz"]))
def test_written_rows_come_back_with_their_lines(rows, kind):
    out, starts = io.StringIO(), []
    writer = csv.writer(out, delimiter="\t" if kind == "tsv" else ",", lineterminator="\n")
    writer.writerow(["one", "two"])
    for row in rows:
        starts.append(out.getvalue().count("\n") + 1)
        writer.writerow(row)

    read = records_of(out.getvalue().encode(), f"table.{kind}")

    assert [(r.line, r.problem) for r in read] == [(start, "") for start in starts]
    assert [(r.values["one"], r.values["two"]) for r in read] == rows


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(st.dictionaries(cells, cells, max_size=3), max_size=8), st.booleans())
def test_written_json_lines_come_back_with_their_lines(rows, ascii_only):
    lines = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
    spaced = "\n\n".join(lines)  # blank lines are no records, but they count as lines

    read = records_of(spaced.encode(), "table.jsonl.gz")

    assert [r.values for r in read] == rows
    assert [r.line for r in read] == [1 + 2 * n for n in range(len(rows))]


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(st.binary(max_size=20), max_size=6), st.sampled_from([b"\n", b"\r\n"]))
@example(lines=[b'a,"b', b"c,d", b"\xff,e", b'"f"g,h'], end=b"\n")
def test_no_byte_of_a_broken_csv_is_lost_or_read_twice(lines, end):
    body = end.join(lines)
    read = records_of(b"one,two" + end + body, "table.csv")

    kept = "".join(record.raw for record in read)
    assert without_line_ends(kept) == without_line_ends(body.decode(errors="surrogateescape"))
    assert all(bool(record.problem) != bool(record.values) for record in read)
    assert [r.line for r in read] == sorted({r.line for r in read})


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(st.binary(max_size=20).filter(lambda line: b"\n" not in line), max_size=6))
def test_every_line_of_broken_json_lines_is_named(lines):
    body = b"\n".join([b"{}", *lines])
    read = records_of(body, "table.jsonl")

    texts = [line.decode(errors="surrogateescape") for line in body.split(b"\n")]
    assert [r.line for r in read] == [n for n, text in enumerate(texts, 1) if text.strip()]


def test_an_open_quote_costs_its_own_line_only():
    rows = "".join(f"u{n},text\n" for n in range(2 * MAX_RECORD_LINES))
    read = records_of(f'one,two\n"never closed,x\n{rows}'.encode(), "table.csv")

    assert [(r.line, r.problem) for r in read if r.problem] == [
        (2, "a quote is opened and not closed")
    ]
    assert len(read) == 1 + 2 * MAX_RECORD_LINES


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"[1, 2]", "not a JSON object"),
        (b'{"a": ', "not valid JSON (Expecting value at column 7)"),
        (b'{"a": "\\ud800"}', "not valid UTF-8"),
        (b'{"a": "\xff"}', "not valid UTF-8"),
        (b"[" * 100_000, "not valid JSON (a number too long, or nested too deep)"),
        (b'{"a": ' + b"1" * 5000 + b"}", "not valid JSON (a number too long, or nested too deep)"),
    ],
)
def test_a_json_line_that_cannot_be_read_says_why(line, problem):
    (record,) = records_of(line, "table.jsonl")
    assert record.problem == problem


def test_json_values_become_text():
    line = (
        b'{"a": null, "b": 3, "c": ["x", "y"], "d": true, "e": NaN, "f": {"Size:": "L", "g": null},'
        b' "h": [["cut", "wide"], ["made", "by hand"]], "i": {"b": [1]}}'
    )
    (record,) = records_of(line, "t.jsonl")
    assert record.values == {
        "a": "", "b": "3", "c": "x, y", "d": "true", "e": "NaN", "f": "Size L",
        "h": "cut wide, made by hand", "i": NESTED,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.xlsx", b"", "unknown kind of table; use one of .csv"),
        ("t.csv", b"", "t.csv:1: no header"),
        ("t.csv", b"\n1,2\n", "t.csv:1: no header"),
        ("t.csv", b"a,b,a\n", "t.csv:1: column named twice: 'a'"),
        ("t.csv", "a,b\n".encode("utf-16"), "t.csv:1: the header is not plain UTF-8"),
        ("t.csv", b'"a,b\n', "t.csv:1: the header cannot be read"),
        ("t.csv.gz", b"a,b\n", "damaged gzip file"),
        ("t.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 999, mtime=0)[:-20], "damaged gzip file"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        list(read_table(tmp_path / name))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"gone.csv: no such file"):
        list(read_table(tmp_path / "gone.csv"))
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(InputError, match="cannot be read"):
        columns_of(tmp_path / "folder.csv")


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbfone,two\r\na,b\r\n")
    assert columns_of(tmp_path / "t.csv") == ("one", "two")
    assert [r.values for r in read_table(tmp_path / "t.csv")] == [{"one": "a", "two": "b"}]


def test_parquet_rows_are_numbered_from_one(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table({"user": ["a", "b"], "price": [1.5, float("nan")]})
    parquet.write_table(table, tmp_path / "t.parquet")

    read = list(read_table(tmp_path / "t.parquet"))

    assert columns_of(tmp_path / "t.parquet") == ("user", "price")
    assert [(r.line, r.values) for r in read] == [
        (1, {"user": "a", "price": "1.5"}),
        (2, {"user": "b", "price": "NaN"}),
    ]
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    with pytest.raises(InputError, match="damaged Parquet file"):
        columns_of(tmp_path / "bad.parquet")
