"""Verdicts kept on disk, so that nothing is asked twice.

One JSON line a verdict in `verdicts.jsonl`, on the disk before anybody is told of it; a last line torn by a power cut
is dropped, and its case asked again. A verdict is found by the sha256 of who judged (a local model's weights, an
endpoint's address and model, a function's source file; the version of the wording) and of the whole case.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pydantic import Field

from trivet.artifacts import Row
from trivet.generate.kept import Keeping, Lines
from trivet.generate.spending import Spent
from trivet.judge.cases import Case
from trivet.training.progress import bar

Keep = Keeping[float]
"""Takes verdicts as they come: (number of the case, probability)."""


class Line(Row):
    """A line of verdicts.jsonl: a verdict, or one of the votes that it is the share of."""

    key: str
    case: str
    criterion: str
    probability: float = Field(ge=0, le=1)
    vote: int | None = None
    """Which vote, from 0; its probability is 0 or 1."""


class Asking(Protocol):
    """What a judge of this package has beside being one (judge/cases.py: Judge)."""

    name: str
    grades: bool
    """It can say something of a single answer."""
    symmetric: bool
    """The order of two answers can't change what it says."""
    sees_ids: bool
    """It may look at a case's id, so that cases alike in all else are different ones."""
    reads_criterion: bool
    """What it says depends on the case's criterion."""

    @property
    def identity(self) -> Mapping[str, Any] | None:
        """What its verdicts depend on beside the case; None: nobody knows, and nothing is kept."""

    def ask(self, cases: Sequence[Case], keep: Keep) -> None:
        """Judge the cases in any order, and keep verdicts as they come. Raises TrivetError."""


def gather(judge: Asking, cases: Sequence[Case]) -> list[float]:
    """The verdicts of `judge.ask`, in the order of the cases."""
    found = [math.nan] * len(cases)

    def collect(rows: Sequence[tuple[int, float]]) -> None:
        for i, p in rows:
            found[i] = p

    judge.ask(cases, Keeping(lambda rows: None, collect))
    return found


def case_key(identity: Mapping[str, Any], case: Case, *, with_id: bool = False) -> str:
    """The sha256 by which a verdict is found."""
    value = {"judge": dict(identity), "messages": [m.model_dump() for m in case.messages],
             "answers": list(case.answers), "criterion": [case.criterion.name, case.criterion.question],
             "reference": case.reference, "id": case.id if with_id else None}
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class Verdicts:
    """The file of kept verdicts. Nothing is written before the first verdict comes.

    Raises TrivetError for a damaged line (but for a torn last one) and a file that can't be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines = Lines(path, Line)
        self._known = {line.key: line.probability for _, line in self._lines.read()}

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: str) -> float | None:
        """The kept verdict, or vote; None where there is none."""
        return self._known.get(key)

    def add(self, lines: Sequence[Line]) -> None:
        """Append lines in one write; `sync` puts them on the disk. Threads may call it side by side."""
        self._lines.add(lines)
        for line in lines:
            self._known[line.key] = line.probability

    def sync(self) -> None:
        """Put on the disk whatever was added before."""
        self._lines.sync()


class Kept:
    """A judge that asks only what no earlier run has asked, and keeps each verdict as it comes."""

    def __init__(self, judge: Asking, verdicts: Verdicts, *, clamp: float = 0.0) -> None:
        """clamp: what it gives lies in [clamp, 1 - clamp]. What is kept on disk is the judge's own word: another clamp
        asks nothing anew."""
        self.judge, self.verdicts, self.clamp = judge, verdicts, clamp

    @property
    def name(self) -> str:
        return self.judge.name

    @property
    def grades(self) -> bool:
        return self.judge.grades

    @property
    def symmetric(self) -> bool:
        return self.judge.symmetric

    @property
    def reads_criterion(self) -> bool:
        return self.judge.reads_criterion

    @property
    def spent(self) -> Spent | None:
        """What this process has spent at an endpoint; None for judges that cost nothing by the piece."""
        found: Spent | None = getattr(self.judge, "spent", None)
        return found

    def __call__(self, cases: Sequence[Case]) -> list[float]:
        """See Judge. Cases that are alike are asked once. Raises TrivetError as the judge does."""
        found = self._verdicts(cases)
        return [min(max(p, self.clamp), 1.0 - self.clamp) for p in found] if self.clamp else found

    def _verdicts(self, cases: Sequence[Case]) -> list[float]:
        identity = self.judge.identity
        if identity is None:
            return gather(self.judge, cases)
        keys = [case_key(identity, c, with_id=self.judge.sees_ids) for c in cases]
        first: dict[str, int] = {}
        for i, key in enumerate(keys):
            if self.verdicts.get(key) is None:
                first.setdefault(key, i)
        if first:
            left = list(first.values())
            with bar(f"judge {self.name}", len(left)) as progress:

                def write(rows: Sequence[tuple[int, float]]) -> None:
                    self.verdicts.add([Line(key=keys[left[j]], case=cases[left[j]].id,
                                            criterion=cases[left[j]].criterion.name, probability=p) for j, p in rows])

                def settle(rows: Sequence[tuple[int, float]]) -> None:
                    self.verdicts.sync()
                    progress(len(rows))

                self.judge.ask([cases[i] for i in left], Keeping(write, settle))
        found = [self.verdicts.get(key) for key in keys]
        return [math.nan if p is None else p for p in found]
