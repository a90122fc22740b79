"""The sequential test beside naive second implementations, and its rate of false alarms by simulation."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from trivet.guard.detector import (
    COMMON,
    LEAST_THRESHOLD,
    LEAST_UNIT,
    LIMIT,
    SLACK,
    Detector,
    Shift,
    Sums,
    conformal_levels,
    effect,
    needed_runs,
    rank,
    rate_of_one,
    standardise,
)


def naive_cusum(zs: list[float]) -> float:
    """The largest sum of z − κ over any stretch that ends now, or 0."""
    return max([0.0, *(sum(z - SLACK for z in zs[start:]) for start in range(len(zs)))])


def naive_since(zs: list[float]) -> int | None:
    """The step (from 1) after the last one at which the sum was 0."""
    values = [naive_cusum(zs[: t + 1]) for t in range(len(zs))]
    if values[-1] == 0:
        return None
    return max([0, *(t + 1 for t, v in enumerate(values) if v < 1e-12)]) + 1


def naive_levels(current: list[float], maxima: list[list[float]], weights: list[float], alpha: float) -> list[float]:
    """Full conformal prediction in words: every run's statistic by units from all runs, the watched one included."""
    runs = [*maxima, current]
    common = math.ceil(COMMON * len(runs)) - 1
    units = [max(sorted(run[k] for run in runs)[common], LEAST_UNIT) for k in range(len(current))]
    statistic = [max(w * c / u for w, c, u in zip(weights, run, units, strict=True)) for run in maxima]
    place = math.ceil((len(maxima) + 1) * (1 - alpha) - 1e-9)
    threshold = max(sorted(statistic)[place - 1], LEAST_THRESHOLD)
    return [w * c / u / threshold for w, c, u in zip(weights, current, units, strict=True)]


@pytest.mark.parametrize("seed", range(5))
def test_cusum_is_pages_in_both_directions(seed: int) -> None:
    rng = random.Random(seed)
    sums, zs = Sums(), []
    for step in range(1, 60):
        zs.append(rng.gauss(0.6 if step > 30 else 0.2, 1))
        sums.add(zs[-1], step, "both")
        assert sums.up == pytest.approx(naive_cusum(zs), abs=1e-9)
        assert sums.down == pytest.approx(naive_cusum([-z for z in zs]), abs=1e-9)
        assert sums.up_since == naive_since(zs)
    assert sums.value == max(sums.up, sums.down)


def test_one_direction_alone_is_kept_where_the_other_says_nothing() -> None:
    sums = Sums()
    sums.add(-3.0, 1, "up")
    assert sums.value == 0 and sums.since is None
    sums.add(3.0, 2, "up")
    assert sums.value == 3.0 - SLACK and sums.since == 2 and sums.sign == 1


def test_a_baseline_without_spread_divides_by_the_floor() -> None:
    shift = Shift(difference=0.05, spread=0.0, variance=0.0, n=8, base=16)
    assert effect(shift, 0.1) == pytest.approx(0.5)
    assert standardise(shift, 0.1, 0.5) == pytest.approx(0.5 / math.sqrt(1 / 8 + 1 / 16 + 0.25))
    assert standardise(shift._replace(difference=100.0), 0.1, 0.5) == LIMIT
    # of eight answers one is very strange: its own variance counts, and z stays near 1
    strange = Shift(difference=10 / 8, spread=0.1, variance=100 / 8, n=8, base=16)
    assert 0.9 < standardise(strange, 0.1, 0.1) < 1.1
    # a unit of its own, and paired differences: the variance is whole, no baseline term is added
    assert standardise(Shift(2.0, 1.0, 4.0, 4, 0), 0.0, 1.0) == pytest.approx(2 / math.sqrt(2))


@pytest.mark.parametrize(("alpha", "runs"), [(0.05, 19), (0.1, 9), (0.01, 99), (0.5, 1), (0.2, 4)])
def test_how_many_clean_runs_a_rate_needs(alpha: float, runs: int) -> None:
    assert needed_runs(alpha) == runs
    assert rank(runs, alpha) <= runs < rank(runs - 1, alpha) + 1
    with pytest.raises(ValueError, match=f"{runs} do"):
        conformal_levels(np.zeros(2), np.zeros((runs - 1, 2)), np.ones(2), alpha)


@pytest.mark.parametrize("seed", range(4))
def test_levels_are_those_of_the_naive_way(seed: int) -> None:
    rng = np.random.default_rng(seed)
    maxima, weights = rng.lognormal(1, 1, (9 + 2 * seed, 6)), rng.integers(0, 3, 6).astype(float)
    current = rng.lognormal(1.5, 1, (4, 6))
    found = conformal_levels(current, maxima, weights, 0.1)
    for row, levels in zip(current, found, strict=True):
        assert levels.tolist() == pytest.approx(naive_levels(row.tolist(), maxima.tolist(), weights.tolist(), 0.1))
        assert conformal_levels(row, maxima, weights, 0.1).tolist() == pytest.approx(levels.tolist())


def test_the_level_rises_with_every_sum() -> None:
    rng = np.random.default_rng(3)
    maxima = rng.lognormal(1, 1, (19, 5))
    low = rng.lognormal(1, 1, (200, 5))
    high = low + rng.lognormal(0, 1, (200, 5)) * (rng.random((200, 5)) < 0.5)
    ones = np.ones(5)
    assert (conformal_levels(high, maxima, ones, 0.05).max(-1)
            >= conformal_levels(low, maxima, ones, 0.05).max(-1) - 1e-12).all()


def test_exchangeable_runs_alarm_at_the_stated_rate() -> None:
    """20 runs alike, heavy-tailed and correlated, one of them watched: at α = 5% it alarms in 5%, not more."""
    rng = np.random.default_rng(11)
    trials, alarms = 4000, 0
    for _ in range(trials):
        runs = np.exp(rng.normal(1, 1, (20, 1)) + rng.normal(0, 1, (20, 6))) * np.array([1, 1, 5, 20, 0.1, 2])
        alarms += bool(conformal_levels(runs[0], runs[1:], np.ones(6), 0.05).max() > 1)
    error = math.sqrt(0.05 * 0.95 / trials)
    assert 0.05 - 4 * error < alarms / trials < 0.05 + 3 * error


def test_the_rate_of_one_calibration_is_spread() -> None:
    """Beta(1, 19), whose distribution function is 1 − (1 − x)^19."""
    assert rate_of_one(19, 0.05) == pytest.approx(1 - 0.05 ** (1 / 19))
    assert 0.05 < rate_of_one(199, 0.05) < rate_of_one(60, 0.05) < rate_of_one(19, 0.05)


def test_the_state_is_plain_and_goes_on_alike() -> None:
    import json

    def shifts(step: int) -> dict[str, Shift]:
        return {"a": Shift(math.sin(step), 1.0, 1.0, 8, 8), "b": Shift(step / 20, 1.0, 1.0, 8, 8)}

    def fresh() -> Detector:
        return Detector({"a": 0.1, "b": 0.1}, {"a": 0.5, "b": 0.5}, {"a": "both", "b": "up"})

    whole, first, second = fresh(), fresh(), fresh()
    for step in range(20):
        whole.add(step, shifts(step))
        if step < 9:
            first.add(step, shifts(step))
    second.load_state(json.loads(json.dumps(first.state_dict())))
    for step in range(9, 20):
        second.add(step, shifts(step))
    assert second.state_dict() == whole.state_dict()
    whole.restart()
    assert whole.values() == {}
