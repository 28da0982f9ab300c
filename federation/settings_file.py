"""Frozen dataclasses as TOML files: checked once when read, errors that name file and key."""

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Final, TypeVar

import tomli_w

from handbill.errors import InputError, MissingError

T = TypeVar("T")

# What TOML may hold for a field of a type; fields of other types check themselves.
_ALLOWED: Final[dict[Any, tuple[type, ...]]] = {
    bool: (bool,),
    int: (int,),
    float: (int, float),
    str: (str,),
}


def save_settings(value: Any, path: Path) -> None:
    """Write a dataclass as TOML."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(tomli_w.dumps(asdict(value)))


def load_settings(
    cls: type[T], path: Path, *, remedy: str, tables: Mapping[str, Any] | None = None
) -> T:
    """Read a dataclass that :func:`save_settings` wrote and somebody may have edited.

    Args:
        cls: The dataclass.
        path: The file.
        remedy: What to do when there is no file.
        tables: Dataclass of each field that is a table of its own.

    Raises:
        MissingError: There is no file.
        InputError: Naming the file and the key that is wrong.
    """
    if not path.is_file():
        raise MissingError(f"{path}: not there; {remedy}")
    try:
        given: dict[str, Any] = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {error}") from error
    for name, table in (tables or {}).items():
        if name in given:
            given[name] = _build(table, given[name], f"{path}: [{name}]")
    return _build(cls, given, str(path))


def _build(cls: type[T], given: Any, where: str) -> T:
    if not isinstance(given, dict):
        raise InputError(f"{where}: must be a table")
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]  # always a dataclass
    for key in given:
        if key not in known:
            raise InputError(f"{where}: unknown key {key!r}; known: {', '.join(sorted(known))}")
    for key, value in given.items():
        allowed = _ALLOWED.get(known[key].type)
        if allowed and type(value) not in allowed:
            raise InputError(f"{where}: {key} = {value!r} is not of type {allowed[-1].__name__}")
    try:
        return cls(**given)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    except TypeError as error:
        raise InputError(f"{where}: a key is missing ({error})") from error
