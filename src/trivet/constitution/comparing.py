"""Two answers to one prompt, compared by principles: which pairs, by which principles, what a judge says of them.

Bai et al. 2022, 'Constitutional AI', section 4.1: for each pair a principle is drawn, and the judge's probabilities of
the two options are the label; with several principles a pair, their mean. Beyond the paper each pair is asked about in
both orders, which shows how far the judge goes by the place of an answer, and takes it out. No torch.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from trivet.artifacts import Completions, Message, Preference, text_digest, text_id
from trivet.constitution.prefer_config import Combine
from trivet.constitution.principles import Constitution
from trivet.data.importers import read_preferences
from trivet.errors import TrivetError
from trivet.feedback.votes import ranked_pairs
from trivet.judge.ask import both_orders, name_of
from trivet.judge.cases import Case, Criterion, Judge
from trivet.judge.criteria import BETTER

SUREST = 1e-6
"""Probabilities nearer to 0 or 1 than this count as this far off, in log-odds."""


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, in the order in which the judge is first shown them."""

    id: str
    prompt_id: str
    messages: tuple[Message, ...]
    answers: tuple[str, str]
    reference: str | None = None
    people: float | None = None
    """The probability by people that the first answer is the better; None where nobody said."""


class Opinion(BaseModel):
    """What a judge says of a pair by one principle: the probability that the first answer is the better."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    principle: str | None
    """None: the judge reads no principle, as a reward model."""
    given: float
    """Asked with the first answer shown first."""
    swapped: float
    """Asked with the first answer shown second."""


@dataclass(frozen=True)
class Compared:
    """A pair, and what the judge said of it."""

    pair: Pair
    said: tuple[Opinion, ...]
    combine: Combine = "probability"

    @property
    def probability(self) -> float:
        """That the first answer is the better: both orders as one, and the mean over principles."""
        # rounded, so that verdicts that cancel out make just 0.5
        return round(_mean([combined(o.given, o.swapped, self.combine) for o in self.said]), 12)

    @property
    def once(self) -> float:
        """The same, asked in one order alone."""
        return round(_mean([o.given for o in self.said]), 12)

    @property
    def shown_first(self) -> float:
        """That the answer which is shown first is the better, be it which it may: 0.5 without position bias."""
        return _mean([(o.given + 1.0 - o.swapped) / 2 for o in self.said])

    @property
    def flips(self) -> float:
        """Share of the principles by which the verdict changes sides with the order."""
        return _mean([float((o.given - 0.5) * (o.swapped - 0.5) < 0) for o in self.said])

    @property
    def divided(self) -> bool:
        """Whether one principle prefers the first answer, and another the second."""
        found = [combined(o.given, o.swapped, self.combine) - 0.5 for o in self.said]
        return min(found) < 0 < max(found)


def combined(given: float, swapped: float, how: Combine) -> float:
    """Both orders' probabilities of the first answer as one.

    log-odds: where a judge's log-odds are what it thinks of the answers plus a constant for the place, the mean of
    both orders' is what it thinks, whatever the constant; of the probabilities' mean that holds for the sign alone.
    """
    if how == "probability":
        return (given + swapped) / 2
    odds = [math.log(p) - math.log1p(-p) for p in (min(max(q, SUREST), 1.0 - SUREST) for q in (given, swapped))]
    return 0.5 * (1.0 + math.tanh(sum(odds) / 4))  # σ of the mean


# --- which pairs -------------------------------------------------------------------------------------------


def pairs_of(rows: Sequence[Completions], count: int, seed: int) -> tuple[list[Pair], Counter[str]]:
    """At most `count` pairs of each prompt's answers, drawn by the seed; and what gave none, by reason.

    Answers that are empty or equal (but for white space around them) make no pair. Which pairs are drawn, and which
    answer of a pair is shown first, depends on seed, prompt and texts alone.
    """
    found: list[Pair] = []
    left_out: Counter[str] = Counter()
    for row in rows:
        texts: list[str] = []
        for completion in row.completions:
            text = completion.text.strip()
            if not text:
                left_out["an empty answer"] += 1
            elif text in texts:
                left_out["the same answer again"] += 1
            else:
                texts.append(text)
        if len(texts) < 2:
            left_out["a prompt without two different answers"] += 1
        pairs = [_pair(row, sorted(two), seed) for two in itertools.combinations(texts, 2)]
        found += sorted(pairs, key=lambda p: _digest(seed, p.id))[:count]
    return found, left_out


def _pair(row: Completions, texts: Sequence[str], seed: int) -> Pair:
    name = text_id([row.id, *texts])
    return Pair(name, row.id, tuple(row.messages), _ordered(name, texts[0], texts[1], seed), row.reference)


def _ordered(name: str, one: str, other: str, seed: int) -> tuple[str, str]:
    """The two texts, either first by the toss of a hash."""
    return (one, other) if _digest(seed, f"{name}\0{one}") < _digest(seed, f"{name}\0{other}") else (other, one)


def _digest(seed: int, text: str) -> bytes:
    return text_digest(f"{seed}\0{text}")


def judged_by_people(path: Path, limit: int | None, seed: int) -> tuple[list[Pair], Counter[str]]:
    """Pairs that people judged, at most `limit` of them, drawn by the seed; and what gave none, by reason.

    Preferences (hh dialogues among them) or rankings, whose votes are merged (feedback/votes.py). Which answer is shown
    first is a toss, so that the preferred one does not always stand first. Raises TrivetError as `read_preferences`
    does, and for a file that gives no pair.
    """
    found = read_preferences(path)
    if found.rankings:
        found = ranked_pairs(found.rankings)
    left_out = Counter(found.skipped)
    pairs = []
    for p in found.pairs:
        if p.label == 0.5:
            left_out["people are divided"] += 1
            continue
        answers = _ordered(p.id, p.chosen, p.rejected, seed)
        people = p.label if answers[0] == p.chosen else 1.0 - p.label
        pairs.append(Pair(p.id, p.prompt_id, tuple(p.prompt), answers, people=people))
    if not pairs:
        reasons = ", ".join(f"{reason}: {n}" for reason, n in left_out.most_common())
        raise TrivetError(f"this file gives no pair that people judged ({reasons})", file=path, field="human",
                          mend="give pairs of two different answers, one of them preferred")
    if limit is not None and limit < len(pairs):
        drawn = set(random.Random(seed).sample(range(len(pairs)), limit))
        pairs = [p for i, p in enumerate(pairs) if i in drawn]
    return pairs, left_out


# --- what the judge says -----------------------------------------------------------------------------------


def compare(judge: Judge, pairs: Sequence[Pair], constitution: Constitution, *, principles: int, seed: int,
            combine: Combine = "probability") -> list[Compared]:
    """What the judge says of each pair by `principles` of the constitution, drawn for it, in both orders.

    A judge that reads no criterion (a reward model) is asked once a pair, whatever the number of principles. Raises
    TrivetError as `both_orders` does.
    """
    reads = bool(getattr(judge, "reads_criterion", True))
    asked: list[list[tuple[str | None, Criterion]]] = [[(None, BETTER)] for _ in pairs]
    if reads:
        drawn = [[constitution.draw(seed, pair.id, n) for n in range(principles)] for pair in pairs]
        asked = [[(p.name, p.criterion) for p in chosen] for chosen in drawn]
    cases = [Case(f"{pair.id}/{name}" if reads else pair.id, pair.messages, pair.answers, criterion, pair.reference)
             for pair, by in zip(pairs, asked, strict=True) for name, criterion in by]
    found = iter(both_orders(judge, cases, name=name_of(judge)))
    compared = []
    for pair, by in zip(pairs, asked, strict=True):
        said = zip(by, itertools.islice(found, len(by)), strict=True)
        compared.append(Compared(pair, tuple(Opinion(principle=name, given=both.given, swapped=both.swapped)
                                             for (name, _), both in said), combine))
    return compared


def preference(compared: Compared, *, weight: float, source: str) -> Preference:
    """A compared pair as a row of preferences: `label` is the probability that `chosen`, the likelier one, wins."""
    pair, p = compared.pair, compared.probability
    chosen, rejected = pair.answers if p >= 0.5 else pair.answers[::-1]
    return Preference(id=pair.id, prompt_id=pair.prompt_id, prompt=list(pair.messages), chosen=chosen,
                      rejected=rejected, label=max(p, 1.0 - p), weight=weight, source=source)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
