"""The range of what training may bring is what was measured, and wide where nothing was."""

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest

from handbill.privacy.accounting import calibrate_noise
from handbill.privacy.utility import (
    TABLE,
    Measured,
    Range,
    expected_range,
    weakest_that_learnt,
)

RESULTS = Path(__file__).resolve().parents[3] / "benchmarks" / "results"


def run(data, noise, steps, fall):
    return Measured(
        source="here", data=data, expected_users=1, noise_multiplier=noise, steps=steps, fall=fall
    )


RUNS = (run("a", 0.1, 5, 0.4), run("a", 0.01, 50, 0.9), run("b", 0.1, 5, 0.6))


def test_a_run_like_a_measured_one_brings_what_it_brought():
    assert expected_range(noise=0.1, steps=5, table=RUNS) == Range(0.4, 0.6)


def test_between_two_runs_the_range_is_between_them():
    assert expected_range(noise=0.05, steps=20, table=RUNS) == Range(0.4, 0.9)


def test_what_is_noisier_than_everything_measured_may_bring_nothing():
    assert expected_range(noise=0.5, steps=5, table=RUNS) == Range(0.0, 0.6)
    assert expected_range(noise=0.1, steps=4, table=RUNS) == Range(0.0, 0.6)


def test_what_is_better_than_everything_measured_has_no_upper_end():
    better = expected_range(noise=0.001, steps=500, table=RUNS)
    assert better == Range(0.6, None)
    assert better.in_words() == "0.60 nats a token or more"


def test_less_noise_and_more_steps_never_lower_the_range():
    noises, steps = (0.5, 0.1, 0.05, 0.01, 0.001), (1, 5, 20, 50, 500)
    for table in (RUNS, TABLE):
        for one, other in pairwise(noises):
            for n in steps:
                worse = expected_range(noise=one, steps=n, table=table)
                better = expected_range(noise=other, steps=n, table=table)
                assert better.low >= worse.low
                assert (better.high or math.inf) >= (worse.high or math.inf)


def test_the_table_is_what_the_result_file_says():
    found = json.loads((RESULTS / "first_light.json").read_text())["metrics"]
    rows = [row for row in TABLE if row.source.endswith("first_light.json")]
    assert len(rows) == 6
    for row in rows:
        prefix = "" if f"epsilon.{row.data}" in found else "sample."
        before, after = (found[f"{prefix}loss_{w}.{row.data}"] for w in ("before", "global"))
        assert row.fall == pytest.approx(before - after, abs=1e-6)
        assert row.steps == found.get(f"{prefix}rounds")


def test_the_noise_of_the_table_is_what_the_accountant_gives():
    row = next(row for row in TABLE if row.data == "fern-kettle")
    sigma = calibrate_noise(epsilon=8.0, delta=1e-3, sampling_rate=20 / 360, steps=8)
    assert row.noise_multiplier == pytest.approx(sigma, abs=1e-4)
    assert row.noise == pytest.approx(sigma / 20 / math.sqrt(3), rel=1e-3)


def test_the_weakest_that_learnt_is_of_a_private_run():
    assert weakest_that_learnt(RUNS) == pytest.approx(math.sqrt(5) / 0.1)
    assert weakest_that_learnt((*RUNS, run("c", 0.0, 5, 0.1))) == weakest_that_learnt(RUNS)
