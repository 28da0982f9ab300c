"""The figures of docs/generators.md are those of the committed result."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "generators.md").read_text(encoding="utf-8")
RESULT = json.loads((ROOT / "benchmarks" / "results" / "copy_quality.json").read_text("utf-8"))
METRICS = RESULT["metrics"]


def tables():
    """Each row of the tables whose first cell is `system`: set, system, and its cells by metric."""
    section = PAGE[PAGE.index("## How they compare") :]
    for name, table in re.findall(r"^`(\w+)`[^\n]*:\n\n((?:^\|.*\n)+)", section, re.M):
        head, _, *rows = (
            [cell.strip() for cell in line.strip("|\n ").split("|")] for line in table.splitlines()
        )
        assert head[0] == "system"
        for system, *cells in rows:
            yield name, system, dict(zip(head[1:], cells, strict=True))


def test_every_figure_of_the_tables_is_the_results():
    rows = list(tables())
    assert {name for name, *_ in rows} == {row["input"] for row in RESULT["table"]}
    for name, system, cells in rows:
        for metric, cell in cells.items():
            value = METRICS.get(f"{name}.{system}.{metric}")
            told = "-" if value is None else f"{value:.{len(cell.partition('.')[2])}f}"
            assert cell == told, (name, system, metric)


def test_every_system_of_the_result_is_in_the_tables():
    assert {(name, system) for name, system, _ in tables()} == {
        (row["input"], row["system"]) for row in RESULT["table"]
    }
