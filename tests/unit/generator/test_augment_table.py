"""The figures of augmented training in docs/generators.md are those of the committed result."""

import json
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "generators.md").read_text(encoding="utf-8")
RESULT = json.loads((ROOT / "benchmarks" / "results" / "augment.json").read_text("utf-8"))


def test_every_run_stands_in_the_table():
    section = PAGE[PAGE.index("## Little copy") :].split("\n## ")[0]
    assert RESULT["table"]
    for row in RESULT["table"]:
        line = (
            f"| `{row['input']}` | {row['seed']} | {row['varied']} | {row['variants']} "
            f"| {row['plain']:.2f} | {row['augmented']:.2f} | {row['gain']:+.2f} |"
        )
        assert line in section
    inputs = {row["input"] for row in RESULT["table"]}
    assert sum(section.count(f"\n| `{name}` |") for name in inputs) == len(RESULT["table"])


@pytest.mark.parametrize("name", sorted({row["input"] for row in RESULT["table"]}))
def test_the_means_are_those_of_the_runs(name):
    rows = [row for row in RESULT["table"] if row["input"] == name]
    assert len(rows) == 3
    for arm in ("plain", "augmented", "gain"):
        mean = RESULT["metrics"][f"{name}.{arm}"]
        assert mean == pytest.approx(statistics.mean(row[arm] for row in rows), abs=1e-3)
    assert f"{RESULT['metrics'][f'{name}.gain']:+.2f} nats for `{name}`" in PAGE
