"""Files of rows and of results: JSON lines or Parquet, by their names."""

import hashlib
import importlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from handbill.errors import InputError
from handbill.serving.batch.results import BatchResult

SUFFIXES: Final = (".jsonl", ".parquet")
_GROUP: Final = 1024


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file; empty cells of Parquet are left out.

    Raises:
        InputError: Not readable, or a line that is not an object, by its number.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if _suffix(path) == ".parquet":
        yield from _read_parquet(path)
        return
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise InputError(f"{path}:{number}: not JSON: {error}") from None
            if not isinstance(row, dict):
                raise InputError(f"{path}:{number}: not a row, which is an object")
            yield row


def digest(path: Path, *, extra: str) -> str:
    """SHA-256 (hex) of a file and of what else makes a job what it is."""
    found = hashlib.sha256(extra.encode())
    with path.open("rb") as file:
        while block := file.read(2**20):
            found.update(block)
    return found.hexdigest()


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A file to write that gets its name when all of it is on the disk; readable to its owner only.

    Raises:
        InputError: It is there already, its name says no kind, or it cannot be made.
    """
    _suffix(path)
    if path.exists():
        raise InputError(f"{path}: is there already; name another, or remove it")
    part = path.with_name(f".{path.name}.part")
    try:
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        if error.filename not in {str(part), part}:
            raise
        raise InputError(f"{path}: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)


def write_results(path: Path, part: Path, results: Iterable[BatchResult]) -> int:
    """Write results; how many.

    Args:
        path: Says the kind of file by its name.
        part: Where to write.
        results: By number.
    """
    if _suffix(path) == ".parquet":
        return _write_parquet(part, results)
    count = 0
    with part.open("w", encoding="utf-8") as out:
        for result in results:
            count += 1
            facts = result.model_dump(mode="json", exclude_none=True, by_alias=True)
            out.write(json.dumps(facts, ensure_ascii=False) + "\n")
    return count


def _suffix(path: Path) -> str:
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: rows are read and written as {' or '.join(SUFFIXES)}")
    return path.suffix


def _read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    parquet = _pyarrow(path, "pyarrow.parquet")
    try:
        file = parquet.ParquetFile(path)
    except (OSError, ValueError):  # pyarrow's own errors are ValueErrors
        raise InputError(f"{path}: damaged Parquet file; write it again") from None
    for group in file.iter_batches(batch_size=_GROUP):
        for row in group.to_pylist():
            yield {name: _plain(value) for name, value in row.items() if value is not None}


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | list | dict) else str(value)


def _write_parquet(part: Path, results: Iterable[BatchResult]) -> int:
    arrow = _pyarrow(part, "pyarrow")
    parquet = _pyarrow(part, "pyarrow.parquet")
    texts = arrow.list_(arrow.string())
    schema = arrow.schema(
        [
            ("row", arrow.int64()),
            ("id", arrow.string()),
            ("copies", texts),
            ("copy_ids", texts),
            ("version", arrow.string()),
            ("error_code", arrow.string()),
            ("error", arrow.string()),
        ]
    )
    count, rows = 0, list[dict[str, Any]]()
    with parquet.ParquetWriter(part, schema) as writer:
        for result in results:
            count += 1
            rows.append(_cells(result))
            if len(rows) == _GROUP:
                writer.write_table(arrow.Table.from_pylist(rows, schema))
                rows = []
        writer.write_table(arrow.Table.from_pylist(rows, schema))
    return count


def _cells(result: BatchResult) -> dict[str, Any]:
    cells: dict[str, Any] = {"row": result.row, "id": result.id}
    if result.result is not None:
        cells["copies"] = [piece.text for piece in result.result.copies]
        cells["copy_ids"] = [piece.copy_id for piece in result.result.copies]
        cells["version"] = result.result.version
    if result.error is not None:
        cells["error_code"], cells["error"] = result.error.code, result.error.message
    return cells


def _pyarrow(path: Path, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(f"{path}: Parquet needs pyarrow: pip install pyarrow") from None
