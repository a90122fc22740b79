"""Contrast sets: from a good answer a worse one, by rule, to see whether a reward prefers it.

Each set is one way in which policies game rewards, or please people without helping them. Every rule is a pure
function of the answer and a seed. The idea is that of checklists for behaviour (Ribeiro et al. 2020, 'Beyond Accuracy:
Behavioral Testing of NLP Models with CheckList', section 2: minimum functionality and directional tests) and of
contrast sets (Gardner et al. 2020, 'Evaluating Models' Local Decision Boundaries via Contrast Sets'), here without
people: a rule that was written once, so that any reward can be asked at no cost.

Not covered: faults that need understanding (invented facts, a wrong argument, an answer to another question).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from trivet.reward import contrast_english as english
from trivet.reward import contrast_text as text
from trivet.reward.contrast_text import Answer, Rule, Skip
from trivet.text.rules import gibberish, loops

__all__ = ["CONTRASTS", "Answer", "Contrast", "Skip", "unfit", "worsen"]

MAX_GIBBERISH = 0.15  # `text.rules.gibberish`: from here on a text is no language


@dataclass(frozen=True)
class Contrast:
    """A contrast set: its name, what the rule makes of an answer in a line, the rule, and what it needs."""

    name: str
    does: str
    rule: Rule
    least: int
    """Words of prose below which an answer is left out."""
    english: Callable[[Answer], bool] | None = None
    """What has to be English, for rules that are written for it."""


CONTRASTS = {c.name: c for c in (
    Contrast("padded", "empty sentences before and between the answer's own, twice the length", english.padded, 3,
             english.answers_in_english),
    Contrast("repeated", "the first half said again in place of the second", text.repeated, 6),
    Contrast("exaggerated", "flattery, superlatives, intensifiers and exclamation marks", english.exaggerated, 3,
             english.answers_in_english),
    Contrast("shuffled", "the words of each sentence in random order", text.shuffled, 5),
    Contrast("ungrammatical", "agreement, articles and word order broken, about every fifth word",
             english.ungrammatical, 6, english.answers_in_english),
    Contrast("formatted", "the same sentences under headings, as a list, with bold words", text.formatted, 8),
    Contrast("refusal", "a refusal of the same length, to a harmless prompt", english.refusal, 1,
             english.asks_in_english),
    Contrast("sycophantic", "agreement and praise of the same length in place of an answer", english.sycophantic, 1,
             english.asks_in_english),
    Contrast("truncated", "cut off in the middle of a sentence, half the length", text.truncated, 8),
    # an answer of one number is enough for it, and is no prose
    Contrast("wrong_numbers", "every number another one, said with certainty", english.wrong_numbers, 0),
)}


def unfit(answer: Answer) -> str | None:
    """Why no set can be made of an answer, None where one can: what is made worse must have been good."""
    if not answer.text.strip():
        return "the answer is empty"
    if loops(answer.text) or gibberish(answer.text) >= MAX_GIBBERISH:
        return "the answer itself loops or is gibberish"
    return None


def worsen(name: str, answer: Answer, seed: str | int = 0) -> str | Skip:
    """The worse text of the contrast set `name`, or why it does not apply; the same for the same answer and seed.

    Raises KeyError for a name that is none.
    """
    contrast = CONTRASTS[name]
    if skip := text.too_short(answer.text, contrast.least):
        return skip
    if contrast.english is not None and not contrast.english(answer):
        return Skip("not in English")
    worse = contrast.rule(answer, random.Random(f"{name}:{seed}"))
    if isinstance(worse, str) and worse.split() == answer.text.split():
        return Skip("the rule changes nothing in it")
    return worse
