"""What a revision must not be: gates, each a small function of texts and numbers. No torch, no model.

A target of 135M parameters, asked to revise its answer, often gives the answer back as it was, says the request again,
writes on as both speakers, tells that it has now revised, or ends in a loop. Fine-tuning on that teaches it. By rule:
English phrases where a gate looks for phrases, words of any language elsewhere.

Not covered: whether a revision is true, and whether it is on the subject; a judge may see these (`worse`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from typing import Literal, get_args

from trivet.text.manner import plain
from trivet.text.rules import repetition, words

Gate = Literal["empty", "cut_off", "broken", "copy", "echo", "talks_of_itself", "refusal", "worse"]
GATES: tuple[Gate, ...] = get_args(Gate)
"""In the order in which they are asked; the costly ones, which ask a judge, last."""

RUN = 5
"""Words in a row by which `echo` finds that a text says another one again."""
REPEATS = 0.5
"""Share of 4-word runs that stood in the text before, from which it is broken: 1 of the 719 answers of the embedded
model in the starter set, 1 of 3,702 in hh-harmless. A text that says the same paragraph three times has 0.67."""
_LEAD = re.compile(
    r"\A\W*(?:(?:sure|certainly|of course|okay|ok|absolutely|yes|i apologi[sz]e[^.!:\n]{0,80}|(?:i'm |i am )?sorry"
    r"[^.!:\n]{0,80}|thank you[^.!:\n]{0,80})[,.!:]?\s+)?"
    r"(?:here(?:'s| is| are)|this is|below is|my|the|an?)\s+(?:\w+\s+){0,2}?(?:(?:revised|rewritten|amended|improved|"
    r"updated|corrected|reworded|new|better)\s+(?:\w+\s+){0,2}?(?:answer|response|reply|version|text)|revision|rewrite)\b"
    r"[^.!?:\n]{0,80}:\s*", re.IGNORECASE)
_LABEL = re.compile(r"\A\W*(?:revision|revised (?:answer|response|version)|new answer|(?:the )?answer|response|"
                    r"assistant)\s*:[\s*_]*", re.IGNORECASE)
_QUOTED = re.compile(r"\A([\"“])(.*)([\"”])\Z", re.DOTALL)
_SPEAKER = re.compile(
    r"^[\W_]*(?:human|user|assistant|critique|critic|revision|revised (?:answer|response)|(?:critique|revision) "
    r"?request|answer [ab])[\s*_]*:", re.IGNORECASE | re.MULTILINE)
_ITSELF = re.compile(
    r"\b(?:the|my|your|this|that)\s+(?:last|previous|prior|earlier|original|above|preceding|revised|rewritten|"
    r"amended|improved)\s+(?:answer|response|reply|version)\b|\b(?:the|this|your) (?:answer|response|reply) (?:above|"
    r"should|could|does not|doesn't|fails|is (?:not )?(?:harmful|offensive|inappropriate|unethical|illegal|rude))"
    r"|\bthe (?:critique|criticism|feedback)\b|\b(?:i have|i've|i) (?:revised|rewritten|reworded|rephrased|amended)\b")


# --- making ready -----------------------------------------------------------------------------------------


def bare(text: str) -> str:
    """A revision without what leads to it: `Here is the revised answer:`, `Revision:`, quotes around the whole.

    What stands after the lead is left as it is; where nothing would be left, the text is.
    """
    rest = _LEAD.sub("", text.strip(), count=1)
    rest = _LABEL.sub("", rest, count=1).strip()
    quoted = _QUOTED.match(rest)
    if quoted and not set('"“”') & set(quoted[2]):
        rest = quoted[2].strip()
    return rest or text.strip()


# --- the gates --------------------------------------------------------------------------------------------


def empty(text: str) -> bool:
    """Whether a text has neither letter nor digit."""
    return not any(map(str.isalnum, text))


def similarity(text: str, other: str) -> float:
    """How alike two texts are, word by word, in [0, 1]: 2·M / T (Ratcliff & Metzener 1988, *Gestalt*), with M the words
    that stand in both in the same order, and T all words. Case, punctuation and layout do not count. 0 for two empty.
    """
    a, b = _words(text), _words(other)
    if not a and not b:
        return 0.0
    # the same whichever comes first: the matcher's own ratio is not
    first, second = sorted((a, b))
    return SequenceMatcher(None, first, second, autojunk=False).ratio()


def copied(text: str, earlier: Iterable[str]) -> float:
    """The highest `similarity` with a text that the revision should improve on; 0 where there is none."""
    return max((similarity(text, other) for other in earlier), default=0.0)


def echo(text: str, shown: Sequence[str]) -> float:
    """Share of a text's words that it says after one of the texts shown to the model, in [0, 1].

    A word counts if it lies in a run of at least five words that stands in a shown text; of a text with fewer words,
    all count if the whole stands in one. 0 for a text without words.
    """
    mine = _words(text)
    run = min(RUN, len(mine))
    if not run:
        return 0.0
    known = {gram for other in shown for gram in _runs(_words(other), run)}
    said = [False] * len(mine)
    for i, gram in enumerate(_runs(mine, run)):
        if gram in known:
            said[i : i + run] = [True] * run
    return sum(said) / len(mine)


def broken(text: str, faults: Sequence[str] = ()) -> bool:
    """Whether a text is no language: faults of the capability check (a loop, gibberish, another script), or more than
    half of it said again within it."""
    return bool(set(faults) - {"empty"}) or repetition(text, 4) >= REPEATS


def talks_of_itself(text: str, prompt: str) -> bool:
    """Whether a revision speaks as one, or as somebody else: of `the previous answer`, with `Human:` or `Critique:` at
    the head of a line. Words that the user used, too, do not count."""
    said = plain(text)
    theirs = plain(prompt)
    return bool(any(m[0].strip() not in theirs for m in _SPEAKER.finditer(said))
                or any(m[0] not in theirs for m in _ITSELF.finditer(said)))


def worse(better: float, least: float = 0.5) -> bool:
    """Whether a judge prefers what was revised: its probability that the revision is better is below `least`."""
    return better < least


def _words(text: str) -> list[str]:
    return [word.casefold() for word in words(text)]


def _runs(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
