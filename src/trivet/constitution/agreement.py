"""What a judge's labels are worth: how far they go by the place of an answer, and how far people agree with them.

Intervals are 95%, over prompts: Wilson's for shares of yes and no, else by bootstrap (evaluate/statistics.py,
intervals.py). The calibration error is that of Guo et al. 2017, 'On calibration of modern neural networks', section 2,
of the confidence in the preferred answer, over bins of 0.1. The rows of the reliability diagram are bins of equal
numbers of pairs instead (Nguyen and O'Connor 2015, 'Posterior calibration and exploratory analysis', section 3), since
soft labels may all lie in one bin of 0.1. Needs numpy only.

Not covered: differences between labelers. People's label of a pair is taken as one probability.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from trivet.artifacts import Row
from trivet.constitution.comparing import Compared
from trivet.evaluate.base import Kind, Measure, Score
from trivet.evaluate.statistics import estimate
from trivet.intervals import Interval, bootstrap_mean, paired_bootstrap

BINS = 10
"""Rows of the reliability diagram at most."""
LEAST = 20
"""Pairs in each of them at least."""
WIDEST = 0.1
"""Difference in confidence within one of them at most."""
Figure = dict[str, float | int | None]
"""An interval as it stands in files: value, low, high, n (prompts)."""


class Reliability(BaseModel):
    """Pairs of like confidence, and how often people agree."""

    low: float
    high: float
    """The least and the largest confidence among them."""
    pairs: int
    confidence: float
    """Mean probability of the preferred answer."""
    agreement: Figure


class Position(BaseModel):
    """How far the judge goes by the place of an answer."""

    before: Figure
    """Probability that the answer shown first is the better, asked in either order: 0.5 without bias."""
    after: Figure
    """The same of the labels, both orders as one: of the answer that a toss put first."""
    flips: Figure
    """Share of verdicts that change sides with the order."""


class Agreement(Row):
    """`agreement.json`: the judge's labels beside people's."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())
    trivet: str
    judge: str
    constitution: str
    """The sha256 of its content."""
    principles: int
    combine: str
    think: bool
    human: str
    human_sha256: str
    pairs: int
    prompts: int
    left_out: dict[str, int]
    agreement: Figure
    """How often the answer that the judge prefers is people's, both orders as one; of just 0.5 half of it is."""
    once: Figure
    """The same, asked in one order alone."""
    gained: Figure
    """`agreement` less `once`, pair by pair."""
    longer: Figure
    """How often the longer answer is people's: what a judge that looks at length alone would reach."""
    brier: Figure
    """Mean squared distance of the label from people's: 0.25 says nothing."""
    ece: Figure
    """Expected calibration error: how far off the confidences are, in the mean."""
    reliability: list[Reliability]
    position: Position | None
    """None of a judge that can't see the order."""


def position(compared: Sequence[Compared], seed: int = 0) -> Position:
    """The judge's position bias over these pairs. Raises ValueError for none."""
    groups = [c.pair.prompt_id for c in compared]

    def mean(values: list[float]) -> Figure:
        return bootstrap_mean(values, groups, seed=seed).as_dict()

    return Position(before=mean([c.shown_first for c in compared]), after=mean([c.probability for c in compared]),
                    flips=_figure("position_flips", compared, [c.flips for c in compared], seed).as_dict())


def beside_people(compared: Sequence[Compared], seed: int = 0) -> dict[str, Any]:
    """The fields of `Agreement` that are figures but for the position, over pairs that people judged.

    Raises ValueError for no pairs, and for one that nobody judged.
    """
    both = [right(c, c.probability) for c in compared]
    once = [right(c, c.once) for c in compared]
    groups = [c.pair.prompt_id for c in compared]
    sure = [max(c.probability, 1.0 - c.probability) for c in compared]
    lengths = [len(c.pair.answers[0]) - len(c.pair.answers[1]) for c in compared]
    longer = [right(c, 0.5 if gap == 0 else float(gap > 0)) for c, gap in zip(compared, lengths, strict=True)]
    brier = [(c.probability - _people(c)) ** 2 for c in compared]
    return {
        "pairs": len(compared), "prompts": len(set(groups)),
        "agreement": _figure("agreement", compared, both, seed).as_dict(),
        "once": _figure("agreement_once", compared, once, seed).as_dict(),
        "gained": paired_bootstrap(both, once, groups, seed=seed).as_dict(),
        "longer": _figure("agreement_longer", compared, longer, seed).as_dict(),
        "brier": bootstrap_mean(brier, groups, seed=seed).as_dict(),
        "ece": _figure("label_ece", compared, both, seed, others=sure, kind="ece", better="lower").as_dict(),
        "reliability": reliability(compared, seed)}


def right(compared: Compared, probability: float) -> float:
    """How far people agree with a probability of the first answer: their probability of the one that it prefers.

    Raises ValueError for a pair that nobody judged.
    """
    people = _people(compared)
    return 0.5 if probability == 0.5 else people if probability > 0.5 else 1.0 - people


def reliability(compared: Sequence[Compared], seed: int = 0) -> list[Reliability]:
    """The rows of the reliability diagram, by rising confidence: of as many pairs each as can be, where pairs of one
    confidence stay together and no row is wider than 0.1."""
    pairs = sorted(compared, key=lambda c: (abs(c.probability - 0.5), c.pair.id))
    wanted = max(1, min(BINS, len(pairs) // LEAST))
    rows: list[list[Compared]] = []
    for place, c in enumerate(pairs):
        alike = place > 0 and abs(_sure(c) - _sure(pairs[place - 1])) < 1e-9
        full = place * wanted // len(pairs) >= len(rows)
        if not rows or (not alike and (full or _sure(c) - _sure(rows[-1][0]) > WIDEST)):
            rows.append([])
        rows[-1].append(c)
    return [Reliability(
        low=_sure(row[0]), high=_sure(row[-1]), pairs=len(row), confidence=sum(map(_sure, row)) / len(row),
        agreement=_figure("agreement", row, [right(c, c.probability) for c in row], seed).as_dict()) for row in rows]


def _sure(compared: Compared) -> float:
    return 0.5 + abs(compared.probability - 0.5)


def _people(compared: Compared) -> float:
    if compared.pair.people is None:
        raise ValueError(f"nobody judged the pair {compared.pair.id}")
    return compared.pair.people


def _figure(name: str, compared: Sequence[Compared], values: Sequence[float], seed: int, *, kind: Kind = "mean",
            others: Sequence[float] | None = None, better: Literal["higher", "lower"] = "higher") -> Interval:
    """A figure over pairs, by prompt: a share, or a calibration error."""
    measure = Measure(name, "harmless", name, better, kind=kind)
    rows = zip(compared, values, others if others is not None else itertools.repeat(None, len(values)), strict=True)
    return estimate(measure, [Score(measure=measure.key, id=c.pair.id, group=c.pair.prompt_id, value=v, other=other)
                              for c, v, other in rows], seed)
