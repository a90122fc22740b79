"""Whether passages bear out a claim: by rules that need no model, and by what can be asked for entailment.

The rules know no meaning. They find what a claim adds to its passage (a number, a name, a quote, a word that is not
there) and some ways of turning a passage round (a negation, an opposite, a plan told as a fact, another thing's
number). What passes them may still say something else in the same words: docs/guides/grounding.md has figures.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from trivet.serve.retrieval.claims import claims
from trivet.serve.retrieval.lexicon import FRAME, MODAL, NEGATIONS, OPPOSITES, names, normalised, stem, stems, words
from trivet.serve.retrieval.quantities import Quantity, number_words, quantities, same

Fault = Literal["quote", "number", "name", "words", "negation", "opposite", "plan", "binding", "nothing", "entailment",
                "stale", "off the question"]
_QUOTE = re.compile(r'"([^"]{3,})"')
_NO_CONTENT = frozenset(stem(w) for w in FRAME | number_words())
_MEASURE = re.compile(r"[ -](long|wide|high|tall|deep|thick|old|away|heavy)\b")
LONGEST_CLAIM = 800
"""Characters of a claim; a longer one is not borne out: checking takes time with its square."""
WINDOW = 3
"""Sentences that may bear out one claim together: a claim from further apart is not seen to be borne out."""


@dataclass(frozen=True)
class Verdict:
    """What was found out about a claim."""

    supported: bool
    fault: Fault | None = None
    """The first thing that was wrong; None where it is supported."""
    detail: str = ""
    """What exactly: the number, the name, the words that are not there."""
    overlap: float = 0.0
    """Share of the claim's content words in the window that bears it out best."""
    window: str = ""
    """The sentences that bear it out, or come closest."""
    probability: float | None = None
    """Of entailment, where it was asked for."""


@dataclass(frozen=True)
class Checked:
    """A text in which claims are looked up."""

    heading: str
    """Title and place of the passage: they name what its sentences speak of."""
    sentences: tuple[str, ...]

    @classmethod
    def of(cls, text: str, heading: str = "") -> Checked:
        """A passage's text, cut into sentences as answers are."""
        return cls(heading, tuple(c.text for c in claims(text)))

    def windows(self) -> list[str]:
        """All runs of one to WINDOW sentences, short ones first."""
        count = len(self.sentences)
        return [" ".join(self.sentences[i : i + n]) for n in range(1, WINDOW + 1) for i in range(count - n + 1)] or [""]


def says_something(claim: str) -> bool:
    """Whether there is anything to check: `According to the passages:` has nothing."""
    return bool(content(claim) or quantities(claim))


def content(text: str) -> frozenset[str]:
    """Stems of the content words, without those that only point at the passages."""
    return stems(text) - _NO_CONTENT


def check(claim: str, passage: Checked, *, overlap: float = 0.6) -> Verdict:
    """What the rules say of a claim and one passage: the verdict of the window that comes closest.

    overlap: share of the claim's content words that must stand in one window. The passage's heading counts for words
    and names, not for numbers.
    """
    claim = re.sub(r"^(?:yes|no|well|so|the answer is)[,:.]\s+(?=\w)", "", claim, flags=re.IGNORECASE)
    if len(claim) > LONGEST_CLAIM:
        return Verdict(False, "words", f"{len(claim)} characters are too many to check")
    if not says_something(claim):
        return Verdict(False, "nothing", "it says nothing that could be checked")
    whole = normalised(" ".join(passage.sentences))
    for quote in _QUOTE.findall(normalised(claim)):
        text = quote.strip(" .,;:!?")
        if len(text.split()) > 1 and text not in whole:
            return Verdict(False, "quote", text)
    wanted, best = content(claim), Verdict(False, "words")
    for window in passage.windows():
        verdict = _in_window(claim, wanted, window, passage, overlap)
        if verdict.supported:
            return verdict
        if verdict.overlap > best.overlap or not best.window:
            best = verdict
    return best


def _in_window(claim: str, wanted: frozenset[str], window: str, passage: Checked, overlap: float) -> Verdict:
    there = content(f"{passage.heading}. {window}")
    share = len(wanted & there) / len(wanted) if wanted else 1.0

    def no(fault: Fault, detail: str) -> Verdict:
        return Verdict(False, fault, detail, share, window)

    own = content(window)
    if wanted and not wanted & own:
        return no("words", "only the passage's title speaks of it")
    if share < overlap:
        return no("words", " ".join(sorted(wanted - there)))
    theirs = quantities(window)
    for mine in quantities(claim):
        if (detail := _number_fault(mine, theirs, claim, window)) is not None:
            return no("number", detail)
    known = set(words(f"{passage.heading} {window}"))
    for name, _ in names(claim):
        if strange := [w for w in words(name) if w not in known and stem(w) not in there and len(w) > 1
                       and not w[0].isdigit() and stem(w) not in {stem(f) for f in FRAME}]:
            return no("name", " ".join(strange))
    nearest = _nearest(wanted, quantities(claim), window)
    if (fault := _turned_round(claim, nearest, window)) is not None:
        return no(*fault)
    if (detail := _other_owner(claim, theirs, passage, window)) is not None:
        return no("binding", detail)
    return Verdict(True, None, "", share, window)


def _number_fault(mine: Quantity, theirs: Sequence[Quantity], claim: str, window: str) -> str | None:
    """What is wrong with a number of a claim; None where the window has it."""
    equal = [t for t in theirs if same(mine, t)]
    if mine.soft and mine.dimension in (None, "rank") and not equal:
        word = mine.text.casefold()
        return None if mine.value in (0.5, 1) or word in words(window) else mine.text
    if not equal:
        return mine.text
    measure = _measure(claim, mine)
    if measure is not None and all(_measure(window, t) not in (None, measure) for t in equal):
        return f"{mine.text} {measure}"
    if mine.noun is None or len(mine.noun) < 3 or stem(mine.noun) not in stems(window):
        return None
    # the passage counts these, too: the number must stand by them, and not by something else
    for t in equal:
        near = window[max(0, t.start - 40) : t.end + 40]
        if stem(mine.noun) in stems(near):
            return None
    return f"{mine.text} {mine.noun}"


def _measure(text: str, quantity: Quantity) -> str | None:
    """long, wide, high … of `24 metres wide`."""
    found = _MEASURE.match(text, quantity.end)
    return None if found is None else found[1].replace("tall", "high")


def _nearest(wanted: frozenset[str], numbers: Sequence[Quantity], window: str) -> str:
    """The window's sentence that shares most words and numbers with the claim."""
    sentences = [c.text for c in claims(window)] or [window]

    def weight(sentence: str) -> float:
        theirs = quantities(sentence)
        return len(wanted & content(sentence)) + 1.5 * sum(any(same(n, t) for t in theirs) for n in numbers)

    return max(sentences, key=weight)


def _negated(text: str) -> bool:
    plain = re.sub(r"n't\b", " not", re.sub(r"\bcannot\b", "can not", normalised(text)))
    plain = re.sub(r"\bnot only\b|\bno\.? (?=\d)", " ", plain)
    count = sum(w in NEGATIONS for w in words(plain)) + len(re.findall(r"\bno longer\b|\bfailed to\b", plain))
    return bool(count - len(re.findall(r"\bno longer\b", plain)) % 2 and count)


def _turned_round(claim: str, sentence: str, window: str) -> tuple[Fault, str] | None:
    """Whether a claim negates, reverses, or makes a fact of what the sentence says."""
    mine, theirs = set(words(claim)), set(words(sentence))
    clause = _clause(claim, sentence)
    if _negated(claim) != _negated(clause):
        return "negation", "one of them is negated"
    for word in sorted(mine):
        if (against := OPPOSITES.get(word)) and (found := against & theirs) and word not in set(words(window)):
            return "opposite", f"{word}, not {min(found)}"
    plans = {w for w in set(words(clause)) & MODAL if not (w == "may" and "May" in sentence)}
    if plans and not mine & MODAL:
        return "plan", min(plans)
    return None


def _clause(claim: str, sentence: str) -> str:
    """The part of a sentence, between its commas and conjunctions, that a claim speaks of."""
    parts = re.split(r"[,;]\s|\s[–—]\s|\b(?:but|while|whereas|although|though|and)\b", sentence)
    wanted = content(claim)
    numbers = quantities(claim)

    def weight(part: str) -> float:
        there = quantities(part)
        return len(wanted & content(part)) + 0.5 * sum(any(same(n, t) for t in there) for n in numbers)

    best = max(parts, key=weight, default=sentence)
    # a claim that takes from several parts is about the whole sentence
    return best if weight(best) >= 0.75 * weight(sentence) else sentence


def _other_owner(claim: str, theirs: Sequence[Quantity], passage: Checked, window: str) -> str | None:
    """Whether a number of the claim belongs to something else in the window.

    A number's owner is the last name before it in its clause, or else its sentence. A claim that names the owner of
    another number of the same kind, and not the owner of its own, has mixed them up.
    """
    owners = _owners(window)
    # `bridge` tells Bridge Tal from Bridge Bor no more than it does to a reader
    shared = [set(words(o)) for o in dict.fromkeys(owners.values())]
    common = {w for one in shared for w in one if sum(w in other for other in shared) > 1}
    mentioned = {w for name, _ in names(claim) for w in words(name)} | set(words(claim))
    for mine in quantities(claim):
        equal = [t for t in theirs if same(mine, t)]
        if not equal:
            continue
        ours = [owners.get(t.start) for t in equal]
        if any(o is None or (set(words(o)) - common) & mentioned for o in ours):
            continue
        for other in theirs:
            rival = owners.get(other.start)
            if other.dimension == mine.dimension and not any(other is t for t in equal) and rival is not None and \
                    (set(words(rival)) - common) & mentioned:
                return f"{mine.text} is said of {ours[0]}, not of {rival}"
    return None


def _owners(window: str) -> dict[int, str]:
    """The name that each number of a window belongs to, by where the number begins."""
    found: dict[int, str] = {}
    places = [(start, name) for name, start in names(window)]
    starts = {c.start: c.end for c in claims(window)}
    for quantity in quantities(window):
        begin = max((s for s in starts if s <= quantity.start), default=0)
        before = [name for place, name in places if begin <= place < quantity.start
                  and not any(m in name.casefold() for m in _MONTH_NAMES)]
        if before:
            found[quantity.start] = before[-1]
    return found


_MONTH_NAMES = ("january", "february", "march", "april", "june", "july", "august", "september", "october", "november",
                "december")


def superseded(claim: str, bearing: str, newer: Checked, known: frozenset[str]) -> str | None:
    """The sentence of a newer passage that says the same as `bearing` with another value; None where there is none.

    bearing: the window that bears out the claim. known: stems of the question: names in it are what the sentences are
    about, other names are values. A claim that names its own date is not superseded.
    """
    if any(q.dimension == "date" and q.value % 10000 == 0 for q in quantities(claim)) and \
            len(quantities(claim)) + len(names(f"say {claim}")) > 2:
        return None
    old = _nearest(content(claim), quantities(claim), bearing)
    values = {stem(w) for text in (claim, old) for name, _ in names(f"say {text}") for w in words(name)} - known
    mine = content(old) - values
    for sentence in newer.sentences:
        fresh = {stem(w) for name, _ in names(f"say {sentence}") for w in words(name)} - known
        theirs = content(sentence) - fresh
        both = len(mine & theirs)
        if both < 2 or both < 0.7 * len(mine | theirs) or _negated(old) != _negated(sentence):
            continue
        verdict = check(claim, Checked(newer.heading, (sentence,)))
        other_value = verdict.fault in ("number", "name") or (
            verdict.fault == "words" and set(verdict.detail.split()) <= values and bool(fresh))
        if not verdict.supported and other_value:
            return sentence
    return None
