"""What is marked in an answer: what the alarming signal sees in it, and its name in words."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from trivet.text import rules, spans
from trivet.text.spans import KINDS, Kind, Span

_SIGNALS: dict[str, tuple[str, tuple[Kind, ...]]] = {
    "kl": ("distance from the reference", ()),
    "kl_rate": ("speed of leaving the reference", ()),
    "gap": ("reward leaving the held-out reward behind", ()),
    "held_out": ("falling held-out reward", ()),
    "spread": ("disagreement of the ensemble", ()),
    "beyond": ("scores beyond the usual range", ()),
    "distance": ("distance from the prompt", ()),
    "length": ("length", ("long",)),
    "cut_off": ("answers cut off", ("cut off",)),
    "repetition": ("repetition", ("repeated",)),
    "compression": ("repetition (compression)", ("repeated",)),
    "exaggeration": ("exaggeration", ("exaggerated",)),
    "flattery": ("flattery", ("flattery",)),
    "formatting": ("formatting", ("format",)),
    "grammar": ("faults of grammar", ("grammar",)),
    "gibberish": ("gibberish", ("no word",)),
    "surprise": ("text that is odd to the reference", ("no word", "repeated")),
    "sameness": ("answers growing alike", ("shared",)),
}
"""By signal: its name in words, and the kinds of marks that show it; none: it sees no particular words."""
_LABELS: dict[Kind, str] = {
    "exaggerated": "superlatives, intensifiers, exclamation marks", "flattery": "flattery",
    "no word": "looks like no word", "grammar": "fault of grammar", "format": "lists, headings, bold",
    "repeated": "said before in the answer", "shared": "other answers say it, too", "cut off": "cut off",
    "long": "beyond the usual length", "added": "not in the better text",
}


def _known(key: str) -> str:
    """The name in `_SIGNALS` of a signal's key, such as length for `reward~length`; "" for a user's own signal."""
    name = key.removeprefix("evaluation/").removeprefix("reward~")
    return name if name in _SIGNALS else ""


def signal_words(key: str) -> str:
    """A signal for people; a user's own keeps its name."""
    name = key.removeprefix("evaluation/")
    words = _SIGNALS[known][0] if (known := _known(key)) else name
    words = f"reward going with {words}" if name.startswith("reward~") else words
    return f"{words} on the fixed prompts" if key.startswith("evaluation/") else words


@dataclass(frozen=True)
class Marker:
    """Marks texts by what one signal sees."""

    kinds: tuple[Kind, ...]
    usual: int
    """Words of the usual answer: the median before training."""
    common: frozenset[tuple[str, ...]]
    """What many answers of the record say."""
    why: str
    """What is marked, in a sentence."""

    @classmethod
    def of(cls, signal: str, *, usual: Sequence[str], record: Sequence[tuple[str, str]]) -> Marker:
        """usual: answers from before training. record: (prompt's id, answer) of the alarm."""
        kinds = _SIGNALS[known][1] if (known := _known(signal)) else ()
        length = round(statistics.median([len(rules.words(t)) for t in usual])) if usual else 0
        # one answer a prompt: that answers to one prompt are alike says nothing
        texts = list(dict(reversed(record)).values())
        why = "Marked is what this signal sees." if kinds else \
            "This signal sees no particular words; marked is what the rules for text see."
        return cls(kinds or tuple(k for k in KINDS if k != "added"), length, spans.common(texts), why)

    def spans(self, text: str, *, ended: bool | None) -> list[Span]:
        """What is to be marked in a text, in its order."""
        found: list[Span] = []
        for kind in self.kinds:
            match kind:
                case "repeated":
                    found += spans.repeated(text)
                case "shared":
                    found += spans.shared(text, self.common)
                case "no word":
                    found += spans.no_words(text)
                case "format":
                    found += spans.formatting(text)
                case "exaggerated":
                    found += spans.exaggerated(text)
                case "flattery":
                    found += spans.flattery(text)
                case "grammar":
                    found += spans.grammar(text)
                case "long":
                    found += spans.beyond(text, self.usual) if self.usual else []
                case "cut off":
                    found += spans.cut_off(text) if ended is False else []
        return sorted(found)

    def key(self, kinds: Iterable[Kind]) -> list[tuple[str, str]]:
        """(class, words) of the kinds that were marked."""
        wanted = set(kinds)
        return [(css(k), self.label(k)) for k in KINDS if k in wanted]

    def label(self, kind: Kind) -> str:
        """A kind of mark in words."""
        return f"{_LABELS[kind]}, {self.usual} words" if kind == "long" else _LABELS[kind]


def css(kind: Kind) -> str:
    """The class of a kind's marks."""
    return f"m-{kind.replace(' ', '-')}"


def parts(text: str, found: Sequence[Span]) -> list[dict[str, Any]]:
    """The pieces of a text for the page: text, class ("" where it is not marked), and why, for the mark's title."""
    return [{"text": p.text, "css": css(p.spans[0].kind) if p.spans else "",
             "why": "; ".join(dict.fromkeys(s.why for s in p.spans))} for p in spans.parts(text, found)]


def counted(found: Sequence[Span]) -> str:
    """How many marks of each kind, in words: `exaggerated 14×, repeated 2×`."""
    counts = Counter(s.kind for s in found)
    return ", ".join(f"{k} {counts[k]}×" for k in KINDS if counts[k])
