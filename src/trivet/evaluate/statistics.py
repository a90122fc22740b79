"""A measure's figure with its interval, the difference of two models with its interval and its test, and Holm's rule.

**Intervals** are 95%, over groups of items. Shares of yes and no get Wilson's score interval (Wilson 1927; Brown, Cai
and DasGupta 2001 recommend it for few items): a bootstrap of 0 of n is [0, 0], whatever n. Where a group holds
several items n becomes p(1-p) over the variance by groups, at most the number of items (Dean and Pagano 2015). All
else is bootstrapped over groups (intervals.py). The calibration error is biased upwards, most where it is small: its
interval holds both the percentile and the basic bootstrap's (Davison and Hinkley 1997, section 5.2.1), and begins at 0
where confidences that are just right would err as much by chance (Bröcker and Smith 2007).

**Tests** are paired: under the null it does not matter which answer is whose, so the two models' labels are swapped at
random group by group, and the measure's own difference is computed anew each time (Efron and Tibshirani 1993, chapter
15; for yes and no this is McNemar's test). All swaps are gone through where few groups differ, else 9,999 random ones.
p is two-sided and the mid-p: swaps that give just the difference found count by half. The plain p is too
careful for counts, and the mid-p has kept its level wherever it was tried (Fagerland, Lydersen and Laake 2013).

Not covered: differences between runs of one model with other sampling seeds. Both sides' answers are drawn once.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from trivet.evaluate.base import Kind, Measure, Score
from trivet.intervals import Interval, bootstrap_statistic

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

LEVEL = 0.05
"""Of the tests, and one minus that of the intervals."""
RESAMPLES, SWAPS = 2000, 9999
_FITS = 1999
"""Swaps of `lc_win`, each of which costs a fit."""
_BINS = 10
_CLOSE = 1e-9


class Difference(NamedTuple):
    """The model's figure less the base's; of `win` and `lc_win` the figure less 0.5. `n` counts the shared groups."""

    value: float
    low: float
    high: float
    n: int
    p: float
    """Two-sided, before Holm's rule; NaN where the figure could not be computed."""
    least: float
    """The smallest p that this test could have given: 2^-k where k groups differ at all."""


class _Items(NamedTuple):
    """A measure's scores as arrays [rows], in order of id."""

    names: NDArray[np.str_]
    """Of the groups."""
    values: Floats
    others: Floats
    weights: Floats


def estimate(measure: Measure, scores: Sequence[Score], seed: int = 0) -> Interval:
    """The measure's figure over `scores` with its 95% interval; `n` counts groups.

    NaN where it is not defined (a κ where both sides always say the same), and for the bounds with one group. Does
    not depend on the order of the scores. Raises ValueError for no scores, two of one id, or values that the kind
    can't have.
    """
    items = _items(measure, scores)
    seed = _own_seed(measure, seed)
    if measure.kind == "lc_win":
        return _length_controlled_interval(items, seed)
    if _yes_or_no(measure, items):
        return _wilson_by_group(items)
    found = bootstrap_statistic(_columns(measure.kind, items), items.names, lambda sums: _figure(measure.kind, sums),
                                seed=seed, resamples=RESAMPLES, level=1 - LEVEL)
    if measure.kind == "kappa" and found.value == 1:
        return found._replace(low=_agreed(items, found.n))
    return _calibration_interval(items, found, seed) if measure.kind == "ece" else found


def difference(measure: Measure, mine: Sequence[Score], base: Sequence[Score] = (), seed: int = 0) -> Difference:
    """The model's figure less the base's over the items both have, with a 95% interval and p.

    `win` and `lc_win` have no base: theirs is the distance from 0.5. Raises ValueError where nothing is shared, where
    an item's group differs, and as `estimate` does.
    """
    p, least = permutation_test(measure, mine, base, seed)
    if measure.kind in ("win", "lc_win"):
        found = estimate(measure, mine, seed)
        return Difference(found.value - 0.5, found.low - 0.5, found.high - 0.5, found.n, p, least)
    import numpy as np

    first, second = _paired(measure, mine, base)
    groups, (ours, theirs) = _group_sums(measure.kind, first, second)
    n, width = len(groups), ours.shape[1]
    found = bootstrap_statistic(
        np.hstack([ours, theirs]), groups,
        lambda s: _figure(measure.kind, s[..., :width]) - _figure(measure.kind, s[..., width:]),
        seed=_own_seed(measure, seed), resamples=RESAMPLES, level=1 - LEVEL)
    low, high = found.low, found.high
    yes_or_no = _yes_or_no(measure, first) and _yes_or_no(measure, second)
    alone = n == len(first.values) and (first.weights == 1).all() and (second.weights == 1).all()
    if n > 1 and yes_or_no and (alone or (ours == theirs).all()):
        gained, lost = (ours[:, 0] > theirs[:, 0]).sum(), (ours[:, 0] < theirs[:, 0]).sum()
        low, high = _bonett_price(int(gained), int(lost), n)
    if measure.kind == "kappa" and all(_figure("kappa", s.sum(axis=0)) == 1 for s in (ours, theirs)):
        low, high = _agreed(first, n) - 1, 1 - _agreed(second, n)
    return Difference(found.value, low, high, n, p, least)


def permutation_test(measure: Measure, mine: Sequence[Score], base: Sequence[Score] = (),
                     seed: int = 0) -> tuple[float, float]:
    """(p, least) of `difference`, without its interval, which is quicker. Raises as that does."""
    seed = _own_seed(measure, seed)
    if measure.kind == "lc_win":
        return _length_controlled_test(_items(measure, mine), seed)
    if measure.kind == "win":
        items = _items(measure, mine)
        _, sides = _group_sums("win", items, items._replace(values=1 - items.values))
    else:
        _, sides = _group_sums(measure.kind, *_paired(measure, mine, base))
    return _swap_test(measure.kind, sides[0], sides[1], seed)


def holm(ps: Sequence[float]) -> list[float]:
    """p-values adjusted for being one of several: rejecting those at most α keeps the chance of any false one below α.

    Holm 1979: the k-th smallest of m, times m - k + 1, made rising, at most 1. In the order given. Raises ValueError
    for a p outside [0, 1].
    """
    if not all(0.0 <= p <= 1.0 for p in ps):
        raise ValueError(f"p-values lie between 0 and 1, not {list(ps)}")
    adjusted, highest = [0.0] * len(ps), 0.0
    for place, index in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        highest = max(highest, min(1.0, (len(ps) - place) * ps[index]))
        adjusted[index] = highest
    return adjusted


def in_family(p: float | None, least: float | None) -> bool:
    """Whether a test counts in Holm's family: p is known, and the test could have reached the level.

    A test that could not, whatever it found, spends none of the level, so it need not be paid for (Tarone 1990; how
    many groups differ at all says nothing of who is the better).
    """
    return p is not None and not math.isnan(p) and least is not None and least <= LEVEL


def holm_family(found: Sequence[tuple[float | None, float | None]]) -> list[float | None]:
    """`holm` over (p, least) of those in the family; None for the others, which are not adjusted: none of them can
    have reached the level."""
    inside = [i for i, (p, least) in enumerate(found) if in_family(p, least)]
    family = dict(zip(inside, holm([p for i in inside if (p := found[i][0]) is not None]), strict=True))
    return [family.get(i) for i in range(len(found))]


def wilson(share: float, n: float, level: float = 1 - LEVEL) -> tuple[float, float]:
    """Wilson's score interval of a share in [0, 1] of `n` > 0 yes-or-no items; n need not be whole."""
    z2 = _deviations(level) ** 2
    middle, spread = share + z2 / (2 * n), math.sqrt(z2 * (share * (1 - share) + z2 / (4 * n)) / n)
    low, high = (middle - spread) / (1 + z2 / n), (middle + spread) / (1 + z2 / n)
    return (0.0 if share == 0 else max(low, 0.0)), (1.0 if share == 1 else min(high, 1.0))


# --- from scores to arrays ------------------------------------------------------------------------------


def _items(measure: Measure, scores: Sequence[Score]) -> _Items:
    import numpy as np

    if not scores:
        raise ValueError(f"{measure.key}: no scores")
    rows = sorted(scores, key=lambda s: s.id)
    twice = next((a.id for a, b in itertools.pairwise(rows) if a.id == b.id), None)
    if twice is not None:
        raise ValueError(f"{measure.key}: two scores of item {twice}")
    if measure.kind in ("ece", "kappa", "lc_win") and any(s.other is None for s in rows):
        raise ValueError(f"{measure.key}: a score of kind {measure.kind} needs `other`")
    items = _Items(np.array([s.group for s in rows]), *(
        np.array(x, dtype=np.float64) for x in zip(*((s.value, s.other or 0.0, s.weight) for s in rows), strict=True)))
    limits = {"ece": (items.values, items.others), "kappa": (items.values, items.others), "win": (items.values,),
              "lc_win": (items.values,)}.get(measure.kind, (items.values,) if measure.share else ())
    if any(((x < 0) | (x > 1)).any() for x in limits):
        raise ValueError(f"{measure.key}: values lie between 0 and 1")
    if (items.weights < 0).any() or not items.weights.sum() > 0:
        raise ValueError(f"{measure.key}: weights are at least 0, and not all 0")
    if measure.kind == "kappa" and not _binary(items.values, items.others):
        raise ValueError(f"{measure.key}: verdicts are 0 or 1")
    return items


def _paired(measure: Measure, mine: Sequence[Score], base: Sequence[Score]) -> tuple[_Items, _Items]:
    """The items that both have, in one order."""
    groups = {s.id: s.group for s in base}
    shared = [s for s in mine if s.id in groups]
    if not shared:
        raise ValueError(f"{measure.key}: the two share no item")
    for score in shared:
        if score.group != groups[score.id]:
            raise ValueError(f"{measure.key}: item {score.id} is of group {score.group} and of {groups[score.id]}")
    ids = {s.id for s in shared}
    return _items(measure, shared), _items(measure, [s for s in base if s.id in ids])


def _group_sums(kind: Kind, *sides: _Items) -> tuple[NDArray[np.str_], list[Floats]]:
    """Names of the groups and for each side the sums of its columns by group, [groups, C]."""
    import numpy as np

    names, place = np.unique(sides[0].names, return_inverse=True)
    return names, [np.stack([np.bincount(place, weights=c, minlength=len(names)) for c in _columns(kind, s).T], axis=1)
                   for s in sides]


def _columns(kind: Kind, items: _Items) -> Floats:
    """[rows, C]: what is summed over rows before `_figure`."""
    import numpy as np

    v, o, w = items.values, items.others, items.weights
    if kind == "ece":
        bins = np.minimum((o * _BINS).astype(int), _BINS - 1)
        return np.column_stack([np.where(bins == b, w * (v - o), 0.0) for b in range(_BINS)] + [w])
    if kind == "kappa":
        return np.column_stack([w * v * o, w * v, w * o, w])
    return np.column_stack([w * v, w])


def _figure(kind: Kind, sums: Floats) -> Floats:
    """The kind's figure from column sums: [..., C] to [...]; NaN where it is not defined."""
    import numpy as np

    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        total = sums[..., -1]
        if kind == "ece":
            return np.asarray(np.abs(sums[..., :-1]).sum(axis=-1) / total)
        if kind == "kappa":
            both, first, second = (sums[..., i] / total for i in range(3))
            agreed, chance = 1 - first - second + 2 * both, first * second + (1 - first) * (1 - second)
            return np.where(1 - chance > _CLOSE, (agreed - chance) / (1 - chance), np.nan)
        means = sums[..., 0] / total
        return np.asarray(np.exp(means) if kind == "exp" else means)


# --- intervals ------------------------------------------------------------------------------------------


def _yes_or_no(measure: Measure, items: _Items) -> bool:
    """Whether the figure is a share of items, each of which is a yes or a no."""
    return measure.kind in ("mean", "win") and measure.share and _binary(items.values)


def _binary(*arrays: Floats) -> bool:
    return all(bool(((a == 0) | (a == 1)).all()) for a in arrays)


def _wilson_by_group(items: _Items) -> Interval:
    import numpy as np

    w = items.weights
    share = float((w * items.values).sum() / w.sum())
    names, place = np.unique(items.names, return_inverse=True)
    n = len(names)
    if n == 1 and len(w) > 1:
        return Interval(share, math.nan, math.nan, n)
    if _binary(np.array([share])):
        weights = np.bincount(place, weights=w)
        size = float(weights.sum() ** 2 / (weights**2).sum())  # Kish: groups of equal weight count one each
    else:
        variance = float((np.bincount(place, weights=w * (items.values - share)) ** 2).sum() / w.sum() ** 2)
        size = min(share * (1 - share) / variance, len(w)) if variance > 0 else float(len(w))
    return Interval(share, *wilson(share, size), n)


def _agreed(items: _Items, n: int) -> float:
    """The lower bound of κ where all n > 1 groups agree: that they hardly ever would disagree is all that is known."""
    said = float((items.weights * items.values).sum() / items.weights.sum())
    chance = said**2 + (1 - said) ** 2
    return (wilson(1.0, n)[0] - chance) / (1 - chance) if n > 1 else math.nan


def _calibration_interval(items: _Items, found: Interval, seed: int) -> Interval:
    """Both bootstrap intervals joined; down to 0 where perfectly calibrated confidences would often err as much."""
    import numpy as np

    low, high = min(found.low, 2 * found.value - found.high), max(found.high, 2 * found.value - found.low)
    right = np.random.default_rng(seed).random((RESAMPLES, len(items.values))) < items.others
    signed = (right - items.others) * items.weights
    bins = np.minimum((items.others * _BINS).astype(int), _BINS - 1)
    chance = np.abs(signed @ np.eye(_BINS)[bins]).sum(axis=1) / items.weights.sum()
    if found.value <= np.quantile(chance, 1 - LEVEL / 2):
        low = 0.0
    return found._replace(low=max(low, 0.0), high=min(high, 1.0))


def _bonett_price(gained: int, lost: int, n: int) -> tuple[float, float]:
    """Interval of a difference of two shares over the same n items (Bonett and Price 2012, the adjusted Wald one).

    One item more counts on either side, so that no difference in n items is not taken for none at all.
    """
    up, down = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    spread = _deviations(1 - LEVEL) * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    return max(up - down - spread, -1.0), min(up - down + spread, 1.0)


def _deviations(level: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf((1 + level) / 2)


# --- tests ----------------------------------------------------------------------------------------------


def _swap_test(kind: Kind, ours: Floats, theirs: Floats, seed: int) -> tuple[float, float]:
    """The test on group sums [groups, C] of the two sides. Groups in which they agree change nothing by swapping."""
    import numpy as np

    sums, other = ours.sum(axis=0), theirs.sum(axis=0)
    found = float(_figure(kind, sums) - _figure(kind, other))
    if math.isnan(found):
        return math.nan, math.nan
    gap = (ours - theirs)[(np.abs(ours - theirs) > _CLOSE * (np.abs(ours) + np.abs(theirs))).any(axis=1)]
    swaps, exact = _swaps(len(gap), SWAPS, seed)
    moved = swaps @ gap
    return _mid_p(_figure(kind, sums - moved) - _figure(kind, other + moved), found, exact, len(gap))


def _swaps(groups: int, most: int, seed: int) -> tuple[Floats, bool]:
    """[swaps, groups] of 0 and 1: all there are (then True), if at most `most`, else that many random ones."""
    import numpy as np

    if 2**groups <= most:
        return (np.arange(2**groups)[:, None] >> np.arange(groups)[None, :] & 1).astype(np.float64), True
    return np.random.default_rng(seed).integers(0, 2, size=(most, groups)).astype(np.float64), False


def _mid_p(drawn: Floats, found: float, exact: bool, differing: int) -> tuple[float, float]:
    """Two-sided mid-p of `found` among the swaps' differences, and the smallest there could have been.

    Swaps without a figure (NaN) count as at least as far. Random swaps do not hold the one found: it is added.
    """
    import numpy as np

    if differing == 0:
        return 1.0, 1.0
    close = _CLOSE * max(1.0, abs(found))
    far = np.where(np.isnan(drawn), np.inf, np.abs(drawn))
    beyond, equal = int((far > abs(found) + close).sum()), int((np.abs(far - abs(found)) <= close).sum())
    if exact:
        return (beyond + equal / 2) / len(drawn), 2.0**-differing
    return (beyond + (equal + 1) / 2) / (len(drawn) + 1), max(2.0**-differing, 0.5 / (len(drawn) + 1))


def _own_seed(measure: Measure, seed: int) -> int:
    """A seed of the measure's own, so that its figures do not hang on which others are in the table."""
    return zlib.crc32(f"{seed}:{measure.key}".encode())


# --- at no difference in length -------------------------------------------------------------------------


def _length_controlled_interval(items: _Items, seed: int) -> Interval:
    import numpy as np

    from trivet.judge.length import length_controlled, length_feature, win_rates_at_equal_length

    value = length_controlled(items.values, items.others, items.weights)
    names, place = np.unique(items.names, return_inverse=True)
    n = len(names)
    if n == 1:
        return Interval(value, math.nan, math.nan, n)
    draws = np.random.default_rng(seed).multinomial(n, [1 / n] * n, size=RESAMPLES).astype(np.float64)
    weights = draws[:, place] * items.weights
    drawn = win_rates_at_equal_length(items.values, length_feature(items.others, items.weights),
                                      weights[weights.sum(axis=1) > 0])
    low, high = np.quantile(drawn, [LEVEL / 2, 1 - LEVEL / 2])
    return Interval(value, float(low), float(high), n)


def _length_controlled_test(items: _Items, seed: int) -> tuple[float, float]:
    """Swapping a group's two answers turns p into 1 - p and the difference in length around."""
    import numpy as np

    from trivet.judge.length import length_controlled, length_feature, win_rates_at_equal_length

    place = np.unique(items.names, return_inverse=True)[1]
    differ = np.unique(place[(items.values != 0.5) | (items.others != 0)])
    if not len(differ):
        return 1.0, 1.0
    turns, exact = _swaps(len(differ), _FITS, seed)
    swaps = np.zeros((len(turns), int(place.max()) + 1))
    swaps[:, differ] = turns
    turned = swaps[:, place] == 1
    # the lengths' deviation, too, is taken anew: only then is every swap treated as what was found
    features = np.stack([length_feature(np.where(row, -items.others, items.others), items.weights) for row in turned])
    drawn = win_rates_at_equal_length(np.where(turned, 1 - items.values, items.values), features, items.weights)
    found = length_controlled(items.values, items.others, items.weights)
    return _mid_p(drawn - 0.5, found - 0.5, exact, len(differ))
