"""The statistics behind agreement.py, as functions of arrays: coefficients from sums over items, and those sums.

A coefficient that is a function of column sums [..., C] can be resampled by item at once for all resamples
(`trivet.intervals`). Each of the `…_columns` functions gives the columns, a row for each item (or pair), and the
item of each row. Undefined coefficients are NaN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from trivet.feedback.choices import Choices, Floats, Ints, Item, Ranked, majority

# --- Krippendorff's alpha -------------------------------------------------------------------------------


def places(ranks: Floats) -> Floats:
    """The places of K completions from one labeler's ranks, [K]: from 0 (best) to 1 (F); NaN stays NaN.

    (mid-rank - ½) / (number ranked); inf (F) is 1. See the head of this file.
    """
    shown = ~np.isnan(ranks)
    result = np.full(len(ranks), np.nan)
    if shown.any():
        # rounded, so that the first of three and the first two of six are one value
        result[shown] = np.round((rankdata(ranks[shown]) - 0.5) / shown.sum(), 9)
    result[np.isinf(ranks)] = 1.0
    return result


def _coincidences(counts: Floats) -> Floats:
    """The coincidence matrix of each unit, [U, V, V], from how many gave each value, [U, V]."""
    pairable = counts.sum(axis=1)
    pairs = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(counts.shape[1])
    result: Floats = pairs / np.maximum(pairable - 1, 1)[:, None, None]
    return result


def alpha_columns(ranked: Ranked) -> tuple[Floats, Ints]:
    """(coincidences summed over an item's completions, [items, V²]; the item), of items with two labelers."""
    blocks = [(number, np.stack([places(row) for row in item.ranks]))
              for number, item in enumerate(ranked.items) if len(item.labelers) > 1]
    domain = np.unique(np.concatenate([b[~np.isnan(b)] for _, b in blocks])) if blocks else np.zeros(0)
    tables = [_coincidences((b.T[:, :, None] == domain).sum(axis=1).astype(float)).sum(axis=0) for _, b in blocks]
    return np.array(tables).reshape(len(blocks), len(domain)**2), np.array([n for n, _ in blocks], dtype=np.int64)


def pair_alpha_columns(made: Choices) -> tuple[Floats, Ints]:
    """(coincidences of each pair of completions, both ways round, [pairs, 9]; its item)."""
    if not len(made):
        return np.zeros((0, 9)), np.zeros(0, dtype=np.int64)
    tally = made.tally().astype(float)
    tables = _coincidences(tally) + _coincidences(tally[:, ::-1])
    item = made.item[np.unique(made.pair, return_index=True)[1]]
    compared = tally.sum(axis=1) > 1
    return tables.reshape(-1, 9)[compared], item[compared]


def ordinal_alpha(sums: Floats) -> Floats:
    """α from coincidences [..., V²], values in order. The ordinal distance is that of mid-cumulated counts."""
    size = math.isqrt(sums.shape[-1])
    table = sums.reshape(*sums.shape[:-1], size, size)
    counts = table.sum(axis=-1)
    total = counts.sum(axis=-1)
    middle = counts.cumsum(axis=-1) - counts / 2
    # Σ o (m - m')² and Σ n n' (m - m')² multiplied out: no table of distances for every resample
    square = (counts * middle**2).sum(axis=-1)
    observed = 2 * square - 2 * np.einsum("...i,...ij,...j->...", middle, table, middle, optimize=True)
    expected = (2 * total * square - 2 * (counts * middle).sum(axis=-1) ** 2) / (total - 1)
    result: Floats = np.where(expected > 1e-9 * np.maximum(square, 1), 1 - observed / expected, np.nan)
    return result


def nominal_alpha(sums: Floats) -> Floats:
    """α from coincidences [..., V²] of values without an order."""
    size = math.isqrt(sums.shape[-1])
    table = sums.reshape(*sums.shape[:-1], size, size)
    counts = table.sum(axis=-1)
    total = counts.sum(axis=-1)
    observed = total - np.einsum("...ii->...", table)
    expected = (total**2 - (counts**2).sum(axis=-1)) / (total - 1)
    result: Floats = np.where(expected > 0, 1 - observed / expected, np.nan)
    return result


# --- Kendall's W and tau-b --------------------------------------------------------------------------------


def kendall_w(ranks: Floats) -> float:
    """Kendall's coefficient of concordance of [labelers, K] ranks, corrected for ties; NaN where all tie all.

    W = 12 S / (m² (K³ - K) - m ΣT), T = Σ (t³ - t) over a labeler's groups of t ties (Kendall 1948, chapter 6).
    inf (F) is a rank below the others.
    """
    m, size = ranks.shape
    middle = rankdata(ranks, axis=1)
    ties = sum(float((t**3 - t).sum()) for row in ranks for t in [np.unique(row, return_counts=True)[1]])
    spread = ((middle.sum(axis=0) - m * (size + 1) / 2) ** 2).sum()
    possible = m * m * (size**3 - size) - m * ties
    return float(12 * spread / possible) if possible > 1e-9 else math.nan


def concordance(ranked: Ranked) -> tuple[Ints, Floats]:
    """(item; (W, 1 / labelers), [N, 2]) of each item on which it is defined, over labelers who saw all of it."""
    items, rows = [], []
    for number, item in enumerate(ranked.items):
        whole = item.ranks[~np.isnan(item.ranks).any(axis=1)]
        if len(whole) > 1 and whole.shape[1] > 1 and not math.isnan(w := kendall_w(whole)):
            items.append(number)
            rows.append((w, 1 / len(whole)))
    return np.array(items, dtype=np.int64), np.array(rows, dtype=float).reshape(-1, 2)


@dataclass(frozen=True)
class Tau:
    """Two labelers on an item, [N] each; of the two, `first` is the smaller number."""

    item: Ints
    first: Ints
    second: Ints
    columns: Floats
    """(concordant - discordant pairs, those not tied by first, those not tied by second), [N, 3]."""


def tau_columns(ranked: Ranked) -> Tau:
    """What tau-b is made of, for every two labelers of an item that were shown two completions in common."""
    rows: list[tuple[int, int, int, float, float, float]] = []
    for number, item in enumerate(ranked.items):
        order = np.argsort(item.labelers)
        signs = _signs(item)[order]
        shown = (~np.isnan(signs)).astype(float)
        signs = np.nan_to_num(signs)
        score, untied, both = signs @ signs.T, np.abs(signs) @ shown.T, shown @ shown.T
        names = item.labelers[order].tolist()
        rows += [(number, names[a], names[b], score[a, b], untied[a, b], untied[b, a])
                 for a, b in combinations(range(len(names)), 2) if both[a, b]]
    table = np.array(rows, dtype=float).reshape(-1, 6)
    item_of, first, second = table[:, :3].astype(np.int64).T
    return Tau(item_of, first, second, table[:, 3:])


def _signs(item: Item) -> Floats:
    """Who is the better one of each pair of completions, [L, pairs]: 1, 0 (tie, or both F), -1; NaN not shown."""
    finite = np.where(np.isinf(item.ranks), 1e12, item.ranks)
    i, j = np.triu_indices(len(item.completions), 1)
    result: Floats = np.sign(finite[:, j] - finite[:, i])
    return result


def tau_b(sums: Floats) -> Floats:
    """Kendall's tau-b of pairs of completions within items. On one item it is scipy's; over several the sums of
    both its parts are taken, since ranks of two items can't be compared and a mean of items' own tau-b leaves out
    those on which a labeler ties everything."""
    possible = np.sqrt(sums[..., 1] * sums[..., 2])
    result: Floats = np.where(possible > 0, sums[..., 0] / possible, np.nan)
    return result


# --- choices on pairs -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Both:
    """Two labelers' choices on one pair of completions, [N] each; of the two, `first` is the smaller number."""

    item: Ints
    first: Ints
    second: Ints
    a: Ints
    """The choice of first."""
    b: Ints

    @property
    def decided(self) -> NDArray[np.bool_]:
        """Where neither declared a tie."""
        return (self.a != 0) & (self.b != 0)


def both_chose(made: Choices) -> Both:
    """Every two labelers who compared one pair of completions."""
    order = np.lexsort((made.labeler, made.pair))
    starts = np.unique(made.pair[order], return_index=True)[1].tolist()
    left: list[int] = []
    right: list[int] = []
    for start, end in zip(starts, [*starts[1:], len(order)], strict=False):
        for x, y in combinations(order[start:end].tolist(), 2):
            left.append(x)
            right.append(y)
    x, y = np.array(left, dtype=np.int64), np.array(right, dtype=np.int64)
    return Both(made.item[x], made.labeler[x], made.labeler[y], made.choice[x], made.choice[y])


def kappa(sums: Floats) -> Floats:
    """Cohen's κ over first, tie and second from sums of (alike, all, ties of a, ties of b).

    Taken both ways round, each side wins half of what a labeler does not tie: chance follows from tie rates.
    """
    alike, tie_a, tie_b = (sums[..., k] / sums[..., 1] for k in (0, 2, 3))
    chance = tie_a * tie_b + (1 - tie_a) * (1 - tie_b) / 2
    result: Floats = np.where(chance < 1, (alike - chance) / (1 - chance), np.nan)
    return result


def leave_one_out(made: Choices) -> tuple[Ints, Ints, Floats]:
    """(item, labeler, score), [N] each: every choice against the majority of the others on that pair.

    1 the same, 0 the opposite, ½ where the labeler declared a tie; no row where the others are none or undecided.
    """
    own = np.eye(3, dtype=np.int64)[1 - made.choice]
    others = majority(made.tally()[made.pair] - own) if len(made) else made.choice
    decided = others != 0
    score = 0.5 * (1 + made.choice[decided] * others[decided])
    return made.item[decided], made.labeler[decided], score
