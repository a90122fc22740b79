"""Continuous batching for a server: requests wait in line, their answers share every step, and who has gone leaves.

One thread owns the stepper and all of the model's work; the event loop hands it jobs and gets tokens back. An answer
depends on its seed and not on who else is at work (up to the arithmetic of another batch width): it is the answer that
`Engine.generate` gives.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch

from trivet.errors import TrivetError
from trivet.generate.base import LoadedEngine
from trivet.generate.config import Sampling
from trivet.generate.rows import Row, draw_rows
from trivet.generate.stepping import Stepper
from trivet.generate.stops import StopStrings


class QueueFull(TrivetError):
    """As many wait as may."""


class Stopping(TrivetError):
    """The server takes nothing new."""


@dataclass(frozen=True)
class Likely:
    """A token with its log-probability at temperature 1."""

    id: int
    logp: float


@dataclass(frozen=True)
class Token:
    """What happened to an answer of a job."""

    answer: int
    id: int
    finished: bool
    ended: bool
    """By a stop token or stop string; else cut off at the limit, where finished."""
    likely: Likely | None = None
    """The token as the model sees it, where the job asked."""
    top: tuple[Likely, ...] = ()
    """The likeliest tokens in its place, where the job asked."""


@dataclass
class Job:
    """n answers to one prompt. Made on the event loop, whose `events` it fills."""

    prompt: Sequence[int]
    sampling: Sampling
    n: int
    seed: int
    logprobs: int | None = None
    """How many of the likeliest tokens are told beside each token's own log-probability; None: neither."""
    events: asyncio.Queue[Token | TrivetError] = field(default_factory=asyncio.Queue)
    gone: bool = False
    """Whoever asked has left."""
    started: float | None = None
    """When its first answer entered, on time.monotonic's clock."""
    _opened: int = 0

    @property
    def total(self) -> int:
        """Tokens that one of its rows may have."""
        return len(self.prompt) + self.sampling.max_new_tokens


@dataclass
class _Seat:
    """A row at work."""

    job: Job
    row: Row
    strings: StopStrings


class Batcher:
    """The line, and the thread that works it off."""

    def __init__(self, loaded: LoadedEngine, stepper: Stepper, *, queue: int = 128,
                 tell: Callable[[str, float], None] = lambda what, amount: None) -> None:
        """queue: jobs that may wait beside those at work. tell: told of `step_seconds`, `prompt_tokens`, `tokens`,
        `cancelled` answers, in the batcher's thread.
        """
        self.loaded, self.stepper, self.queue, self.tell = loaded, stepper, queue, tell
        self._change = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._scores: deque[tuple[list[int], list[list[int]], Future[list[float]]]] = deque()
        self._seats: dict[int, _Seat] = {}
        self._stopping = False
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Jobs in line of which no answer is at work yet."""
        return sum(not job._opened for job in list(self._waiting))

    @property
    def working(self) -> int:
        """Answers at work."""
        return len(self._seats)

    @property
    def alive(self) -> bool:
        """Whether the thread works; where not, nothing is answered any more."""
        return self._thread.is_alive()

    def submit(self, job: Job) -> None:
        """Put a job in line. Raises QueueFull, Stopping, and TrivetError for one that can never fit."""
        if not job.prompt:
            raise TrivetError("the prompt has no tokens", field="messages", mend="give it some text")
        if job.total > self.stepper.longest:
            raise TrivetError(
                f"the prompt has {len(job.prompt)} tokens; with {job.sampling.max_new_tokens} new ones that is more "
                f"than the {self.stepper.longest} that the model and its server have room for", field="messages",
                mend="shorten the conversation or ask for fewer new tokens")
        with self._change:
            self._check_open()
            if self.waiting >= self.queue and not (self.queue == 0 and not self._seats and not self._waiting):
                raise QueueFull(f"{self.waiting} requests are waiting already", field="queue",
                                mend="try again in a little while")
            self._waiting.append(job)
            self._change.notify()

    def _check_open(self) -> None:
        if self._stopping or not self.alive:
            raise Stopping("the server is stopping" if self._stopping else "the model has broken down", field="server",
                           mend="ask again when it has been started anew")

    def leave(self, job: Job) -> None:
        """Whoever asked has gone: its rows leave before the next step."""
        with self._change:
            job.gone = True
            self._change.notify()

    async def score(self, prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> list[float]:
        """Summed log-probabilities of answers after a prompt, at temperature 1. Raises QueueFull, Stopping."""
        future: Future[list[float]] = Future()
        with self._change:
            self._check_open()
            if len(self._scores) >= self.queue:
                raise QueueFull(f"{len(self._scores)} requests are waiting already", field="queue",
                                mend="try again in a little while")
            self._scores.append((list(prompt), [list(a) for a in answers], future))
            self._change.notify()
        return await asyncio.wrap_future(future)

    async def close(self, seconds: float = 30.0) -> None:
        """Take nothing new, finish what is there for at most so many seconds, then end the rest with an error."""
        with self._change:
            self._stopping = True
            self._change.notify()
        until = time.monotonic() + seconds
        while self.alive and time.monotonic() < until:
            await asyncio.sleep(0.02)
        with self._change:
            self._seconds_up = True
            self._change.notify()
        while self.alive:
            await asyncio.sleep(0.02)

    _seconds_up = False

    # --- the thread ---------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            while self._next():
                pass
        except BaseException as error:
            self._break_off(TrivetError(f"the model has broken down ({type(error).__name__}: {error})", field="model",
                                        mend="see the server's log, and start it anew"))
            raise
        finally:
            self._break_off(Stopping("the server has stopped", field="server",
                                     mend="ask again when it has been started anew"))
            self.stepper.close()

    def _next(self) -> bool:
        """Wait for work and do a step of it; False: nothing will come any more."""
        with self._change:
            while not (self._waiting or self._seats or self._scores):
                if self._stopping:
                    return False
                self._change.wait()
            if self._seconds_up:
                return False
            scores = list(self._scores)
            self._scores.clear()
        if scores:
            self._score(scores)
        told: list[tuple[Job, Token | TrivetError]] = []
        start = time.monotonic()
        try:
            with torch.no_grad():
                self._cancel()
                self._enter(told)
                self._step(told)
        except (TrivetError, RuntimeError, MemoryError) as error:
            # of one step: those at work are told, and the line goes on
            fault = error if isinstance(error, TrivetError) else TrivetError(
                f"the model failed ({type(error).__name__}: {str(error)[:200]})", field="model",
                mend="ask for less at once, or give the server less room")
            self._fail(fault, told)
        self._deliver(told)
        self.tell("step_seconds", time.monotonic() - start)
        return True

    def _cancel(self) -> None:
        left = [key for key, seat in self._seats.items() if seat.job.gone]
        if left:
            self.stepper.leave(left)
            for key in left:
                del self._seats[key]
            self.tell("cancelled", len(left))
        with self._change:
            gone = sum(job.n - job._opened for job in self._waiting if job.gone)
            if gone:
                self._waiting = deque(job for job in self._waiting if not job.gone)
                self.tell("cancelled", gone)

    def _enter(self, told: list[tuple[Job, Token | TrivetError]]) -> None:
        """Let in whom there is room for, in their order; nobody overtakes."""
        chosen: list[tuple[Job, int]] = []
        totals: list[int] = []
        prefill = 0
        with self._change:
            while self._waiting:
                job = self._waiting[0]
                if chosen and prefill + len(job.prompt) > MOST_READ:
                    break  # those at work wait while prompts are read: not for all of a long line's at once
                count = 0
                while job._opened + count < job.n and self.stepper.fits([*totals, *[job.total] * (count + 1)]):
                    count += 1
                if not count:
                    break
                totals += [job.total] * count
                prefill += len(job.prompt)
                chosen.append((job, count))
                if job._opened + count < job.n:
                    break
                self._waiting.popleft()
        if not chosen:
            return
        try:
            keys, logits = self.stepper.enter([j.prompt for j, _ in chosen], [c for _, c in chosen],
                                              [j.total for j, _ in chosen])
        except (TrivetError, RuntimeError, MemoryError):
            for job, _ in chosen:  # they are told with those at work
                self._seats[-1 - len(self._seats)] = _Seat(job, Row(0, 0, 0, 1), StopStrings(None, ()))
            raise
        now, waiting = time.monotonic(), iter(keys)
        seats = list[int]()
        for job, count in chosen:
            job.started = job.started or now
            self.tell("prompt_tokens", len(job.prompt))
            for _ in range(count):
                key = next(waiting)
                row = Row(0, job._opened, job.seed, job.sampling.max_new_tokens)
                self._seats[key] = _Seat(job, row, StopStrings(self.loaded.tokenizer, job.sampling.stop))
                job._opened += 1
                seats.append(key)
        self._draw(seats, logits, told)

    def _step(self, told: list[tuple[Job, Token | TrivetError]]) -> None:
        if self._seats:
            keys, logits = self.stepper.step({key: seat.row.tokens[-1] for key, seat in self._seats.items()})
            self._draw(keys, logits, told)

    def _draw(self, keys: Sequence[int], logits: torch.Tensor, told: list[tuple[Job, Token | TrivetError]]) -> None:
        """A token more for each of these rows, from its logits."""
        seats = [self._seats[key] for key in keys]
        likely = {k: _likely(logits[k], seat.job.logprobs) for k, seat in enumerate(seats)
                  if seat.job.logprobs is not None}
        alike: dict[tuple[Any, ...], list[int]] = {}
        for k, seat in enumerate(seats):
            s = seat.job.sampling
            alike.setdefault((s.temperature, s.top_p, s.top_k), []).append(k)
        for group in alike.values():
            part = logits if len(group) == len(seats) else logits[torch.tensor(group, device=logits.device)]
            draw_rows([seats[k].row for k in group], part, seats[group[0]].job.sampling, self.loaded.stops,
                      [seats[k].strings for k in group])
        self.tell("tokens", len(seats))
        finished = []
        for k, (key, seat) in enumerate(zip(keys, seats, strict=True)):
            row, own, top = seat.row, None, tuple[Likely, ...]()
            if k in likely:
                logps, top = likely[k]
                own = Likely(row.tokens[-1], float(logps[row.tokens[-1]]))
            told.append((seat.job, Token(row.answer, row.tokens[-1], row.finished, row.ended, own, top)))
            if row.finished:
                finished.append(key)
                del self._seats[key]
        if finished:
            self.stepper.leave(finished)

    def _score(self, asked: Sequence[tuple[list[int], list[list[int]], Future[list[float]]]]) -> None:
        """All that wait for scores, in one call."""
        wanted = [a for a in asked if a[2].set_running_or_notify_cancel()]
        try:
            found = self.loaded.engine.score([p for p, answers, _ in wanted for _ in answers],
                                             [a for _, answers, _ in wanted for a in answers])
        except (TrivetError, RuntimeError, MemoryError) as error:
            for _, _, future in wanted:
                future.set_exception(error)
            return
        sums = iter([float(sum(logps)) for logps in found])
        for _, answers, future in wanted:
            future.set_result([next(sums) for _ in answers])

    def _fail(self, error: TrivetError, told: list[tuple[Job, Token | TrivetError]]) -> None:
        jobs = {id(seat.job): seat.job for seat in self._seats.values()}
        self._seats.clear()
        with self._change:
            self._waiting = deque(job for job in self._waiting if id(job) not in jobs)
        told.extend((job, error) for job in jobs.values())
        self.stepper.clear()

    def _break_off(self, error: TrivetError) -> None:
        with self._change:
            self._stopping = True
            jobs = {id(j): j for j in [*self._waiting, *(seat.job for seat in self._seats.values())]}
            self._waiting.clear()
            scores, self._scores = self._scores, deque()
        self._seats.clear()
        for _, _, future in scores:
            future.set_exception(error)
        self._deliver([(job, error) for job in jobs.values()])

    def _deliver(self, told: list[tuple[Job, Token | TrivetError]]) -> None:
        def put() -> None:
            for job, event in told:
                job.events.put_nowait(event)

        if told and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(put)


MOST_READ = 2048
"""Tokens of prompts that are read between two steps, or one prompt."""


def _likely(logits: torch.Tensor, count: int | None) -> tuple[torch.Tensor, tuple[Likely, ...]]:
    """Log-probabilities [V] at temperature 1, and the `count` likeliest."""
    logps = torch.log_softmax(logits.float(), -1)
    if not count:
        return logps, ()
    best = logps.topk(min(count, len(logps)))
    return logps, tuple(Likely(i, p) for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True))
