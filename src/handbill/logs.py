"""Logs as event names plus fields: ``round_committed round=3 digest=sha256:...``.

An exception is logged as its type and where it was raised. Its text is left out, for it may quote
what was being worked on (``int("Anna …")``, a database's parameters), unless it is a
:class:`~handbill.errors.HandbillError`, whose text is made to be shown.
"""

import logging
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from handbill.errors import HandbillError

log = logging.getLogger(__name__)

_PLAIN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s %(message)s"


class FieldsFormatter(logging.Formatter):
    """Adds what a log call gave as ``extra`` to its line, and keeps every event on one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Time, level, logger, event, fields; where an exception was raised follows below."""
        # Not what a library's record factory adds, such as Ray's _ray_timestamp_ns.
        fields = {k: v for k, v in vars(record).items() if k not in _PLAIN and k[0] != "_"}
        shown = "".join(f" {name}={str(value)!r}" for name, value in sorted(fields.items()))
        event, *trace = super().format(record).split("\n", 1)
        return "\n".join([event + shown, *trace])


def hide_values() -> None:
    """Leave the text of exceptions out of every log of this process, libraries' loggers included.

    So it is done where records are made: Ray and Flower format theirs by themselves. What nobody
    catches is logged like the rest, and no longer printed.
    """
    make = logging.getLogRecordFactory()
    if getattr(make, "hides_values", False):
        return

    def record(*given: Any, **named: Any) -> logging.LogRecord:
        made = make(*given, **named)
        if made.exc_info:
            made.exc_text = without_values(made.exc_info[1])  # formatters take it as it is
        return made

    record.hides_values = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(record)
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda given: _log_uncaught(*given[:3])


def _log_uncaught(
    kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
) -> None:
    del trace
    if kind is not SystemExit:  # which ends a thread in silence, as it does without us
        log.critical("uncaught", exc_info=error)


def without_values(error: BaseException | None) -> str:
    """An exception and what led to it, the newest first: types and frames, and no value.

    The text of one of ours is shown, since it is made to be.
    """
    return "\n".join(_lines(error, set()))


def _lines(error: BaseException | None, seen: set[int]) -> Iterator[str]:
    """Of errors that were not seen: one of a group may have the group itself for its context."""
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        kind = type(error)
        text = f": {error}" if isinstance(error, HandbillError) else ""
        yield f"{'of ' if len(seen) > 1 else ''}{kind.__module__}.{kind.__qualname__}{text}"
        for frame, line in traceback.walk_tb(error.__traceback__):
            yield f"  {frame.f_code.co_filename}:{line} in {frame.f_code.co_qualname}"
        if isinstance(error, BaseExceptionGroup):
            for one in error.exceptions:
                yield from _lines(one, seen)
        error = error.__cause__ or error.__context__


def configure_logs(path: Path | None = None) -> None:
    """Send this process's log to ``path``, or to standard error, without values.

    Libraries are heard from warnings on: their own lines would drown ours, and one that logs
    addresses or payloads is not for our logs.
    """
    handler = logging.FileHandler(path) if path else logging.StreamHandler()
    handler.setFormatter(FieldsFormatter(_FORMAT))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("handbill").setLevel(logging.INFO)
    hide_values()
