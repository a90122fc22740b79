"""What is found in documents, and what finds it. Types alone."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol


@dataclass(frozen=True)
class Passage:
    """A part of a document."""

    id: str
    """The sha256 of its document's address, its place and its text, 16 hex digits."""
    document: str
    """The document's address: an absolute path or a URL."""
    title: str
    """The document's."""
    location: str
    """Where in the document: headings joined by ' › ', `page 3`, or both; empty where there is neither."""
    text: str
    modified: str
    """When the document was last changed, ISO 8601 with a zone."""
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Found:
    """A passage with what speaks for it."""

    passage: Passage
    score: float
    """Higher is better; comparable within one search alone."""
    similarity: float | None
    """Cosine between the question's vector and the passage's, -1 to 1; None where no vectors were compared."""


@dataclass(frozen=True)
class Filters:
    """Which passages may be found."""

    as_of: datetime | None = None
    """None that were changed later: what was known at that time."""
    since: datetime | None = None
    """None that were changed earlier: what is older is stale to whoever asks."""
    tags: tuple[str, ...] = ()
    """Those that have all of these."""
    under: str | None = None
    """Those whose document's address begins so."""


class Searcher(Protocol):
    """Finds passages; an index, or a test's list."""

    def search(self, question: str, k: int, filters: Filters | None = None) -> list[Found]:
        """The k best, best first; fewer where there are fewer. Blocking: the server calls it in a thread."""
