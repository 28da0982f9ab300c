"""The figures of insisting in docs/generators.md are those of the committed result."""

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "generators.md").read_text(encoding="utf-8")
RESULT = json.loads((ROOT / "benchmarks" / "results" / "insist.json").read_text("utf-8"))


def test_every_strength_stands_in_the_table():
    section = PAGE[PAGE.index("### How hard to insist") :].split("\n#")[0]
    rows = [row for row in RESULT["table"] if row["side"] == "tested"]
    assert len(rows) >= 7
    for row in rows:
        strength, _, how = row["system"].rpartition(".")
        name = f"{strength} nats, {how}" if strength else "people"
        cells = [f"{row['coverage']:.2f}", f"{row['unsupported']:.2f}"]
        cells += [f"{row['bleu']:.1f}" if "bleu" in row else "-"]
        cells += [f"{row['distinct_2']:.2f}", f"{row['self_bleu']:.0f}", f"{row['chars']:.0f}"]
        assert f"| {name} | {' | '.join(cells)} |" in section


def test_the_strength_was_chosen_on_other_products_and_holds_for_these():
    metrics = RESULT["metrics"]
    strength = metrics["chosen_strength"]
    assert f"chosen: {strength:g} nats" in PAGE
    for side in ("chosen", "tested"):
        assert metrics[f"{side}.{strength:g}.best.coverage"] >= 0.9
        invented = metrics[f"{side}.{strength:g}.best.unsupported"]
        assert invented <= metrics[f"{side}.human.unsupported"]
