"""How far labelers agree: statistics of rankings, each with a 95% interval by bootstrap over items.

An item is a prompt with its completions. Ranks mean something within one item only, and completions are not drawn
apart from their item, so that items are drawn in the bootstrap, each with all its completions and labelers.

**The reliability-data matrix of Krippendorff's α**: a column (unit) for each completion of each item, a row for
each labeler, missing where a labeler was not shown it. The value is the completion's place among the K that the
labeler ranked in that item: its mid-rank (ties share the mean of their places) less ½, divided by K, so that items
of two and of four completions share one scale, 0 the best end and 1 the worst; F is 1, below every rank. Two
labelers who order an item alike so agree whatever numbers they typed (1, 1, 2 and 1, 1, 3), and one who fails all
answers disagrees with one who ties all. α is ordinal: the distance of two values is by how many of all values lie
between them. Independent random rankings give 0 on average, identical ones 1.

`alpha_pairs` is α of another matrix: a unit for each pair of completions, the value who is the better one, or a
tie; nominal. Which completion of a pair comes first is arbitrary; here and in Cohen's κ each pair is taken both
ways round, so that the order of the file changes nothing.

In α and tau-b and W, F is a rank below all others; in choices on pairs two F's say nothing of each other.

Not covered: agreement on ratings (helpful, honest, harmless), agreement beyond chance by difficulty of the item.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import krippendorff
import numpy as np
from pydantic import BaseModel

from trivet.artifacts import Ranking
from trivet.errors import TrivetError
from trivet.feedback.choices import Floats, Ints, Ranked, by_item, choices
from trivet.feedback.concordance import (
    Both,
    Tau,
    alpha_columns,
    both_chose,
    concordance,
    kappa,
    leave_one_out,
    nominal_alpha,
    ordinal_alpha,
    pair_alpha_columns,
    places,
    tau_b,
    tau_columns,
)
from trivet.intervals import Interval, bootstrap_statistics

RESAMPLES = 2000


class Figure(BaseModel):
    """An estimate with its 95% interval; `n` items bear on it. Undefined: all None, and `why`."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    why: str | None = None

    @property
    def interval(self) -> Interval:
        """The same as an Interval, NaN where None."""
        value, low, high = (math.nan if x is None else x for x in (self.value, self.low, self.high))
        return Interval(value, low, high, self.n)


class LabelerAgreement(BaseModel):
    """One labeler beside the others."""

    labeler: str
    rankings: int
    leave_one_out: Figure
    self_consistency: Figure
    gold_accuracy: Figure
    tie_rate: float | None
    """Share of this labeler's comparisons that are declared ties; None without a comparison."""
    f_rate: float
    """Share of the completions seen that got F."""


class PairAgreement(BaseModel):
    """Two labelers, over the items that both ranked."""

    first: str
    second: str
    tau_b: Figure
    agreement: Figure
    kappa: Figure


class AgreementReport(BaseModel):
    """What `report` gives; JSON by `model_dump_json`."""

    items: int
    rankings: int
    labelers: int
    overlap: float
    """Mean number of labelers an item."""
    alpha: Figure
    """Krippendorff's α, ordinal, of the places of completions."""
    alpha_pairs: Figure
    """Krippendorff's α, nominal, of choices on pairs."""
    kendall_w: Figure
    """Kendall's coefficient of concordance, corrected for ties: its mean over items."""
    kendall_w_chance: float | None
    """What random rankings give: the mean of 1 / labelers over the same items."""
    tau_b: Figure
    """Kendall's tau-b over all pairs of labelers."""
    pair_agreement: Figure
    """Share of the comparisons of two labelers that are alike: first, tie or second."""
    decided_agreement: Figure
    """The same where neither declared a tie."""
    leave_one_out: Figure
    """The human ceiling: each labeler's choices against the majority of the others. A declared tie counts ½, as a
    reward model's equal scores do; pairs that the others leave undecided are left out."""
    self_consistency: Figure
    """Share of comparisons that a labeler, shown an item again, decides as before."""
    gold_accuracy: Figure
    """Share of the pairs that gold ranks decide which the labelers decide in the same way."""
    by_labeler: list[LabelerAgreement]
    by_pair: list[PairAgreement]
    """Of every two labelers who ranked an item in common."""

    def figures(self) -> dict[str, Any]:
        """The figures over all labelers that are defined, as JSON."""
        found = self.model_dump(mode="json", exclude={"by_labeler", "by_pair"})
        return {k: v for k, v in found.items() if v is not None and not (isinstance(v, dict) and v["value"] is None)}


def report(
    rankings: Sequence[Ranking], *, seed: int = 0, repeats: Sequence[tuple[Ranking, Ranking]] = (),
    gold: Sequence[tuple[Ranking, list[int | None]]] = (), resamples: int = RESAMPLES,
) -> AgreementReport:
    """All statistics. `repeats`: two rankings of an item by one labeler; `gold`: a ranking and what it should be.

    Raises TrivetError without rankings, and where a labeler ranked a prompt twice.
    """
    if not rankings:
        raise TrivetError("there are no rankings to compare", mend="rank some items first: trivet label serve")
    ranked = by_item(rankings)
    made = choices(ranked)
    boot = _Bootstrap(seed, resamples)
    both = both_chose(made)
    loo_item, loo_labeler, loo_score = leave_one_out(made)
    w_item, w = concordance(ranked)
    tau = tau_columns(ranked)
    again = [_compared(a, b, (a.labeler, a.id)) for a, b in repeats]
    golden = [_against_gold(r, ranks) for r, ranks in gold]
    few = "" if any(len(i.labelers) > 1 for i in ranked.items) else "no item was ranked by two labelers"
    apart = few or "no two labelers compared the same pair"
    lonely = few or (apart if len(both.item) == 0 else "the others never decide a pair")

    def mean(item: Sequence[Any] | Ints, values: Floats, why: str) -> Figure:
        return boot(np.stack([values, np.ones_like(values)], axis=1), item, _ratio, why)

    def shares(rows: Iterable[tuple[str, str, float]], why: str) -> Figure:
        found = list(rows)
        return mean([item for _, item, _ in found], np.array([s for _, _, s in found], dtype=float), why)

    names = ranked.labelers
    consistent, right = [r for part in again for r in part], [r for part in golden for r in part]
    return AgreementReport(
        items=len(ranked.items), rankings=len(rankings), labelers=len(names),
        overlap=len(rankings) / len(ranked.items),
        alpha=_alpha(boot(*alpha_columns(ranked), ordinal_alpha, few or "everything got one rank"),
                     "ordinal", reliability_data=reliability_data(ranked)),
        alpha_pairs=_alpha(boot(*pair_alpha_columns(made), nominal_alpha,
                                apart if len(both.item) == 0 else "all choices are ties"),
                           "nominal", value_counts=np.concatenate([made.tally(), made.tally()[:, ::-1]])),
        kendall_w=mean(w_item, w[:, 0], few or "on every item all labelers tied everything"),
        kendall_w_chance=float(w[:, 1].mean()) if len(w) else None,
        tau_b=boot(tau.columns, tau.item, tau_b, few or "of any two labelers one tied everything"),
        pair_agreement=mean(both.item, (both.a == both.b).astype(float), apart),
        decided_agreement=mean(both.item[both.decided], (both.a == both.b)[both.decided].astype(float),
                               apart if len(both.item) == 0 else "of any two labelers one always declared a tie"),
        leave_one_out=mean(loo_item, loo_score, lonely),
        self_consistency=shares(consistent, "no item was shown to a labeler twice"),
        gold_accuracy=shares(right, "no gold item was judged"),
        by_labeler=[LabelerAgreement(
            labeler=name, rankings=sum(r.labeler == name for r in rankings),
            leave_one_out=mean(loo_item[loo_labeler == k], loo_score[loo_labeler == k], lonely),
            self_consistency=shares((r for r in consistent if r[0] == name), "no item was shown to them twice"),
            gold_accuracy=shares((r for r in right if r[0] == name), "they judged no gold item"),
            tie_rate=float((made.choice[made.labeler == k] == 0).mean()) if (made.labeler == k).any() else None,
            f_rate=_f_rate(ranked, k)) for k, name in enumerate(names)],
        by_pair=[_pair(names, a, b, tau, both, boot)
                 for a, b in sorted(set(zip(tau.first.tolist(), tau.second.tolist(), strict=True)))])


class _Bootstrap:
    """Figures from column sums by item."""

    def __init__(self, seed: int, resamples: int) -> None:
        self.seed, self.resamples = seed, resamples

    def __call__(self, columns: Floats, item: Sequence[Any] | Ints, statistic: Callable[[Floats], Floats],
                 why: str) -> Figure:
        return self.several(columns, item, lambda s: statistic(s)[..., None], [why])[0]

    def several(self, columns: Floats, item: Sequence[Any] | Ints, statistics: Callable[[Floats], Floats],
                why: Sequence[str]) -> list[Figure]:
        """Several statistics of the same columns, each with why it may be undefined."""
        n = len(set(np.asarray(item).tolist()))
        if n == 0:
            return [Figure(value=None, low=None, high=None, n=0, why=w) for w in why]
        found = bootstrap_statistics(columns, np.asarray(item), statistics, seed=self.seed, resamples=self.resamples)
        return [Figure(**i.as_dict(), why=w if math.isnan(i.value) else "one item gives no interval"
                       if math.isnan(i.low) else None) for i, w in zip(found, why, strict=True)]


def _ratio(sums: Floats) -> Floats:
    result: Floats = sums[..., 0] / sums[..., 1]
    return result


def reliability_data(ranked: Ranked) -> Floats:
    """The matrix that the head of this file defines, [labelers, completions of all items]; NaN is missing."""
    columns = []
    for item in ranked.items:
        block = np.full((len(ranked.labelers), len(item.completions)), np.nan)
        block[item.labelers] = [places(row) for row in item.ranks]
        columns.append(block)
    return np.concatenate(columns, axis=1)


def _alpha(figure: Figure, level: Literal["nominal", "ordinal"], **data: Any) -> Figure:
    """α by the library `krippendorff`, in the interval that the same formula gives for all resamples at once."""
    if figure.value is None:
        return figure
    return figure.model_copy(update={"value": float(krippendorff.alpha(level_of_measurement=level, **data))})


def _pair(names: list[str], a: int, b: int, tau: Tau, both: Both, boot: _Bootstrap) -> PairAgreement:
    """The figures of two labelers."""
    mine = (tau.first == a) & (tau.second == b)
    rows = (both.first == a) & (both.second == b)
    x, y = both.a[rows], both.b[rows]
    columns = np.stack([x == y, np.ones(len(x)), x == 0, y == 0], axis=1).astype(float)

    def figures(sums: Floats) -> Floats:
        return np.stack([sums[..., 0] / sums[..., 1], kappa(sums)], axis=-1)

    none = "they compared no pair together"  # two F's, or equal texts
    alike, beyond_chance = boot.several(columns, both.item[rows], figures, (none, "both always declared a tie"))
    return PairAgreement(
        first=names[a], second=names[b], agreement=alike, kappa=beyond_chance,
        tau_b=boot(tau.columns[mine], tau.item[mine], tau_b,
                   "one of the two tied everything"))


def _f_rate(ranked: Ranked, labeler: int) -> float:
    """Share of the completions that a labeler saw which got F."""
    rows = np.concatenate([item.ranks[item.labelers == labeler].ravel() for item in ranked.items])
    return float(np.isinf(rows).sum() / (~np.isnan(rows)).sum())


# --- repeats and gold -------------------------------------------------------------------------------------


def _choice_by_id(ranking: Ranking) -> dict[tuple[str, str], int]:
    """Who is the better one of each pair that a ranking compares, by the completions' ids in order of name."""
    found = {}
    ranked = by_item([ranking])
    made = choices(ranked)
    ids = [c.id for c in ranked.items[0].completions]
    for i, j, choice in zip(made.first.tolist(), made.second.tolist(), made.choice.tolist(), strict=True):
        a, b = ids[i], ids[j]
        found[(a, b) if a < b else (b, a)] = choice if a < b else -choice
    return found


def _compared(first: Ranking, again: Ranking, key: tuple[str, str]) -> list[tuple[str, str, float]]:
    """(labeler, item, alike) of each pair that both rankings compare."""
    a, b = _choice_by_id(first), _choice_by_id(again)
    return [(*key, float(a[pair] == b[pair])) for pair in a if pair in b]


def _against_gold(ranking: Ranking, ranks: list[int | None]) -> list[tuple[str, str, float]]:
    """(labeler, item, right) of each pair that gold ranks decide; a tie or two F's are not right."""
    if len(ranks) != len(ranking.ranks):
        raise TrivetError(f"the gold of {ranking.id!r} has {len(ranks)} ranks for {len(ranking.ranks)} completions",
                          field="gold_ranks", mend="mend the gold item")
    gold = _choice_by_id(ranking.model_copy(update={"ranks": ranks}))
    own = _choice_by_id(ranking)
    return [(ranking.labeler, ranking.id, float(own.get(pair) == choice)) for pair, choice in gold.items() if choice]


# --- for the terminal -------------------------------------------------------------------------------------

_NAMES = {
    "alpha": "Krippendorff’s α (ordinal)", "alpha_pairs": "Krippendorff’s α of pairs (nominal)",
    "kendall_w": "Kendall’s W, mean of items", "tau_b": "Kendall’s τ-b of two labelers",
    "pair_agreement": "pairs decided alike", "decided_agreement": "the same without ties",
    "leave_one_out": "one against the others (human ceiling)", "self_consistency": "oneself, when asked again",
    "gold_accuracy": "gold items",
}
SHOWN_PAIRS = 12


def table(found: AgreementReport) -> Any:
    """The report as a rich renderable: over all, by labeler, and the pairs of labelers who agree least."""
    from rich.console import Group
    from rich.table import Table

    whole = Table(title=f"{found.items} items, {found.labelers} labelers, {found.rankings} rankings",
                  title_justify="left", show_header=False, pad_edge=False)
    for name, words in _NAMES.items():
        figure: Figure = getattr(found, name)
        chance = f"  (by chance {found.kendall_w_chance:.2f})" \
            if name == "kendall_w" and found.kendall_w_chance is not None else ""
        whole.add_row(words, _words(figure) + chance, f"n={figure.n}" if figure.n else "")
    people = Table(title="by labeler", title_justify="left", pad_edge=False)
    for column in ("labeler", "rankings", "with the others", "with oneself", "gold", "ties", "F"):
        people.add_column(column)
    for p in found.by_labeler:
        people.add_row(p.labeler, str(p.rankings), *(_words(f, short=True) for f in (
            p.leave_one_out, p.self_consistency, p.gold_accuracy)), _share(p.tie_rate), _share(p.f_rate))
    shown = sorted(found.by_pair, key=lambda p: math.inf if p.kappa.value is None else p.kappa.value)[:SHOWN_PAIRS]
    more = f", the {SHOWN_PAIRS} of {len(found.by_pair)} with the lowest κ" if len(found.by_pair) > SHOWN_PAIRS else ""
    pairs = Table(title=f"by pair of labelers{more}", title_justify="left", pad_edge=False)
    for column in ("labelers", "items", "Cohen's κ", "τ-b", "pairs decided alike"):
        pairs.add_column(column)
    for two in shown:
        pairs.add_row(f"{two.first}, {two.second}", str(two.agreement.n), *(
            _words(f, short=True) for f in (two.kappa, two.tau_b, two.agreement)))
    return Group(whole, people, *([pairs] if shown else []))


def _words(figure: Figure, short: bool = False) -> str:
    if figure.value is None:
        return "–" if short else f"not known: {figure.why}"
    if figure.low is None or figure.high is None:
        return f"{figure.value:.2f}" if short else f"{figure.value:.3f} (one item: no interval)"
    return f"{figure.value:.2f} [{figure.low:.2f}, {figure.high:.2f}]" if short else \
        f"{figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}]"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"
