"""Thresholds from clean runs: what they promise, by simulation; what is refused; which signals are chosen."""

from __future__ import annotations

import json
import math
import random
import statistics
from pathlib import Path

import pytest

from trivet.errors import TrivetError
from trivet.guard.calibration import (
    DEFAULTS,
    Calibration,
    Trace,
    fit,
    load,
    noise_threshold,
    save,
    select,
    trace,
    uncalibrated,
)
from trivet.guard.detector import Detector, Shift
from trivet.guard.signals import kind_of

NAMES = ["length", "repetition", "exaggeration", "formatting"]
STEPS, ANSWERS, BASE = 25, 16, 32


def simulated(rng: random.Random, name: str, *, gamed: str | None = None, onset: int = 8) -> Trace:
    """A run at the level of shifts: noise of sampling, a baseline's error that stays, a drift of its own. gamed: the
    signal that rises by 0.4 deviations a step from `onset` on, beside what the run does anyway."""
    error = {k: rng.gauss(0, BASE**-0.5) for k in NAMES}
    slope = {k: rng.gauss(0, 0.02) for k in NAMES}
    steps = []
    for step in range(2, STEPS + 2):
        shifts = {}
        for k in NAMES:
            moved = slope[k] * step - error[k] + rng.gauss(0, ANSWERS**-0.5)
            if k == gamed and step >= onset:
                moved += 0.4 * (step - onset + 1)
            shifts[k] = Shift(moved * 10, 10.0, 100.0, ANSWERS, BASE)
        steps.append((step, "rollout", shifts))
    return Trace(name, steps, list(NAMES), deadline=onset + 8 if gamed else None)


def first_alarm(found: Calibration, run: Trace, alpha: float = 0.05) -> int | None:
    """The step of the first alarm."""
    detector, used = found.detector(), found.used(run.available)
    for step, _, shifts in run.steps:
        detector.add(step, shifts)
        if max(found.levels(detector.values(), used, alpha).values()) > 1:
            return step
    return None


def test_clean_runs_alarm_at_most_at_the_stated_rate_and_drift_is_found() -> None:
    rng = random.Random(5)
    false, late, found_at = [], 0, []
    for trial in range(30):
        calibration = fit([simulated(rng, f"r{i}") for i in range(19 + 8 * (trial % 2))])
        false += [first_alarm(calibration, simulated(rng, "new")) is not None for _ in range(20)]
        for gamed in NAMES:
            step = first_alarm(calibration, simulated(rng, "gamed", gamed=gamed))
            late += step is None
            found_at.append(step or STEPS)
    # over calibrations the rate of one varies as Beta(n, 1) does: its deviation over 30 of them, and 600 runs'
    error = math.sqrt(0.05**2 / 30 + 0.05 * 0.95 / 600)
    assert statistics.fmean(false) <= 0.05 + 3 * error
    assert late / len(found_at) < 0.1
    assert statistics.median(found_at) <= 18, "ten steps after it began, at 0.4 deviations a step"


def test_too_few_clean_runs_are_refused_with_the_number_needed() -> None:
    rng = random.Random(0)
    runs = [simulated(rng, f"r{i}") for i in range(26)]
    with pytest.raises(TrivetError, match=r"18 clean runs; at a rate of 0\.05 a threshold needs 19"):
        fit(runs[:18])
    with pytest.raises(TrivetError, match="the choice of signals 8 more"):
        fit(runs, [simulated(rng, "h", gamed="length")])
    with pytest.raises(TrivetError, match="needs 99"):
        fit(runs, false_alarms=0.01)
    ten = fit(runs[:10], false_alarms=0.1)
    with pytest.raises(TrivetError, match=r"10 clean runs, and a rate of 0\.05 needs 19"):
        ten.require(0.05)
    with pytest.raises(TrivetError, match="no record after its first"):
        fit([*runs[:19], Trace("empty", [], NAMES)])


def test_the_threshold_comes_from_runs_that_chose_nothing() -> None:
    rng = random.Random(1)
    clean = [simulated(rng, f"r{i:02d}") for i in range(33)]
    hacked = [simulated(rng, f"h{i}", gamed="exaggeration") for i in range(6)]
    found = fit(clean, hacked, note="a test")
    roles = [run["role"] for run in found.made["runs"]]
    assert roles.count("threshold") == len(found.maxima) == 22 and roles.count("hacked") == 6
    assert roles.count("floors, drifts, weights") == 11
    assert found.weights["exaggeration"] == 1.0 and found.made["selection"][0]["signal"] == "exaggeration"
    assert found.made["selection"][0]["detected"] >= 0.8
    assert found.floors["exaggeration"] == 5.0, "half of the baselines' spread"
    assert found.horizon == {"rollout": STEPS, "evaluation": 0}
    # the split follows the names, not the order in which runs are given
    again = fit(clean[::-1], hacked, note="a test")
    assert again.maxima == found.maxima


def test_no_weight_without_a_detection() -> None:
    rng = random.Random(2)
    clean = [simulated(rng, f"r{i}") for i in range(9)]
    floors, drifts = {k: kind_of(k).floor for k in NAMES}, dict.fromkeys(NAMES, 0.5)
    still = [Trace("still", [(2, "rollout", {})], NAMES)]
    assert select(clean, still, NAMES, floors, drifts, 0.1) == (dict.fromkeys(NAMES, 1.0), [])


def test_what_a_run_lacks_is_left_out_on_both_sides() -> None:
    rng = random.Random(3)
    found = fit([simulated(rng, f"r{i}") for i in range(19)])
    found.weights = {"length": 1.0}
    assert found.used(NAMES) == {"length": 1.0}
    assert found.used(["repetition", "kl"]) == {"repetition": 1.0}, "none that was chosen is there: the others"
    assert found.used(["kl"]) == {} and found.levels({}, {}, 0.05) == {}


def test_runs_are_cut_to_what_all_of_them_have() -> None:
    rng = random.Random(4)
    runs = [simulated(rng, f"r{i}") for i in range(19)]
    runs[3].steps = runs[3].steps[:10]
    runs[4].available = ["length"]
    found = fit(runs)
    assert found.horizon["rollout"] == 10 and found.signals == ["length"]
    assert found.made["left_out"] == ["repetition", "exaggeration", "formatting"]


def test_the_file_goes_round_and_faults_in_it_are_named(tmp_path: Path) -> None:
    rng = random.Random(6)
    found, path = fit([simulated(rng, f"r{i}") for i in range(19)]), tmp_path / "c.json"
    save(found, path)
    assert load(path) == found
    values = json.loads(path.read_text())
    for change, words in [({"maxima": [[1.0]]}, "a number for each of"), ({"version": 0}, "made by signals of version"),
                          ({"floors": {"length": 0.0}}, "above 0"), ({"weights": {"length": 0}}, "nor all 0"),
                          ({"unknown": 1}, "not known"), ({"schema_version": 2}, "schema_version"),
                          ({"maxima": []}, "noise_threshold")]:
        path.write_text(json.dumps(values | change))
        with pytest.raises(TrivetError, match=words):
            load(path)


def test_the_shipped_file_says_what_it_was_made_from() -> None:
    found = load(DEFAULTS)
    assert found.note and found.made
    if found.calibrated:
        assert all(run["rollouts_sha256"] for run in found.made["runs"]) and found.horizon["rollout"] > 0
    else:
        assert "not known" in found.statement(0.05) and found.provisional


def test_the_guess_without_runs_is_the_simulations() -> None:
    small = noise_threshold(steps=10, runs=50)
    assert small == noise_threshold(steps=10, runs=50) and 0 < small < noise_threshold(steps=30, runs=50)
    found = uncalibrated(steps=10, runs=50)
    assert not found.calibrated and found.noise_threshold == pytest.approx(small, abs=1e-3)


def test_a_trace_is_what_the_records_came_to() -> None:
    from gamed import run_records

    found = trace("r", run_records(0, steps=4))
    assert [(s, source) for s, source, _ in found.steps] == [(2, "rollout"), (3, "rollout"), (4, "rollout"),
                                                            (4, "evaluation")]
    assert found.count("rollout") == 3 and len(found.until({"rollout": 2, "evaluation": 0})) == 2
    detector = Detector({}, {"length": 0.5}, {"length": "both"})
    detector.add(2, found.steps[0][2])
    assert set(detector.values()) == {"length"}
