"""Reads a merchant's tables one record at a time and remembers where each record stood.

A record that cannot be read is handed on with its ``problem`` instead of being dropped, so that
the caller can set it aside: every record of the file comes out exactly once. Blank lines are no
records.
"""

import csv
import gzip
import importlib
import io
import json
import re
import zlib
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Final, TextIO, cast

from handbill.errors import InputError

SUFFIXES: Final = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".jsonl", ".jsonl.gz", ".parquet")
UTF8: Final = "utf-8"
# What text tables come in, by the names that are written in a description.
ENCODINGS: Final[dict[str, str]] = {
    UTF8: "utf-8-sig",
    "gb18030": "gb18030",
    "gbk": "gb18030",  # the newer standard reads all of the older one
    "big5": "big5hkscs",
    "shift_jis": "cp932",
    "latin-1": "cp1252",
}

# A quote that is never closed would swallow the rest of the file: past this many lines it is
# the fault of the line it opened on, and reading goes on with the next line.
MAX_RECORD_LINES: Final = 200
COLUMNS_FROM_RECORDS: Final = 200  # how far JSON lines are read to learn their columns

NESTED: Final = "\x00nested"  # no text that may be used has such a character

_SURROGATE: Final = re.compile(r"[\ud800-\udfff]")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One record of a table.

    Attributes:
        line: Physical line on which the record starts, from 1 (Parquet: the row, from 1).
        values: Column name to text; empty when ``problem`` is set.
        raw: The record as it stands in the file.
        problem: Why the record cannot be read; "" when it can. Never holds its content.
    """

    line: int
    values: dict[str, str]
    raw: str
    problem: str = ""


def read_table(path: Path, encoding: str = UTF8) -> Iterator[Record]:
    """Every record of a table in file order, one at a time.

    Args:
        path: The table.
        encoding: A key of :data:`ENCODINGS`; Parquet has its own.

    Raises:
        InputError: the file is missing, of an unknown kind, damaged, or has no usable header.
    """
    suffix = _suffix(path)
    if suffix == ".parquet":
        yield from _read_parquet(path)
        return
    with _opened(path, encoding) as lines:
        if suffix.startswith(".jsonl"):
            yield from _read_json_lines(lines)
        else:
            yield from _read_delimited(path, lines, delimiter=_delimiter(suffix))


def columns_of(path: Path, encoding: str = UTF8) -> tuple[str, ...]:
    """The column names of a table: its header, its schema, or the keys of its first JSON records.

    Raises:
        InputError: as :func:`read_table`.
    """
    suffix = _suffix(path)
    if suffix == ".parquet":
        return tuple(_parquet_file(path).schema_arrow.names)
    if suffix.startswith(".jsonl"):
        first = islice(read_table(path, encoding), COLUMNS_FROM_RECORDS)
        return tuple(dict.fromkeys(name for record in first for name in record.values))
    with _opened(path, encoding) as lines:
        return tuple(_header(path, lines, delimiter=_delimiter(suffix)))


def text_problem(text: str) -> str:
    """Why a text cannot be used as it stands: broken, nested, control characters; "" if fine."""
    if text == NESTED:
        return "a nested object where text is expected"
    if _SURROGATE.search(text):
        return "not valid UTF-8"
    if _CONTROL.search(text):
        return "control characters"
    return ""


def _suffix(path: Path) -> str:
    for suffix in SUFFIXES:
        if path.name.lower().endswith(suffix):
            return suffix
    raise InputError(f"{path}: unknown kind of table; use one of {', '.join(SUFFIXES)}")


def _delimiter(suffix: str) -> str:
    return "\t" if suffix.startswith(".tsv") else ","


@contextmanager
def _opened(path: Path, encoding: str) -> Iterator[TextIO]:
    """The table's text, with every way it can be damaged turned into one clear error."""
    # CSV may hold any line end inside quotes; a JSON record ends at a line feed only.
    newline = "\n" if ".jsonl" in path.name.lower() else ""
    compressed = path.name.lower().endswith(".gz")
    try:
        # surrogateescape keeps bytes that are not UTF-8, so that one bad row can be set aside
        # as it was instead of ending the whole file.
        with (
            gzip.open(path, "rb") if compressed else path.open("rb") as binary,
            io.TextIOWrapper(
                cast("BinaryIO", binary),
                encoding=ENCODINGS[encoding],
                errors="surrogateescape",
                newline=newline,
            ) as lines,
        ):
            yield lines
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (gzip.BadGzipFile, zlib.error, EOFError):
        raise InputError(f"{path}: damaged gzip file; write it again") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


def _header(path: Path, lines: Iterator[str], *, delimiter: str) -> list[str]:
    try:
        cells = next(csv.reader(lines, delimiter=delimiter, strict=True), [])
    except csv.Error as error:
        raise InputError(f"{path}:1: the header cannot be read ({error})") from None
    names = [name.strip() for name in cells]
    if not any(names):
        raise InputError(f"{path}:1: no header; the first line must name the columns")
    if any(text_problem(name) for name in names):
        raise InputError(
            f"{path}:1: the header is not plain UTF-8; save the table as UTF-8, or "
            f"name its encoding in the description"
        )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{path}:1: column named twice: {', '.join(map(repr, twice))}")
    return names


def _read_delimited(path: Path, lines: TextIO, *, delimiter: str) -> Iterator[Record]:
    header_lines: list[str] = []

    def noted() -> Iterator[str]:
        for line in lines:
            header_lines.append(line)
            yield line

    names = _header(path, noted(), delimiter=delimiter)
    number = len(header_lines)
    ahead: deque[str] = deque()
    while True:
        taken: list[str] = []
        problem, cells = _next_record(lines, ahead, taken, delimiter=delimiter)
        if not taken:
            return
        line, raw = number + 1, "".join(taken).rstrip("\r\n")
        number += len(taken)
        if not raw:
            continue
        if not problem:
            problem = _cells_problem(cells, names, raw)
        values = {} if problem else dict(zip(names, cells, strict=True))
        yield Record(line=line, values=values, raw=raw, problem=problem)


def _next_record(
    lines: Iterator[str], ahead: deque[str], taken: list[str], *, delimiter: str
) -> tuple[str, list[str]]:
    """Parse one record; leave its physical lines in ``taken``. Returns (problem, cells)."""

    def feed() -> Iterator[str]:
        while len(taken) < MAX_RECORD_LINES:
            line = ahead.popleft() if ahead else next(lines, None)
            if line is None:
                return
            taken.append(line)
            yield line

    try:
        return "", next(csv.reader(feed(), delimiter=delimiter, strict=True), [])
    except csv.Error as error:
        # Only the line it began on is to blame: the lines after it are read afresh.
        ahead.extendleft(reversed(taken[1:]))
        del taken[1:]
        if "unexpected end" in str(error):
            return "a quote is opened and not closed", []
        return f"not a row of this table ({error})", []


def _cells_problem(cells: list[str], names: list[str], raw: str) -> str:
    if _SURROGATE.search(raw):
        return "not valid UTF-8"
    if len(cells) != len(names):
        return f"{len(cells)} columns where the header has {len(names)}"
    return ""


def _read_json_lines(lines: TextIO) -> Iterator[Record]:
    for number, line in enumerate(lines, start=1):
        raw = line.rstrip("\r\n")
        if raw.strip():
            problem, values = _parse_json(raw)
            yield Record(line=number, values=values, raw=raw, problem=problem)


def _parse_json(raw: str) -> tuple[str, dict[str, str]]:
    try:
        # NaN and Infinity are no JSON, but Python writes them: keep the word, a price check
        # then refuses it by name.
        parsed = json.loads(raw, parse_constant=str)
    except json.JSONDecodeError as error:
        return f"not valid JSON ({error.msg} at column {error.colno})", {}
    except (ValueError, RecursionError):
        return "not valid JSON (a number too long, or nested too deep)", {}
    if not isinstance(parsed, dict):
        return "not a JSON object", {}
    return parse_fields(parsed)


def parse_fields(fields: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """The fields of a JSON object, or of one like it, as text: (problem, values).

    What is nested too deep becomes :data:`NESTED`: it matters only where a description names it.
    """
    values: dict[str, str] = {}
    for name, value in fields.items():
        text = _as_text(value)
        values[name] = NESTED if text is None else text
    if any(_SURROGATE.search(text) for text in (*values, *values.values())):
        return "not valid UTF-8", {}
    return "", values


def _as_text(value: Any) -> str | None:
    """A cell as text; None where it is nested deeper than one list or one object of values.

    Null is empty, a list is joined with commas, and so is an object: ``{"Size": "L"}`` is "Size L",
    and so is a list of pairs, ``[["Size", "L"]]``.
    """
    if isinstance(value, dict):
        named = {name.rstrip(":"): _scalar(part) for name, part in value.items()}
        if None in named.values():
            return None
        return ", ".join(f"{name} {part}" for name, part in named.items() if part)
    if isinstance(value, list):
        parts = [_scalar(part) if not _is_pair(part) else " ".join(part) for part in value]
        return None if None in parts else ", ".join(part for part in parts if part)
    return _scalar(value)


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(v, str) for v in value)


def _scalar(value: Any) -> str | None:
    """A single JSON value as text, None for a list or an object."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return None if isinstance(value, (list, dict)) else str(value)


def _read_parquet(path: Path) -> Iterator[Record]:
    number = 0
    for batch in _parquet_file(path).iter_batches(batch_size=1024):
        for row in batch.to_pylist():
            number += 1
            raw = json.dumps(row, ensure_ascii=False, default=str)
            problem, values = _parse_json(raw)
            yield Record(line=number, values=values, raw=raw, problem=problem)


def _parquet_file(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise InputError(
            f"{path}: Parquet needs pyarrow: pip install pyarrow, or save the table as CSV"
        ) from None
    try:
        return parquet.ParquetFile(path)
    except (OSError, ValueError):  # pyarrow's own errors are ValueErrors
        raise InputError(f"{path}: damaged Parquet file; write it again") from None
