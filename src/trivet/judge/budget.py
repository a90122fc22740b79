"""What may be spent at an endpoint, kept by all requests in flight together."""

from __future__ import annotations

import threading

from trivet.errors import TrivetError
from trivet.judge.cache import Spent

FIRST_GUESS = 0.5
"""Tokens a character before an endpoint has told any: twice what common tokenizers need for English."""


class Budget:
    """Lets requests through while they are sure to stay within the budget, as far as their tokens can be guessed.

    A request's tokens are known only when it is answered. Until then the most tokens a character seen so far, and the
    longest reply allowed, are held back for it; where that does not fit, it waits for those in flight.
    """

    def __init__(self, spent: Spent, requests: int | None, tokens: int | None, *, field: str = "judge") -> None:
        """spent: by earlier runs. requests, tokens: at most this many in all; None: any number. field: the setting."""
        self.spent, self._requests, self._tokens, self._field = spent, requests, tokens, field
        self._change = threading.Condition()
        self._flying = self._held = 0
        self._rate = 0.0

    def enter(self, characters: int, reply_tokens: int, stop: threading.Event) -> int | None:
        """Room for one request: the tokens held back for it, to be given to `leave`; None where `stop` is set.

        Raises TrivetError when the budget is used up.
        """
        with self._change:
            while not stop.is_set():
                guess = int(characters * (self._rate or FIRST_GUESS)) + reply_tokens
                few = self._requests is not None and self.spent.requests + self._flying >= self._requests
                if not few and (self._tokens is None or self.spent.tokens + self._held + guess <= self._tokens):
                    self._flying += 1
                    self._held += guess
                    return guess
                if not self._flying:
                    raise self._used_up("requests", self._requests) if few else self._used_up("tokens", self._tokens)
                self._change.wait(0.1)
        return None

    def leave(self, held: int, characters: int, cost: Spent) -> None:
        """A request is over: what was held back for it is free, and what it cost is spent."""
        with self._change:
            self._flying -= 1
            self._held -= held
            self.spent += cost
            if characters:
                self._rate = max(self._rate, cost.input_tokens / characters)
            self._change.notify_all()

    def _used_up(self, what: str, number: int | None) -> TrivetError:
        setting = f"{self._field}.{what}"
        return TrivetError(
            f"the budget of {number:,} {what} for {self.spent.model} is used up ({self.spent.words} so far)",
            field=setting, mend=f"what was judged is kept: raise --{setting}, and run the same command again")
