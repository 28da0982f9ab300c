"""JSON from an untrusted party: read strictly, and into the types that a dataclass declares."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import is_dataclass
from types import UnionType
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from handbill.errors import HandbillError, ProtocolError

T = TypeVar("T")

_MAX_BYTES: Final = 4 * 1024 * 1024
_DEEPEST: Final = 16
_LARGEST: Final = 2**63
_MALFORMED: Final = (
    *(ArithmeticError, AttributeError, LookupError, TypeError, ValueError),
    HandbillError,
)
# Half a surrogate pair is no UTF-8, and databases refuse NUL in a text.
_NO_TEXT: Final = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


def read_object(data: bytes) -> dict[str, Any]:
    """Read a JSON object, which can then be shown, signed and stored as it is.

    Raises:
        ProtocolError: It is not one, absurdly long or deep, not UTF-8, names something twice, or holds
            NaN, infinity, an integer beyond 64 bits or a control character.
    """
    if len(data) > _MAX_BYTES:
        raise ProtocolError(f"statement of {len(data)} bytes is over {_MAX_BYTES}")
    try:
        fields = json.loads(data.decode(), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("statement is not JSON") from error
    if not isinstance(fields, dict):
        raise ProtocolError("statement is not an object")
    level: list[Any] = [fields]
    for _ in range(_DEEPEST):
        level = [inner for value in level for inner in _checked(value)]
        if not level:
            return fields
    raise ProtocolError(f"statement is nested more than {_DEEPEST} deep")


def read_as(kind: type[T], fields: object, **readers: Callable[[Any], object]) -> T:
    """Make a dataclass of a JSON object, and of the objects inside it those that it declares.

    Args:
        kind: The dataclass.
        fields: What :func:`read_object` gave.
        readers: How to read a field of a type that JSON and this function do not know.

    Raises:
        ProtocolError: A field is not exactly of the type declared, missing, unknown or refused by
            the dataclass.
    """
    what = kind.__name__.lower()
    if not isinstance(fields, dict):
        raise ProtocolError(f"{what}: not an object")
    declared = get_type_hints(kind)
    if unknown := sorted(fields.keys() - declared.keys()):
        raise ProtocolError(f"{what}: unknown field {unknown[0][:40]!r}")
    try:
        read = {name: readers[name](value) for name, value in fields.items() if name in readers}
        plain = {
            name: _value(f"{what}: {name}", value, declared[name])
            for name, value in fields.items()
            if name not in readers
        }
        return kind(**plain, **read)
    except ProtocolError:
        raise
    except _MALFORMED as error:
        raise ProtocolError(f"{what} is malformed ({printable(str(error))})") from error


def printable(text: str) -> str:
    """One line of an untrusted party that can be stored and shown anywhere, cut to 500 characters."""
    return "".join(c if c.isprintable() else "?" for c in text[:500])


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a name stands twice")
    return fields


def _checked(value: Any) -> list[Any]:
    """What is inside of a value that is sound so far."""
    match value:
        case dict():
            return [*value, *value.values()]
        case list():
            return value
        case str():
            sound = not _NO_TEXT.search(value)
        case float():
            sound = math.isfinite(value)
        case int():
            sound = -_LARGEST <= value < _LARGEST
        case _:
            sound = True
    if not sound:
        raise ProtocolError("statement holds a number or a text that cannot be stored or shown")
    return []


def _value(name: str, value: Any, declared: Any) -> object:
    """A field as it was declared."""
    for one in get_args(declared) or (declared,):
        if isinstance(one, type) and is_dataclass(one) and value is not None:
            return read_as(one, value)
    many = get_origin(declared) is tuple and type(value) is list
    if not (
        all(_is_of(v, get_args(declared)[0]) for v in value) if many else _is_of(value, declared)
    ):
        raise ProtocolError(f"{name} is not of its type")
    return tuple(value) if many else value


def _is_of(value: object, declared: Any) -> bool:
    """Whether a JSON value is exactly of a declared type: true is no number, 1 is a float too."""
    origin = get_origin(declared)
    if origin in {Union, UnionType}:
        return any(_is_of(value, one) for one in get_args(declared))
    if origin is Literal:
        return type(value) is str and value in get_args(declared)
    if declared is float:
        return type(value) in {int, float}
    return type(value) is (origin or declared)
