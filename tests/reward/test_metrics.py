"""Held-out figures of a reward model, each against a naive loop or a known model."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trivet.intervals import bootstrap_mean
from trivet.reward.metrics import (
    expected_calibration_error,
    length_baseline,
    length_controlled_accuracy,
    pair_correct,
    reliability,
)


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


def test_pair_correct_halves_ties() -> None:
    assert pair_correct([2.0, -0.1, 0.0, 1e-9, math.inf]).tolist() == [1.0, 0.0, 0.5, 1.0, 1.0]
    with pytest.raises(ValueError, match="NaN"):
        pair_correct([math.nan])
    with pytest.raises(ValueError, match="flat"):
        pair_correct([[1.0]])


def test_length_baselines_mirror_each_other() -> None:
    longer, shorter = length_baseline([5, 2, 3], [1, 4, 3])
    assert longer.tolist() == [1.0, 0.0, 0.5]
    assert shorter.tolist() == [0.0, 1.0, 0.5]
    with pytest.raises(ValueError, match="len_rejected"):
        length_baseline([5, 2], [1])


def held_out(pairs: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Lengths in which the chosen is mostly longer, a signal unrelated to them, and prompts of two pairs."""
    rng = np.random.default_rng(0)
    len_rejected = rng.integers(10, 100, pairs)
    len_chosen = np.maximum(1, len_rejected + rng.integers(-10, 40, pairs))
    return len_chosen, len_rejected, rng.normal(0.5, 1.0, pairs), np.arange(pairs) // 2


def test_length_alone_gets_exactly_one_half() -> None:
    len_chosen, len_rejected, _, prompts = held_out()
    for sign in (1.0, -1.0):
        diff = sign * (len_chosen - len_rejected)
        interval = length_controlled_accuracy(diff, len_chosen, len_rejected, prompts, resamples=500)
        assert (interval.value, interval.low, interval.high) == (0.5, 0.5, 0.5)
    assert pair_correct(len_chosen - len_rejected).mean() > 0.7


@pytest.mark.parametrize("weighted", [False, True])
def test_length_controlled_accuracy_matches_a_loop(weighted: bool) -> None:
    len_chosen, len_rejected, diff, prompts = held_out()
    weights = np.random.default_rng(1).uniform(0.5, 2.0, len(diff)) if weighted else None
    right: dict[bool, float] = {True: 0.0, False: 0.0}
    all_of: dict[bool, float] = {True: 0.0, False: 0.0}
    unequal = set()
    for i in range(len(diff)):
        if len_chosen[i] == len_rejected[i]:
            continue
        stratum = bool(len_chosen[i] > len_rejected[i])
        weight = 1.0 if weights is None else weights[i]
        right[stratum] += weight * (diff[i] > 0)
        all_of[stratum] += weight
        unequal.add(prompts[i])
    expected = (right[True] / all_of[True] + right[False] / all_of[False]) / 2
    interval = length_controlled_accuracy(diff, len_chosen, len_rejected, prompts, weights, resamples=2000)
    assert interval.value == pytest.approx(expected)
    assert interval.n == len(unequal)
    assert 0.5 < interval.low < interval.value < interval.high < 1.0


def test_length_controlled_accuracy_without_a_stratum_is_undefined() -> None:
    interval = length_controlled_accuracy([1.0, -1.0], [5, 6], [1, 1], ["a", "b"], resamples=50)
    assert math.isnan(interval.value) and math.isnan(interval.low) and interval.n == 2
    ties = length_controlled_accuracy([1.0, -1.0], [5, 6], [5, 6], ["a", "b"])
    assert math.isnan(ties.value) and ties.n == 0


def test_length_controlled_accuracy_refuses_bad_arguments() -> None:
    with pytest.raises(ValueError, match="len_chosen"):
        length_controlled_accuracy([1.0, 2.0], [1], [2, 3], [0, 1])
    with pytest.raises(ValueError, match="weights"):
        length_controlled_accuracy([1.0], [1], [2], [0], [-1.0])
    with pytest.raises(ValueError, match="groups"):
        length_controlled_accuracy([1.0], [1], [2], [0, 1])


@pytest.mark.parametrize("bins", [1, 4, 10])
def test_reliability_and_ece_match_a_loop(bins: int) -> None:
    diff = np.concatenate([np.random.default_rng(2).normal(0.3, 2.0, 300), [0.0, 1e4, -1e4]])
    inside: list[list[tuple[float, float]]] = [[] for _ in range(bins)]
    for d in diff.tolist():
        confidence = sigmoid(min(abs(d), 500.0))
        index = min(int((confidence - 0.5) / 0.5 * bins), bins - 1)
        inside[index].append((confidence, 0.5 if d == 0 else float(d > 0)))
    table = reliability(diff, bins)
    ece = 0.0
    for row, members in zip(table, inside, strict=True):
        assert row.count == len(members)
        if members:
            confidence = sum(c for c, _ in members) / len(members)
            accuracy = sum(a for _, a in members) / len(members)
            assert row.confidence == pytest.approx(confidence)
            assert row.accuracy == pytest.approx(accuracy)
            ece += len(members) / len(diff) * abs(accuracy - confidence)
    assert (table[0].low, table[-1].high) == (0.5, 1.0)
    assert expected_calibration_error(diff, bins) == pytest.approx(ece)


def test_ece_tells_a_calibrated_model_from_a_boastful_one() -> None:
    rng = np.random.default_rng(3)
    log_odds = rng.normal(0.0, 1.5, 20_000)
    first_wins = rng.random(20_000) < 1 / (1 + np.exp(-log_odds))
    diff = np.where(first_wins, log_odds, -log_odds)
    assert expected_calibration_error(diff) < 0.02
    assert expected_calibration_error(5.0 * diff) > 0.1


def test_an_empty_bin_has_no_figures() -> None:
    table = reliability([10.0, -10.0], bins=2)
    assert (table[0].count, table[0].confidence, table[0].accuracy) == (0, None, None)
    assert table[1].accuracy == 0.5
    with pytest.raises(ValueError, match="no pairs"):
        reliability([])
    with pytest.raises(ValueError, match="bins"):
        reliability([1.0], bins=0)


def test_accuracy_with_its_interval() -> None:
    """The pieces as evaluation puts them together."""
    _, _, diff, prompts = held_out()
    interval = bootstrap_mean(pair_correct(diff), prompts, resamples=1000)
    assert interval.low < np.mean(diff > 0) < interval.high
    assert interval.n == 200
