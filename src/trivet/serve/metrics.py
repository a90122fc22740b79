"""Figures of a running server for Prometheus, and a log line for each request, without what people wrote."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TextIO

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counters of one server; names begin with trivet_."""

    def __init__(self, waiting: Callable[[], float], working: Callable[[], float]) -> None:
        """waiting, working: how many requests wait, and how many answers are at work, when asked."""
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("trivet_requests", "Requests by route and status.", ["route", "status"],
                                registry=registry)
        self.seconds = Histogram("trivet_request_seconds", "Seconds from a request to the end of its answer.",
                                 ["route"], buckets=SECONDS, registry=registry)
        self.first = Histogram("trivet_first_token_seconds", "Seconds from a request to its first token.",
                               buckets=SECONDS, registry=registry)
        self.steps = Histogram("trivet_step_seconds", "Seconds of a step of all answers at work.",
                               buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5), registry=registry)
        self.tokens = Counter("trivet_generated_tokens", "Tokens that were generated.", registry=registry)
        self.prompt_tokens = Counter("trivet_prompt_tokens", "Tokens of prompts that were read.", registry=registry)
        self.cancelled = Counter("trivet_cancelled_answers", "Answers whose asker left before their end.",
                                 registry=registry)
        self.refused = Counter("trivet_refused_requests", "Requests that were turned away.", ["why"],
                               registry=registry)
        Gauge("trivet_waiting_requests", "Requests in line.", registry=registry).set_function(waiting)
        Gauge("trivet_working_answers", "Answers at work.", registry=registry).set_function(working)

    def tell(self, what: str, amount: float) -> None:
        """See Batcher."""
        match what:
            case "step_seconds":
                self.steps.observe(amount)
            case "tokens":
                self.tokens.inc(amount)
            case "prompt_tokens":
                self.prompt_tokens.inc(amount)
            case "cancelled":
                self.cancelled.inc(amount)

    def text(self) -> bytes:
        """All of it in Prometheus's text format."""
        return generate_latest(self.registry)


class Log:
    """A JSON object a line: time, request, caller, status, milliseconds, tokens. Texts only where asked for."""

    def __init__(self, to: TextIO | None = None, *, texts: bool = False) -> None:
        self.to, self.texts = to or sys.stderr, texts
        self._lock = threading.Lock()

    def write(self, **fields: Any) -> None:
        """A line; fields that are None are left out."""
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **fields}
        with self._lock:
            print(json.dumps({k: v for k, v in line.items() if v is not None}, ensure_ascii=False), file=self.to,
                  flush=True)


class Clock:
    """What a request's log line and figures need."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.first: float | None = None
        self.prompt_tokens = self.tokens = 0

    def token(self, metrics: Metrics) -> None:
        """The first token's time, counted once."""
        if self.first is None:
            self.first = time.monotonic() - self.start
            metrics.first.observe(self.first)

    @property
    def seconds(self) -> float:
        """Since the request came."""
        return time.monotonic() - self.start
