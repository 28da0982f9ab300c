"""What is answered about batches, as types."""

from typing import Literal

from handbill.serving.copy_results import CopyResult
from handbill.serving.results import Answered, ErrorFacts


class Batch(Answered):
    """A job of many requests for copy."""

    object: Literal["batch"]
    """Always `batch`."""
    id: str
    """Its id."""
    key: str
    """The name it was given by whoever made it; may be empty."""
    state: Literal["open", "running", "waiting", "done"]
    """`open` takes rows; `waiting` is held up, see `reason`; `done` has all its results."""
    reason: str
    """Why it waits."""
    rows: int
    """How many rows it has."""
    written: int
    """Rows with copy."""
    failed: int
    """Rows that ended in an error."""
    created: str
    """When it was made, UTC."""
    finished: str | None
    """When its last row ended, UTC."""
    expires: str
    """When it is deleted with its results, UTC."""


class BatchList(Answered):
    """The caller's batches, oldest first."""

    object: Literal["list"]
    """Always `list`."""
    data: list[Batch]
    """The batches."""


class BatchResult(Answered):
    """What became of one row."""

    row: int
    """Its number, from 0."""
    id: str
    """The name the row was given; may be empty."""
    result: CopyResult | None = None
    """The copy."""
    error: ErrorFacts | None = None
    """Why there is none."""


class BatchResults(Answered):
    """Rows that ended, by number. While a batch runs, rows may be missing between them."""

    object: Literal["list"]
    """Always `list`."""
    data: list[BatchResult]
    """The rows."""
    next: int | None
    """Go on with `after` = this; null at the end."""
