"""A page for people: sections of text, lists and tables, written as Markdown or as one HTML file.

Both renderers escape everything they are given: what a page says may come from a manifest that
somebody else wrote.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import jinja2


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True, slots=True)
class Note:
    """A paragraph that stands out: what must not be missed."""

    kind: ClassVar[str] = "note"
    text: str


@dataclass(frozen=True, slots=True)
class Items:
    """A list."""

    kind: ClassVar[str] = "items"
    items: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """A table; rows have as many cells as there are headings."""

    kind: ClassVar[str] = "table"
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Code:
    """Lines to paste into a terminal."""

    kind: ClassVar[str] = "code"
    text: str


Block: TypeAlias = Text | Note | Items | Table | Code


@dataclass(frozen=True, slots=True)
class Section:
    """A heading (level 2 or 3) and what stands below it."""

    heading: str
    blocks: tuple[Block, ...]
    level: int = 2


@dataclass(frozen=True, slots=True)
class Document:
    """A title, a line below it, and sections."""

    title: str
    subtitle: str
    sections: tuple[Section, ...]


def to_markdown(document: Document) -> str:
    """Return the document as Markdown (CommonMark, with the tables of GitHub)."""
    parts = [f"# {_plain(document.title)}", _plain(document.subtitle)]
    for section in document.sections:
        parts.append(f"{'#' * section.level} {_plain(section.heading)}")
        parts += [_block(block) for block in section.blocks]
    return "\n\n".join(parts) + "\n"


def to_html(document: Document) -> str:
    """Return the document as one HTML file that fetches nothing: no script, no font, no image."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("handbill.privacy", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("document.html").render(document=document)


def _block(block: Block) -> str:
    if isinstance(block, Text):
        return _plain(block.text)
    if isinstance(block, Note):
        return f"> {_plain(block.text)}"
    if isinstance(block, Items):
        return "\n".join(f"- {_plain(item)}" for item in block.items)
    if isinstance(block, Code):
        return f"```\n{block.text}\n```"
    lines = [_row(block.head), "|" + "---|" * len(block.head)]
    return "\n".join([*lines, *(_row(row) for row in block.rows)])


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_plain(cell) for cell in cells) + " |"


def _plain(text: str) -> str:
    """Escape what Markdown or the HTML in it would read as more than text."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))
