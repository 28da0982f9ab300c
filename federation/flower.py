"""Flower's own programs: where they are, and the environment that keeps them quiet."""

import shutil
import sys
from pathlib import Path

from handbill.errors import HandbillError


class FlowerError(HandbillError):
    """One of Flower's programs is missing or refused what we asked."""


def program(name: str) -> str:
    """Path of one of Flower's programs, from the environment this Python runs in."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if not found:
        raise FlowerError(f"{name}: not installed beside {sys.executable}; install flwr")
    return found


def flower_environment(folder: Path) -> dict[str, str]:
    """Flower's state below ``folder``; no telemetry, update check or run-time installs."""
    return {"FLWR_HOME": str(folder)}
