"""Intervals that are right at the ends, tests that keep their level, Holm's rule by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from trivet.evaluate import statistics
from trivet.evaluate.base import Measure, Score
from trivet.evaluate.statistics import difference, estimate, holm, holm_family, in_family, permutation_test, wilson


def measure(kind="mean", share=None, better="higher") -> Measure:
    return Measure("m", "honest", "a measure", better, kind=kind,
                   share=kind not in ("exp", "kappa") if share is None else share)


def scores(values, other=None, weight=None, group=None) -> list[Score]:
    n = len(values)
    return [Score(measure="honest.m", id=f"q{i}", group=f"g{i if group is None else group[i]}", value=float(values[i]),
                  other=None if other is None else float(other[i]), weight=1.0 if weight is None else float(weight[i]))
            for i in range(n)]


def p_of(kind: str, mine: list[Score], base: list[Score] | None = None, seed: int = 0) -> float:
    return permutation_test(measure(kind), mine, base or [], seed)[0]


# --- figures --------------------------------------------------------------------------------------------


def test_figures_of_each_kind_by_hand() -> None:
    assert estimate(measure(), scores([1, 0, 0, 1])).value == 0.5
    assert estimate(measure(share=False), scores([2, 5], weight=[3, 1])).value == pytest.approx(11 / 4)
    assert estimate(measure("exp"), scores([2, 1], weight=[1, 3])).value == pytest.approx(math.exp(5 / 4))
    # confidences 0.25 and 0.2 share no bin with 0.9: |0.25 - 1|·1 + |0.9+0.95 - 1|, over three items
    assert estimate(measure("ece"), scores([1, 1, 0], other=[0.25, 0.9, 0.95])).value == pytest.approx(
        (0.75 + 0.85) / 3)
    assert estimate(measure("ece"), scores([1, 0], other=[1.0, 0.0])).value == 0
    # table 20, 5, 10, 15: po 0.7, pe 0.5 (a textbook's example of kappa 0.4)
    v, o = [1] * 25 + [0] * 25, [1] * 20 + [0] * 5 + [1] * 10 + [0] * 15
    assert estimate(measure("kappa"), scores(v, other=o)).value == pytest.approx(0.4)
    assert estimate(measure("win"), scores([0.9, 0.7])).value == pytest.approx(0.8)


def test_kappa_where_both_always_say_the_same_is_not_defined() -> None:
    found = estimate(measure("kappa"), scores([1] * 5, other=[1] * 5))
    assert math.isnan(found.value) and math.isnan(found.low)


def test_kappa_of_two_that_never_disagreed_is_not_sure_to_be_one() -> None:
    found = estimate(measure("kappa"), scores([1, 0] * 15, other=[1, 0] * 15))
    assert found.value == found.high == 1
    assert found.low == pytest.approx((wilson(1, 30)[0] - 0.5) / 0.5) and 0.7 < found.low < 0.8
    gap = difference(measure("kappa"), *[scores([1, 0] * 15, other=[1, 0] * 15)] * 2)
    assert gap.value == 0 and (gap.low, gap.high) == (found.low - 1, 1 - found.low)


def test_win_rate_at_equal_length_leaves_a_preference_for_length_out() -> None:
    rng = np.random.default_rng(0)
    longer = rng.normal(15, 20, 120)
    p = 1 / (1 + np.exp(-longer / 10))
    plain, controlled = estimate(measure("win"), scores(p)), estimate(measure("lc_win"), scores(p, other=longer))
    assert plain.low > 0.55
    assert controlled.low < 0.5 < controlled.high
    assert p_of("win", scores(p)) < 0.01 < 0.05 < p_of("lc_win", scores(p, other=longer))


def test_order_does_not_matter_and_the_seed_is_obeyed() -> None:
    rng = np.random.default_rng(1)
    rows = scores(rng.random(30), weight=rng.random(30), group=rng.integers(0, 9, 30))
    turned = rows[::-1]
    assert estimate(measure(), rows, 3) == estimate(measure(), turned, 3) != estimate(measure(), rows, 4)
    other = scores(rng.random(30), group=[int(r.group[1:]) for r in rows])
    assert difference(measure(), rows, other, 3) == difference(measure(), turned, other[::-1], 3)


# --- intervals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("hits", "n"), [(0, 20), (7, 50), (50, 50), (1, 1)])
def test_wilson_is_scipys(hits: int, n: int) -> None:
    theirs = stats.binomtest(hits, n).proportion_ci(method="wilson")
    assert wilson(hits / n, n) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    mine = estimate(measure(), scores([1] * hits + [0] * (n - hits)))
    assert (mine.low, mine.high, mine.n) == (*wilson(hits / n, n), n)


def test_a_share_of_none_is_not_sure_to_be_none() -> None:
    found = estimate(measure(), scores([0] * 20))
    assert found.value == found.low == 0 and 0.15 < found.high < 0.17
    # three items a group: what is known rests on the groups
    grouped = estimate(measure(), scores([0] * 60, group=np.repeat(range(20), 3)))
    assert grouped.high == pytest.approx(found.high) and grouped.n == 20
    same = difference(measure(), scores([0] * 20), scores([0] * 20))
    assert same.value == 0 and same.low < -0.1 and same.high > 0.1 and same.p == 1


def test_one_group_has_no_interval() -> None:
    found = estimate(measure(), scores([1, 0], group=[0, 0]))
    assert found.value == 0.5 and math.isnan(found.low) and math.isnan(found.high) and found.n == 1


def test_items_of_a_group_are_not_taken_for_independent() -> None:
    rng = np.random.default_rng(2)
    truth, said = 0.3, {"alone": 0, "grouped": 0, "calibration": 0, "pairs": 0}
    for seed in range(200):
        group = np.repeat(np.arange(30), 4)
        rows = rng.random(120) < np.repeat(rng.beta(0.3, 0.7, 30), 4)
        for name, found in (("grouped", estimate(measure(), scores(rows, group=group), seed)),
                            ("alone", estimate(measure(), scores(rows), seed))):
            said[name] += found.low <= truth <= found.high
        a, b = rng.random(40) < 0.4, rng.random(40) < 0.3
        pair = difference(measure(), scores(a), scores(b), seed)
        said["pairs"] += pair.low <= 0.1 <= pair.high
    assert said["grouped"] >= 182 and said["pairs"] >= 182
    assert said["alone"] < 170  # what would come of leaving the groups out


def test_the_calibration_errors_interval_reaches_zero_for_the_calibrated(monkeypatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 300)
    rng = np.random.default_rng(3)
    found = []
    for seed in range(60):
        sure = rng.random(80)
        found.append(estimate(measure("ece"), scores(rng.random(80) < sure, other=sure), seed))
    assert sum(f.low == 0 for f in found) >= 54 and all(f.low <= f.value <= f.high for f in found)
    sure = rng.random(400)
    wrong = estimate(measure("ece"), scores(rng.random(400) < sure / 2, other=sure))
    assert wrong.low > 0.1 and wrong.low < 0.25 < wrong.high  # the mean of sure/2


# --- tests ----------------------------------------------------------------------------------------------


def table(kind: str, rng: np.random.Generator, effect: float, n: int) -> tuple[list[Score], list[Score]]:
    """A model and its base on n items, alike but for the effect."""
    hard = rng.random(n)
    if kind == "mean":
        return scores(rng.random(n) < hard * 0.6 + effect), scores(rng.random(n) < hard * 0.6)
    if kind == "exp":
        tokens = rng.integers(20, 200, n)
        return (scores(3 + hard - effect + rng.normal(0, 0.2, n), weight=tokens),
                scores(3 + hard + rng.normal(0, 0.2, n), weight=tokens))
    if kind == "ece":
        sides = []
        for shift in (2 * effect, 0.0):
            sure = np.clip(hard + rng.normal(0, 0.1, n), 0, 1)
            sides.append(scores(rng.random(n) < np.clip(sure - shift, 0, 1), other=sure))
        return sides[0], sides[1]
    if kind == "kappa":
        sides = []
        for right in (0.7 + effect, 0.7):
            v = rng.random(n) < hard
            sides.append(scores(v, other=np.where(rng.random(n) < right, v, ~v)))
        return sides[0], sides[1]
    if kind == "win":
        return scores(np.clip(rng.normal(0.5 + effect, 0.3, n), 0, 1)), []
    longer = rng.normal(0, 20, n)
    return scores(1 / (1 + np.exp(-(longer / 20 + rng.normal(0, 1, n) + 4 * effect))), other=longer), []


@pytest.mark.parametrize("kind", ["mean", "exp", "ece", "kappa", "win", "lc_win"])
def test_the_test_alone_is_that_of_the_difference(kind: str) -> None:
    mine, base = table(kind, np.random.default_rng(5), 0.1, 20)
    whole = difference(measure(kind), mine, base, 3)
    assert permutation_test(measure(kind), mine, base, 3) == (whole.p, whole.least)
    assert 0 < whole.least <= whole.p < 1


@pytest.mark.parametrize("kind", ["mean", "exp", "ece", "kappa", "win", "lc_win"])
@pytest.mark.parametrize("n", [14, 40])
def test_the_level_is_kept_and_an_effect_found(kind: str, n: int, monkeypatch) -> None:
    monkeypatch.setattr(statistics, "SWAPS", 399)
    monkeypatch.setattr(statistics, "_FITS", 199)
    rng, count = np.random.default_rng(n), 120 if kind == "lc_win" else 300
    rejected = sum(p_of(kind, *table(kind, rng, 0.0, n), seed) <= 0.05 for seed in range(count))
    low, high = wilson(rejected / count, count)
    assert low <= 0.05, f"{rejected} of {count}: rejects too often"
    if n == 40 and kind != "mean":  # few items of yes and no: p moves in steps
        assert high >= 0.05, f"{rejected} of {count}: rejects too seldom"
        found = sum(p_of(kind, *table(kind, rng, 0.2, 4 * n), seed) <= 0.05 for seed in range(20))
        assert found >= 14, f"finds {found} of 20"


def test_groups_are_swapped_whole() -> None:
    rng, grouped, alone = np.random.default_rng(7), 0, 0
    for seed in range(150):
        group = np.repeat(np.arange(12), 5)
        mine, base = (np.repeat(rng.normal(0, 1, 12), 5) + rng.normal(0, 0.1, 60) for _ in range(2))
        m = measure(share=False)
        grouped += permutation_test(m, scores(mine, group=group), scores(base, group=group), seed)[0] <= 0.05
        alone += permutation_test(m, scores(mine), scores(base), seed)[0] <= 0.05
    assert wilson(grouped / 150, 150)[0] <= 0.05 < 0.2 < alone / 150


def test_few_groups_are_gone_through_one_by_one() -> None:
    rng = np.random.default_rng(4)
    mine, base = rng.normal(0.6, 1, 8), rng.normal(0, 1, 8)
    gaps = mine - base
    sums = [abs(sum(s * g for s, g in zip(signs, gaps))) for signs in itertools.product((1, -1), repeat=8)]
    beyond = sum(s > abs(gaps.sum()) + 1e-9 for s in sums)
    equal = sum(abs(s - abs(gaps.sum())) <= 1e-9 for s in sums)
    found = difference(measure(share=False), scores(mine), scores(base))
    assert found.p == pytest.approx((beyond + equal / 2) / 256)
    assert found.least == 1 / 256 and found.value == pytest.approx(gaps.mean())


def test_yes_and_no_is_mcnemars_test_by_mid_p() -> None:
    gained, lost, same = 9, 2, 30
    mine, base = [1] * gained + [0] * lost + [1] * same, [0] * gained + [1] * lost + [1] * same
    exact = stats.binomtest(gained, gained + lost).pvalue
    point = stats.binom.pmf(lost, gained + lost, 0.5)
    assert difference(measure(), scores(mine), scores(base)).p == pytest.approx(exact - point)
    # and by random swaps of more groups than can be gone through
    gained, lost = 25, 10
    mine, base = [1] * gained + [0] * lost, [0] * gained + [1] * lost
    wanted = stats.binomtest(gained, 35).pvalue - stats.binom.pmf(lost, 35, 0.5)
    assert p_of("mean", scores(mine), scores(base)) == pytest.approx(wanted, abs=0.005)


def test_only_shared_items_are_compared() -> None:
    mine, base = scores([1] * 10 + [0] * 10), scores([1] * 10 + [0] * 5)
    found = difference(measure(), mine, base)
    assert (found.n, found.value, found.p) == (15, 0.0, 1.0)


def test_win_rates_are_compared_with_a_half() -> None:
    rows = scores([0.8] * 12)
    found, own = difference(measure("win"), rows), estimate(measure("win"), rows)
    assert found.value == pytest.approx(0.3) and found.low == pytest.approx(own.low - 0.5)
    assert found.p == 2.0**-12 == found.least


# --- Holm -----------------------------------------------------------------------------------------------


def test_holm_by_hand() -> None:
    # 0.01·4, then max(…, 0.02·3), 0.03·2, 0.04
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([1.2])


def test_a_test_that_could_never_reach_the_level_costs_the_others_nothing() -> None:
    found = holm_family([(0.03, 0.0001), (0.5, 0.25), (0.02, 0.001), (None, None), (math.nan, math.nan)])
    assert found == pytest.approx([0.04, None, 0.04, None, None])
    assert not in_family(0.5, 0.25) and not in_family(None, None) and in_family(0.9, 0.05)


def test_a_table_of_nothing_rejects_as_often_as_it_says(monkeypatch) -> None:
    monkeypatch.setattr(statistics, "SWAPS", 999)
    rng, count, rejected = np.random.default_rng(100), 300, 0
    for seed in range(count):
        rows = [difference_p(kind, rng, seed) for kind in ("mean", "mean", "exp", "ece", "win", "kappa")]
        rejected += min(p for p in holm_family(rows) if p is not None) <= 0.05
    low, high = wilson(rejected / count, count)
    assert low <= 0.05 <= high, rejected


def difference_p(kind: str, rng: np.random.Generator, seed: int) -> tuple[float, float]:
    return permutation_test(measure(kind), *table(kind, rng, 0.0, 40), seed)


# --- what can't be ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "rows", "why"), [
    ("mean", [], "no scores"),
    ("mean", scores([1]) * 2, "two scores of item q0"),
    ("mean", scores([1.5]), "between 0 and 1"),
    ("ece", scores([1]), "needs `other`"),
    ("ece", scores([1], other=[1.2]), "between 0 and 1"),
    ("kappa", scores([1, 0.5], other=[1, 0]), "0 or 1"),
    ("win", scores([-0.1]), "between 0 and 1"),
    ("mean", scores([1, 1], weight=[0, 0]), "not all 0"),
    ("mean", scores([1, 1], weight=[2, -1]), "at least 0"),
])
def test_scores_that_make_no_sense_are_refused(kind: str, rows: list[Score], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        estimate(measure(kind), rows)


def test_pairs_that_do_not_meet_are_refused() -> None:
    with pytest.raises(ValueError, match="share no item"):
        difference(measure(), scores([1]), [])
    with pytest.raises(ValueError, match="item q0 is of group g0 and of g5"):
        difference(measure(), scores([1]), scores([1], group=[5]))
