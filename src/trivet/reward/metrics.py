"""How good a reward model is on held-out pairs, from the scores of both answers. Needs numpy only.

`diff` is score(chosen) - score(rejected) of each pair, [P]; groups are the prompts of the pairs, [P].

Not covered: labels that are probabilities. The chosen answer is taken to be the better one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trivet.intervals import Interval, bootstrap_statistic

Floats = NDArray[np.float64]


def _flat(name: str, values: ArrayLike, length: int | None = None) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"{name} must be flat, not {array.shape}")
    if length is not None and len(array) != length:
        raise ValueError(f"{name} has {len(array)} entries for {length} pairs")
    if np.isnan(array).any():
        raise ValueError(f"{name} holds NaN")
    return array


def _sigmoid(x: Floats) -> Floats:
    return np.exp(-np.logaddexp(0.0, -x))  # no overflow on either side


def pair_correct(diff: ArrayLike) -> Floats:
    """1 where the chosen answer scores higher, 0 where lower, 0.5 where equal, [P].

    The mean is the pairwise accuracy; a model that gives every answer one score gets 0.5. Raises ValueError
    for NaN.
    """
    return 0.5 * (1.0 + np.sign(_flat("diff", diff)))


def length_baseline(len_chosen: ArrayLike, len_rejected: ArrayLike) -> tuple[Floats, Floats]:
    """Correctness of 'the longer wins' and of 'the shorter wins', ([P], [P]), 0.5 for equal lengths.

    Raises ValueError if the lengths do not pair up.
    """
    chosen = _flat("len_chosen", len_chosen)
    longer = pair_correct(chosen - _flat("len_rejected", len_rejected, len(chosen)))
    return longer, 1.0 - longer


def length_controlled_accuracy(
    diff: ArrayLike,
    len_chosen: ArrayLike,
    len_rejected: ArrayLike,
    groups: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    seed: int = 0,
    resamples: int = 10_000,
    level: float = 0.95,
) -> Interval:
    """Pairwise accuracy with the effect of length removed by stratified re-weighting.

    Defined as ½ · accuracy among the pairs whose chosen answer is the longer one + ½ · accuracy among those
    whose chosen answer is the shorter one; pairs of equal lengths are left out. A model that only looks at
    which answer is longer is right in one stratum and wrong in the other, so it gets exactly 0.5, however
    often the longer answer was chosen. How much longer is not controlled for.

    Lengths are in any one unit; `weights` [P] weigh pairs within their stratum (None: equally). The interval
    is a percentile bootstrap of this statistic over `groups`; `n` counts the groups that have a pair of
    unequal lengths. Where a stratum is empty the figure is undefined: value, low and high are NaN.

    Raises ValueError for NaN, unequal numbers of entries or negative weights.
    """
    correct = pair_correct(diff)
    pairs = len(correct)
    gap = _flat("len_chosen", len_chosen, pairs) - _flat("len_rejected", len_rejected, pairs)
    weight = np.ones_like(correct) if weights is None else _flat("weights", weights, pairs)
    if (weight < 0).any():
        raise ValueError("weights must not be negative")
    names = np.asarray(groups)
    if names.shape != correct.shape:
        raise ValueError(f"groups has shape {names.shape} for {pairs} pairs")
    counted = gap != 0
    if not counted.any():
        return Interval(math.nan, math.nan, math.nan, 0)
    columns = np.stack(
        [correct * weight * (gap > 0), weight * (gap > 0), correct * weight * (gap < 0), weight * (gap < 0)],
        axis=1,
    )
    return bootstrap_statistic(
        columns[counted],
        names[counted],
        lambda sums: 0.5 * (sums[..., 0] / sums[..., 1] + sums[..., 2] / sums[..., 3]),
        seed=seed,
        resamples=resamples,
        level=level,
    )


@dataclass(frozen=True)
class ReliabilityBin:
    """Pairs whose confidence lies in [low, high); the last bin includes its upper edge."""

    low: float
    high: float
    count: int
    confidence: float | None
    """Mean predicted probability that the preferred answer is the better one; None in an empty bin."""
    accuracy: float | None
    """Share of pairs in which it was; None in an empty bin."""


def reliability(diff: ArrayLike, bins: int = 10) -> list[ReliabilityBin]:
    """Reliability diagram of the model's preferences: is it right as often as it says?

    For each pair the Bradley–Terry probability of the answer the model itself prefers, σ(|diff|), in
    [0.5, 1], against whether that answer was the chosen one (0.5 where the scores are equal). `bins` of
    equal width split [0.5, 1] (Guo et al. 2017, 'On Calibration of Modern Neural Networks', section 2).

    Raises ValueError for no pairs, NaN, or `bins` below 1.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, not {bins}")
    right = pair_correct(diff)
    if len(right) == 0:
        raise ValueError("no pairs")
    confidence = _sigmoid(np.abs(_flat("diff", diff)))
    edges = np.linspace(0.5, 1.0, bins + 1)
    index = np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, bins - 1)
    table = []
    for i in range(bins):
        inside = index == i
        count = int(inside.sum())
        table.append(
            ReliabilityBin(
                float(edges[i]),
                float(edges[i + 1]),
                count,
                float(confidence[inside].mean()) if count else None,
                float(right[inside].mean()) if count else None,
            )
        )
    return table


def expected_calibration_error(diff: ArrayLike, bins: int = 10) -> float:
    """Σ count/P · |accuracy - confidence| over the bins of `reliability`, in [0, 1] (Guo et al. 2017, eq. 3).

    Raises ValueError as `reliability` does.
    """
    table = reliability(diff, bins)
    total = sum(row.count for row in table)
    return sum(
        row.count / total * abs(row.accuracy - row.confidence)
        for row in table
        if row.accuracy is not None and row.confidence is not None
    )
