"""What a question wants (a person, a date, a length, a number …), and whether a sentence gives it. English."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from trivet.serve.retrieval.evidence import content
from trivet.serve.retrieval.lexicon import LITTLE, names, stem, stems, words
from trivet.serve.retrieval.quantities import quantities

Kind = Literal["date", "clock", "quantity", "who", "where", "yes or no", "thing"]
_LENGTH = r"long|tall|high|wide|deep|far|big"
_KINDS: list[tuple[str, Kind, frozenset[str | None]]] = [
    (r"\b(?:at )?what time\b|\bwhat hour\b", "clock", frozenset({"clock"})),
    (r"\bwhen\b|\b(?:what|which) (?:year|date|day|month)\b|\bsince what\b", "date", frozenset({"date", "clock"})),
    (rf"\bhow (?:{_LENGTH})\b|\bwhat (?:is|was) the (?:length|height|width|depth|distance)\b", "quantity",
     frozenset({"length", "time", "area", "month"})),
    (r"\bhow (?:heavy)\b|\b(?:what|how much) (?:\w+ ){0,3}(?:weighs?|weight)\b", "quantity", frozenset({"mass"})),
    (r"\bhow old\b", "quantity", frozenset({"month", "time", None, "date"})),
    (r"\b(?:what|which) (?:share|percentage|per ?cent)\b", "quantity", frozenset({"share"})),
    (r"\bhow (?:many)\b|\bwhat (?:is|was) the (?:number|population)\b", "quantity", frozenset({None, "month", "time"})),
    (r"\bhow much\b|\bwhat (?:is|was) the (?:price|cost|fee|fare|toll|budget)\b|\bwhat does .* cost\b", "quantity",
     frozenset({"dollars", "euros", "pounds", "crowns", "share", "mass", "volume", "power", None})),
    (r"\bwho(?:se|m)?\b", "who", frozenset()),
    (r"\bwhere\b", "where", frozenset()),
    (r"^(?:is|are|was|were|do|does|did|has|have|can|could|will|would|should|may)\b", "yes or no", frozenset()),
]
_EMPTY = frozenset(stem(w) for w in re.findall(r"\S+", """
    what which when where who how many much far big year date day month time number name tell know located kind
    type person please currently current now today latest happened happen people
"""))


@dataclass(frozen=True)
class Want:
    """What a question asks for."""

    kind: Kind
    dimensions: frozenset[str | None]
    """Of the number that answers; empty where no number does."""
    words: frozenset[str]
    """Stems of the question's content words: what it is about."""
    names: frozenset[str]
    """Words of the names in it, small letters."""


def want(question: str) -> Want:
    """What a question wants, by its first question word; `thing` where no rule says more."""
    text = question.strip().casefold()
    found = [(match.start(), -i, kind, dimensions) for i, (pattern, kind, dimensions) in enumerate(_KINDS)
             if (match := re.search(pattern, text))]
    _, _, kind, dimensions = min(found, default=(0, 0, "thing", frozenset[str | None]()))
    known = frozenset(w for name, _ in names(question) for w in words(name)
                      if w not in LITTLE and stem(w) not in _EMPTY and not w[0].isdigit())
    return Want(kind, dimensions, content(question), known)


def covered(asked: Want, text: str) -> float:
    """Share of what the question is about that a text speaks of; 1 for a question about nothing in particular."""
    about = asked.words - _EMPTY
    return len(about & stems(text)) / len(about) if about else 1.0


def relevant(asked: Want, text: str) -> float:
    """As `covered`, without the question's names: share of what it asks of them."""
    about = asked.words - _EMPTY - {stem(w) for w in asked.names}
    return len(about & stems(text)) / len(about) if about else 1.0


def named(asked: Want, text: str) -> bool:
    """Whether a text has all names of the question."""
    there = set(words(text))
    known = stems(text)
    return all(w in there or stem(w) in known for w in asked.names)


def gives(asked: Want, text: str) -> bool:
    """Whether a text holds something of the kind that was asked for, which the question itself does not say."""
    match asked.kind:
        case "date" | "clock" | "quantity":
            there = [q for q in quantities(text) if not (q.soft and q.value in (0.5, 1))]
            return any(q.dimension in asked.dimensions for q in there)
        case "who" | "where":
            fresh = {w for name, _ in names(f"say {text}") for w in words(name) if w not in LITTLE} - asked.names
            # roles and groups may answer `who` without a name
            return bool(fresh) or bool(content(text) - asked.words and asked.kind == "where")
        case "yes or no":
            return True
        case _:
            return bool(content(text) - asked.words) or bool(quantities(text))
