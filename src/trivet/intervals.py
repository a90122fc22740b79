"""Means with confidence intervals, by bootstrap over groups.

Rows that share a prompt are not independent, so prompts are drawn, each with all its rows, not rows. The
percentile interval is that of Efron and Tibshirani 1993, chapter 13, over groups as in Miller 2024, 'Adding
Error Bars to Evals', section 2.2 (clustered errors).

Not covered: bias-corrected intervals, and few groups: below about ten a percentile interval is too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

_BLOCK_ENTRIES = 1 << 20
"""Resample × group counts held at once: 8 MB for each array of that size."""


class Interval(NamedTuple):
    """An estimate with its interval; `n` is the number of groups (prompts) it rests on."""

    value: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, float | int | None]:
        """The form in JSON files; what could not be computed (NaN) is None, since JSON has no NaN."""
        return {
            key: None if isinstance(number, float) and math.isnan(number) else number
            for key, number in self._asdict().items()
        }


def bootstrap_statistics(
    columns: ArrayLike,
    groups: ArrayLike,
    statistics: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    *,
    seed: int = 0,
    resamples: int = 10_000,
    level: float = 0.95,
) -> list[Interval]:
    """Percentile bootstrap over groups of several statistics of column sums, from the same draws.

    `columns` is [rows, C], `groups` [rows] names the group of each row, and `statistics` maps the sums of the
    columns over the drawn rows, [..., C], to [..., S]: a mean is `lambda s: s[..., :1] / s[..., 1:]` over the
    columns (value, 1). As many groups are drawn, with replacement, as there are. Resamples in which a
    statistic is NaN are left out of its interval. The result does not depend on the order of the rows, and
    on the names of the groups only through their order. With one group `low` and `high` are NaN.

    Raises ValueError for no rows, values that are not finite, unequal lengths, `resamples` below 1 or
    `level` outside (0, 1).
    """
    import numpy as np

    table = np.asarray(columns, dtype=np.float64)
    names = np.asarray(groups)
    if table.ndim != 2 or names.ndim != 1 or len(table) != len(names):
        raise ValueError(f"values and groups must have equal lengths: {table.shape} and {names.shape}")
    if len(table) == 0:
        raise ValueError("no values to estimate from")
    if not np.isfinite(table).all():
        raise ValueError("values must be finite")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, not {resamples}")
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must lie between 0 and 1, not {level}")

    group_of = np.unique(names, return_inverse=True)[1]
    n = int(group_of.max()) + 1
    sums = np.stack([np.bincount(group_of, weights=column, minlength=n) for column in table.T], axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        values = np.atleast_1d(statistics(sums.sum(axis=0))).tolist()
    if n == 1:
        return [Interval(value, math.nan, math.nan, n) for value in values]

    rng = np.random.default_rng(seed)
    # How often each group is drawn is all that matters. Blocks bound the memory; the generator's stream is
    # read in order, so their size changes no draw.
    block = max(1, _BLOCK_ENTRIES // n)
    drawn = []
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        picks = rng.integers(0, n, size=(rows, n)) + n * np.arange(rows)[:, None]
        counts = np.bincount(picks.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            drawn.append(statistics(counts @ sums))
    found = []
    for value, estimates in zip(values, np.concatenate(drawn).T, strict=True):
        estimates = estimates[~np.isnan(estimates)]
        low = high = math.nan
        if len(estimates):
            low, high = np.quantile(estimates, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
        found.append(Interval(value, float(low), float(high), n))
    return found


def bootstrap_statistic(
    columns: ArrayLike,
    groups: ArrayLike,
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    *,
    seed: int = 0,
    resamples: int = 10_000,
    level: float = 0.95,
) -> Interval:
    """`bootstrap_statistics` of one statistic, which maps column sums [..., C] to [...]. Raises as that does."""
    import numpy as np

    return bootstrap_statistics(columns, groups, lambda sums: np.asarray(statistic(sums))[..., None], seed=seed,
                                resamples=resamples, level=level)[0]


def bootstrap_mean(
    values: ArrayLike, groups: ArrayLike, *, seed: int = 0, resamples: int = 10_000, level: float = 0.95
) -> Interval:
    """Mean over rows of `values` [rows], with the percentile interval over `groups` [rows].

    Groups are drawn, and the mean is over all rows of the drawn groups, so a group weighs as many times as it
    has rows. Raises ValueError as `bootstrap_statistic` does.
    """
    import numpy as np

    rows = np.asarray(values, dtype=np.float64)
    if rows.ndim != 1:
        raise ValueError(f"values must be flat, not {rows.shape}")
    return bootstrap_statistic(
        np.stack([rows, np.ones_like(rows)], axis=1),
        groups,
        lambda sums: sums[..., 0] / sums[..., 1],
        seed=seed,
        resamples=resamples,
        level=level,
    )


def paired_bootstrap(
    a: ArrayLike,
    b: ArrayLike,
    groups: ArrayLike,
    *,
    seed: int = 0,
    resamples: int = 10_000,
    level: float = 0.95,
) -> Interval:
    """Mean of a - b over rows measured both ways, with the percentile interval over `groups`.

    Pairing takes out what both share, such as how hard a prompt is. Raises ValueError if `a`, `b` and
    `groups` differ in length, and as `bootstrap_statistic` does.
    """
    import numpy as np

    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"paired values must have equal lengths: {first.shape} and {second.shape}")
    return bootstrap_mean(first - second, groups, seed=seed, resamples=resamples, level=level)
