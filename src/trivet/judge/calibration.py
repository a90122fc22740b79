"""What a score means: its place among the scores of the reference model's own answers. Needs numpy only."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def normalise_scores(scores: ArrayLike, mean: float, std: float) -> NDArray[np.float64]:
    """(scores - mean) / std, in the shape of `scores`. Raises ValueError unless `std` is positive."""
    if not std > 0.0:
        raise ValueError(f"std must be positive, not {std}")
    return (np.asarray(scores, dtype=np.float64) - mean) / std


@dataclass(frozen=True)
class Calibration:
    """What a raw score means, against the scores of the reference model's own samples.

    Fitted once and then fixed (PPO detail 8): normalised scores of reference samples have mean 0 and
    deviation 1, so that a KL coefficient keeps its meaning from one reward model to another.

    Raises ValueError if there are fewer than two reference scores, one is not finite, they are not sorted,
    or `std` is not positive.
    """

    mean: float
    std: float
    reference_scores: tuple[float, ...]
    """Raw scores of the reference model's samples, ascending."""

    def __post_init__(self) -> None:
        scores = self.reference_scores
        if len(scores) < 2:
            raise ValueError(f"calibration needs at least 2 reference scores, not {len(scores)}")
        if not all(math.isfinite(number) for number in (self.mean, self.std, *scores)):
            raise ValueError("mean, std and reference scores must be finite")
        if any(later < earlier for earlier, later in pairwise(scores)):
            raise ValueError("reference scores must be in ascending order")
        if not self.std > 0.0 or scores[0] == scores[-1]:
            raise ValueError(
                "the reference scores do not vary (deviation 0): the reward model gives all samples one score"
            )

    @classmethod
    def fit(cls, scores: Sequence[float]) -> Calibration:
        """Mean and population deviation of the raw scores of the reference model's own samples.

        Raises ValueError for fewer than two scores, scores that do not vary, or one that is not finite.
        """
        ordered = np.sort(np.asarray(scores, dtype=np.float64))
        if len(ordered) < 2 or not np.isfinite(ordered).all():
            raise ValueError(f"calibration needs at least 2 scores, all finite; got {len(ordered)}")
        return cls(float(ordered.mean()), float(ordered.std()), tuple(ordered.tolist()))

    def normalise(self, score: float) -> float:
        """The score in deviations from the reference mean; `normalise_scores` does whole arrays."""
        return float(normalise_scores(score, self.mean, self.std))

    def percentile(self, score: float) -> float:
        """Share of reference answers that score lower, in percent (0 to 100); equal ones count half."""
        below = bisect_left(self.reference_scores, score)
        not_above = bisect_right(self.reference_scores, score)
        return 100.0 * 0.5 * (below + not_above) / len(self.reference_scores)

    def win_probability(self, score: float) -> float:
        """Bradley–Terry probability of beating a reference answer: mean of σ(score - reference score).

        On raw scores: only their differences are log-odds, normalised ones are not.
        """
        return float((0.5 * (1.0 + np.tanh(0.5 * (score - np.asarray(self.reference_scores))))).mean())

    def to_dict(self) -> dict[str, Any]:
        """The form in JSON files, read back by `from_dict`."""
        return {"mean": self.mean, "std": self.std, "reference_scores": list(self.reference_scores)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Calibration:
        """The calibration that `to_dict` wrote. Raises ValueError for a missing field or a bad value."""
        missing = [key for key in ("mean", "std", "reference_scores") if key not in fields]
        if missing:
            raise ValueError(f"calibration lacks {', '.join(missing)}")
        try:
            return cls(float(fields["mean"]), float(fields["std"]), tuple(map(float, fields["reference_scores"])))
        except TypeError as error:
            raise ValueError(f"a field is of another type: {error}") from None
