"""Pieces of written copy with what they were written from, as JSON lines, to be measured or rated."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from handbill.errors import InputError
from handbill.generator.prompts import CopyRequest
from handbill.generator.scenarios import Scenarios

_REQUEST: Final = tuple(field.name for field in fields(CopyRequest))
_KEYS: Final = (
    "id",
    "text",
    "candidates",
    "reference",
    "references",
    "attributes",
    "group",
    *_REQUEST,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """One piece of copy.

    Attributes:
        id: What it was written for; the same in the files of all systems.
        text: The copy; "" where only candidates are given.
        candidates: Several pieces for the same request.
        references: What people wrote for the same request.
        attributes: Name and value of the product's facts, such as (材质, 棉); names may repeat.
        group: Of shoppers whom it was written for, to compare groups; no prompt has it.
    """

    id: str
    text: str
    request: CopyRequest
    candidates: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    attributes: tuple[tuple[str, str], ...] = ()
    group: str = ""

    @property
    def product(self) -> CopyRequest:
        """The request with everything that is known of the product in its description."""
        known = "\n".join(f"{name} {value}" for name, value in self.attributes)
        asked = self.request
        if not known:
            return asked
        return CopyRequest(
            title=asked.title,
            description=f"{asked.description}\n{known}",
            category=asked.category,
            brand=asked.brand,
            price=asked.price,
            language=asked.language,
        )


def read_copies(
    path: Path, *, written: bool = True, scenarios: Scenarios | None = None
) -> list[Copy]:
    """Read a file of copy: one JSON object a line, see ``docs/evaluation.md``.

    Args:
        path: The file.
        written: Whether each has to have a text, or is a product that copy is still to be written for.
        scenarios: What is asked in the words of: each names one of them. Where copy is only measured, its
            scenario is nobody's business.

    Raises:
        InputError: Naming the line and the field that is wrong.
    """
    copies = [
        copy_of(fields, where, written=written, scenarios=scenarios)
        for where, fields in read_objects(path)
    ]
    seen: dict[str, int] = {}
    for number, copy in enumerate(copies, start=1):
        if copy.id in seen:
            raise InputError(f"{path}: id {copy.id!r} is on records {seen[copy.id]} and {number}")
        seen[copy.id] = number
    if not copies:
        raise InputError(f"{path}: holds no copy")
    return copies


def read_objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each JSON object of a file of JSON lines, and ``file:line``.

    Raises:
        InputError: A line is no JSON object, or the file cannot be read.
    """
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    where = f"{path}:{number}"
                    try:
                        fields = json.loads(line)
                    except ValueError:
                        raise InputError(f"{where}: not valid JSON") from None
                    if not isinstance(fields, dict):
                        raise InputError(f"{where}: not a JSON object")
                    yield where, fields
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None


def copy_of(
    fields: Mapping[str, Any],
    where: str,
    *,
    written: bool = True,
    scenarios: Scenarios | None = None,
) -> Copy:
    """A piece of copy of its fields; ``where`` is for errors, the rest as for :func:`read_copies`.

    Raises:
        InputError: A field is missing, unknown or of another kind.
    """
    if unknown := [name for name in fields if name not in _KEYS]:
        raise InputError(f"{where}: unknown field {unknown[0]!r}; known: {', '.join(_KEYS)}")

    def texts(name: str) -> tuple[str, ...]:
        values = fields.get(name, [])
        if not isinstance(values, list) or not all(isinstance(v, str) and v for v in values):
            raise InputError(f"{where}: {name}: must be a list of texts")
        return tuple(values)

    def text(name: str) -> str:
        value = fields.get(name, "")
        if not isinstance(value, (str, int, float)) or isinstance(value, bool):
            raise InputError(f"{where}: {name}: must be a text")
        return str(value)

    references = texts("references") or ((text("reference"),) if fields.get("reference") else ())
    candidates = texts("candidates")
    if not text("id"):
        raise InputError(f"{where}: id is missing: it says what belongs together")
    if written and not text("text") and not candidates:
        raise InputError(f"{where}: text is missing")
    asked = {name: text(name) for name in _REQUEST if name in fields}
    try:
        request = CopyRequest(**asked)
        if scenarios is not None:
            scenarios.get(request.scenario)
    except (InputError, TypeError) as error:
        reason = str(error) if isinstance(error, InputError) else "title is missing"
        raise InputError(f"{where}: {reason}") from None
    return Copy(
        id=text("id"),
        text=text("text"),
        request=request,
        candidates=candidates,
        references=references,
        attributes=_attributes(fields.get("attributes", []), where),
        group=text("group"),
    )


def _attributes(given: Any, where: str) -> tuple[tuple[str, str], ...]:
    pairs = list(given.items()) if isinstance(given, dict) else given
    if isinstance(pairs, list):
        pairs = [tuple(pair) if isinstance(pair, list) else pair for pair in pairs]
        if all(
            isinstance(pair, tuple)
            and len(pair) == 2
            and all(isinstance(part, str) for part in pair)
            for pair in pairs
        ):
            return tuple(pairs)
    raise InputError(f"{where}: attributes: must be an object of texts or a list of pairs of texts")
