"""A `Searcher` over a list of passages, by BM25 in plain Python."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from datetime import datetime

from trivet.artifacts import text_id
from trivet.serve.retrieval.passages import Filters, Found, Passage


def passage(text: str, *, title: str = "Notes", modified: str = "2031-01-01T00:00:00+00:00",
            document: str = "/docs/a.md", location: str = "", tags: tuple[str, ...] = ()) -> Passage:
    """A passage of a document."""
    return Passage(text_id([document, location, text]), document, title, location, text, modified, tags)


class SmallSearch:
    """Okapi BM25 (k1 = 1.2, b = 0.75) over title and text; what shares no word is not found."""

    def __init__(self, passages: Sequence[Passage], *, similarity: float | None = None,
                 heeds_filters: bool = True) -> None:
        self.passages, self.similarity, self.heeds_filters = list(passages), similarity, heeds_filters
        self.asked: list[tuple[str, int, Filters | None]] = []

    def search(self, question: str, k: int, filters: Filters | None = None) -> list[Found]:
        self.asked.append((question, k, filters))
        texts = [_words(f"{p.title} {p.text}") for p in self.passages]
        mean = sum(map(len, texts)) / max(len(texts), 1)
        among = Counter(w for t in texts for w in set(t))
        found = []
        for p, text in zip(self.passages, texts, strict=True):
            if self.heeds_filters and filters is not None and not _may(p, filters):
                continue
            counts, score = Counter(text), 0.0
            for w in set(_words(question)):
                if (n := counts[w]) > 0:
                    rare = math.log(1 + (len(texts) - among[w] + 0.5) / (among[w] + 0.5))
                    score += rare * n * 2.2 / (n + 1.2 * (0.25 + 0.75 * len(text) / mean))
            if score > 0:
                found.append(Found(p, score, self.similarity))
        return sorted(found, key=lambda f: -f.score)[:k]


def _may(p: Passage, filters: Filters) -> bool:
    changed = datetime.fromisoformat(p.modified)
    return ((filters.as_of is None or changed <= filters.as_of) and (filters.since is None or changed >= filters.since)
            and set(filters.tags) <= set(p.tags))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
