"""Texts that say the same, or nearly: word shingles and their Jaccard similarity. Pure functions of texts.

A text is the set of its runs of three words (Broder 1997, 'On the resemblance and containment of documents'); two are
near where the sets overlap enough. Candidates are found by their prefixes: under any fixed order of all shingles two
sets of similarity t or more share one among the first |s| - ceil(t|s|) + 1 of each (Chaudhuri, Ganti and Kaushik 2006,
'A primitive operator for similarity joins'), so nothing is missed and few pairs are compared.

Not covered: the same said in other words, and other words that look alike: `how to` and `how not to` are near.
"""

from __future__ import annotations

import math
import zlib
from collections import defaultdict
from typing import Literal, NamedTuple

from trivet.text.rules import words

WIDTH = 3
"""Words in a shingle."""
Shingle = tuple[str, ...]


class Repeat(NamedTuple):
    """That a text was there before."""

    kind: Literal["exact", "near"]
    of: str
    """The earlier text."""


def normalised(text: str) -> Shingle:
    """The words of a text in small letters, without its marks; a text without words is one word by itself."""
    return tuple(map(str.casefold, words(text))) or (text.strip(),)


def shingles(text: str, width: int = WIDTH) -> frozenset[Shingle]:
    """The runs of `width` words; a shorter text is one run."""
    row = normalised(text)
    return frozenset(row[i : i + width] for i in range(max(1, len(row) - width + 1)))


def jaccard(one: frozenset[Shingle], other: frozenset[Shingle]) -> float:
    """What two sets share, of all they hold, in [0, 1]."""
    both = len(one & other)
    return both / (len(one) + len(other) - both)


class Distinct:
    """Texts without repeats: each is kept unless an earlier one is the same or near.

    near: the similarity, in (0, 1], from which a text repeats an earlier one. 1: only exact repeats (after
    normalising) count, in which the order of the words counts, too.
    """

    def __init__(self, near: float, width: int = WIDTH) -> None:
        if not 0.0 < near <= 1.0:
            raise ValueError(f"near lies in (0, 1], not {near}")
        self.near, self.width = near, width
        self._exact: dict[Shingle, str] = {}
        self._kept: list[tuple[str, frozenset[Shingle]]] = []
        self._by_shingle: defaultdict[Shingle, list[int]] = defaultdict(list)

    def __len__(self) -> int:
        return len(self._exact)

    def add(self, text: str) -> Repeat | None:
        """None for a new text, which is kept from now on; else the earlier text that it repeats."""
        key = normalised(text)
        if (earlier := self._exact.get(key)) is not None:
            return Repeat("exact", earlier)
        if self.near < 1.0:
            mine = shingles(text, self.width)
            prefix = self._prefix(mine)
            tried = sorted({i for shingle in prefix for i in self._by_shingle[shingle]})
            for kept, theirs in (self._kept[i] for i in tried):
                if jaccard(mine, theirs) >= self.near:
                    return Repeat("near", kept)
            for shingle in prefix:
                self._by_shingle[shingle].append(len(self._kept))
            self._kept.append((text, mine))
        self._exact[key] = text
        return None

    def _prefix(self, found: frozenset[Shingle]) -> list[Shingle]:
        # a hash for the order: by the alphabet the first shingles would be those that questions share (`how do i`)
        order = sorted(found, key=lambda s: (zlib.crc32("\0".join(s).encode("utf-8", "surrogatepass")), s))
        return order[: len(order) - math.ceil(self.near * len(order) - 1e-9) + 1]
