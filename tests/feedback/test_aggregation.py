"""Aggregation: models against naive fits, published figures, choix and crowd-kit; recovery; and the rules."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import choix
import numpy as np
import pandas as pd
import pytest
import scipy.optimize
import scipy.stats
from crowdkit.aggregation import MACE, DawidSkene

from simulated import noise_of, ranks_of, simulate
from trivet.artifacts import Ranking
from trivet.errors import TrivetError
from trivet.feedback import labelers, models
from trivet.feedback.aggregation import METHODS, aggregate, preferences
from trivet.feedback.choices import by_item, choices
from trivet.feedback.models import bradley_terry, davidson, outcome_probabilities, plackett_luce
from trivet.feedback.votes import ranked_pairs

F = None


def ranking(ranks, labeler="ann", id="p", texts="abcdefgh", order=None) -> Ranking:
    shown = order or range(len(ranks))
    return Ranking(id=id, messages=[{"role": "user", "content": f"Question {id}?"}], labeler=labeler,
                   completions=[{"id": f"{id}/{k}", "text": texts[k]} for k in shown],
                   ranks=[ranks[k] for k in shown])


# --- Bradley–Terry, Davidson, Plackett–Luce -----------------------------------------------------------------


def random_wins(seed: int, size: int = 6, most: int = 5) -> np.ndarray:
    wins = np.random.default_rng(seed).integers(0, most, (size, size)).astype(float)
    np.fill_diagonal(wins, 0)
    return wins


@pytest.mark.parametrize("sd", [0.5, 1.0, 5.0])
def test_bradley_terry_is_choixs(sd) -> None:
    wins = random_wins(0)
    data = [(i, j) for i in range(6) for j in range(6) for _ in range(int(wins[i, j]))]
    expected = choix.opt_pairwise(6, data, alpha=1 / (2 * sd**2), method="Newton-CG", tol=1e-12)
    assert bradley_terry(wins[None], prior_sd=sd).theta[0] == pytest.approx(expected, abs=1e-5)


def test_prompts_are_fitted_apart() -> None:
    tables = np.stack([random_wins(k, 4) for k in range(5)])
    together = bradley_terry(tables).theta
    for k in range(5):
        assert together[k] == pytest.approx(bradley_terry(tables[k : k + 1]).theta[0], abs=1e-7)


def test_plackett_luce_without_ties_is_choixs() -> None:
    rng = random.Random(1)
    orders = [rng.sample(range(5), rng.choice([3, 4, 5])) for _ in range(12)]
    ranks = np.full((12, 5), np.nan)
    for row, order in zip(ranks, orders):
        row[order] = range(len(order))
    fit = plackett_luce(np.zeros(12, dtype=int), ranks, 1, prior_sd=2.0)
    assert len(fit.log_ties) == 0
    expected = choix.opt_rankings(5, orders, alpha=1 / 8, method="Newton-CG", tol=1e-12)
    assert fit.theta[0] == pytest.approx(expected, abs=1e-5)


PUDDINGS = """12 19 22 16, 13 16 19 12, 23 19 19 10, 14 18 23 13, 24 23 19 9, 34 19 20 15, 15 13 19 18, 25 16 20 12,
35 16 15 17, 45 17 14 16, 16 18 21 12, 26 22 20 12, 36 13 18 10, 46 14 19 18, 56 11 21 12"""


def test_davidson_gives_the_published_figures() -> None:
    """Davidson 1970, table 2: six puddings. Estimates as in the R package PlackettLuce (Turner et al. 2020, §2)."""
    wins, ties = np.zeros((1, 6, 6)), np.zeros((1, 6, 6))
    for row in PUDDINGS.split(","):
        pair, *counts = row.split()
        i, j = int(pair[0]) - 1, int(pair[1]) - 1
        wins[0, i, j], wins[0, j, i], ties[0, i, j] = map(int, counts)
    fit = davidson(wins, ties, prior_sd=1e3, tie_sd=1e3)
    worth = np.exp(fit.theta[0])
    assert worth / worth.sum() == pytest.approx(
        [0.1388005, 0.1729985, 0.1617420, 0.1653930, 0.1586805, 0.2023855], abs=3e-5)
    assert math.exp(fit.log_ties[0]) == pytest.approx(0.7468147, abs=3e-5)


def test_davidson_is_a_naive_fit() -> None:
    wins = np.stack([random_wins(k, 3, 3) for k in range(4)])
    ties = np.stack([np.triu(random_wins(k + 50, 3, 3), 1) for k in range(4)])

    def loss(x) -> float:
        theta, log_nu = x[:-1].reshape(4, 3), x[-1]
        total = (theta**2).sum() / 2 + log_nu**2 / (2 * 3.0**2)
        for p, i, j in itertools.product(range(4), range(3), range(3)):
            a, b = math.exp(theta[p, i]), math.exp(theta[p, j])
            tie = math.exp(log_nu) * math.sqrt(a * b)
            total -= wins[p, i, j] * math.log(a / (a + b + tie)) + ties[p, i, j] * math.log(tie / (a + b + tie))
        return total

    best = scipy.optimize.minimize(loss, np.zeros(13), tol=1e-12).x
    fit = davidson(wins, ties)
    assert fit.theta.ravel() == pytest.approx(best[:-1], abs=1e-4)
    assert fit.log_ties[0] == pytest.approx(best[-1], abs=1e-4)


def test_plackett_luce_with_ties_and_fails_is_a_naive_fit() -> None:
    """The likelihood written out as in Turner et al. 2020, eq. 4, over all sets of the answers left."""
    rng = np.random.default_rng(3)
    prompt, ranks = np.repeat([0, 1], 6), rng.integers(1, 4, (12, 4)).astype(float)
    ranks[rng.random((12, 4)) < 0.15] = np.inf
    ranks[2, 1] = np.nan

    def worth(members, theta, log_ties) -> float:
        size = len(members)
        return math.exp((log_ties[size - 2] if size > 1 else 0.0) + sum(theta[k] for k in members) / size)

    widest = max(Counter(row[np.isfinite(row)].tolist()).most_common(1)[0][1] for row in ranks
                 if np.isfinite(row).any())

    def loss(x) -> float:
        thetas, log_ties = x[:8].reshape(2, 4), x[8:]
        total = (thetas**2).sum() / 2 + (log_ties**2).sum() / 18
        for p, row in zip(prompt, ranks):
            left = [k for k in range(4) if not np.isnan(row[k])]
            for rank in sorted(set(row[np.isfinite(row)])):
                best = [k for k in left if row[k] == rank]
                sets = [s for n in range(1, min(widest, len(left)) + 1) for s in itertools.combinations(left, n)]
                total -= math.log(worth(best, thetas[p], log_ties) / sum(worth(s, thetas[p], log_ties) for s in sets))
                left = [k for k in left if k not in best]
        return total

    fit = plackett_luce(prompt, ranks, 2)
    assert len(fit.log_ties) == widest - 1 >= 2
    best = scipy.optimize.minimize(loss, np.zeros(8 + widest - 1), tol=1e-12).x
    assert fit.theta.ravel() == pytest.approx(best[:8], abs=1e-4)
    assert fit.log_ties == pytest.approx(best[8:], abs=1e-4)


def test_of_two_answers_davidson_and_plackett_luce_are_one_model() -> None:
    rows = [ranking([1, 2], f"l{k}", f"p{k % 3}") for k in range(6)] + \
           [ranking([1, 1], f"m{k}", f"p{k % 3}") for k in range(4)]
    a, b = (aggregate(rows, m) for m in ("davidson", "plackett-luce"))
    for x, y in zip(a.pairs, b.pairs):
        assert (x.first_better, x.tie) == pytest.approx((y.first_better, y.tie), abs=1e-6)


def test_what_beats_all_stays_finite() -> None:
    """Separable data have no maximum of the likelihood; the prior gives one."""
    wins = np.zeros((1, 4, 4))
    wins[0][np.triu_indices(4, 1)] = 1000
    assert np.isfinite(bradley_terry(wins).theta).all()
    assert (np.diff(bradley_terry(wins).theta[0]) < 0).all()
    fit = davidson(np.zeros((1, 4, 4)), np.triu(np.full((1, 4, 4), 50.0), 1))
    assert np.isfinite(fit.log_ties).all() and fit.theta == pytest.approx(0, abs=1e-9)
    all_tied = plackett_luce(np.zeros(5, dtype=int), np.ones((5, 4)), 1)
    assert np.isfinite(all_tied.log_ties).all()


def test_the_prior_is_laplaces_rule_nearly() -> None:
    for votes in (1, 2, 3, 6):
        theta = bradley_terry(np.array([[[0.0, votes], [0, 0]]])).theta[0]
        assert outcome_probabilities(theta[0], theta[1], None)[0] == pytest.approx((votes + 1) / (votes + 2), abs=0.04)


def test_planted_strengths_come_back() -> None:
    rng = np.random.default_rng(0)
    truth = np.array([1.0, 0.3, -0.2, -1.1])
    gumbel = rng.gumbel(size=(4000, 4)) + truth
    ranks = scipy.stats.rankdata(-gumbel, axis=1)
    fit = plackett_luce(np.zeros(4000, dtype=int), ranks, 1, prior_sd=10.0)
    assert fit.theta[0] == pytest.approx(truth, abs=0.08)
    wins = np.array([[[(ranks[:, i] < ranks[:, j]).sum() * (i != j) for j in range(4)] for i in range(4)]], dtype=float)
    assert bradley_terry(wins, prior_sd=10.0).theta[0] == pytest.approx(truth, abs=0.08)
    counts = np.zeros((2, 1, 4, 4))
    for i, j in itertools.combinations(range(4), 2):
        p = outcome_probabilities(truth[i], truth[j], math.log(0.5))
        drawn = rng.multinomial(4000, p)
        counts[0, 0, i, j], counts[1, 0, i, j], counts[0, 0, j, i] = drawn
    fit = davidson(counts[0], counts[1], prior_sd=10.0)
    assert fit.theta[0] == pytest.approx(truth, abs=0.08)
    assert math.exp(fit.log_ties[0]) == pytest.approx(0.5, abs=0.03)


def test_models_refuse_what_they_are_not_for() -> None:
    with pytest.raises(ValueError, match=r"\[P, K, K\]"):
        bradley_terry(np.zeros((3, 3)))
    with pytest.raises(ValueError, match="not negative"):
        bradley_terry(-np.ones((1, 3, 3)))
    with pytest.raises(ValueError, match="above the diagonal"):
        davidson(np.zeros((1, 3, 3)), np.ones((1, 3, 3)))
    with pytest.raises(ValueError, match="positive"):
        bradley_terry(np.ones((1, 3, 3)), prior_sd=0.0)
    with pytest.raises(ValueError, match="too many"):
        plackett_luce(np.zeros(1, dtype=int), np.ones((1, 30)) * np.repeat([1.0, 2.0], 15), 1)


# --- labelers weighed by reliability --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def crowd():
    planted = [0.92, 0.88, 0.8, 0.7, 0.58]
    return planted, *simulate(planted, 150, 3, seed=4)


def both_ways(made) -> pd.DataFrame:
    rows = []
    for pair, who, choice in zip(made.pair, made.labeler, made.choice):
        rows += [(f"{pair}+", f"w{who}", 1 - choice), (f"{pair}-", f"w{who}", 1 + choice)]
    return pd.DataFrame(rows, columns=["task", "worker", "label"])


def test_dawid_skene_is_crowd_kits(crowd) -> None:
    made = choices(by_item(crowd[1]))
    found, reliability = labelers.dawid_skene(made, 5)
    model = DawidSkene(n_iter=labelers.ROUNDS, tol=1e-7).fit(both_ways(made))
    plus = model.probas_.loc[[f"{p}+" for p in range(made.pairs)], [0, 1, 2]].to_numpy()
    minus = model.probas_.loc[[f"{p}-" for p in range(made.pairs)], [2, 1, 0]].to_numpy()
    assert plus == pytest.approx(minus, abs=1e-6), "the two ways round say the same"
    assert found == pytest.approx(plus, abs=1e-6)
    for who in range(5):
        confusion = model.errors_.loc[f"w{who}"][[0, 1, 2]].loc[[0, 1, 2]].to_numpy()
        own = made.pair[made.labeler == who]
        before = np.concatenate([plus[own], plus[own][:, ::-1]]).mean(axis=0)
        assert reliability[who] == pytest.approx(np.diag(confusion) @ before, abs=1e-3)


def test_mace_is_crowd_kits_where_names_are_in_order(crowd) -> None:
    """crowd-kit mixes up labelers whose names are not in the order of their first row; ours are numbered anew."""
    made = choices(by_item(crowd[1]))
    found, competence = labelers.mace(made, 5, seed=1)
    assert found.sum(axis=1) == pytest.approx(1)
    table = both_ways(made)
    table = pd.DataFrame({c: pd.factorize(table[c])[0] for c in table})
    model = MACE(n_restarts=1, n_iter=labelers.ROUNDS, random_state=1).fit(table)
    order = pd.factorize(both_ways(made)["worker"])[1]
    theirs = dict(zip(order, model.spamming_[:, 1] / model.spamming_.sum(axis=1)))
    assert [theirs[f"w{k}"] for k in range(5)] == pytest.approx(competence, abs=0.01)


@pytest.mark.parametrize("method", METHODS)
def test_names_and_the_order_of_rows_change_nothing(crowd, method) -> None:
    _, rows, _ = crowd
    names = dict(zip(sorted({r.labeler for r in rows}), ["m", "a", "z", "b", "y"]))
    renamed = [r.model_copy(update={"labeler": names[r.labeler]}) for r in random.Random(0).sample(rows, len(rows))]
    a, b = aggregate(rows, method), aggregate(renamed, method)
    tolerance = 0.03 if method == "mace" else 1e-5  # MACE starts from random numbers
    assert {names[k]: v for k, v in a.reliability.items()} == pytest.approx(b.reliability, abs=tolerance)
    seen = {(p.first, p.second): p.first_better for p in b.pairs} | {
        (p.second, p.first): p.second_better for p in b.pairs}
    gaps = [abs(p.first_better - seen[p.first, p.second]) for p in a.pairs]
    assert np.quantile(gaps, 0.99) < tolerance * 3


@pytest.mark.parametrize("method", METHODS)
def test_planted_reliability_and_order_come_back(crowd, method) -> None:
    planted, rows, truth = crowd
    found = aggregate(rows, method)
    estimates = [found.reliability[f"labeler {k:02}"] for k in range(5)]
    assert scipy.stats.spearmanr(planted, estimates).statistic > 0.8
    right = []
    for pair in found.pairs:
        quality = truth[pair.prompt_id]
        gap = quality[int(pair.first.split("/")[1])] - quality[int(pair.second.split("/")[1])]
        right.append(0.5 + 0.5 * np.sign(gap) * np.sign(round(pair.first_better - pair.second_better, 9)))
    assert np.mean(right) > 0.79, "a single labeler of them is right in 0.78 of all pairs"
    for r in found.rankings:
        worst = [k for k, rank in enumerate(r.ranks) if rank is None]
        assert all(truth[r.id][k] < 0.5 for k in worst)


def test_simulated_labelers_are_as_accurate_as_planted() -> None:
    for accuracy in (0.6, 0.75, 0.9):
        rng = np.random.default_rng(1)
        quality = rng.normal(size=(20000, 2))
        seen = quality + noise_of(accuracy) * rng.normal(size=(20000, 2))
        right = (quality[:, 0] > quality[:, 1]) == (seen[:, 0] > seen[:, 1])
        assert right.mean() == pytest.approx(accuracy, abs=0.01)
    assert ranks_of(np.array([0.0, 1.0, 0.1, -2.0])) == [2, 1, 2, None]
    assert ranks_of(np.array([0.0, 1.0, 0.1, -2.0]), ties=False) == [3, 1, 2, 4]


# --- the rules, for every method ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_all_agree(method) -> None:
    rows = [ranking(ranks, name, f"p{i}") for i in range(10) for ranks, name in
            (([2, 1, 3, F], "ann"), ([2, 1, 4, F], "bob"), ([4, 2, 7, F], "cat"))]
    found = aggregate(rows, method)
    assert [r.ranks for r in found.rankings] == [[2, 1, 3, None]] * 10
    assert found.rankings[0].labeler == f"{method}: ann, bob, cat" and len(found.pairs) == 60
    for keep in (False, True):
        pairs = [p for p in preferences(found, keep).pairs if not p.tie]
        assert len(pairs) == 60
        assert {p.chosen + p.rejected for p in pairs} == {"ba", "bc", "bd", "ac", "ad", "cd"}
        assert min(p.label for p in pairs) > 0.6
    for p in preferences(found).pairs:
        assert p.source == ("labelers: ann, bob, cat" if method == "votes" else f"{method}: ann, bob, cat")
        assert 0 <= p.margin <= 1 and (p.margin > 0) == (method != "votes")


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("method", [m for m in METHODS if m != "votes"])
def test_a_prompt_weighs_one_and_probabilities_sum_to_one(crowd, method, keep) -> None:
    found = aggregate(crowd[1], method)
    assert all(p.first_better + p.tie + p.second_better == pytest.approx(1) for p in found.pairs)
    result = preferences(found, keep)
    totals: dict[str, float] = {}
    for p in result.pairs:
        totals[p.prompt_id] = totals.get(p.prompt_id, 0.0) + p.weight
        assert p.label >= 0.5 and (p.label == 0.5 or not p.tie)
    assert list(totals.values()) == pytest.approx([1.0] * len(totals)) and len(totals) > 140
    assert len({p.id for p in result.pairs}) == len(result.pairs)
    assert any(p.tie for p in result.pairs) == (keep and method != "bradley-terry")


def test_votes_are_the_votes(crowd) -> None:
    found = aggregate(crowd[1], "votes")
    for keep in (False, True):
        assert preferences(found, keep) == ranked_pairs(crowd[1], keep)


def test_majority_and_its_margin() -> None:
    rows = [ranking([1, 2, 3], "ann"), ranking([1, 2, 2], "bob"), ranking([2, 1, 2], "cat")]
    found = aggregate(rows, "majority")
    outcome = {(p.first[-1], p.second[-1]): (p.first_better, p.tie, p.second_better) for p in found.pairs}
    assert outcome == {("0", "1"): (1, 0, 0), ("0", "2"): (1, 0, 0), ("1", "2"): (1, 0, 0)}
    assert [(p.label, p.margin, p.weight) for p in preferences(found).pairs] == [
        (1.0, pytest.approx(1 / 3), pytest.approx(1 / 3)), (1.0, pytest.approx(2 / 3), pytest.approx(1 / 3)),
        (1.0, pytest.approx(2 / 3), pytest.approx(1 / 3))]
    assert found.rankings[0].ranks == [1, 2, 3]
    tied = aggregate([ranking([1, 1, 2], "ann"), ranking([1, 1, 2], "bob"), ranking([1, 2, 3], "cat")], "majority")
    assert tied.rankings[0].ranks == [1, 1, 3]
    assert preferences(tied).skipped == {"tie": 1} and tied.ties == 2
    even = aggregate([ranking([1, 2], "ann"), ranking([2, 1], "bob")], "majority")
    assert even.rankings[0].ranks == [1, 1] and not preferences(even).pairs


def test_two_fs_give_nothing_and_f_loses_to_all() -> None:
    rows = [ranking([1, F, F], name) for name in ("ann", "bob")]
    for method in METHODS:
        found = aggregate(rows, method)
        assert {(p.first[-1], p.second[-1]) for p in found.pairs} == {("0", "1"), ("0", "2")}
        assert all(p.first_better > 0.6 for p in found.pairs), method
        assert found.rankings[0].ranks == [1, None, None]
        assert preferences(found).skipped["both failed"] == 2
    # one of three fails it: no F, but the last
    rows = [ranking([1, 2, 3], "ann"), ranking([1, 2, 3], "bob"), ranking([1, 2, F], "cat")]
    for method in METHODS:
        assert aggregate(rows, method).rankings[0].ranks == [1, 2, 3], method


def test_nothing_compared_gives_no_pair() -> None:
    for method in METHODS:
        found = aggregate([ranking([F, F]), ranking([F, F], "bob")], method)
        assert not found.pairs and found.rankings[0].ranks == [None, None] and found.reliability == {}
        assert preferences(found).skipped == {"both failed": 2}


def test_labelers_who_saw_other_completions_in_another_order() -> None:
    rows = [ranking([1, 2, 3], "ann"), ranking([1, 2, 3], "bob", order=[2, 0, 1]),
            ranking([1, 2, 3], "cat", order=[1, 0])]
    for method in METHODS:
        assert aggregate(rows, method).rankings[0].ranks == [1, 2, 3], method


@pytest.mark.parametrize("method", METHODS)
def test_adjudications_decide_when_they_are_given(method) -> None:
    rows = [ranking([1, 2, 3], name, f"p{i}") for i in range(10) for name in ("ann", "bob")]
    judged = [ranking([3, 2, 1], "eve", "p0"), ranking([2, 1, 1], "eve", "p0"), ranking([1, 2], "eve", "q")]
    found = aggregate(rows, method, adjudications=judged)
    by_id = {r.id: r for r in found.rankings}
    assert by_id["p0"].ranks == [2, 1, 1] and by_id["p0"].labeler == "adjudicated: eve", "the last one counts"
    assert by_id["p1"].ranks == [1, 2, 3] and by_id["q"].ranks == [1, 2]
    rows_of = {i: [p for p in preferences(found).pairs if p.prompt_id == i] for i in by_id}
    assert {p.chosen + p.rejected for p in rows_of["p0"]} == {"ba", "ca"}
    assert all(p.label == 1.0 and p.source == "adjudicated: eve" for p in rows_of["p0"] + rows_of["q"])
    assert sum(p.weight for p in rows_of["p0"]) == pytest.approx(1.0)
    assert "eve" not in found.reliability
    without = aggregate(rows, method)
    assert without.rankings[0].ranks == [1, 2, 3]
    if method != "mace":  # which learns from labelers alone
        assert found.reliability["ann"] < without.reliability["ann"], "who is overruled is less reliable"


def test_dawid_skene_learns_reliability_from_adjudications() -> None:
    """Two against two: only the adjudicator's word tells who is right."""
    rng = random.Random(1)
    rows, judged = [], []
    for i in range(40):
        true = rng.sample([1, 2, 3], 3)
        wrong = [4 - r for r in true]
        rows += [ranking(true, name, f"p{i}") for name in ("ann", "bob")]
        rows += [ranking(wrong, name, f"p{i}") for name in ("cat", "dan")]
        if i < 20:
            judged.append(ranking(true, "eve", f"p{i}"))
    reliability = aggregate(rows, "dawid-skene", adjudications=judged).reliability
    assert reliability["ann"] > 0.95 and reliability["dan"] < 0.05


def test_refused() -> None:
    with pytest.raises(TrivetError, match="no method 'best'"):
        aggregate([ranking([1, 2])], "best")
    with pytest.raises(TrivetError, match="no rankings"):
        aggregate([], "majority")
    with pytest.raises(TrivetError, match="twice"):
        aggregate([ranking([1, 2]), ranking([2, 1])], "majority")
    wide = [1] * 13 + [2] * 13
    with pytest.raises(TrivetError, match="davidson"):
        aggregate([ranking(wide, texts=[str(k) for k in range(26)])], "plackett-luce")
    assert models.MOST_ENTRIES < 1e8
