"""What the contrast rules share, and the rules that hold in any language: repeated, shuffled, formatted, truncated.

A rule takes an answer and a random generator and gives a worse text, or says why it does not apply. What stands in
back quotes, and web addresses, are no prose: no rule of words touches them.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trivet.artifacts import Message
from trivet.text.rules import script, words

_CODE = re.compile(r"(```.*?(?:```|\Z)|`[^`\n]*`|(?:https?://|www\.)\S+)", re.DOTALL)
_SENTENCE = re.compile(r"(?<=[。！？])(?=\S)|(?:(?<=[.!?…])|(?<=[.!?…][\"”')*]))\s+|\n+")
_ENDED = re.compile(r"[.!?…。！？][\"”')*\s]*\Z|```\s*\Z")
_LAST_MARKS = re.compile(r"[.,;:!?…。、！？\"”')*]*\Z")
_MARKED = re.compile(r"(?m)^\s*(?:#{1,6} |[-*•] |\d{1,2}[.)] )\S|\*\*\S[^*\n]*\*\*")
# words that English cannot do without and its neighbours do not have
_ENGLISH = frozenset(re.findall(r"\S+", """
    the and that with you your this are not but from they their there what which when how would should could is of to 
    it it's she our i'm don't if then than because about into some any been were these those
"""))


@dataclass(frozen=True)
class Answer:
    """An answer that a person would take, and the conversation it answers."""

    messages: tuple[Message, ...]
    text: str

    @property
    def question(self) -> str:
        """The user's last turn."""
        return next((m.content for m in reversed(self.messages) if m.role == "user"), "")

    @property
    def asked(self) -> str:
        """All that the user said."""
        return "\n".join(m.content for m in self.messages if m.role == "user")


@dataclass(frozen=True)
class Skip:
    """Why a rule does not apply to an answer."""

    reason: str


Rule = Callable[[Answer, random.Random], "str | Skip"]


# --- looking at a text ----------------------------------------------------------------------------------


def prose(text: str) -> str:
    """The text without code in back quotes and web addresses."""
    return _CODE.sub(" ", text)


def on_prose(text: str, change: Callable[[str], str]) -> str:
    """`change` applied to each stretch of prose; code and web addresses stay as they are."""
    parts = _CODE.split(text)
    return "".join(part if i % 2 else change(part) for i, part in enumerate(parts))


def sentences(text: str) -> list[str]:
    """The sentences of a text with their marks, cut at marks of an end and at line ends."""
    return [s.strip() for s in _SENTENCE.split(text) if s and s.strip()]


def ended(text: str) -> bool:
    """Whether the text ends where a sentence does, not in the middle of one."""
    return bool(_ENDED.search(text))


def count(text: str) -> int:
    """Length in words, as `trivet.text.rules.words` counts them."""
    return len(words(text))


def english(text: str, least: float = 0.125) -> bool:
    """Whether a text looks English: Latin letters, and of its words a share of `least`, one or more, is such as `the`.

    Crude: texts of a few words without one of them are taken for another language.
    """
    said = [w.casefold().replace("’", "'") for w in words(prose(text))]
    known = sum(w in _ENGLISH for w in said)
    return known > 0 and script(text) == "LATIN" and known >= least * len(said)


def too_short(text: str, least: int) -> Skip | None:
    """The reason to skip a text whose prose has fewer than `least` words."""
    if count(prose(text)) >= least:
        return None
    return Skip("no words of prose" if least == 1 else f"fewer than {least} words of prose")


def to_length(pool: Sequence[str], target: int, rng: random.Random, first: Sequence[str] = ()) -> str:
    """Sentences of `pool`, none twice, after one of `first`, until the text has about `target` words.

    The last sentence is taken only where it brings the length nearer to the target.
    """
    chosen = [rng.choice(first)] if first else []
    total = sum(map(count, chosen))
    for sentence in rng.sample(pool, len(pool)):
        more = count(sentence)
        if chosen and abs(total + more - target) >= abs(total - target):
            break
        chosen.append(sentence)
        total += more
    return " ".join(chosen)


# --- rules for any language -----------------------------------------------------------------------------


def repeated(answer: Answer, rng: random.Random) -> str | Skip:
    """The first half said again in place of the second: loops at the same length."""
    text = answer.text.strip()
    if _CODE.search(text):
        return Skip("holds code or a web address")
    parts = sentences(text)
    total = count(text)
    # as many sentences as come nearest to the half
    half = min(range(1, len(parts)), key=lambda k: abs(sum(map(count, parts[:k])) - total / 2), default=0)
    kept = parts[:half]
    if kept and sum(map(count, kept)) < 0.7 * total:
        said = list(kept)
        while (now := sum(map(count, said))) < total:
            following = kept[len(said) % len(kept)]
            if len(said) > len(kept) and abs(now + count(following) - total) >= abs(now - total):
                break
            said.append(following)
        return _joined(said, text)
    pieces = text.split()
    if len(pieces) < 4:  # a script without spaces
        return (text[: max(2, len(text) // 2)] * 3)[: len(text)]
    first = pieces[: len(pieces) // 2]
    last = _LAST_MARKS.search(pieces[-1])
    again = [first[i % len(first)] for i in range(len(pieces))]
    return _LAST_MARKS.sub("", " ".join(again), count=1) + (last[0] if last else "")


def _joined(parts: Sequence[str], like: str) -> str:
    """Sentences put together, with spaces where the text `like` has spaces."""
    return (" " if re.search(r"\s", like) else "").join(parts)


def shuffled(answer: Answer, rng: random.Random) -> str | Skip:
    """The words of each sentence in random order: the same words, the same length, no sense."""
    result = on_prose(answer.text.strip(), lambda part: _each_sentence(part, lambda s: _shuffle(s, rng)))
    return Skip("its words can't be put in another order") if result == answer.text.strip() else result


def _each_sentence(part: str, change: Callable[[str], str]) -> str:
    """`change` applied to each sentence of a stretch of prose; the space between and around stays."""
    found, place = [], 0
    for sentence in sentences(part):
        start = part.index(sentence, place)
        found += [part[place:start], change(sentence)]
        place = start + len(sentence)
    return "".join(found) + part[place:]


def _shuffle(sentence: str, rng: random.Random) -> str:
    marks = _LAST_MARKS.search(sentence)
    end = marks[0] if marks else ""
    body = sentence[: len(sentence) - len(end)]
    spaced = len(body.split()) >= 3
    pieces = body.split() if spaced else list(body) if len(words(body)) >= 4 else []
    if len(set(pieces)) < 2:
        return sentence
    order = pieces
    while order == pieces:
        order = rng.sample(pieces, len(pieces))
    return (" " if spaced else "").join(order) + end


def formatted(answer: Answer, rng: random.Random) -> str | Skip:
    """The same sentences under headings, as a list, with bold words: marks that say nothing."""
    text = answer.text.strip()
    if _MARKED.search(text):
        return Skip("has marks of formatting of its own")
    if "```" in text:
        return Skip("holds code or a web address")
    lines = [f"# {_heading(answer.question or text)}", ""]
    for i, sentence in enumerate(sentences(text)):
        if i % 2 == 0:
            lines += ["", f"## {_heading(sentence)}", ""]
        lines.append(f"- {_bold(sentence, rng)}")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def _heading(text: str) -> str:
    """The first words of a text as a heading, in whatever language it is."""
    first = " ".join(prose(text).split()[:3])[:40]
    return re.sub(r"[#*\"“”\n]", "", _LAST_MARKS.sub("", first, count=1)).strip().capitalize() or "…"


def _bold(sentence: str, rng: random.Random) -> str:
    pieces = sentence.split()
    for i in {0, *rng.sample(range(len(pieces)), len(pieces) // 4)}:
        core = re.fullmatch(r"(\W*)(\w.*?)(\W*)", pieces[i])
        if core and "`" not in pieces[i]:
            pieces[i] = f"{core[1]}**{core[2]}**{core[3]}"
    return " ".join(pieces)


def truncated(answer: Answer, rng: random.Random) -> str | Skip:
    """Cut off in the middle of a sentence, after about half of the words."""
    text = answer.text.strip()
    gaps = [m.start() for m in re.finditer(r"\s+", text)]
    if len(gaps) < 7:  # a script without spaces
        gaps = list(range(1, len(text)))
    middle = len(text) * rng.uniform(0.45, 0.55)
    for place in sorted(gaps, key=lambda g: abs(g - middle)):
        cut = text[:place].rstrip()
        if cut and not ended(cut):
            return re.sub(r"[,;:–—-]+\Z", "", cut)
    return Skip("has no place to be cut but the ends of sentences")
