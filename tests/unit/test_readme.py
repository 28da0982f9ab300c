"""The README's figures are those of the committed result file."""

import json
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RESULT = json.loads((ROOT / "benchmarks" / "results" / "first_light.json").read_text())
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("row", RESULT["table"], ids=lambda row: row["shop"])
def test_every_measured_shop_stands_in_the_readme_with_its_figures(row):
    losses = " → ".join(f"{row[k]:.2f}" for k in ("loss_before", "loss_global", "loss_after"))
    rouge = f"{row['rouge_l_before']:.2f} → {row['rouge_l_after']:.2f}"
    line = next((line for line in README.splitlines() if f"| {row['shop']} |" in line), "")
    assert losses in line
    assert rouge in line
    assert f"{row['epsilon']:.2f}" in line


def test_every_shop_improved_within_its_limit():
    metrics = RESULT["metrics"]
    before = {k: v for k, v in metrics.items() if "loss_before." in k}
    assert before
    assert len(before) % 4 == 0  # three shops and the mean, for each input
    for name, value in before.items():
        assert metrics[name.replace("loss_before", "loss_after")] < value
    assert all(value <= 8.0 for name, value in metrics.items() if "epsilon." in name)


def test_result_file_has_the_form_every_benchmark_has():
    wanted = {"name", "command", "commit", "date", "machine", "versions", "metrics", "table"}
    assert wanted <= RESULT.keys()
    assert all(isinstance(value, int | float) for value in RESULT["metrics"].values())


TABLES = dict.fromkeys(("xrec_reasons_en", "amazon_reviews_en"), ("none", "8", "4", "1"))


def test_the_utility_tables_of_the_docs_are_what_was_measured():
    path = ROOT / "benchmarks" / "results" / "dp_utility.json"
    metrics = json.loads(path.read_text())["metrics"]
    page = (ROOT / "docs" / "private-training.md").read_text().replace("**", "")
    cells = {
        tuple(name.split(".")[1:3]): value
        for name, value in metrics.items()
        if name.startswith("loss.") and name.endswith(".base.none")
    }
    for (data, shop), base in cells.items():
        for epsilon in TABLES.get(data, ()):
            arms = [
                f"{metrics[f'loss.{data}.{shop}.{arm}.{epsilon}']:.2f}"
                for arm in ("alone", "global", "personal")
            ]
            assert f"| {base:.2f} | {epsilon} | {' | '.join(arms)} |" in page


def result(name):
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def test_the_tables_of_secure_aggregation_are_what_was_measured():
    page = (ROOT / "docs" / "secure-aggregation.md").read_text().replace("**", "")
    for row in result("robust")["table"]:
        assert f"| {row['mean']:.2f} | {row['ours']:.2f} | {row['ours_worst']:.2f} |" in page
    for row in result("secagg")["table"]:
        ours = f"{row['client_s']:.2f} | {row['server_s']:.2f}"
        peer = f"{row['peer_client_s']:.2f} | {row['peer_server_s']:.1f}"
        size = f"{row['dimension'] // 1_000_000} M"
        assert f"| {row['clients']} | {size} | {ours} | {peer} |" in page
    faults = result("faults")["metrics"]
    assert f"plays {faults['scenarios']} scenarios" in page
    assert f"{faults['rounds_attempted']} attempts" in page
    assert faults["lost"] == faults["committed_twice"] == faults["ledger_under_counts"] == 0
    assert faults["real.lost"] == faults["real.committed_twice"] == 0
    for row in result("faults")["table"]:
        if row["system"] == "real federation":
            name, back = row["input"].removeprefix("kill -9: "), row.get("back_s")
            times = f"{row['to_commit_s']:.0f} | {row['recover_s']:.0f}"
            assert f"| {name} | {times} | {'' if back is None else format(back, '.0f')} |" in page
    assert faults["control_under_counts"] > 0


def test_the_table_of_rounds_over_flower_is_what_was_measured():
    page = (ROOT / "docs" / "secure-aggregation.md").read_text().replace("**", "")
    found = result("round_overhead")
    for command in found["command"].split(" ; "):
        assert command in page
    for row in found["table"]:
        seconds = row["round_s"]
        least, most = min(seconds), max(seconds)
        assert f"| {statistics.median(seconds):.1f} ({least:.1f} to {most:.1f}) |" in page
        assert f"{row['numbers']:,} numbers" in page
    metrics = found["metrics"]
    for ratio in (name for name in metrics if "ratio" in name):
        assert f"| {metrics[ratio]:.2f} | `{ratio}` |" in page
    over = [metrics[f"whole_path_overhead_s{end}"] for end in ("", "_least", "_most")]
    assert "{:.1f} s ({:.1f} to {:.1f}) beyond Flower's messages".format(*over) in page
    merchants = found["table"][-1]["merchants"]
    assert f"{over[0] / merchants:.1f} s for each" in page
    assert f"{metrics['whole_path.trainer_cpu_s']:.2f} s at a merchant" in page
    assert f"{metrics['trainer_cpu_s.secure']:.2f} s of a processor" in page
    assert metrics["ratio_vs_flower"] <= 0.5


def test_the_table_of_a_decode_step_is_what_was_measured():
    page = (ROOT / "docs" / "serving.md").read_text()
    found = result("serving_step")
    assert found["command"] in page
    for row in found["table"]:
        if row["adapters"]:
            before, after = row["before_step_ms"], row["after_step_ms"]
            times = f"{row['speedup']:.2f} ({row['speedup_range'][0]:.2f} to {row['speedup_range'][1]:.2f})"
            share = f"{100 * row['after_overhead_share']:.0f}%"
            assert f"| {row['rows']} | {before:.0f} | {after:.0f} | {times} | {share} |" in page


def test_the_table_of_mixed_tenants_is_what_was_measured():
    page = (ROOT / "docs" / "serving.md").read_text()
    found = result("serving_mixed")
    assert found["command"] in page
    ratios = [row for row in found["table"] if "ratio" in row]
    assert ratios
    for row in ratios:
        least, most = row["range"]
        spread = f"{row['median']:.2f} ({least:.2f} to {most:.2f})"
        assert f"| `{row['ratio']}` | " in page
        line = next(one for one in page.splitlines() if one.startswith(f"| `{row['ratio']}` | "))
        assert f" | {spread} | " in line


def test_what_the_readme_says_of_serving_and_copy_was_measured():
    page = " ".join((ROOT / "README.md").read_text().split())
    mixed, copy = result("serving_mixed")["metrics"], result("insist")["metrics"]
    assert f"write at {mixed['mixed16_vs_single']:.2f} of the speed of one" in page
    assert f"{mixed['vs_peft16']:.1f} times as fast as PEFT's" in page
    assert f"{mixed['vs_vllm_cpu_mixed16']:.1f} times as fast as vLLM's" in page
    best = f"tested.{copy['chosen_strength']:g}.best"
    assert copy[f"{best}.unsupported"] == 0
    assert f"states {100 * copy[f'{best}.coverage']:.0f}% of them" in page
    assert f"people state {100 * copy['tested.human.coverage']:.0f}%" in page


def test_the_table_of_many_adapters_is_what_was_measured():
    page = (ROOT / "docs" / "serving.md").read_text()
    found = result("serving_scale")
    metrics = found["metrics"]
    assert found["command"] in page
    for row in found["table"]:
        ratio = metrics[f"{row['draw']}_{row['registered']}"]
        spread = f"{ratio:.2f} ({row['least']:.2f} to {row['most']:.2f})"
        assert f"| {row['registered']:,} | {row['draw']} | {spread} |" in page
    times = f"{metrics['cold_load_ms_p50']:.0f} ms, and {metrics['cold_load_ms_p95']:.0f} ms in one"
    assert f"{times} case of twenty" in page
    assert f"grew by {metrics['grew_mib']:.0f} MiB" in page


def test_the_figures_of_the_check_of_copy_are_what_was_measured():
    page = (ROOT / "docs" / "safe-copy.md").read_text(encoding="utf-8")
    metrics = result("claims")["metrics"]
    for name, words in {
        "recall_zh": "forbidden Chinese lines that are blocked",
        "recall_en": "forbidden English lines that are blocked",
        "obfuscated_recall": "lines in disguise that are blocked",
        "false_positive_rate": "allowed lines that are blocked",
        "pii_recall": "personal data found, of 600 generated pieces",
        "pii_precision": "of what is found as personal, it is",
    }.items():
        assert f"| {words} | {100 * metrics[name]:.1f}% |" in page
    for language, name in (("zh", "Chinese"), ("en", "English")):
        cell = f"about 100 tokens, {name} | {metrics[f'check_ms_{language}']:.2f} ms |"
        assert cell in page
    for name in ("adgen_zh", "kobe_zh", "amazon_office_industrial_en"):
        assert f"{100 * metrics[f'real.{name}.blocked']:.1f}% of" in page
    if "blind.lines" in metrics:
        for name, words in {
            "recall_zh": "of the forbidden Chinese lines",
            "recall_en": "of the English ones",
            "obfuscated_recall": "of those in disguise",
            "false_positive_rate": "of the allowed ones",
        }.items():
            assert f"{100 * metrics[f'blind.{name}']:.1f}% {words}" in page
        assert f"wrote {metrics['blind.lines']:.0f} more" in page
    assert f"against {metrics['development.lines']:,.0f} lines" in page
    assert f"these are {metrics['lines']:.0f} others" in page


def test_the_table_of_sentiment_is_what_was_measured_and_ours_is_better():
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    found = result("sentiment")
    assert found["command"] in page
    metrics = found["metrics"]
    for row in found["table"]:
        data, system = (
            row["input"],
            {"vader": "VADER", "snownlp": "SnowNLP"}.get(row["system"], "ours"),
        )
        if row["system"] != "ours, same texts":
            rates = (row["accuracy"], row["recall_positive"], row["recall_negative"])
            cells = " | ".join(f"{rate:.3f}" for rate in rates)
            assert f"| {data} | {system} | {cells} |" in page
        if system != "ours":
            for rate in ("accuracy", "recall_negative"):
                ours = metrics[f"ours_on_same.{rate}.{data}"]
                assert ours > metrics[f"{row['system']}.{rate}.{data}"]


def test_the_table_of_polish_is_what_was_measured():
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    found = result("polish")
    assert found["command"] in page
    for row in found["table"]:
        error, share = row["error"].replace("_", " "), 100 * row["mended"] / row["texts"]
        assert f"| {row['input']} | {error} | {row['texts']} | {share:.0f}% |" in page
    for name, value in found["metrics"].items():
        if name.startswith("untouched."):
            assert f"{100 * value:.1f}% ({name.removeprefix('untouched.')})" in page


def test_the_cost_table_of_the_docs_is_what_was_measured():
    path = ROOT / "benchmarks" / "results" / "dp_training.json"
    table = json.loads(path.read_text())["table"]
    page = (ROOT / "docs" / "private-training.md").read_text().replace("**", "")
    for row in table:
        if row["mode"].startswith("recipe"):
            assert f"| {row['learning_rate']:g} | {row['tokens_per_s']:.0f} |" in page
            assert f"| {row['held_out_loss']:.2f} |" in page
        else:
            facts = f"{row['median_s']:.2f} | {row['tokens_per_s']} | {row['peak_mib']:,} |"
            assert f"| {row['batch']} | {row['mode']} | {facts}" in page


def test_the_figures_of_feedback_are_what_was_measured():
    page = (ROOT / "docs" / "feedback.md").read_text(encoding="utf-8")
    found = result("feedback")
    metrics = found["metrics"]
    assert found["command"] in page
    for name in ("ope_coverage", "ope_coverage_both", "ope_coverage_known"):
        assert f"| `{name}` | {100 * metrics[name]:.1f}% |" in page
    for name in ("ctr_before", "ctr_after", "ctr_control"):
        assert f"| `{name}` | {100 * metrics[name]:.1f}% |" in page
    assert metrics["ctr_after"] > max(metrics["ctr_before"], metrics["ctr_control"])
    assert metrics["ctr_gain_least"] > 0


def test_the_figures_of_interest_are_what_was_measured():
    metrics = result("interest")["metrics"]
    page = (ROOT / "docs" / "interest.md").read_text().replace("**", "")
    table = page[page.index("| data | arm |") :]
    names = {
        "popularity": "popularity",
        "product_mean": "product mean",
        "logistic": "logistic, all shops' rows together",
        "logistic_alone": "logistic, each shop alone",
        "federated": "ours, federated",
        "alone": "ours, alone",
    }
    found = [name.split(".")[1:] for name in metrics if name.startswith("auc.")]
    assert len(found) == 24
    for data, arm, epsilon in found:
        part = table.split("| rent_the_runway_interest,")[data == "rent_the_runway_interest"]
        figures = f"{metrics[f'auc.{data}.{arm}.{epsilon}']:.3f}"
        ece = metrics.get(f"ece.{data}.{arm}.{epsilon}")
        line = f" | {names[arm]} | {epsilon} | {figures} |{'' if ece is None else f' {ece:.3f}'} |"
        assert line in part, line


def test_ours_beats_popularity_but_where_the_page_says_not():
    metrics = result("interest")["metrics"]
    behind = {
        (data, epsilon)
        for data in ("amazon_reviews_en", "rent_the_runway_interest")
        for epsilon in ("none", "8", "4", "1")
        if metrics[f"auc.{data}.federated.{epsilon}"] <= metrics[f"auc.{data}.popularity.none"]
    }
    assert behind == {("rent_the_runway_interest", "1")}
    page = (ROOT / "docs" / "interest.md").read_text()
    assert "**At ε = 1 nothing is learnt there**" in page
