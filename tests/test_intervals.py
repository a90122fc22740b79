"""Bootstrap intervals: against a naive loop, against theory, and at their edges."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

import trivet.intervals
from trivet.intervals import Interval, bootstrap_mean, bootstrap_statistic, paired_bootstrap


def clustered(seed: int, groups: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose prompt matters more than their noise; prompts have one to six rows."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 7, groups)
    names = np.repeat(np.arange(groups), sizes)
    return rng.normal(0.0, 1.0, groups)[names] + 0.2 * rng.normal(size=len(names)), names


def test_mean_matches_a_loop_over_resampled_prompts() -> None:
    values, names = clustered(0)
    members = [values[names == name].tolist() for name in range(40)]
    rng = np.random.default_rng(1)
    means = []
    for _ in range(4000):
        rows = [row for pick in rng.integers(0, 40, 40) for row in members[pick]]
        means.append(sum(rows) / len(rows))
    means.sort()
    interval = bootstrap_mean(values, names)
    assert interval.value == pytest.approx(values.mean())
    assert interval.n == 40
    assert interval.low == pytest.approx(means[100], abs=0.03)
    assert interval.high == pytest.approx(means[-100], abs=0.03)


def test_independent_rows_agree_with_the_normal_interval() -> None:
    values = np.random.default_rng(2).normal(3.0, 2.0, 500)
    interval = bootstrap_mean(values, np.arange(500))
    half = 1.96 * values.std() / math.sqrt(500)
    assert interval.low == pytest.approx(values.mean() - half, abs=0.02)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.02)


def test_rows_of_one_prompt_are_not_independent() -> None:
    values, names = clustered(3)
    by_prompt = bootstrap_mean(values, names, resamples=2000)
    by_row = bootstrap_mean(values, np.arange(len(values)), resamples=2000)
    assert by_prompt.high - by_prompt.low > 1.5 * (by_row.high - by_row.low)


def test_coverage_is_near_the_level() -> None:
    covered = 0
    for seed in range(200):
        values, names = clustered(seed, groups=60)
        interval = bootstrap_mean(values, names, resamples=500, level=0.9)
        covered += interval.low <= 0.0 <= interval.high
    assert 0.82 <= covered / 200 <= 0.96


def test_pairing_takes_out_what_both_share() -> None:
    shared, names = clustered(4)
    noise = np.random.default_rng(5).normal(0.0, 0.1, len(shared))
    interval = paired_bootstrap(shared + 0.1 + noise, shared, names, resamples=2000)
    assert interval.value == pytest.approx(0.1 + noise.mean())
    assert 0.0 < interval.low < interval.high < 0.2
    assert bootstrap_mean(shared + 0.1 + noise, names, resamples=2000).low < 0.0


def test_the_seed_decides_and_the_order_of_rows_does_not() -> None:
    values, names = clustered(6)
    first = bootstrap_mean(values, names, seed=7, resamples=300)
    assert bootstrap_mean(values, names, seed=7, resamples=300) == first
    assert bootstrap_mean(values, names, seed=8, resamples=300) != first
    order = np.random.default_rng(9).permutation(len(values))
    shuffled = bootstrap_mean(
        values[order], [f"prompt-{name:03}" for name in names[order]], seed=7, resamples=300
    )
    assert shuffled == pytest.approx(first)


def test_blocks_bound_the_memory_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values, names = clustered(10)
    whole = bootstrap_mean(values, names, resamples=1000)
    monkeypatch.setattr(trivet.intervals, "_BLOCK_ENTRIES", 40 * 7)
    assert bootstrap_mean(values, names, resamples=1000) == pytest.approx(whole)


def test_a_wider_level_gives_a_wider_interval() -> None:
    values, names = clustered(11)
    narrow = bootstrap_mean(values, names, level=0.5, resamples=1000)
    wide = bootstrap_mean(values, names, level=0.99, resamples=1000)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_one_group_has_a_value_and_no_interval() -> None:
    interval = bootstrap_mean([1.0, 2.0], ["a", "a"])
    assert interval.value == 1.5 and interval.n == 1
    assert math.isnan(interval.low) and math.isnan(interval.high)
    assert (
        json.dumps(interval.as_dict(), allow_nan=False) == '{"value": 1.5, "low": null, "high": null, "n": 1}'
    )


def test_resamples_without_a_figure_are_left_out() -> None:
    """A ratio over a rare group: undefined in about a third of the resamples, ½ in the others."""
    columns = [[1.0, 2.0], [0.0, 0.0], [0.0, 0.0]]
    interval = bootstrap_statistic(
        columns, [0, 1, 2], lambda sums: sums[..., 0] / sums[..., 1], resamples=200
    )
    assert interval == Interval(0.5, 0.5, 0.5, 3)
    undefined = bootstrap_statistic([[0.0, 0.0]] * 2, [0, 1], lambda sums: sums[..., 0] / sums[..., 1])
    assert math.isnan(undefined.value) and math.isnan(undefined.low)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        bootstrap_mean([], [])
    with pytest.raises(ValueError, match="equal lengths"):
        bootstrap_mean([1.0, 2.0], ["a"])
    with pytest.raises(ValueError, match="equal lengths"):
        paired_bootstrap([1.0, 2.0], [1.0], ["a", "b"])
    with pytest.raises(ValueError, match="finite"):
        bootstrap_mean([1.0, math.nan], ["a", "b"])
    with pytest.raises(ValueError, match="flat"):
        bootstrap_mean([[1.0]], ["a"])
    with pytest.raises(ValueError, match="resamples"):
        bootstrap_mean([1.0, 2.0], ["a", "b"], resamples=0)
    with pytest.raises(ValueError, match="level"):
        bootstrap_mean([1.0, 2.0], ["a", "b"], level=95)
