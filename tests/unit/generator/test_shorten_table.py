"""The figures of a shorter base model in docs/generators.md are those of the committed result."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "generators.md").read_text(encoding="utf-8")
RESULT = json.loads((ROOT / "benchmarks" / "results" / "shorten.json").read_text("utf-8"))


def told(value, cell):
    if value is None:
        return "-"
    if isinstance(value, list):
        return " to ".join(f"{one:.2f}" for one in value)
    return f"{value:.{len(cell.partition('.')[2])}f}"


def test_every_figure_of_the_tables_is_the_results():
    section = PAGE[PAGE.index("## A base model for small machines") :].split("\n## ")[0]
    found = []
    for name, steps, whole, table in re.findall(
        r"^`(\w+)`, (\d+) steps; the whole model's loss is ([\d.]+):\n\n((?:^\|.*\n)+)",
        section,
        re.M,
    ):
        head, _, *rows = (
            [cell.strip() for cell in line.strip("|\n ").split("|")] for line in table.splitlines()
        )
        for cells in (dict(zip(head, row, strict=True)) for row in rows):
            found.append((name, int(cells["layers"])))
            (row,) = (
                r
                for r in RESULT["table"]
                if (r["input"], r["layers"]) == (name, int(cells["layers"]))
            )
            assert row.get("steps", int(steps)) == int(steps)
            assert f"{row.get('whole', float(whole)):.2f}" == whole
            for metric, cell in cells.items():
                assert cell == told(row.get(metric), cell), (name, cells["layers"], metric)
    assert sorted(found) == sorted((row["input"], row["layers"]) for row in RESULT["table"])
