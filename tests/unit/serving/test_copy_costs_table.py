"""The figures of what copy's options cost in docs/copy.md are those of the committed result."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "copy.md").read_text(encoding="utf-8")
RESULT = json.loads((ROOT / "benchmarks" / "results" / "copy_costs.json").read_text("utf-8"))


def option_of(cell):
    """``nothing asked for`` is the plain request; `` `candidates` 4 `` is ``candidates_4``."""
    return "plain" if cell == "nothing asked for" else cell.replace("`", "").replace(" ", "_")


def test_every_figure_of_the_table_is_the_results():
    section = PAGE[PAGE.index("## What it costs") :].split("\n## ")[0]
    table = section[section.index("| option | answers |") :].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in table.splitlines()]
    assert [option_of(row[0]) for row in rows[2:]] == [row["option"] for row in RESULT["table"]]
    for cells, row in zip(rows[2:], RESULT["table"], strict=True):
        low, high = row["ratio_range"]
        assert cells[1:] == [
            str(row["answers"]),
            f"{row['cpu_s']:.2f}",
            f"{row['ratio']:.2f}",
            f"{low:.2f} to {high:.2f}",
            f"{row['tokens_prompt']:,}",
            f"{row['tokens_written']:,}",
        ]
        for name in ("cpu_s", "ratio", "answers"):
            assert RESULT["metrics"][f"{row['option']}.{name}"] == row[name]
    (check,) = re.findall(r"rules takes ([\d.]+) ms", section)
    assert check == f"{RESULT['metrics']['check.cpu_ms']:.1f}"


def test_what_the_page_says_of_the_table_is_so():
    ratio = {row["option"]: row["ratio"] for row in RESULT["table"]}
    assert all(abs(ratio[option] - 1) < 0.1 for option in ("tone", "insist", "polish"))
    assert ratio["candidates_4"] <= 1 < ratio["candidates_8"] < 1.5
    assert ratio["explain"] == max(ratio.values()) > 2
