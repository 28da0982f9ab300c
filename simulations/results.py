"""Benchmark result files: one form for all (the committed tables under ``benchmarks/results``)."""

import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import psutil

from handbill.generator.artifacts import utc_now

PACKAGES: Final = ("flwr", "opacus", "peft", "ray", "torch", "transformers")


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def write_result(
    path: Path,
    *,
    command: str,
    metrics: Mapping[str, float],
    table: Sequence[Mapping[str, Any]] = (),
    notes: str = "",
    merge: bool = False,
) -> None:
    """Write a result file.

    Args:
        path: ``NAME.json``.
        command: What reproduces it.
        metrics: Flat dotted names.
        table: Rows for people.
        notes: What a reader must know.
        merge: Keep metrics and rows of the file that is there and are not written now: one
            file for several inputs and systems of the same benchmark.
    """
    old: dict[str, Any] = json.loads(path.read_text()) if merge and path.is_file() else {}
    told = {(row.get("input"), row.get("system")) for row in table}
    kept = [r for r in old.get("table", []) if (r.get("input"), r.get("system")) not in told]
    commands = [c for c in str(old.get("command", "")).split(" ; ") if c and c != command]
    result = {
        "name": path.stem,
        "command": " ; ".join([*commands, command]),
        "commit": _commit(),
        "date": utc_now(),
        "machine": _machine(),
        "versions": versions(),
        "metrics": {**old.get("metrics", {}), **metrics},
        "table": [*kept, *table],
        "notes": notes or old.get("notes", ""),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")


def _machine() -> str:
    memory = psutil.virtual_memory().total / 2**30
    return f"{platform.machine()}, {psutil.cpu_count()} cores, {memory:.0f} GiB, no GPU used"


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],  # noqa: S607 - git is found on PATH
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).resolve().parent,
    )
    return done.stdout.strip() or "unknown"
