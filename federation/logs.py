"""Logs as event names plus fields: ``round_committed round=3 digest=sha256:...``."""

import logging
from pathlib import Path
from typing import Final

_PLAIN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class FieldsFormatter(logging.Formatter):
    """Adds what a log call gave as ``extra`` to its line, and keeps every event on one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Time, level, logger, event, fields; a traceback follows below."""
        # Not what a library's record factory adds, such as Ray's _ray_timestamp_ns.
        fields = {k: v for k, v in vars(record).items() if k not in _PLAIN and k[0] != "_"}
        shown = "".join(f" {name}={str(value)!r}" for name, value in sorted(fields.items()))
        event, *trace = super().format(record).split("\n", 1)
        return "\n".join([event + shown, *trace])


def configure_logs(path: Path | None = None) -> None:
    """Send this process's log to ``path``, or to standard error.

    Libraries are heard from warnings on: their own lines would drown ours, and one that logs
    addresses or payloads is not for our logs.
    """
    handler = logging.FileHandler(path) if path else logging.StreamHandler()
    handler.setFormatter(FieldsFormatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("handbill").setLevel(logging.INFO)
