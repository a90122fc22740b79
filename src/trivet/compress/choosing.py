"""Which variants are worth having, and which one fits the limits: pure functions, no torch, no numpy.

A variant is on the Pareto front if no other is at least as good in everything and better in something. Of those that
keep within the limits, the pick is the best in what was *not* limited: who limits the loss of quality asks for speed,
who limits the time or the size asks for the most quality that fits. With everything limited it is quality again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Criterion = Literal["quality", "latency", "size"]
ORDER: tuple[Criterion, ...] = ("quality", "latency", "size")
"""What is asked for first where several criteria have no limit; also how ties are broken."""
_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
          "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


@dataclass(frozen=True)
class Candidate:
    """A variant as the choice sees it. None: not known, so that it can't be chosen where this counts."""

    name: str
    latency: float | None
    """Seconds of one answer, alone."""
    size: float | None
    """Bytes on disk."""
    loss: float | None
    """Of quality, against the source: 0 for the source, below 0 for a variant that is better."""

    def value(self, criterion: Criterion) -> float | None:
        """The figure of a criterion; the lower, the better."""
        return self.loss if criterion == "quality" else self.latency if criterion == "latency" else self.size


@dataclass(frozen=True)
class Limits:
    """What is allowed at most. None: no limit."""

    latency: float | None = None
    size: float | None = None
    quality: float | None = None

    def of(self, criterion: Criterion) -> float | None:
        """The limit of a criterion."""
        return self.quality if criterion == "quality" else self.latency if criterion == "latency" else self.size

    @property
    def given(self) -> tuple[Criterion, ...]:
        """The criteria that have a limit."""
        return tuple(c for c in ORDER if self.of(c) is not None)


@dataclass(frozen=True)
class Pick:
    """What the limits leave, and what is chosen of it."""

    name: str | None
    """None: no variant keeps within all limits."""
    wanted: Criterion
    """In what the chosen one is the best of those left."""
    fitting: tuple[str, ...]
    """All that keep within the limits."""
    nearest: dict[Criterion, str]
    """For each limited criterion, the variant that comes closest to keeping it, or keeps it best."""


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether `one` is nowhere worse than `other` and somewhere better; lower is better."""
    return all(a <= b for a, b in zip(one, other, strict=True)) and tuple(one) != tuple(other)


def front(points: Sequence[Sequence[float]]) -> list[int]:
    """Indices of the points [N, C] that no other dominates, in their order; of equal points all are kept.

    Raises ValueError for points of unequal lengths.
    """
    return [i for i, point in enumerate(points) if not any(dominates(other, point) for other in points)]


def on_front(candidates: Sequence[Candidate], criteria: Sequence[Criterion] = ORDER) -> set[str]:
    """Names of the candidates on the Pareto front of these criteria; those of which one is not known are left out."""
    known = [(c.name, [v for x in criteria if (v := c.value(x)) is not None]) for c in candidates]
    whole = [(name, point) for name, point in known if len(point) == len(criteria)]
    return {whole[i][0] for i in front([point for _, point in whole])}


def pick(candidates: Sequence[Candidate], limits: Limits) -> Pick:
    """The candidate that keeps within the limits and is the best in what they leave open.

    A candidate of which a limited criterion is not known does not keep within it. Ties go to the better one in the
    other criteria, in the order of ORDER, then to the first. Raises ValueError where nothing is limited.
    """
    if not limits.given:
        raise ValueError("nothing is limited: there is nothing to choose by")
    wanted = next((c for c in ORDER if limits.of(c) is None), ORDER[0])
    fitting = [c for c in candidates if all(_within(c.value(x), limits.of(x)) for x in limits.given)]
    known = [c for c in fitting if c.value(wanted) is not None]
    # without its own figure in what is wanted a candidate can be chosen only where none has one
    rank = [wanted, *(c for c in ORDER if c != wanted)]
    best = min(known or fitting, key=lambda c: [_or_worst(c.value(x)) for x in rank], default=None)
    nearest: dict[Criterion, str] = {}
    for criterion in limits.given:
        told = [c for c in candidates if c.value(criterion) is not None]
        if told:
            nearest[criterion] = min(told, key=lambda c: _or_worst(c.value(criterion))).name
    return Pick(best.name if best else None, wanted, tuple(c.name for c in fitting), nearest)


def _within(value: float | None, limit: float | None) -> bool:
    return value is not None and limit is not None and value <= limit


def _or_worst(value: float | None) -> float:
    return float("inf") if value is None else value


def parse_size(text: str) -> float:
    """Bytes of a size such as `120MB`, `1.5 GB`, `100MiB`; a bare number is bytes.

    Raises ValueError for anything else, and for a size that is not above 0.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]*)\s*", text)
    unit = _UNITS.get((found[2] or "B").upper()) if found else None
    if found is None or unit is None or not float(found[1]) > 0:
        raise ValueError(f"{text!r} is no size: write it as 120MB, 1.5GB or 100MiB")
    return float(found[1]) * unit
