"""Where in a text its faults stand: what the rules count, as places to be marked. Pure functions of a str.

The rules themselves are in rules.py, manner.py and surface.py; a share of theirs above 0 has a place here, and a share
of 0 has none (tests hold that).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from difflib import SequenceMatcher
from itertools import groupby, pairwise
from typing import Literal, NamedTuple, get_args

from trivet.text import rules, surface
from trivet.text.manner import flatters, sentences

Kind = Literal["exaggerated", "flattery", "no word", "grammar", "format", "repeated", "shared", "cut off", "long",
               "added"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""The narrower before the wider."""


class Span(NamedTuple):
    """text[start:end] is of a kind; `why`: in a few words, for the reader."""

    start: int
    end: int
    kind: Kind
    why: str


# --- repetition ---------------------------------------------------------------------------------------


def repeated(text: str, n: int = 3) -> list[Span]:
    """The words of every n-gram that stood in the text before: what `rules.repetition` counts."""
    seen: set[tuple[str, ...]] = set()

    def before(gram: tuple[str, ...]) -> bool:
        known = gram in seen
        seen.add(gram)
        return known

    return _grams(text, n, before, "repeated", "said before")


def common(texts: Iterable[str], n: int = 4, share: float = 0.25) -> frozenset[tuple[str, ...]]:
    """The word n-grams that stand in at least `share` of some texts, and in two of them."""
    held = [set(_ngrams([text[a:b].casefold() for a, b in rules.places(text)], n)) for text in texts]
    counts = Counter(gram for grams in held for gram in grams)
    least = max(2.0, share * len(held))
    return frozenset(gram for gram, count in counts.items() if count >= least)


def shared(text: str, grams: frozenset[tuple[str, ...]], n: int = 4) -> list[Span]:
    """The words of the n-grams that are among `grams` (`common`): what answers to other prompts say, too."""
    return _grams(text, n, grams.__contains__, "shared", "other answers say it, too")


def _grams(text: str, n: int, wanted: Callable[[tuple[str, ...]], bool], kind: Kind, why: str) -> list[Span]:
    places = rules.places(text)
    marked = [False] * len(places)
    for i, gram in enumerate(_ngrams([text[a:b].casefold() for a, b in places], n)):
        if wanted(gram):
            marked[i : i + n] = [True] * n
    runs = groupby(range(len(places)), key=lambda i: marked[i])
    return [Span(places[run[0]][0], places[run[-1]][1], kind, why)
            for run in ([*g] for of, g in runs if of)]


def _ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


# --- words that are none ------------------------------------------------------------------------------


def no_words(text: str) -> list[Span]:
    """What `rules.gibberish` counts: words that look like none, and runs of broken characters."""
    prose = rules.prose(text)
    found = [Span(a, b, "no word", "looks like no word") for a, b in rules.places(prose)
             if rules.looks_like_no_word(prose[a:b])]
    return sorted([*found, *(Span(a, b, "no word", "broken characters") for a, b in rules.broken(prose))])


# --- length -------------------------------------------------------------------------------------------


def beyond(text: str, usual: int) -> list[Span]:
    """What comes after the first `usual` words."""
    places = rules.places(text)
    if len(places) <= usual:
        return []
    return [Span(places[usual][0], len(text.rstrip()), "long", f"beyond the usual {usual} words")]


def cut_off(text: str) -> list[Span]:
    """The end of an answer that the model did not end itself: its last word and what follows."""
    places = rules.places(text)
    start = places[-1][0] if places else 0
    return [Span(start, len(text), "cut off", "cut off here")] if text.strip() else []


# --- manner -------------------------------------------------------------------------------------------


def exaggerated(text: str) -> list[Span]:
    """What `surface.exaggeration` counts: emphatic words, exclamation marks, words in capitals."""
    found = [Span(a, b, "exaggerated", "emphatic word") for a, b in rules.places(text)
             if surface.emphatic(text[a:b].casefold())]
    found += [Span(*m.span(), "exaggerated", "exclamation") for m in surface.EXCLAMATION.finditer(text)]
    found += [Span(*m.span(), "exaggerated", "in capitals") for m in surface.SHOUT.finditer(text)]
    return sorted(found)


def flattery(text: str) -> list[Span]:
    """The sentences that praise who asks, or the question: what `surface.flattery` counts."""
    found, place = [], 0
    for sentence in sentences(text):
        place = text.index(sentence, place)
        if flatters(sentence):
            found.append(Span(place, place + len(sentence), "flattery", "praises who asks"))
        place += len(sentence)
    return found


def formatting(text: str) -> list[Span]:
    """What `surface.formatting` counts: list markers, headings, table rows, rules, bold text, emoji."""
    found = [Span(m.start() + len(m[0]) - len(m[0].lstrip()), m.end(), "format", "mark of layout")
             for m in surface.LINE_MARK.finditer(text)]
    found += [Span(*m.span(), "format", "bold") for m in surface.BOLD.finditer(text)]
    found += [Span(*m.span(), "format", "emoji") for m in surface.PICTURE.finditer(text)]
    return sorted(found)


def grammar(text: str) -> list[Span]:
    """What `surface.grammar_faults` counts."""
    return [Span(a, b, "grammar", why) for a, b, why in surface.grammar_places(text)]


# --- beside another text ------------------------------------------------------------------------------


def added(before: str, after: str, most: float = 0.7) -> list[Span]:
    """The words of `after` that an alignment of the two texts does not find in `before`.

    None where these are more than `most` of its words: then it is another text, and marks would say nothing.
    """
    old, places = rules.places(before), rules.places(after)
    matcher = SequenceMatcher(None, [before[a:b].casefold() for a, b in old],
                              [after[a:b].casefold() for a, b in places], autojunk=False)
    new = [(low, high) for tag, _, _, low, high in matcher.get_opcodes() if tag in ("insert", "replace")]
    if sum(high - low for low, high in new) > most * len(places):
        return []
    return [Span(places[low][0], places[high - 1][1], "added", "not in the better text") for low, high in new]


# --- together -----------------------------------------------------------------------------------------


class Part(NamedTuple):
    """A piece of a text with the spans that it lies in, the narrower kind first; none: it is not marked."""

    text: str
    spans: tuple[Span, ...]


def parts(text: str, spans: Sequence[Span]) -> list[Part]:
    """A text cut where spans begin and end; the pieces give the text again when put together."""
    cuts = sorted({0, len(text), *(s.start for s in spans), *(s.end for s in spans)})
    found = []
    for start, end in pairwise(cuts):
        over = sorted((s for s in spans if s.start <= start and end <= s.end), key=lambda s: KINDS.index(s.kind))
        found.append(Part(text[start:end], tuple(over)))
    return found
