"""An answer cut into claims: its sentences, each with the passages that it cites as [n]. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MOST = 999
"""The largest number that counts as a citation: [2031] is a year."""

_CITATION = re.compile(r"(?:(?<![ \t])[ \t]+)?[\[【]\s*\^?(?:(?:passages?|sources?|docs?)\s+)?"
                       r"(\d{1,3}(?:\s*(?:[,;–-]|and)\s*\d{1,3})*)\s*[\]】]", re.IGNORECASE)
_MARK = re.compile(r"^[ \t]*(?:(?:[-*•–]|\(?\d{1,2}[.)]|\(?[a-z][.)])[ \t]+|#{1,6}[ \t]+|>[ \t]?)+")
_ABBREVIATIONS = frozenset(re.findall(r"\S+", """
    mr mrs ms dr prof st sr jr rev hon gen col lt sgt capt cmdr gov sen rep pres messrs mt ft no nos vol vols pp
    fig figs eq sec ch art op ed eds cf ca approx est vs viz al etc e.g i.e a.m p.m a.d b.c u.s u.k u.n inc ltd
    co corp dept univ assn bros jan feb mar apr jun jul aug sep sept oct nov dec mon tue wed thu fri sat sun
"""))
_ALWAYS_GO_ON = frozenset(re.findall(r"\S+", """
    mr mrs ms dr prof st rev hon gen col lt sgt capt gov sen messrs mt e.g i.e cf vs fig no vol
"""))
_END = re.compile(r"[.!?…]+[\"'”’»)*_]*")
_FENCE = re.compile(r"^[ \t]*(?:```|~~~)")


@dataclass(frozen=True)
class Claim:
    """A sentence of an answer."""

    text: str
    """Without its citations and the mark of a list."""
    cites: tuple[int, ...]
    """The n of each [n] that belongs to it, in order, each once."""
    start: int
    """Where it begins in the answer, the mark of a list included …"""
    end: int
    """… and where it ends, citations and a closing mark included."""


def claims(answer: str) -> list[Claim]:
    """The claims of an answer, in order. Lines are cut first, then sentences; a fenced block is one claim.

    A full stop ends no sentence in a decimal (3.5), behind an initial (J. Doe) or an abbreviation (Dr., e.g.), unless
    that abbreviation can end one (etc., p.m.) and a capital follows. Citations behind a full stop belong to the
    sentence before it. A line of citations alone belongs to the line above.
    """
    found: list[Claim] = []
    for start, end, fenced in _lines(answer):
        spans = [(start, end)] if fenced else _sentences(answer, start, end)
        for a, b in spans:
            whole = answer[a:b]
            text = _MARK.sub("", _CITATION.sub("", whole)).strip()
            cites = cited(whole)
            if not re.search(r"\w", text):
                if cites and found:
                    last = found[-1]
                    both = tuple(dict.fromkeys((*last.cites, *cites)))
                    found[-1] = Claim(last.text, both, last.start, b)
                continue
            found.append(Claim(re.sub(r"(?<!\s)\s+([.,;:!?])", r"\1", text), cites, a, b))
    return found


def cited(text: str) -> tuple[int, ...]:
    """The numbers that a text cites, each once: [1], [1, 3], [2-4], 【1】, [^1], [passage 1]."""
    numbers: list[int] = []
    for match in _CITATION.finditer(text):
        parts = re.findall(r"\d+|[–-]", match[1])
        for i, part in enumerate(parts):
            if part in "–-":
                low, high = int(parts[i - 1]), int(parts[i + 1])
                numbers += range(low + 1, min(high, low + 20))
            else:
                numbers.append(int(part))
    return tuple(dict.fromkeys(n for n in numbers if n <= MOST))


def plain(text: str) -> str:
    """The text without citations."""
    return _CITATION.sub("", text)


def rewritten(answer: str, kept: Sequence[tuple[Claim, Sequence[int]]], numbers: Mapping[int, int]) -> str:
    """The answer of the kept claims alone, each with the citations given for it.

    kept: claims of `claims(answer)` in their order, with the numbers they shall cite. numbers: what each of those is
    called in the text. What stood on lines of their own still does; marks of lists stay.
    """
    out = ""
    place: int | None = None
    for claim, cites in kept:
        gap = "" if place is None else answer[place:claim.start]
        if place is not None:
            out += "\n\n" if re.search(r"\n[ \t]*\n", gap) else "\n" if "\n" in gap else " "
        mark = _MARK.match(answer[claim.start:claim.end])
        body = claim.text.rstrip()
        stop = re.search(r"(?<![.!?…])[.!?…]+[\"'”’»)*_]*$", body)
        said = "".join(f"[{n}]" for n in sorted({numbers[c] for c in cites}))
        text = f"{body[:stop.start()]} {said}{stop[0]}" if stop and said else f"{body} {said}" if said else body
        out += (mark[0].lstrip() if mark else "") + text
        place = claim.end
    return out


def _lines(answer: str) -> list[tuple[int, int, bool]]:
    """(start, end, whether it is a fenced block) of what stands apart."""
    found: list[tuple[int, int, bool]] = []
    place, fence = 0, None
    for line in answer.splitlines(keepends=True):
        end = place + len(line.rstrip("\r\n"))
        if _FENCE.match(line):
            if fence is None:
                fence = place
            else:
                found.append((fence, end, True))
                fence = None
        elif fence is None and line.strip():
            found.append((place, end, False))
        place += len(line)
    if fence is not None:
        found.append((fence, place, True))
    return found


def _sentences(answer: str, start: int, end: int) -> list[tuple[int, int]]:
    """Where each sentence of a line stands, the citations behind it included."""
    line = answer[start:end]
    mark = _MARK.match(line)
    spans: list[tuple[int, int]] = []
    begin, place = 0, mark.end() if mark else 0
    while (match := _END.search(line, place)) is not None:
        place = match.end()
        after = place
        while (citation := _CITATION.match(line, after)) is not None:
            after = citation.end()
            if closing := re.match(r"[.!?]", line[after:]):
                after += closing.end()
        rest = line[after:]
        if after == place and rest and not rest[0].isspace():
            continue  # 3.5, example.org, 10.30
        if after == place and _goes_on(line[max(begin, match.start() - 40):match.start()], match[0], rest.lstrip()):
            continue
        spans.append((begin, after))
        begin = after + len(rest) - len(rest.lstrip())
        place = begin
    if line[begin:].strip():
        spans.append((begin, len(line)))
    return [(start + a, start + b) for a, b in spans]


def _goes_on(before: str, stop: str, rest: str) -> bool:
    """Whether a full stop is part of a word, and the sentence goes on behind it."""
    if not stop.startswith(".") or stop.startswith(".."):
        return bool(rest) and rest[0].islower()
    if not rest:
        return False
    match = re.search(r"([A-Za-z]+(?:\.[A-Za-z]+)*)$", before)
    word = match[1].casefold() if match else ""
    if match and len(word) == 1 and match[1].isupper() and word != "i":
        return True  # an initial
    if word in _ALWAYS_GO_ON:
        return not (word == "no" and rest[0].isupper())
    if word in _ABBREVIATIONS:
        return not rest[0].isupper()
    return rest[0].islower()
