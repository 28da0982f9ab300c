"""Which software computed and drew: versions, and digests that two machines can compare."""

import csv
import hashlib
import os
import platform
from collections.abc import Iterable
from functools import cache
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path, PurePosixPath
from typing import Final

import handbill

_PACKAGES: Final = ("handbill", "opacus", "torch", "numpy", "scipy", "randomgen")
_HERE: Final = "handbill"


@cache  # looking them up takes longer than the rest of a statement
def versions() -> dict[str, str]:
    """Return the versions of what computed and drew; absent packages are left out."""
    return {"python": platform.python_version()} | {
        name: found.version for name, found in _installed().items()
    }


@cache
def digests() -> dict[str, str]:
    """Return ``sha256:...`` of the same packages: equal where the same files were installed.

    Of handbill, of the files of its privacy room as they lie on the disk now. Of the others, of
    the list of files and their hashes that the installer recorded from the wheel: a file that was
    changed after it was installed does not show.
    """
    return {
        name: _of_this_room() if name == _HERE else _of_wheel(found)
        for name, found in _installed().items()
    }


@cache
def package_digest() -> str:
    """Return ``sha256:...`` of every file of the handbill package as it lies on the disk now.

    Equal where the same handbill is installed: code, settings and templates, whatever Python has
    compiled from them.
    """
    root = Path(handbill.__file__).parent
    files = [
        Path(folder) / name
        for folder, _, names in os.walk(root, followlinks=True)  # rooms of a checkout are links
        for name in names
        if not name.endswith(".pyc")
    ]
    return _digest(
        f"{file.relative_to(root).as_posix()} {hashlib.sha256(file.read_bytes()).hexdigest()}"
        for file in sorted(files)
    )


def _installed() -> dict[str, Distribution]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            continue
    return found


def _of_this_room() -> str:
    room = Path(__file__).parent
    files = sorted(room.glob("*.py"))
    return _digest(f"{f.name} {hashlib.sha256(f.read_bytes()).hexdigest()}" for f in files)


def _of_wheel(found: Distribution) -> str:
    # Read here and not by ``Distribution.files``: a package that brings importlib_metadata changes
    # what that lists for the whole process. What the installer itself wrote, such as scripts and its
    # notes, differs between machines.
    rows = csv.reader((found.read_text("RECORD") or "").splitlines())
    hashes = {PurePosixPath(name): algorithm.partition("=")[2] for name, algorithm, _ in rows}
    return _digest(
        f"{file} {value}"
        for file, value in sorted(hashes.items())
        if value and file.parts[0] != ".." and ".dist-info" not in str(file)
    )


def _digest(lines: Iterable[str]) -> str:
    total = hashlib.sha256()
    for line in lines:
        total.update(line.encode() + b"\n")
    return f"sha256:{total.hexdigest()}"
