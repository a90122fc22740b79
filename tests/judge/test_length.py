"""The win rate at equal length."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy.optimize import minimize

from trivet.judge.length import (
    RIDGE,
    fit_preference,
    length_controlled,
    length_feature,
    win_rates_at_equal_length,
)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def simulated(n: int, quality: float, taste: float, seed: int, shift: float = 40.0):
    """Verdicts of a judge that feels `quality` for the model and `taste` for length, and the lengths' differences."""
    rng = np.random.default_rng(seed)
    d = rng.normal(shift, 60.0, n)
    p = sigmoid(quality + taste * np.tanh(d / 60.0))
    return (rng.random(n) < p).astype(float), d


def test_a_judge_that_only_likes_length_gives_half() -> None:
    y, d = simulated(4000, 0.0, 3.0, 1)
    assert y.mean() > 0.65
    assert abs(length_controlled(y, d) - 0.5) < 0.04


def test_a_real_preference_survives() -> None:
    y, d = simulated(4000, 1.0, 3.0, 2)
    assert abs(length_controlled(y, d) - sigmoid(1.0)) < 0.04
    y, d = simulated(4000, 1.0, 0.0, 3)
    assert abs(length_controlled(y, d) - y.mean()) < 0.03
    y, d = simulated(4000, 1.0, 3.0, 4, shift=-120.0)  # the better model is the shorter one: plainly it loses
    assert y.mean() < 0.5 < 0.6 < length_controlled(y, d)


def test_soft_labels_are_read_exactly() -> None:
    d = np.linspace(-100, 150, 301)
    x = length_feature(d)
    assert length_controlled(sigmoid(0.7 + 1.3 * x), d) == pytest.approx(sigmoid(0.7), abs=1e-3)
    assert fit_preference(sigmoid(0.7 + 1.3 * x), x, ridge=1e-9) == pytest.approx([0.7, 1.3], abs=1e-6)


def test_equals_another_optimizer() -> None:
    rng = np.random.default_rng(5)
    p, x, w = rng.random(40), rng.uniform(-1, 1, 40), rng.random(40)

    def loss(beta):
        z = beta[0] + beta[1] * x
        return -(w * (p * z - np.logaddexp(0, z))).sum() + RIDGE / 2 * (beta**2).sum()

    assert fit_preference(p, x, w) == pytest.approx(minimize(loss, [0, 0], tol=1e-12).x, abs=1e-5)


def test_weights_are_counts() -> None:
    y, d = simulated(30, 0.5, 1.0, 6)
    w = np.random.default_rng(7).integers(0, 4, 30)
    repeated = np.repeat(np.arange(30), w)
    assert length_controlled(y, d, w) == pytest.approx(length_controlled(y[repeated], d[repeated]), abs=1e-9)


def test_swapping_the_models_mirrors_it() -> None:
    y, d = simulated(50, 0.8, 1.0, 8)
    assert length_controlled(1 - y, -d) == pytest.approx(1 - length_controlled(y, d), abs=1e-9)


def test_lengths_that_do_not_differ_leave_the_plain_win_rate() -> None:
    y = np.array([1.0, 1.0, 0.0, 1.0])
    for d in (np.zeros(4), np.full(4, 17.0)):
        assert length_controlled(y, d) == pytest.approx(0.75, abs=5e-3)  # the ridge, over 4 items


def test_extremes_stay_finite_and_ordered() -> None:
    d = np.array([-3.0, -1.0, 2.0, 5.0, 9.0, 0.0])
    all_win, all_lose = length_controlled(np.ones(6), d), length_controlled(np.zeros(6), d)
    assert 0.95 < all_win < 1 and all_lose == pytest.approx(1 - all_win)
    separated = length_controlled((d > 1).astype(float), d)  # length tells the verdict apart without an error
    assert 0 < separated < 1


def test_many_fits_at_once_equal_single_ones() -> None:
    rng = np.random.default_rng(9)
    y, d = simulated(60, 0.5, 1.0, 10)
    x = length_feature(d)
    counts = rng.multinomial(60, np.full(60, 1 / 60), size=5)
    many = win_rates_at_equal_length(y, x, counts)
    assert many.shape == (5,)
    for row, found in zip(counts, many, strict=True):
        assert found == pytest.approx(win_rates_at_equal_length(y, x, row), abs=1e-9)
    signs = rng.choice([-1, 1], size=(2, 3, 60))
    flipped = win_rates_at_equal_length(0.5 + signs * (y - 0.5), signs * x)
    assert flipped.shape == (2, 3)
    assert flipped[1, 2] == pytest.approx(
        win_rates_at_equal_length(0.5 + signs[1, 2] * (y - 0.5), signs[1, 2] * x), abs=1e-9)


def test_two_thousand_resamples_take_no_time() -> None:
    y, d = simulated(120, 0.5, 1.0, 11)
    counts = np.random.default_rng(0).multinomial(120, np.full(120, 1 / 120), size=2000)
    start = time.monotonic()
    rates = win_rates_at_equal_length(y, length_feature(d), counts)
    assert time.monotonic() - start < 3.0
    assert rates.std() > 0.01


@pytest.mark.parametrize(("p", "d", "w"), [
    ([], [], None), ([0.5], [1.0, 2.0], None), ([1.5], [1.0], None), ([float("nan")], [1.0], None),
    ([0.5], [float("inf")], None), ([0.5], [1.0], [-1.0]), ([0.5], [1.0], [0.0]), ([[0.5]], [[1.0]], None),
])
def test_what_is_no_table_is_refused(p, d, w) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        length_controlled(p, d, w)
