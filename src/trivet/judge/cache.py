"""Verdicts kept on disk, so that nothing is asked twice, and what asking has cost.

One JSON line a verdict or a request in `verdicts.jsonl`, synced to disk as it comes; a last line torn by a power cut
is dropped, and its case asked again. A verdict is found by the sha256 of who judged (a local model's weights, an
endpoint's address and model, a function's source file; the version of the wording) and of the whole case.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pydantic import ConfigDict, Field, ValidationError

from trivet.artifacts import Row, json_lines, row_error, write_error
from trivet.judge.cases import Case
from trivet.ledger import Calls
from trivet.training.progress import bar

Keep = Callable[[Sequence[tuple[int, float]]], None]
"""Takes verdicts as they come: (number of the case, probability)."""


class Spent(Calls):
    """What the ledger counts of an endpoint, with the model's name, so that a line of verdicts.jsonl says it."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())
    model: str

    def __add__(self, other: Spent) -> Spent:
        return Spent(model=self.model, **self.plus(other).model_dump())

    @property
    def words(self) -> str:
        return f"{self.requests:,} requests, {self.input_tokens:,} tokens in, {self.output_tokens:,} out"


class Line(Row):
    """A line of verdicts.jsonl: a verdict (key, case, criterion, probability), what a request cost, or both."""

    key: str | None = None
    case: str | None = None
    criterion: str | None = None
    probability: float | None = Field(None, ge=0, le=1)
    spent: Spent | None = None


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
        """Judge the cases in any order, and hand on verdicts as they come. Raises TrivetError."""


def gather(judge: Asking, cases: Sequence[Case]) -> list[float]:
    """The verdicts of `judge.ask`, in the order of the cases."""
    found = [math.nan] * len(cases)

    def keep(rows: Sequence[tuple[int, float]]) -> None:
        for i, p in rows:
            found[i] = p

    judge.ask(cases, keep)
    return found


def shifted(keep: Keep, by: int) -> Keep:
    """`keep` for a part of the cases that begins at the case of number `by`."""
    return lambda rows: keep([(by + i, p) for i, p in rows])


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
        self._lock = threading.Lock()
        self._known: dict[str, float] = {}
        self.spent: dict[str, Spent] = {}
        """What each endpoint's model has cost, over all runs that wrote this file."""
        if not path.exists():
            return
        self._drop_torn_line()
        for number, value in json_lines(path):
            try:
                line = Line.model_validate(value)
            except ValidationError as error:
                raise row_error(error, Line, path, number) from None
            self._take(line)

    def _drop_torn_line(self) -> None:
        try:
            data = self.path.read_bytes()
            if data and not data.endswith(b"\n"):
                os.truncate(self.path, data.rfind(b"\n") + 1)
        except OSError as error:
            raise write_error(error, self.path) from None

    def _take(self, line: Line) -> None:
        if line.key is not None and line.probability is not None:
            self._known[line.key] = line.probability
        if line.spent is not None:
            self.spent[line.spent.model] = self.spent.get(line.spent.model, Spent(model=line.spent.model)) + line.spent

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: str) -> float | None:
        """The kept verdict, None where there is none."""
        return self._known.get(key)

    def add(self, lines: Iterable[Line]) -> None:
        """Append lines in one write, and sync them. Threads may call it side by side."""
        lines = list(lines)
        data = "".join(line.model_dump_json(exclude_none=True) + "\n" for line in lines).encode()
        with self._lock:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("ab") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise write_error(error, self.path) from None
            for line in lines:
                self._take(line)


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

                def keep(rows: Sequence[tuple[int, float]]) -> None:
                    self.verdicts.add(Line(key=keys[left[j]], case=cases[left[j]].id,
                                           criterion=cases[left[j]].criterion.name, probability=p) for j, p in rows)
                    progress(len(rows))

                self.judge.ask([cases[i] for i in left], keep)
        found = [self.verdicts.get(key) for key in keys]
        return [math.nan if p is None else p for p in found]
