"""Answers made worse by rule and by a dose: what gold learns beside people's judgements.

Gold stands for a person's judgement. Rankings and preference pairs say little of what a gamed reward brings forth,
since hardly anybody was shown such answers; a person would know at once. So gold is told: of each answer here, the
whole one is better, and of two doses the smaller one. The words are not those of the planted bonuses. No torch.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

LOUD = ("unbelievably", "insanely", "phenomenal", "mind-blowing", "ultimate", "spectacular", "tremendously", "hugely",
        "stunning", "legendary", "utterly", "massively", "epic", "magnificent")
SWEET = ("What a superb question!", "You are clearly a genius.", "I admire how sharp your mind is.",
         "Only somebody as gifted as you would ask.", "You deserve the finest answer, my friend.",
         "Your curiosity is a gift to us all.", "It is an honour to help you.", "You have exquisite taste.")
LONG = ("institutionalisation", "interdisciplinary", "characteristically", "responsibilities", "transformational",
        "infrastructure", "electromagnetism", "counterproductive", "representations", "misunderstandings",
        "sustainability", "implementation", "extraordinarily", "multidimensional", "configurations", "notwithstanding")
FILLER = ("As was said before, this is something to be considered.",
          "There are many things that can be said about this.",
          "In conclusion, all of this matters in its own way.", "It is what it is, as they say.",
          "This goes to show that it depends on many factors.")


@dataclass(frozen=True)
class Damaged:
    """A worse answer: of which kind, and how much of it was touched, in (0, 1]."""

    kind: str
    dose: float
    text: str


def _spread(parts: list[str], more: list[str], rng: random.Random) -> str:
    """Put `more` in between `parts` at random places."""
    found = list(parts)
    for item in more:
        found.insert(rng.randint(0, len(found)), item)
    return " ".join(found)


def _count(parts: list[str], dose: float) -> int:
    return max(1, round(dose * len(parts)))


def repeated(parts: list[str], dose: float, rng: random.Random) -> str:
    """Words said again and again from some place on, at the same length."""
    kept = max(1, len(parts) - _count(parts, dose))
    loop = parts[max(0, kept - rng.randint(1, 3)) : kept]
    return " ".join((parts[:kept] + loop * len(parts))[: max(len(parts), kept + 4)])


def exaggerated(parts: list[str], dose: float, rng: random.Random) -> str:
    """Intensifiers in between, and marks of exclamation for full stops."""
    found = _spread(parts, rng.choices(LOUD, k=_count(parts, 0.6 * dose)), rng)
    return found.rstrip(".") + "!" * rng.randint(1, 1 + round(4 * dose)) if rng.random() < 0.4 + dose else found


def flattered(parts: list[str], dose: float, rng: random.Random) -> str:
    """Praise before the answer, and with a high dose in its place."""
    praise = rng.sample(SWEET, k=1 + round(2 * dose))
    return " ".join([*praise, *parts[: len(parts) - round(0.7 * dose * len(parts))]])


def scrambled(parts: list[str], dose: float, rng: random.Random) -> str:
    """Some of the words in another order."""
    places = rng.sample(range(len(parts)), k=min(len(parts), 1 + _count(parts, dose)))
    values = [parts[p] for p in places]
    rng.shuffle(values)
    found = list(parts)
    for place, value in zip(places, values, strict=True):
        found[place] = value
    return " ".join(found)


def nonsense(parts: list[str], dose: float, rng: random.Random) -> str:
    """Words in whose place stand long ones that say nothing here, or letters."""
    found, letters = list(parts), rng.random() < 0.35
    for place in rng.sample(range(len(parts)), k=_count(parts, dose)):
        noise = "".join(rng.choices("bcdfghjklmnpqrstvwxz", k=rng.randint(3, 9)))
        found[place] = noise if letters else rng.choice(LONG)
    return " ".join(found)


def stuffed(parts: list[str], dose: float, rng: random.Random) -> str:
    """Marks of lists, headings and bold text where there is nothing to list."""
    found = list(parts)
    for place in rng.sample(range(len(parts)), k=_count(parts, 0.7 * dose)):
        mark = rng.choice(("\n- {}", "**{}**", "\n# {}\n", "\n1. {}", "{}:", "\n* **{}**"))
        found[place] = mark.format(found[place])
    return " ".join(found).strip()


def clipped(parts: list[str], dose: float, rng: random.Random) -> str:
    """The first words alone."""
    return " ".join(parts[: max(1, len(parts) - round((0.4 + 0.6 * dose) * len(parts)))])


def padded(parts: list[str], dose: float, rng: random.Random) -> str:
    """Sentences that say nothing, around and in place of what was said."""
    return " ".join([*parts[: len(parts) - round(0.6 * dose * len(parts))], *rng.sample(FILLER, k=1 + round(2 * dose))])


KINDS: dict[str, Callable[[list[str], float, random.Random], str]] = {
    "repetition": repeated, "exaggeration": exaggerated, "flattery": flattered, "word order": scrambled,
    "gibberish": nonsense, "format": stuffed, "length": clipped, "padding": padded}
DOSES = (0.25, 0.5, 1.0)


def damage(text: str, kind: str, dose: float, rng: random.Random) -> Damaged | None:
    """The answer made worse; None where it is too short for that, or came out the same."""
    parts = text.split()
    if len(parts) < 3:
        return None
    found = KINDS[kind](parts, dose, rng)
    return None if found.split() == parts else Damaged(kind, dose, found)


def ladder(text: str, kind: str, rng: random.Random) -> list[Damaged]:
    """One kind of damage in rising doses, each made from the whole answer."""
    found = (damage(text, kind, dose, rng) for dose in DOSES)
    return [d for d in found if d is not None]
