"""Several labelers' rankings of a prompt become one: soft labels on its pairs, and an aggregated ranking.

    votes          every vote a soft label: the label is the share of the labelers          votes.py
    majority       the choice of most; the margin says by how much
    dawid-skene    labelers weighed by their reliability, each with confusions of their own   labelers.py
    mace           labelers weighed by their competence                                     labelers.py
    bradley-terry  strengths of the answers; a tie is half a win each                       models.py
    davidson       strengths, ties being outcomes of their own                              models.py
    plackett-luce  strengths from whole rankings, with ties                                 models.py

In all of them F loses to all that did not fail, and two F's say nothing of each other. Pure functions of
rankings; docs/guides/aggregation.md says which method when, with what it recovers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from trivet.artifacts import Preference, Ranking, text_id
from trivet.data.importers import Imported
from trivet.errors import TrivetError
from trivet.feedback import labelers, models
from trivet.feedback.choices import Choices, Floats, Item, Ranked, by_item, choices, majority
from trivet.feedback.config import METHODS, Method
from trivet.feedback.votes import ranked_pairs

NEGLIGIBLE = 1e-3
"""A side of a pair with less of its weight than this gives no row."""


@dataclass(frozen=True)
class AggregatedPair:
    """What all labelers together say of two answers. `first` came before `second` in the file."""

    prompt_id: str
    first: str
    second: str
    """Ids of the completions."""
    first_better: float
    tie: float
    second_better: float
    """Probabilities, which sum to 1; of `majority` one of them is 1."""
    margin: float
    """first_better - second_better; of `majority` the votes for first less those for second, by all votes."""
    voters: tuple[str, ...]
    adjudicator: str | None = None
    """Who decided it, where somebody did."""


@dataclass(frozen=True)
class Aggregated:
    """The result of `aggregate`."""

    method: Method
    pairs: list[AggregatedPair]
    rankings: list[Ranking]
    """One a prompt, in the order of the prompts; `labeler` names the method and the labelers."""
    reliability: dict[str, float]
    """By labeler, from 0 to 1. dawid-skene: the probability that a choice of theirs is the true one; mace: their
    competence; otherwise: the share of their choices that go with the aggregate, a tie on either side counting ½.
    Who compared nothing has none."""
    ties: int
    """Comparisons that a labeler declared a tie."""
    voted: list[Ranking] = field(repr=False)
    """The rankings that count: where a prompt was adjudicated, the adjudicator's alone."""


def aggregate(
    rankings: Sequence[Ranking], method: Method, *, adjudications: Sequence[Ranking] = (), seed: int = 0,
) -> Aggregated:
    """Aggregate the rankings of each prompt.

    `adjudications` are decisive: where there is one, the prompt's pairs and ranks are the adjudicator's, and
    dawid-skene learns from it who is reliable. Of several on a prompt the last one counts.

    Raises TrivetError for an unknown method, without rankings, where a labeler
    ranked a prompt twice, and for ties too wide for plackett-luce.
    """
    if method not in METHODS:
        raise TrivetError(f"there is no method {method!r}", field="method", mend=f"use one of: {', '.join(METHODS)}")
    if not rankings and not adjudications:
        raise TrivetError("there are no rankings to aggregate", mend="rank some completions first")
    decided = {r.id: r for r in adjudications}
    ranked = by_item(rankings)
    made = choices(ranked)
    margins = _margins(made, method)
    outcomes, strengths, reliability = _fit(ranked, made, method, decided, seed) if len(made) \
        else (np.zeros((0, 3)), None, np.full(len(ranked.labelers), np.nan))
    weights = reliability if method in ("dawid-skene", "mace") else np.ones(len(ranked.labelers))
    first_row = np.unique(made.pair, return_index=True)[1]
    pairs_of: dict[int, list[tuple[int, int, int]]] = {}
    for pair, row in enumerate(first_row.tolist()):
        pairs_of.setdefault(int(made.item[row]), []).append((pair, int(made.first[row]), int(made.second[row])))
    voters: dict[int, list[str]] = {}
    for pair, labeler in zip(made.pair.tolist(), made.labeler.tolist(), strict=True):
        voters.setdefault(pair, []).append(ranked.labelers[labeler])
    pairs: list[AggregatedPair] = []
    merged: list[Ranking] = []
    for number, item in enumerate(ranked.items):
        if item.ranking.id in decided:
            continue
        ids = [c.id for c in item.completions]
        pairs += [_pair(item.ranking.id, ids[i], ids[j], outcomes[p], voters[p], margins.get(p))
                  for p, i, j in pairs_of.get(number, [])]
        ranks = merged_ranks(item, {(i, j): outcomes[p] for p, i, j in pairs_of.get(number, [])},
                             None if strengths is None else strengths[number], weights)
        names = ", ".join(ranked.labelers[k] for k in item.labelers)
        merged.append(item.ranking.model_copy(update={
            "completions": item.completions, "ranks": ranks, "labeler": f"{method}: {names}", "seconds": None,
            "note": None}))
    judged, own = _adjudicated(decided)
    voted = [r for r in rankings if r.id not in decided] + list(decided.values())
    return Aggregated(method, pairs + judged, merged + own,
                      {name: float(r) for name, r in zip(ranked.labelers, reliability, strict=True) if np.isfinite(r)},
                      int((made.choice == 0).sum()), voted)


# --- the methods --------------------------------------------------------------------------------------


def _fit(ranked: Ranked, made: Choices, method: Method, decided: dict[str, Ranking], seed: int,
         ) -> tuple[Floats, Floats | None, Floats]:
    """(probabilities of (first, tie, second) for each pair, [pairs, 3]; strengths [items, K] where the method has
    them; reliability [labelers])."""
    tally = made.tally()
    strengths: Floats | None = None
    known = _known(ranked, made, decided)
    if method == "dawid-skene":
        outcomes, reliability = labelers.dawid_skene(made, len(ranked.labelers), known)
        return outcomes, None, reliability
    if method == "mace":
        outcomes, reliability = labelers.mace(made, len(ranked.labelers), seed=seed)
        return outcomes, None, reliability
    if method == "votes":
        outcomes = tally / tally.sum(axis=1, keepdims=True)
    elif method == "majority":
        outcomes = np.eye(3)[1 - majority(tally)]
    else:
        strengths, log_tie = _strengths(ranked, made, tally, method)
        row = np.unique(made.pair, return_index=True)[1]
        outcomes = models.outcome_probabilities(strengths[made.item[row], made.first[row]],
                                                strengths[made.item[row], made.second[row]], log_tie)
    truth = 1 - outcomes.argmax(axis=1)
    truth[np.isclose(outcomes[:, 0], outcomes[:, 2])] = 0
    for pair, choice in known.items():
        truth[pair] = choice
    agreed = np.where(truth[made.pair] == made.choice, 1.0, 0.5 * (truth[made.pair] * made.choice == 0))
    return outcomes, strengths, labelers.mean_by(made.labeler, agreed, len(ranked.labelers))


def _strengths(ranked: Ranked, made: Choices, tally: models.Ints, method: Method) -> tuple[Floats, float | None]:
    """(log-strengths [items, K], log of the tie parameter or None)."""
    size, count = max(len(i.completions) for i in ranked.items), len(ranked.items)
    if method == "plackett-luce":
        rows = [np.pad(item.ranks, ((0, 0), (0, size - item.ranks.shape[1])), constant_values=np.nan)
                for item in ranked.items]
        try:
            fit = models.plackett_luce(np.repeat(np.arange(count), [len(r) for r in rows]), np.concatenate(rows), count)
        except ValueError as error:
            raise TrivetError(f"plackett-luce: {error}", field="method", mend="use --method davidson") from None
        return fit.theta, float(fit.log_ties[0]) if len(fit.log_ties) else None
    row = np.unique(made.pair, return_index=True)[1]
    item, first, second = made.item[row], made.first[row], made.second[row]
    wins, ties = np.zeros((count, size, size)), np.zeros((count, size, size))
    wins[item, first, second], wins[item, second, first] = tally[:, 0], tally[:, 2]
    ties[item, first, second] = tally[:, 1]
    if method == "davidson":
        fit = models.davidson(wins, ties)
        return fit.theta, float(fit.log_ties[0])
    return models.bradley_terry(wins + (ties + ties.transpose(0, 2, 1)) / 2).theta, None


def _known(ranked: Ranked, made: Choices, decided: dict[str, Ranking]) -> dict[int, int]:
    """The adjudicator's choice on each pair that labelers compared and the adjudicator did, too."""
    if not decided:
        return {}
    own = by_item(list(decided.values()))
    judged = choices(own)
    truth = {(own.items[i].ranking.id, own.items[i].completions[a].id, own.items[i].completions[b].id): c
             for i, a, b, c in zip(judged.item.tolist(), judged.first.tolist(), judged.second.tolist(),
                                   judged.choice.tolist(), strict=True)}
    known = {}
    for row in np.unique(made.pair, return_index=True)[1].tolist():
        item = ranked.items[int(made.item[row])]
        a, b = item.completions[int(made.first[row])].id, item.completions[int(made.second[row])].id
        for key, sign in (((item.ranking.id, a, b), 1), ((item.ranking.id, b, a), -1)):
            if key in truth:
                known[int(made.pair[row])] = sign * truth[key]
    return known


def _pair(prompt_id: str, first: str, second: str, outcome: Floats, voters: Sequence[str],
          margin: float | None = None, adjudicator: str | None = None) -> AggregatedPair:
    better, tie, worse = outcome.tolist()
    return AggregatedPair(prompt_id, first, second, better, tie, worse, better - worse if margin is None else margin,
                          tuple(voters), adjudicator)


def _margins(made: Choices, method: Method) -> dict[int, float]:
    """The margin of each pair, for the majority: its outcome says nothing of by how much."""
    if method != "majority" or not len(made):
        return {}
    tally = made.tally()
    return dict(enumerate(((tally[:, 0] - tally[:, 2]) / tally.sum(axis=1)).tolist()))


def _adjudicated(decided: dict[str, Ranking]) -> tuple[list[AggregatedPair], list[Ranking]]:
    """The pairs and rankings that adjudicators decided."""
    pairs = []
    ranked = by_item(list(decided.values()))
    made = choices(ranked)
    for number, i, j, choice in zip(made.item.tolist(), made.first.tolist(), made.second.tolist(),
                                    made.choice.tolist(), strict=True):
        item = ranked.items[number]
        who = item.ranking.labeler
        pairs.append(_pair(item.ranking.id, item.completions[i].id, item.completions[j].id, np.eye(3)[1 - choice],
                           [who], adjudicator=who))
    return pairs, [r.model_copy(update={"labeler": f"adjudicated: {r.labeler}"}) for r in decided.values()]


# --- aggregated rankings --------------------------------------------------------------------------------


def merged_ranks(item: Item, outcomes: dict[tuple[int, int], Floats], strengths: Floats | None,
                 weights: Floats) -> list[int | None]:
    """The ranks of an item's completions that the aggregate gives: 1 is best, None is F.

    F has who failed by more than half of its labelers' weight. The others are ordered by strength, or without
    one by their mean outcome (a win 1, a tie ½) over the pairs they are in. Neighbours in that order share a
    rank where a tie is the likeliest outcome of their pair, or where nothing tells them apart.
    """
    own = np.nan_to_num(weights[item.labelers], nan=1.0)[:, None] * ~np.isnan(item.ranks)
    failed = (own * np.isinf(item.ranks)).sum(axis=0) > own.sum(axis=0) / 2
    size = len(item.completions)
    if strengths is None:
        won, met = np.zeros(size), np.zeros(size)
        for (i, j), (first, tie, second) in outcomes.items():
            won[[i, j]] += [first + tie / 2, second + tie / 2]
            met[[i, j]] += 1
        # one that met nobody stands in the middle
        strengths = np.divide(won, met, out=np.full(size, 0.5), where=met > 0)
    order = sorted((k for k in range(size) if not failed[k]), key=lambda k: -strengths[k])
    ranks: list[int | None] = [None] * size
    for place, k in enumerate(order):
        before = order[place - 1] if place else None
        tied = before is not None and (
            abs(strengths[before] - strengths[k]) < 1e-9
            or ((o := outcomes.get((min(before, k), max(before, k)))) is not None and o[1] >= max(o[0], o[2])))
        ranks[k] = ranks[before] if tied and before is not None else place + 1
    return ranks


# --- pairs ----------------------------------------------------------------------------------------------


def preferences(aggregated: Aggregated, keep_ties: bool = False) -> Imported:
    """The aggregate as pairs. `chosen` is the likelier winner.

    `votes` gives what `ranked_pairs` gives. Elsewhere `label` is the probability that chosen wins, given that one
    of them does; `margin` is P(chosen is better) - P(rejected is better), of `majority` the difference of votes by
    all votes, from 0 to 1; a prompt's weights sum to 1, each pair's in proportion to the probability that it is no
    tie. A pair that is likelier a tie than won by either gives nothing; with `keep_ties` every pair's probability of
    a tie becomes the weight of a row with tie=true and label 0.5 beside it. A pair that is even is dropped, or with
    `keep_ties` kept with label 0.5.
    """
    by_id = {r.id: r for r in aggregated.rankings}
    counted = ranked_pairs(aggregated.voted, keep_ties)
    if aggregated.method == "votes":
        adjudicators = {p.prompt_id: p.adjudicator for p in aggregated.pairs if p.adjudicator}
        counted.pairs = [p if p.prompt_id not in adjudicators else
                         p.model_copy(update={"source": f"adjudicated: {adjudicators[p.prompt_id]}"})
                         for p in counted.pairs]
        return counted
    skipped = Counter({reason: counted.skipped[reason] for reason in
                       ("one answer only", "the two answers are equal", "both failed") if counted.skipped[reason]})
    result = Imported(skipped=skipped, ties=counted.ties)
    groups: dict[str, list[AggregatedPair]] = {}
    for pair in aggregated.pairs:
        groups.setdefault(pair.prompt_id, []).append(pair)
    for prompt_id, pairs in groups.items():
        rows = [row for pair in pairs for row in _rows(pair, by_id[prompt_id], aggregated.method, keep_ties, result)]
        total = sum(row.weight for row in rows)
        result.pairs += [row.model_copy(update={"weight": row.weight / total}) for row in rows]
    return result


def _rows(pair: AggregatedPair, prompt: Ranking, method: Method, keep_ties: bool, result: Imported,
          ) -> list[Preference]:
    """The rows of one pair, weighing what each is worth beside the prompt's others; what gives none is counted."""
    texts = {c.id: c.text for c in prompt.completions}
    won = pair.first_better + pair.second_better
    even = abs(pair.first_better - pair.second_better) <= 1e-9 * won
    chosen, rejected = (pair.first, pair.second) if pair.first_better >= pair.second_better or even \
        else (pair.second, pair.first)
    likelier = max(pair.first_better, pair.second_better)
    source = f"adjudicated: {pair.adjudicator}" if pair.adjudicator else f"{method}: {', '.join(pair.voters)}"

    def row(tie: bool, **more: float) -> Preference:
        # the same id as in votes.py: it names the two answers, whoever won
        return Preference(id=text_id([pair.prompt_id, pair.first, pair.second, tie]), prompt_id=pair.prompt_id,
                          prompt=prompt.messages, chosen=texts[chosen], rejected=texts[rejected], tie=tie,
                          source=source, **more)

    rows = []
    if keep_ties:
        if won > NEGLIGIBLE:
            rows.append(row(False, label=0.5 if even else likelier / won, weight=won,
                            margin=0.0 if even else abs(pair.margin)))
        if pair.tie > NEGLIGIBLE:
            rows.append(row(True, label=0.5, weight=pair.tie))
    elif pair.tie > likelier:
        result.skipped["tie"] += 1
    elif even:
        result.skipped["labelers split evenly"] += 1
    else:
        rows.append(row(False, label=likelier / won, weight=won, margin=abs(pair.margin)))
    return rows
