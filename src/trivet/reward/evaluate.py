"""How good a reward model is on prompts it has not seen, beside rules that look at length alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trivet.intervals import Interval, bootstrap_mean, paired_bootstrap
from trivet.reward.metrics import (
    ReliabilityBin,
    expected_calibration_error,
    length_baseline,
    length_controlled_accuracy,
    pair_correct,
    reliability,
)


@dataclass(frozen=True)
class Evaluation:
    """Figures on held-out pairs; intervals are 95%, percentile bootstrap over prompts."""

    pairs: int
    accuracy: Interval
    longer_wins: Interval
    shorter_wins: Interval
    baseline: str
    """Which of the two length rules is the better one here: longer or shorter."""
    over_baseline: Interval
    """Accuracy minus that rule's, paired."""
    length_controlled: Interval
    calibration_error: float
    reliability: list[ReliabilityBin]

    def summary(self) -> dict[str, Any]:
        """The figures under the names of RewardSummary."""
        return {
            "heldout_pairs": self.pairs, "accuracy": self.accuracy.as_dict(),
            "longer_wins": self.longer_wins.as_dict(), "shorter_wins": self.shorter_wins.as_dict(),
            "accuracy_minus_length_baseline": self.over_baseline.as_dict(),
            "length_controlled_accuracy": self.length_controlled.as_dict(),
            "expected_calibration_error": self.calibration_error,
        }

    def to_dict(self) -> dict[str, Any]:
        """The figures and the reliability diagram's bins, for evaluation.json."""
        return {"schema_version": 1, **self.summary(), "length_baseline": self.baseline,
                "reliability": [vars(b) for b in self.reliability]}


def evaluate_pairs(
    better: Sequence[float], worse: Sequence[float], len_better: Sequence[int], len_worse: Sequence[int],
    groups: Sequence[str], *, seed: int = 0,
) -> Evaluation:
    """Figures from raw scores [P] and lengths in tokens [P] of the better and the worse answer of each pair.

    groups: what is resampled together, the prompt's first turn. Raises ValueError for empty input.
    """
    diff = np.asarray(better, dtype=np.float64) - np.asarray(worse, dtype=np.float64)
    longer, shorter = length_baseline(np.asarray(len_better), np.asarray(len_worse))
    right = pair_correct(diff)
    rule = "longer" if longer.mean() >= shorter.mean() else "shorter"
    return Evaluation(
        pairs=len(diff),
        accuracy=bootstrap_mean(right, groups, seed=seed),
        longer_wins=bootstrap_mean(longer, groups, seed=seed),
        shorter_wins=bootstrap_mean(shorter, groups, seed=seed),
        baseline=rule,
        over_baseline=paired_bootstrap(right, longer if rule == "longer" else shorter, groups, seed=seed),
        length_controlled=length_controlled_accuracy(
            diff, np.asarray(len_better), np.asarray(len_worse), groups, seed=seed),
        calibration_error=expected_calibration_error(diff),
        reliability=reliability(diff),
    )
