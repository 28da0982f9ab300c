"""What a running training tells the operator, one JSON line at a time."""

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

PROGRESS_FILE: Final = "progress.jsonl"


class Progress:
    """Appends facts about rounds; never anything about a shopper, an update or a key."""

    def __init__(self, home: Path) -> None:
        """Write below a server's home."""
        self.path = home / PROGRESS_FILE

    def note(self, event: str, **facts: Any) -> None:
        """Append one fact."""
        line = json.dumps({"time": time.time(), "event": event, **facts})
        with self.path.open("a") as file:
            file.write(line + "\n")

    def end(self) -> int:
        """Where the file ends now, to follow from."""
        return self.path.stat().st_size if self.path.is_file() else 0

    def since(self, offset: int) -> tuple[list[dict[str, Any]], int]:
        """Facts in complete lines from ``offset`` on, and where to go on from."""
        facts: list[dict[str, Any]] = []
        if not self.path.is_file():
            return facts, offset
        with self.path.open("rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                offset += len(line)
                with suppress(ValueError):  # a line that a full disk cut off
                    facts.append(json.loads(line))
        return facts, offset
