"""How fast an engine answers: what is timed, on what, and the clock around it. Knows no engine but by its protocol.

Every timing reads prompts that no timing before it has read: an engine that keeps what it read would else be timed at
remembering. End tokens are passed over, so that all do the same work; decoding is greedy.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trivet.compress.tradeoff_config import Speed
from trivet.errors import TrivetError
from trivet.generate.base import LoadedEngine
from trivet.generate.config import Sampling

WARM_UP = 8
"""Tokens of a prompt and of an answer before anything is timed: libraries set themselves up at the first call."""


@dataclass(frozen=True)
class Workload:
    """So many prompts at once, each of so many tokens."""

    batch: int
    prompt: int


def workloads(settings: Speed) -> list[Workload]:
    """All that is timed, the shortest first."""
    return [Workload(b, p) for b in sorted(settings.batches) for p in sorted(settings.prompts)]


class Passages:
    """Prompts of any length, cut from one long text, each from another place of it."""

    def __init__(self, tokens: Sequence[int]) -> None:
        """Raises ValueError for no tokens."""
        if not tokens:
            raise ValueError("no tokens to cut prompts from")
        self._tokens, self._next, self._turn = tuple(tokens), 0, 0

    def take(self, count: int, length: int) -> list[list[int]]:
        """`count` prompts of `length` tokens. A text that is used up begins anew, each time a token further on, so that
        no prompt begins as another did (a text of some hundred tokens suffices)."""
        found, size = [], len(self._tokens)
        for _ in range(count):
            found.append([self._tokens[(self._next + i) % size] for i in range(length)])
            self._next += length
            if self._next >= size:
                self._turn += 1
                self._next = self._turn % size
        return found


def time_workloads(loaded: LoadedEngine, passages: Passages, settings: Speed,
                   clock: Callable[[], float] = time.perf_counter
                   ) -> tuple[dict[Workload, tuple[float, float]], dict[Workload, str]]:
    """({workload: (seconds to the first token, seconds in all)}, {workload: why it can't be}) of one engine.

    Raises TrivetError for an engine that gives another number of tokens than it was asked for.
    """
    engine = loaded.engine
    engine.stops = frozenset()
    engine.progress = None
    # no more rows than are timed at once: what an engine sets aside for a wider batch is not this workload's memory
    engine.batch_size = max(settings.batches)
    answer(loaded, passages.take(1, WARM_UP), WARM_UP)
    found: dict[Workload, tuple[float, float]] = {}
    absent: dict[Workload, str] = {}
    for work in workloads(settings):
        needed = work.prompt + settings.new_tokens
        if loaded.context is not None and needed > loaded.context:
            absent[work] = f"{needed} tokens are more than its context of {loaded.context}"
            continue
        seconds = []
        for tokens in (1, settings.new_tokens):
            prompts = passages.take(work.batch, work.prompt)
            began = clock()
            answer(loaded, prompts, tokens)
            seconds.append(clock() - began)
        found[work] = (seconds[0], seconds[1])
    return found, absent


def answer(loaded: LoadedEngine, prompts: Sequence[Sequence[int]], tokens: int) -> None:
    """One greedy answer of `tokens` tokens to each prompt. Raises TrivetError for an answer of another length."""
    found = loaded.engine.generate(prompts, Sampling(temperature=0.0, max_new_tokens=tokens), n=1,
                                   seeds=[0] * len(prompts))
    for answers in found:
        if len(answers[0].token_ids) != tokens:
            raise TrivetError(f"the engine gave {len(answers[0].token_ids)} tokens where {tokens} were asked for",
                              field="speed", mend="its times can't be compared: leave this variant out")
