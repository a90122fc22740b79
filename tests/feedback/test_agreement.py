"""Agreement: against naive computations, against the libraries' own functions, and where it is undefined."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
from collections import Counter
from pathlib import Path

import krippendorff
import numpy as np
import pytest
import scipy.stats
from rich.console import Console

from simulated import simulate
from trivet.artifacts import Ranking
from trivet.errors import TrivetError
from trivet.feedback import agreement
from trivet.feedback.agreement import Figure, report
from trivet.feedback.choices import by_item, choices, majority
from trivet.feedback.concordance import alpha_columns, kendall_w, leave_one_out, ordinal_alpha, places

F = None


def ranking(ranks, labeler="ann", id="p", texts="abcdefgh", order=None) -> Ranking:
    shown = order or range(len(ranks))
    return Ranking(id=id, messages=[{"role": "user", "content": f"Question {id}?"}], labeler=labeler,
                   completions=[{"id": f"{id}/{k}", "text": texts[k]} for k in shown],
                   ranks=[ranks[k] for k in shown])


@pytest.fixture(scope="module")
def mixed() -> list[Ranking]:
    """Five labelers, three an item; items of two to five completions; ties, F, some not shown everything."""
    rng = random.Random(3)
    rows = []
    for k in range(2, 6):
        found, _ = simulate([0.9, 0.8, 0.7, 0.85, 0.6], 15, 3, seed=k, completions=k)
        for r in found:
            keep = list(range(k)) if k < 4 or rng.random() < 0.8 else sorted(rng.sample(range(k), k - 1))
            rows.append(r.model_copy(update={
                "id": f"{k}-{r.id}", "completions": [r.completions[j] for j in keep],
                "ranks": [r.ranks[j] for j in keep],
                "messages": [r.messages[0].model_copy(update={"content": f"{k} {r.id}"})]}))
    return rows


# --- Krippendorff's alpha ---------------------------------------------------------------------------------


def units(rankings) -> list[list[float]]:
    """The values that each completion of each item got, counted out by hand."""
    found: dict[tuple[str, str], list[float]] = {}
    for r in rankings:
        for completion, rank in zip(r.completions, r.ranks):
            better = sum(x is not None and (rank is None or x < rank) for x in r.ranks)
            equal = sum(x == rank for x in r.ranks)
            value = 1.0 if rank is None else round((better + (equal + 1) / 2 - 0.5) / len(r.ranks), 9)
            found.setdefault((r.id, completion.id), []).append(value)
    return list(found.values())


def naive_alpha(data, ordinal: bool) -> float:
    """Krippendorff 2011, 'Computing Krippendorff's alpha-reliability', by loops over all pairs of values."""
    data = [u for u in data if len(u) > 1]
    counts = Counter(v for u in data for v in u)
    total, values = sum(counts.values()), sorted(counts)

    def distance(a, b) -> float:
        if not ordinal:
            return float(a != b)
        low, high = min(a, b), max(a, b)
        return (sum(counts[g] for g in values if low <= g <= high) - (counts[a] + counts[b]) / 2) ** 2

    observed = sum(distance(a, b) / (len(u) - 1) for u in data for a, b in itertools.permutations(u, 2)) / total
    expected = sum(counts[a] * counts[b] * distance(a, b) for a in values for b in values) / (total * (total - 1))
    return 1 - observed / expected


def test_alpha_is_the_naive_one_and_the_librarys(mixed) -> None:
    found = report(mixed, resamples=50)
    assert found.alpha.value == pytest.approx(naive_alpha(units(mixed), True), abs=1e-9)
    matrix = agreement.reliability_data(by_item(mixed))
    assert matrix.shape == (5, 15 * (2 + 3 + 4 + 5))
    assert found.alpha.value == pytest.approx(krippendorff.alpha(matrix, level_of_measurement="ordinal"))
    assert found.alpha.low < found.alpha.value < found.alpha.high


def test_alpha_of_pairs_is_the_naive_one(mixed) -> None:
    data = []
    for (_, a, b), votes in pair_votes(mixed).items():
        data += [list(votes.values()), [-v for v in votes.values()]]
        assert a < b
    assert report(mixed, resamples=50).alpha_pairs.value == pytest.approx(naive_alpha(data, False), abs=1e-9)


def test_resampled_alpha_is_the_librarys_on_items_drawn_several_times(mixed) -> None:
    """The vectorised formula behind the interval, on draws with repetition."""
    ranked = by_item(mixed)
    columns, item = alpha_columns(ranked)
    rng = np.random.default_rng(0)
    for _ in range(5):
        counts = np.bincount(rng.integers(0, len(item), len(item)), minlength=len(item))
        drawn = [ranked.items[i] for i, n in zip(item, counts) for _ in range(n)]
        matrix = agreement.reliability_data(type(ranked)(ranked.labelers, drawn))
        assert ordinal_alpha(counts @ columns) == pytest.approx(
            krippendorff.alpha(matrix, level_of_measurement="ordinal"), abs=1e-9)


def test_alpha_is_1_for_the_same_order_and_0_for_chance() -> None:
    same = [ranking(ranks, name, f"p{i}") for i in range(20)
            for name, ranks in (("ann", [1, 1, 2, F]), ("bob", [1, 1, 3, F]), ("cat", [2, 2, 5, F]))]
    assert report(same, resamples=20).alpha.value == 1.0
    rng = random.Random(0)
    chance = [ranking(rng.sample([1, 2, 3, 4], 4), name, f"p{i}") for i in range(600) for name in "abc"]
    found = report(chance, resamples=300)
    assert found.alpha.value == pytest.approx(0, abs=0.03)
    assert found.alpha.low < 0 < found.alpha.high
    assert found.tau_b.value == pytest.approx(0, abs=0.03)
    assert found.pair_agreement.value == pytest.approx(0.5, abs=0.02)
    assert found.kendall_w.value == pytest.approx(found.kendall_w_chance, abs=0.02)


def test_places() -> None:
    inf, nan = math.inf, math.nan
    assert places(np.array([1.0, 1.0, 2.0, inf])).tolist() == [0.25, 0.25, 0.625, 1.0]
    assert places(np.array([3.0, nan, 7.0])) == pytest.approx([0.25, nan, 0.75], nan_ok=True)
    fail_all, tie_all = places(np.array([inf, inf])), places(np.array([1.0, 1.0]))
    assert fail_all.tolist() == [1, 1] and tie_all.tolist() == [0.5, 0.5]


# --- Kendall ----------------------------------------------------------------------------------------------


def numbers(ranks, worst=99):
    return [worst if r is None else r for r in ranks]


def test_w_is_friedmans_without_and_with_ties() -> None:
    rng = np.random.default_rng(1)
    for size in (3, 5):
        for _ in range(20):
            ranks = rng.integers(1, 4, (4, size)).astype(float)
            if (ranks == ranks[:, :1]).all():
                continue
            chi = scipy.stats.friedmanchisquare(*ranks.T).statistic
            assert kendall_w(ranks) == pytest.approx(chi / (4 * (size - 1)))
    assert kendall_w(np.array([[1.0, 2, 3], [1, 2, 3]])) == 1.0
    assert kendall_w(np.array([[1.0, 2, 3], [3, 2, 1]])) == 0.0
    assert math.isnan(kendall_w(np.ones((3, 4))))


def test_w_is_the_mean_over_items_whose_labelers_saw_all(mixed) -> None:
    values, by_chance = [], []
    groups: dict[str, list[Ranking]] = {}
    for r in mixed:
        groups.setdefault(r.id, []).append(r)
    for group in groups.values():
        everything = {c.id for r in group for c in r.completions}
        whole = [[dict(zip((c.id for c in r.completions), numbers(r.ranks)))[c] for c in sorted(everything)]
                 for r in group if len(r.completions) == len(everything)]
        m, k = len(whole), len(everything)
        if m < 2:
            continue
        middle = [scipy.stats.rankdata(row) for row in whole]
        ties = sum(n**3 - n for row in whole for n in Counter(row).values())
        spread = sum((sum(column) - m * (k + 1) / 2) ** 2 for column in zip(*middle))
        if (possible := m * m * (k**3 - k) - m * ties) > 0:
            values.append(12 * spread / possible)
            by_chance.append(1 / m)
    found = report(mixed, resamples=50)
    assert found.kendall_w.value == pytest.approx(np.mean(values))
    assert found.kendall_w.n == len(values) < 60
    assert found.kendall_w_chance == pytest.approx(np.mean(by_chance))


def test_tau_b_of_one_item_is_scipys() -> None:
    rng = random.Random(2)
    for _ in range(30):
        a, b = ([rng.choice([1, 2, 3, 4, F]) for _ in range(5)] for _ in range(2))
        expected = scipy.stats.kendalltau(numbers(a), numbers(b), variant="b").statistic
        found = report([ranking(a), ranking(b, "bob")], resamples=5).by_pair[0].tau_b
        if math.isnan(expected):
            assert found.value is None and "tied everything" in found.why
        else:
            assert found.value == pytest.approx(expected)
            assert found.low is None and found.why == "one item gives no interval"


def test_tau_b_over_items_counts_pairs_within_items(mixed) -> None:
    score = Counter()
    for a, b in itertools.combinations(mixed, 2):
        if a.id != b.id:
            continue
        first = dict(zip((c.id for c in a.completions), numbers(a.ranks)))
        second = dict(zip((c.id for c in b.completions), numbers(b.ranks)))
        for x, y in itertools.combinations(sorted(first.keys() & second.keys()), 2):
            d, e = np.sign(first[y] - first[x]), np.sign(second[y] - second[x])
            d, e = (d, e) if a.labeler < b.labeler else (e, d)
            for key in ((a.labeler, b.labeler) if a.labeler < b.labeler else (b.labeler, a.labeler), "all"):
                score[key, "c"] += d * e
                score[key, "a"] += abs(d)
                score[key, "b"] += abs(e)
    found = report(mixed, resamples=50)
    assert found.tau_b.value == pytest.approx(score["all", "c"] / math.sqrt(score["all", "a"] * score["all", "b"]))
    assert len(found.by_pair) == 10
    for two in found.by_pair:
        key = (two.first, two.second)
        assert two.tau_b.value == pytest.approx(score[key, "c"] / math.sqrt(score[key, "a"] * score[key, "b"]))


# --- choices on pairs -------------------------------------------------------------------------------------


def pair_votes(rankings) -> dict[tuple[str, str, str], dict[str, int]]:
    """labeler → 1 (first), 0, -1 for each pair of completions, by loops."""
    found: dict[tuple[str, str, str], dict[str, int]] = {}
    for r in rankings:
        by_id = dict(zip((c.id for c in r.completions), r.ranks))
        for a, b in itertools.combinations(sorted(by_id), 2):
            x, y = by_id[a], by_id[b]
            if x is None and y is None:
                continue
            vote = 0 if x == y else 1 if y is None or (x is not None and x < y) else -1
            found.setdefault((r.id, a, b), {})[r.labeler] = vote
    return found


def naive_kappa(a, b) -> float:
    """Cohen 1960."""
    p = sum(x == y for x, y in zip(a, b)) / len(a)
    first, second = Counter(a), Counter(b)
    chance = sum(first[v] * second[v] for v in first) / len(a) ** 2
    return (p - chance) / (1 - chance)


def test_kappa_and_agreement_are_the_naive_ones(mixed) -> None:
    votes = pair_votes(mixed)
    found = report(mixed, resamples=50)
    alike, decided = [], []
    for two in found.by_pair:
        both = [(v[two.first], v[two.second]) for v in votes.values() if {two.first, two.second} <= v.keys()]
        a, b = zip(*both)
        assert two.agreement.value == pytest.approx(np.mean([x == y for x, y in both]))
        assert two.kappa.value == pytest.approx(naive_kappa([*a, *(-x for x in a)], [*b, *(-x for x in b)]))
        alike += [x == y for x, y in both]
        decided += [x == y for x, y in both if x and y]
    assert found.pair_agreement.value == pytest.approx(np.mean(alike))
    assert found.decided_agreement.value == pytest.approx(np.mean(decided))


def test_leave_one_out_is_the_naive_one(mixed) -> None:
    scores: dict[str, list[float]] = {}
    for votes in pair_votes(mixed).values():
        for name, own in votes.items():
            others = Counter(v for k, v in votes.items() if k != name)
            best = (others[1] > others[-1]) - (others[1] < others[-1])
            if best and others[best] >= others[0]:
                scores.setdefault(name, []).append(0.5 if own == 0 else float(own == best))
    found = report(mixed, resamples=50)
    assert {p.labeler: p.leave_one_out.value for p in found.by_labeler} == pytest.approx(
        {name: np.mean(s) for name, s in scores.items()})
    assert found.leave_one_out.value == pytest.approx(np.mean([x for s in scores.values() for x in s]))
    assert found.by_labeler[0].leave_one_out.value > found.by_labeler[4].leave_one_out.value, "0.9 against 0.6 planted"


def test_majority() -> None:
    votes = np.array([[2, 0, 1], [1, 2, 0], [1, 1, 0], [1, 1, 1], [0, 0, 1], [0, 0, 0], [2, 2, 1]])
    assert majority(votes).tolist() == [1, 0, 1, 0, -1, 0, 1]


def test_two_fs_and_equal_texts_are_no_comparison() -> None:
    rows = [ranking([1, F, F], name) for name in ("ann", "bob")]
    assert len(choices(by_item(rows))) == 4
    rows = [ranking([1, 2, 3], name, texts=["same", " same", "other"]) for name in ("ann", "bob")]
    assert len(choices(by_item(rows))) == 4
    item, _, score = leave_one_out(choices(by_item(rows)))
    assert len(item) == 4 and score.tolist() == [1.0] * 4


def test_the_order_of_the_file_changes_nothing(mixed) -> None:
    rng = random.Random(5)
    turned = []
    for r in rng.sample(mixed, len(mixed)):
        order = rng.sample(range(len(r.ranks)), len(r.ranks))
        turned.append(r.model_copy(update={"completions": [r.completions[k] for k in order],
                                           "ranks": [r.ranks[k] for k in order]}))
    one, two = report(mixed, resamples=20), report(turned, resamples=20)
    for name in agreement._NAMES:
        assert getattr(one, name).value == pytest.approx(getattr(two, name).value, nan_ok=True), name
    assert [p.kappa.value for p in one.by_pair] == pytest.approx([p.kappa.value for p in two.by_pair])


# --- repeats and gold ---------------------------------------------------------------------------------------


def test_repeats_and_gold() -> None:
    rows = [ranking([1, 2, 3], name, f"p{i}") for i in range(4) for name in ("ann", "bob")]
    repeats = [(ranking([1, 2, 3]), ranking([1, 2, 3], order=[2, 0, 1])),
               (ranking([1, 2, 3], id="q"), ranking([1, 3, 2], id="q"))]
    gold = [(ranking([1, 2, F], "bob"), [1, 1, 2]), (ranking([1, 1, 2], "bob", "q"), [1, 2, 3])]
    found = report(rows, repeats=repeats, gold=gold)
    assert found.self_consistency.value == pytest.approx(5 / 6) and found.self_consistency.n == 2
    assert found.gold_accuracy.value == pytest.approx(4 / 5), "two decided pairs, then three of which one was tied"
    ann, bob = found.by_labeler
    assert ann.self_consistency.value == pytest.approx(5 / 6) and ann.gold_accuracy.value is None
    assert bob.gold_accuracy.value == pytest.approx(4 / 5) and "shown to them twice" in bob.self_consistency.why
    with pytest.raises(TrivetError, match="2 ranks for 3 completions"):
        report(rows, gold=[(ranking([1, 2, 3]), [1, 2])])


# --- undefined, refused, shown ------------------------------------------------------------------------------


def test_undefined_figures_say_why() -> None:
    alone = report([ranking([1, 2, 3])])
    for name in ("alpha", "alpha_pairs", "kendall_w", "tau_b", "pair_agreement", "leave_one_out"):
        figure = getattr(alone, name)
        assert figure.value is None and figure.n == 0 and figure.why == "no item was ranked by two labelers"
    tied = report([ranking([1, 1], name, f"p{i}") for i in range(3) for name in ("ann", "bob")])
    assert tied.alpha.value is None and tied.alpha.why == "everything got one rank"
    assert tied.tau_b.value is None and tied.kendall_w.value is None
    assert tied.by_pair[0].kappa.value is None and tied.by_pair[0].kappa.why == "both always declared a tie"
    assert tied.pair_agreement.value == 1.0 and tied.leave_one_out.why == "the others never decide a pair"
    assert report([ranking([F, F])]).by_labeler[0].tie_rate is None
    assert report([ranking([F, 1])]).by_labeler[0].f_rate == 0.5
    assert Figure(value=None, low=None, high=None, n=0).interval.n == 0


def test_it_is_json_and_the_seed_decides(mixed) -> None:
    one = report(mixed, resamples=40)
    assert agreement.AgreementReport.model_validate_json(one.model_dump_json()) == one
    assert report(mixed, resamples=40) == one != report(mixed, seed=1, resamples=40)
    figures = one.figures()
    json.dumps(figures, allow_nan=False)
    assert "alpha" in figures and "gold_accuracy" not in figures and "by_pair" not in figures


def test_the_table_shows_the_figures(mixed) -> None:
    found = report(mixed, resamples=40)
    console = Console(width=140, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(agreement.table(found))
    text = console.export_text()
    assert f"{found.alpha.value:.3f}" in text and "labeler 04" in text and "not known: no gold item" in text
    many, _ = simulate([0.8] * 8, 30, 8, seed=1)
    console.print(agreement.table(report(many, resamples=10)))
    assert "the 12 of 28 with the lowest κ" in console.export_text()


def test_refused() -> None:
    with pytest.raises(TrivetError, match="no rankings"):
        report([])
    with pytest.raises(TrivetError, match="twice"):
        report([ranking([1, 2]), ranking([2, 1])])


# --- people's own judgments ---------------------------------------------------------------------------------


def test_pandalm() -> None:
    """798 pairs, three annotators: the figures that an independent computation gives."""
    data = os.environ.get("TRIVET_DATA")
    file = Path(data or "") / "pandalm" / "judgments.jsonl"
    if not data or not file.is_file():
        pytest.skip("needs TRIVET_DATA with pandalm/judgments.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    ranks = {0: [1, 1], 1: [1, 2], 2: [2, 1]}
    rankings = [Ranking(id=str(n), messages=[{"role": "user", "content": f"{r['instruction']}\n{r['input']}"}],
                        completions=[{"id": k, "text": f"{k}: {r[f'response{k}']}"} for k in "12"],
                        ranks=ranks[r[f"annotator{a}"]], labeler=f"annotator{a}")
                for n, r in enumerate(rows) for a in (1, 2, 3)]
    found = report(rankings)
    assert (found.items, found.rankings, found.overlap) == (798, 2394, 3.0)
    mirror = {0: 0, 1: 2, 2: 1}
    published = {("annotator1", "annotator2"): 0.85, ("annotator1", "annotator3"): 0.88,
                 ("annotator2", "annotator3"): 0.86}
    for two in found.by_pair:
        a, b = ([r[name] for r in rows] for name in (two.first, two.second))
        both_ways = naive_kappa([*a, *(mirror[x] for x in a)], [*b, *(mirror[x] for x in b)])
        assert two.kappa.value == pytest.approx(both_ways, abs=1e-12)
        # on this balanced file it hardly matters that each pair is taken both ways round
        assert two.kappa.value == pytest.approx(naive_kappa(a, b), abs=0.0005)
        assert two.kappa.value == pytest.approx(published[two.first, two.second], abs=0.01)
        assert two.kappa.low < published[two.first, two.second] < two.kappa.high
        assert two.agreement.value == pytest.approx(np.mean([x == y for x, y in zip(a, b)]))
        signs = {0: 0, 1: 1, 2: -1}
        d, e = [signs[x] for x in a], [signs[x] for x in b]
        assert two.tau_b.value == pytest.approx(
            sum(x * y for x, y in zip(d, e)) / math.sqrt(sum(map(abs, d)) * sum(map(abs, e))))
    nominal = [[r[f"annotator{k}"] for k in (1, 2, 3)] for r in rows]
    assert found.alpha_pairs.value == pytest.approx(
        naive_alpha(nominal + [[mirror[x] for x in u] for u in nominal], False), abs=1e-12)
    assert found.alpha_pairs.value == pytest.approx(0.864, abs=0.01), "the figure of all 999 items"
    assert found.alpha.value == pytest.approx(naive_alpha(units(rankings), True), abs=1e-9)
