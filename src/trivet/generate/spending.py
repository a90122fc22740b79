"""What was asked of endpoints, and what may be: a line before each request and one after it, and the budget.

The line before is what makes the account true: a request that was under way when the process was killed has most
likely been seen, and will be charged for, though nobody here knows what became of it. The next run finds its line
without an end, says so, and counts it as one request of unknown tokens. Each request carries its number to the
endpoint (`X-Client-Request-Id`), so that an account can be compared with the provider's line by line.
"""

from __future__ import annotations

import threading
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field

from trivet.artifacts import Row
from trivet.errors import TrivetError
from trivet.generate.kept import Lines
from trivet.ledger import Calls

FIRST_GUESS = 0.5
"""Tokens a character before an endpoint has told any: twice what common tokenizers need for English."""


class Spent(Calls):
    """What the ledger counts of an endpoint, with the model's name."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())
    model: str

    def __add__(self, other: Spent) -> Spent:
        return Spent(model=self.model, **self.plus(other).model_dump())

    @property
    def words(self) -> str:
        return f"{self.requests:,} requests, {self.input_tokens:,} tokens in, {self.output_tokens:,} out"


class Event(Row):
    """A line of requests.jsonl. Every request has a `sent`, and one of the others when it is over."""

    event: Literal["sent", "answered", "failed", "lost"]
    """failed: no answer that was of use, whatever the reason; lost: the process was killed meanwhile."""
    id: str
    model: str
    input_tokens: int | None = Field(None, ge=0)
    """None: the endpoint did not tell, or nobody heard it."""
    output_tokens: int | None = Field(None, ge=0)


class Requests:
    """The account of one stage, over all its runs. Without a file it is kept in memory alone."""

    def __init__(self, path: Path | None = None) -> None:
        """Raises TrivetError for a damaged line (but for a torn last one), and where `lost` can't be written."""
        self._file = None if path is None else Lines(path, Event)
        self._lock = threading.Lock()
        self.spent: dict[str, Spent] = {}
        """By model; requests that are under way are not in it."""
        self.lost: dict[str, int] = {}
        """Requests by model that were under way when the run before this one was killed."""
        if self._file is None:
            return
        open_ones: dict[str, str] = {}
        for _, event in self._file.read():
            if event.event == "sent":
                open_ones[event.id] = event.model
            elif open_ones.pop(event.id, None) is not None:
                self._count(event)
            # else its end was told before: a thread of an interrupted run came back after it was counted as lost
        for id, model in open_ones.items():
            self.lost[model] = self.lost.get(model, 0) + 1
            self._count(Event(event="lost", id=id, model=model))
        if open_ones:
            self._file.add([Event(event="lost", id=id, model=model) for id, model in open_ones.items()])

    def _count(self, event: Event) -> Spent:
        cost = Spent(model=event.model, requests=1, input_tokens=event.input_tokens or 0,
                     output_tokens=event.output_tokens or 0)
        with self._lock:
            self.spent[event.model] = self.spent.get(event.model, Spent(model=event.model)) + cost
        return cost

    def of(self, model: str) -> Spent:
        """What a model has cost."""
        return self.spent.get(model, Spent(model=model))

    def send(self, model: str) -> str:
        """A request is about to go: its id. Raises TrivetError where that can't be written; it must not go then."""
        id = uuid.uuid4().hex
        if self._file is not None:
            self._file.add([Event(event="sent", id=id, model=model)])
        return id

    def over(self, id: str, model: str, *, answered: bool, tokens: tuple[int | None, int | None]) -> Spent:
        """A request is over: what it cost. tokens: in and out."""
        event = Event(event="answered" if answered else "failed", id=id, model=model, input_tokens=tokens[0],
                      output_tokens=tokens[1])
        if self._file is not None:
            self._file.add([event])
        return self._count(event)


@dataclass(frozen=True)
class Limits:
    """What one of those who ask a model may bring its cost to."""

    requests: int | None = None
    tokens: int | None = None
    """In and out."""
    field: str = "judge"
    """The setting, for messages."""
    kept: str = "what was judged is kept"


class Budget:
    """Lets requests to one model through while they are sure to stay within the limits of those who ask, as far as
    their tokens can be guessed.

    A request's tokens are known only when it is answered. Until then the most tokens a character seen so far, and the
    longest reply allowed, are held back for it; where that does not fit, it waits for those in flight.
    """

    def __init__(self, spent: Spent) -> None:
        """spent: by earlier runs, and by all who ask this model."""
        self.spent = spent
        self._change = threading.Condition()
        self._flying = self._held = 0
        self._rate = 0.0

    def enter(self, characters: int, reply_tokens: int, limits: Limits, stop: threading.Event) -> int | None:
        """Room for one request: the tokens held back for it, to be given to `leave`; None where `stop` is set.

        Raises TrivetError when the budget is used up.
        """
        with self._change:
            while not stop.is_set():
                guess = int(characters * (self._rate or FIRST_GUESS)) + reply_tokens
                few = limits.requests is not None and self.spent.requests + self._flying >= limits.requests
                if not few and (limits.tokens is None or self.spent.tokens + self._held + guess <= limits.tokens):
                    self._flying += 1
                    self._held += guess
                    return guess
                if not self._flying:
                    raise self._used_up(limits, "requests" if few else "tokens")
                self._change.wait(0.1)
        return None

    def leave(self, held: int, characters: int, cost: Spent) -> None:
        """A request is over: what was held back for it is free, and what it cost is spent.

        characters: those it read, where it told its tokens, else 0.
        """
        with self._change:
            self._flying -= 1
            self._held -= held
            self.spent += cost
            if characters:
                self._rate = max(self._rate, cost.input_tokens / characters)
            self._change.notify_all()

    def _used_up(self, limits: Limits, what: str) -> TrivetError:
        setting, number = f"{limits.field}.{what}", limits.requests if what == "requests" else limits.tokens
        return TrivetError(
            f"the budget of {number:,} {what} for {self.spent.model} is used up ({self.spent.words} so far)",
            field=setting, mend=f"{limits.kept}: raise --{setting}, and run the same command again")
