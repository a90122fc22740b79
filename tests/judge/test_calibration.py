"""Calibration: what a score means among the reference's own answers."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from trivet.judge.calibration import Calibration, normalise_scores


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


def test_detail_8_reference_samples_get_mean_zero_and_deviation_one() -> None:
    scores = (7.0 + 3.0 * np.random.default_rng(4).normal(size=200)).tolist()
    calibration = Calibration.fit(scores)
    normalised = normalise_scores(scores, calibration.mean, calibration.std)
    assert normalised.mean() == pytest.approx(0.0, abs=1e-12)
    assert normalised.std() == pytest.approx(1.0)
    assert calibration.normalise(scores[17]) == pytest.approx(normalised[17])


def test_percentile_is_a_mid_rank() -> None:
    calibration = Calibration.fit([3.0, 1.0, 2.0, 2.0])
    for score, expected in [(0.0, 0.0), (1.0, 12.5), (1.5, 25.0), (2.0, 50.0), (3.0, 87.5), (9.0, 100.0)]:
        assert calibration.percentile(score) == expected


def test_win_probability_is_the_mean_over_reference_answers() -> None:
    reference = [0.3, -1.2, 4.0]
    calibration = Calibration.fit(reference)
    for score in (-2.0, 0.3, 5.0):
        expected = sum(sigmoid(score - other) for other in reference) / 3
        assert calibration.win_probability(score) == pytest.approx(expected)
    assert calibration.win_probability(1e4) == 1.0
    assert calibration.win_probability(-1e4) == 0.0


def test_calibration_survives_json() -> None:
    calibration = Calibration.fit(np.random.default_rng(5).normal(size=20).tolist())
    assert Calibration.from_dict(json.loads(json.dumps(calibration.to_dict()))) == calibration
    with pytest.raises(ValueError, match="std"):
        Calibration.from_dict({"mean": 0.0, "reference_scores": [0.0, 1.0]})


@pytest.mark.parametrize(
    ("scores", "message"),
    [([], "at least 2"), ([1.0], "at least 2"), ([0.1] * 3, "vary"), ([1.0, math.inf], "finite")],
)
def test_calibration_needs_scores_that_vary(scores: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Calibration.fit(scores)


def test_calibration_refuses_fields_that_contradict_each_other() -> None:
    with pytest.raises(ValueError, match="ascending"):
        Calibration(0.0, 1.0, (2.0, 1.0))
    with pytest.raises(ValueError, match="deviation 0"):
        Calibration(0.0, 0.0, (1.0, 2.0))
    with pytest.raises(ValueError, match="std"):
        normalise_scores([1.0], 0.0, 0.0)
