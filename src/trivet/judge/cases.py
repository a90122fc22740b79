"""What a judge is asked, and what it answers: one Protocol for whatever compares or grades answers.

A case holds one answer or two and a criterion. With two answers a judge gives the probability that the first one is
the better by the criterion; with one, the probability that the answer meets it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from trivet.artifacts import Message


@dataclass(frozen=True)
class Criterion:
    """What is asked of one answer or of two. `name` is its name in files, `question` what a judge reads."""

    name: str
    question: str
    """Of two answers: which of them …? Of one: a question that yes or no answers."""


@dataclass(frozen=True)
class Case:
    """One or two answers to one prompt, to be judged by a criterion."""

    id: str
    messages: tuple[Message, ...]
    answers: tuple[str, ...]
    """One to grade, or two to compare."""
    criterion: Criterion
    reference: str | None = None
    """The known answer, where there is one."""


class Judge(Protocol):
    """Cases in, one probability each out, in the same order. Raises TrivetError for cases it can't judge."""

    def __call__(self, cases: Sequence[Case]) -> Sequence[float]: ...
