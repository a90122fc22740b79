"""The gate: each claim of an answer against the passages it cites, or those that may bear it out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from trivet.serve.retrieval.claims import Claim, claims
from trivet.serve.retrieval.config import GroundingSettings
from trivet.serve.retrieval.entail import Entails
from trivet.serve.retrieval.evidence import Checked, Verdict, check, says_something, superseded
from trivet.serve.retrieval.passages import Passage
from trivet.serve.retrieval.prompt import heading, shown
from trivet.serve.retrieval.wants import Want, covered, gives, named, relevant
from trivet.text.manner import abstains

_SAYS_NOTHING = re.compile(r"\b(?:passages?|documents?|sources?|texts?)\b[^.]{0,40}"
                           r"\b(?:do not|don't|does not|doesn't|no|not)\b[^.]{0,40}"
                           r"\b(?:say|mention|answer|contain|provide|state|specif|information|give)", re.IGNORECASE)


@dataclass(frozen=True)
class Ruled:
    """A claim and what became of it."""

    claim: Claim
    verdict: Verdict
    cites: tuple[int, ...] = ()
    """Passages that bear it out, counted from 1 as in the prompt."""
    moved: bool = False
    """It cited none of them: it was found out that they bear it out."""


@dataclass(frozen=True)
class Shown:
    """A passage as it is checked against."""

    passage: Passage
    checked: Checked
    modified: datetime

    @classmethod
    def of(cls, passage: Passage, longest: int) -> Shown:
        """The part of the passage that the model is shown."""
        checked = Checked.of(shown(passage, longest), heading(passage))
        return cls(passage, checked, datetime.fromisoformat(passage.modified))


def declines(text: str) -> bool:
    """Whether an answer, or a claim, says that it does not know or that the passages don't tell."""
    return abstains(text) or bool(_SAYS_NOTHING.search(text))


async def rule(answer: str, passages: Sequence[Shown], settings: GroundingSettings, asked: Want,
               entails: Entails | None = None) -> list[Ruled]:
    """Each claim of an answer with its verdict. Raises TrivetError as `entails` does."""
    found = [_by_rules(claim, passages, settings, asked) for claim in claims(answer)[: settings.max_claims]]
    if entails is None:
        return found
    pairs = [(i, n) for i, r in enumerate(found) for n in r.cites]
    texts = [(found[i].claim.text, f"{passages[n - 1].checked.heading}\n{' '.join(passages[n - 1].checked.sentences)}")
             for i, n in pairs]
    probabilities = dict(zip(pairs, await entails(texts), strict=True))
    return [_by_entailment(i, r, probabilities, settings.least_probability) for i, r in enumerate(found)]


def _by_rules(claim: Claim, passages: Sequence[Shown], settings: GroundingSettings, asked: Want) -> Ruled:
    if not says_something(claim.text):
        return Ruled(claim, Verdict(False, "nothing", "it says nothing that could be checked"))
    if declines(claim.text):
        return Ruled(claim, Verdict(False, "nothing", "it says that it does not know"))
    own = [n for n in claim.cites if 1 <= n <= len(passages)]
    first: Verdict | None = None
    for moved, numbers in ((False, own), (True, [n for n in range(1, len(passages) + 1) if n not in own])):
        bearing: list[tuple[int, Verdict]] = []
        for n in numbers:
            verdict = check(claim.text, passages[n - 1].checked, overlap=settings.overlap)
            if verdict.supported:
                verdict = _if_not_stale(claim, verdict, passages[n - 1], passages, asked)
            if verdict.supported:
                bearing.append((n, verdict))
                if moved:
                    break  # one is enough where none was asked for
            elif first is None or verdict.fault == "stale" or (not own and verdict.overlap > first.overlap):
                first = verdict
        if bearing:
            return Ruled(claim, bearing[0][1], tuple(n for n, _ in bearing), moved)
    return Ruled(claim, first or Verdict(False, "words"))


def _if_not_stale(claim: Claim, verdict: Verdict, bearing: Shown, passages: Sequence[Shown], asked: Want) -> Verdict:
    for other in passages:
        if other.modified > bearing.modified and \
                (newer := superseded(claim.text, verdict.window, other.checked, asked.words)) is not None:
            return replace(verdict, supported=False, fault="stale", detail=newer)
    return verdict


def _by_entailment(i: int, ruled: Ruled, probabilities: dict[tuple[int, int], float], least: float) -> Ruled:
    if not ruled.cites:
        return ruled
    told = {n: probabilities[i, n] for n in ruled.cites}
    verdict = replace(ruled.verdict, probability=max(told.values()))
    left = tuple(n for n, p in told.items() if p >= least)
    if left:
        return replace(ruled, verdict=verdict, cites=left)
    return Ruled(ruled.claim, replace(verdict, supported=False, fault="entailment", detail=f"{max(told.values()):.2f}"))


def kept(ruled: Sequence[Ruled]) -> list[Ruled]:
    """The claims that stay: those borne out, and a lead-in (`Here is what they say:`) where the next claim stays."""
    found: list[Ruled] = []
    for r, after in zip(ruled, [*ruled[1:], None], strict=True):
        lead = r.claim.text.endswith(":") and not says_something(r.claim.text)
        if r.verdict.supported or (lead and after is not None and after.verdict.supported):
            found.append(r)
    return found


def answers(ruled: Sequence[Ruled], passages: Sequence[Shown], asked: Want, least: float) -> bool:
    """Whether a claim that is borne out gives what was asked for, and its sentences speak of it.

    least: share of what is asked of the question's names that claim and sentences must speak of.
    """
    for r in ruled:
        for n in r.cites:
            around = f"{passages[n - 1].checked.heading}. {r.verdict.window} {r.claim.text}"
            if gives(asked, r.claim.text) and named(asked, around) and relevant(asked, around) >= least:
                return True
    return False


def extract(passages: Sequence[Shown], asked: Want, settings: GroundingSettings) -> str | None:
    """The passages' sentence that answers the question best, with its citation; None where none does.

    It must give what was asked for, and with its heading (and the sentence before, where it points back) have the
    question's names and three quarters of its other words. Between equals the newest passage is taken.
    """
    if asked.kind == "yes or no":
        return None
    best: tuple[tuple[float, datetime], str] | None = None
    for n, one in enumerate(passages, 1):
        for i, sentence in enumerate(one.checked.sentences):
            points_back = re.match(r"(?:it|its|they|their|he|she|this|that|these|those|the)\b", sentence, re.IGNORECASE)
            before = one.checked.sentences[i - 1] if i and points_back else ""
            around = f"{one.checked.heading}. {before} {sentence}"
            share = relevant(asked, f"{before} {sentence}")
            if share < max(0.75, settings.least_relevance) or not gives(asked, sentence) or not named(asked, around):
                continue
            key = (covered(asked, sentence) + share, one.modified)
            text = sentence if sentence[-1] in ".!?" else f"{sentence}."
            if best is None or key > best[0]:
                best = key, f"{text} [{n}]"
    return None if best is None else best[1]
