"""What rankings say, as arrays: the ranks of each item, and every labeler's choice on every pair of answers.

An item is a prompt with its completions; its `id` is the prompt's. Ranks mean something within one item and one
labeler only. Agreement and aggregation both stand on this.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from trivet.artifacts import Completion, Ranking
from trivet.data.importers import add_ranking

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Item:
    """A prompt with all completions that anybody ranked, and who ranked them."""

    ranking: Ranking
    """Of the first labeler: prompt, messages, reference, tags."""
    completions: list[Completion]
    """In the order in which they were first seen, [K]."""
    labelers: Ints
    """Places in `Ranked.labelers`, [L]."""
    ranks: Floats
    """[L, K]: the labelers' own ranks, inf for F, NaN for a completion that a labeler was not shown."""


@dataclass(frozen=True)
class Ranked:
    """Rankings by item."""

    labelers: list[str]
    """In alphabetical order."""
    items: list[Item]


def by_item(rankings: Sequence[Ranking]) -> Ranked:
    """Rankings gathered by prompt id, items in the order in which they were first seen.

    Raises TrivetError where a labeler ranked a prompt twice, or where one id stands for two prompts or texts.
    """
    groups: dict[str, list[Ranking]] = {}
    for ranking in rankings:
        add_ranking(ranking, groups)
    names = sorted({r.labeler for r in rankings})
    number = {name: k for k, name in enumerate(names)}
    items = []
    for group in groups.values():
        completions = {c.id: c for r in reversed(group) for c in reversed(r.completions)}
        order = list(dict.fromkeys(c.id for r in group for c in r.completions))
        place = {name: k for k, name in enumerate(order)}
        ranks = np.full((len(group), len(order)), np.nan)
        for row, ranking in zip(ranks, group, strict=True):
            for completion, rank in zip(ranking.completions, ranking.ranks, strict=True):
                row[place[completion.id]] = np.inf if rank is None else rank
        items.append(Item(group[0], [completions[name] for name in order],
                          np.array([number[r.labeler] for r in group], dtype=np.int64), ranks))
    return Ranked(names, items)


@dataclass(frozen=True)
class Choices:
    """One row for each pair of answers that a labeler compared, [N] each.

    A pair on which the labeler gave F to both, or whose answers have one text, is no comparison and no row.
    """

    item: Ints
    """Place in `Ranked.items`."""
    first: Ints
    second: Ints
    """Places in the item's completions; first < second."""
    labeler: Ints
    choice: Ints
    """1: first is better, -1: second is better, 0: a declared tie. F loses to all that did not fail."""
    pair: Ints
    """Number of the (item, first, second), counted from 0."""

    def __len__(self) -> int:
        return len(self.item)

    @property
    def pairs(self) -> int:
        """How many pairs of answers there are."""
        return int(self.pair.max()) + 1 if len(self) else 0

    def tally(self) -> Ints:
        """Votes on each pair for (first, tie, second), [pairs, 3]."""
        votes = np.zeros((self.pairs, 3), dtype=np.int64)
        np.add.at(votes, (self.pair, 1 - self.choice), 1)
        return votes


def choices(ranked: Ranked) -> Choices:
    """Every labeler's choice on every pair of answers that they compared."""
    rows = [(number, i, j, who, what) for number, item in enumerate(ranked.items)
            for i, j in _different(item) for who, what in _choices(item, i, j)]
    table = np.array(rows, dtype=np.int64).reshape(-1, 5)
    pair = np.unique(table[:, :3], axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)
    item_of, first, second, labeler, choice = table.T
    return Choices(item_of, first, second, labeler, choice, pair)


def _different(item: Item) -> Iterator[tuple[int, int]]:
    """Pairs of places whose texts differ."""
    texts = [c.text.strip() for c in item.completions]
    return ((i, j) for i, j in combinations(range(len(texts)), 2) if texts[i] != texts[j])


def _choices(item: Item, i: int, j: int) -> Iterator[tuple[int, int]]:
    """(labeler, choice) of those who compared the completions at i and j."""
    for labeler, a, b in zip(item.labelers, item.ranks[:, i], item.ranks[:, j], strict=True):
        if not (np.isnan(a) or np.isnan(b) or (np.isinf(a) and np.isinf(b))):
            yield int(labeler), int(a < b) - int(b < a)


def majority(votes: NDArray[np.int64] | Floats) -> Ints:
    """The choice of most, [...], from votes for (first, tie, second), [..., 3].

    1 or -1: that side has more votes than the other, and no fewer than the ties have; 0: it has not.
    """
    first, tie, second = np.moveaxis(np.asarray(votes), -1, 0)
    wins = np.sign(first - second).astype(np.int64)
    result: Ints = np.where(np.maximum(first, second) >= tie, wins, 0)
    return result
