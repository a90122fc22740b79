"""The one client for OpenAI-compatible endpoints, for judges and writers alike (`POST …/chat/completions`).

What an endpoint does not know (log-probabilities, a schema for the reply, a seed, temperature, max_tokens) is left out
as soon as it says so. Failures that may pass are tried again with back-off and jitter; what an endpoint asks to wait
(Retry-After) holds for all requests to it. All who ask one address in a stage share its connections, the bound on
requests in flight, the account and the budget (`Endpoints`). The key is never shown. No torch here.
"""

from __future__ import annotations

import email.utils
import json
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import urllib3

from trivet.artifacts import Message
from trivet.errors import TrivetError
from trivet.generate.config import EndpointSettings
from trivet.generate.connection import Again, Connection, NoAddress
from trivet.generate.habits import Habits
from trivet.generate.in_flight import Stopped
from trivet.generate.spending import Budget, Limits, Requests, Spent
from trivet.ledger import Calls
from trivet.runs import Run

PAUSE = 0.5
"""Seconds before the first retry; doubled with each one, up to MAX_PAUSE."""
MAX_PAUSE = 30.0
MAX_WAIT = 600.0
"""Longest Retry-After that is waited for, in seconds."""
_JITTER = random.Random()  # its own: the one that stages seed is not drawn from


@dataclass(frozen=True)
class Reply:
    """A chat completion's first choice."""

    text: str | None
    """None where it holds none: a refusal by the endpoint's filter, or reasons that left no room for it."""
    finish: str
    """`stop`, `length`, `content_filter`, or whatever else the endpoint says."""
    logprobs: Any
    """`choices[0].logprobs.content`, None where the endpoint tells none."""
    tokens: int | None
    """Tokens of the reply; None where the endpoint does not tell."""


class Endpoints:
    """What the judges and writers of one stage share: connections, requests in flight, account and budget."""

    def __init__(self, file: Path | None = None, *, spend: Callable[[Spent], None] | None = None) -> None:
        """file: the account, requests.jsonl; None: in memory alone. spend: told the cost of each request.

        Raises TrivetError for a damaged account.
        """
        self.requests = Requests(file)
        self.spend = spend
        self._lock = threading.Lock()
        self._budgets: dict[str, Budget] = {}
        self._connections: dict[tuple[str, str], Connection] = {}
        self._habits: dict[tuple[str, str], Habits] = {}
        for model, number in self.requests.lost.items():
            print(f"{number} request{'s' * (number != 1)} to {model} had no answer yet when the run before was killed: "
                  "counted as sent, their tokens are not known", flush=True)

    @classmethod
    def of(cls, run: Run) -> Endpoints:
        """Those of a stage, the same at each call: the account stands in its folder, and its ledger counts what the
        account counts. What a killed run had not yet told the ledger is told it now.
        """
        if run in _OF:
            return _OF[run]
        meter = run.meter

        def tell(cost: Spent) -> None:
            meter.endpoint(cost.model, requests=cost.requests, input_tokens=cost.input_tokens,
                           output_tokens=cost.output_tokens)

        endpoints = _OF[run] = cls(run.path("requests.jsonl"), spend=tell)
        for model, whole in endpoints.requests.spent.items():
            told = meter.endpoints.get(model, Calls())
            if meter.earlier is not None:
                told = told.plus(meter.earlier.endpoints.get(model, Calls()))
            tell(Spent(model=model, requests=max(whole.requests - told.requests, 0),
                       input_tokens=max(whole.input_tokens - told.input_tokens, 0),
                       output_tokens=max(whole.output_tokens - told.output_tokens, 0)))
        return endpoints

    def client(self, url: str, model: str, settings: EndpointSettings, *, field: str, kept: str,
               pause: float = PAUSE) -> Client:
        """One who asks `model` at `url`. field: what the settings are called in messages. kept: what a person who has
        to run the command again need not fear, such as `what was judged is kept`. pause: seconds before the first
        retry. Raises TrivetError for a key that no header can hold.
        """
        url = url.rstrip("/")
        key = os.environ.get(settings.key, "").strip() or "none"
        if not (key.isascii() and key.isprintable()):
            raise TrivetError("the key holds what no header can hold", field=f"{field}.key",
                              mend=f"put a valid key into the environment variable {settings.key}")
        with self._lock:
            connection = self._connections.setdefault((url, key), Connection(url, key))
            budget = self._budgets.setdefault(model, Budget(self.requests.of(model)))
            habits = self._habits.setdefault((url, model), Habits(f"{model} at {url}"))
        connection.bound(settings.concurrency)
        return Client(self, connection, budget, habits, model, settings, field=field, kept=kept, pause=pause)


_OF: weakref.WeakKeyDictionary[Run, Endpoints] = weakref.WeakKeyDictionary()


class Client:
    """Asks one model at one address, for one judge or writer. Made by `Endpoints.client`."""

    def __init__(self, endpoints: Endpoints, connection: Connection, budget: Budget, habits: Habits, model: str,
                 settings: EndpointSettings, *, field: str, kept: str, pause: float) -> None:
        self.model, self.url, self.name = model, connection.url, f"{model} at {connection.url}"
        self.settings, self.field, self.kept, self.pause = settings, field, kept, pause
        self._endpoints, self._connection, self._budget, self._habits = endpoints, connection, budget, habits
        self._limits = Limits(settings.requests, settings.tokens, field, kept)
        self._lock = threading.Lock()
        self.spent = Spent(model=model)
        """What this client has spent in this process."""

    def ask(self, messages: Sequence[Message], options: Mapping[str, Any], *, what: str, stop: threading.Event,
            land: Callable[[Reply], None] | None = None) -> Reply:
        """One reply, however often it has to be asked for. Threads may ask side by side.

        options: of the request, such as `temperature`; `max_tokens` is needed. what: is asked, in words. stop: set
        when no reply is wanted any more; Stopped is raised then. land: given each usable reply before the account says
        that the request is over: what it writes down is not lost to `kill -9` once the account has it; it may raise
        Again to have the request sent anew.

        Raises TrivetError for an endpoint that does not answer, or answers something else; for `messages` that its
        context can't hold; for a budget that is used up.
        """
        reason, tries = "", self.settings.retries + 1
        for attempt in range(tries):
            if attempt and stop.wait(min(self.pause * 2 ** (attempt - 1) * _JITTER.uniform(0.75, 1.25), MAX_PAUSE)):
                raise Stopped
            try:
                return self._send(messages, options, what, stop, land)
            except Again as error:
                reason = self._without_key(str(error))
                if error.after is not None and attempt + 1 < tries:
                    if error.after > MAX_WAIT:
                        raise TrivetError(f"{self.name} asks to wait {error.after:.0f} s ({reason})", field=self.field,
                                          mend=f"run the same command again then: {self.kept}") from None
                    self._connection.hold(error.after)
        raise TrivetError(f"{self.name} does not answer after {tries} tries ({reason})", field=f"{self.field}.by",
                          mend=f"see that the endpoint runs, then run the same command again: {self.kept}")

    def _send(self, messages: Sequence[Message], options: Mapping[str, Any], what: str, stop: threading.Event,
              land: Callable[[Reply], None] | None) -> Reply:
        """Send once (again only where an option has to be left out). Raises Again for what may pass."""
        turns = [{"role": m.role, "content": m.content} for m in messages]
        characters = sum(len(m.content) for m in messages)
        while True:
            sent = self._habits.fit(options)
            body = json.dumps({"model": self.model, "messages": turns, **sent}).encode()
            held = self._budget.enter(characters, int(options["max_tokens"]), self._limits, stop)
            if held is None:
                raise Stopped
            cost, known = Spent(model=self.model), False
            try:
                self._connection.enter(stop)
                try:
                    id, answered = self._endpoints.requests.send(self.model), False
                    tokens: tuple[int | None, int | None] = (None, None)
                    try:
                        found = self._exchange(body, id, sent, what)
                        if found is None:
                            continue  # an option was left out
                        reply, tokens = found
                        known, answered = tokens[0] is not None, True
                        if land is not None:
                            land(reply)
                        return reply
                    finally:
                        cost = self._endpoints.requests.over(id, self.model, answered=answered, tokens=tokens)
                        self._count(cost)
                finally:
                    self._connection.leave()
            finally:
                self._budget.leave(held, characters if known else 0, cost)

    def _without_key(self, said: str) -> str:
        """What an endpoint said, which may show the key that it was given."""
        key = self._connection.key
        return said if key == "none" else said.replace(key, "***")

    def _count(self, cost: Spent) -> None:
        with self._lock:
            self.spent += cost
            if self._endpoints.spend is not None:
                self._endpoints.spend(cost)

    def _exchange(self, body: bytes, id: str, sent: Mapping[str, Any],
                  what: str) -> tuple[Reply, tuple[int | None, int | None]] | None:
        """(reply, tokens in and out) of one request; None where it is to be sent anew without an option."""
        try:
            response = self._connection.post(body, id, self.settings.timeout)
        except NoAddress as error:
            raise TrivetError(f"{self.url!r} is no address: {error}", field=f"{self.field}.by",
                              mend="give the endpoint's base, such as http://localhost:8000/v1") from None
        if not 200 <= response.status < 300:
            self._refused(response, sent, what)
            return None
        value = _decoded(response.data)
        reply, tokens = _reply(value), _usage(value)
        if tokens[0] is None and self.settings.tokens is not None:
            raise TrivetError(f"{self.name} does not tell how many tokens it used: a budget of tokens can't be kept",
                              field=f"{self.field}.tokens",
                              mend=f"give a budget of requests instead: --{self.field}.requests N")
        return reply, tokens

    def _refused(self, response: urllib3.BaseHTTPResponse, sent: Mapping[str, Any], what: str) -> None:
        """Sort a status that is no success: raises Again or TrivetError; returns where an option was left out."""
        status, fault = response.status, _fault(response.data)
        said = self._without_key(fault["message"])
        codes = f"{fault['code']} {fault['type']}"
        if status == 429 and "insufficient_quota" in codes:
            raise TrivetError(f"{self.name} says that its quota is used up: {said}", field=f"{self.field}.key",
                              mend=f"see to the account, then run the same command again: {self.kept}")
        if status in (408, 409, 425, 429) or status >= 500:
            raise Again(f"status {status}: {said}", retry_after(response.headers))
        if "context_length_exceeded" in codes or any(w in said.lower() for w in ("context length", "context window")):
            raise TrivetError(f"{self.name} can't hold {what}: {said}", field=f"{self.field}.model",
                              mend="shorten or drop it, ask for fewer tokens, or take a model with a longer context")
        if status in (400, 422) and self._habits.learn(f"{fault['param']} {said}", sent):
            return
        mend = {
            401: f"put a valid key into the environment variable {self.settings.key}",
            403: f"see what the key in {self.settings.key} is allowed to do",
            404: "check the address (it ends before /chat/completions, often in /v1) and the model's name",
        }.get(status, "check the address, the model's name, and what the endpoint expects")
        raise TrivetError(f"{self.name} answers {what} with status {status}: {said}", field=f"{self.field}.by",
                          mend=mend)


# --- what an endpoint says -------------------------------------------------------------------------------


def check_endpoint(url: str, model: str | None, *, field: str) -> None:
    """Find out, without asking, whether settings name an endpoint. field: what they are called in messages.

    Raises TrivetError for an address that is none, and where the model's name there is missing.
    """
    try:
        parts = urlsplit(url)
        known = bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        known = False
    if not known:
        raise TrivetError(f"{url!r} is no address", field=f"{field}.by",
                          mend="give the endpoint's base, such as http://localhost:8000/v1")
    if not model:
        raise TrivetError(f"which model is {url} to be asked for?", field=f"{field}.model",
                          mend=f"give its name there: --{field}.model NAME")


def _decoded(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise Again(f"no JSON: {data[:100]!r}") from None


def _reply(body: Any) -> Reply:
    """The reply in a chat completion. Raises Again for a body of another form."""
    try:
        choice = body["choices"][0]
        text, finish = choice["message"].get("content"), choice.get("finish_reason")
        if text is None or isinstance(text, str):
            # half a surrogate pair, which JSON can hold, could not be written to any file
            text = None if text is None else text.encode("utf-8", "replace").decode()
            return Reply(text, str(finish), (choice.get("logprobs") or {}).get("content"), _usage(body)[1])
    except (KeyError, IndexError, TypeError, AttributeError):
        pass  # said below
    raise Again(f"no chat completion: {json.dumps(body)[:200]}")


def _usage(body: Any) -> tuple[int | None, int | None]:
    """(tokens in, tokens out) as the endpoint counts them; None for what it does not tell."""
    usage = body.get("usage") if isinstance(body, dict) else None
    found = [usage.get(name) if isinstance(usage, dict) else None for name in ("prompt_tokens", "completion_tokens")]
    known = [n if type(n) is int and n >= 0 else None for n in found]
    return known[0], known[1]


def _fault(data: bytes) -> dict[str, str]:
    """What an endpoint says of a failure, in any of the common forms: message, code, type, param."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        body = None
    error = body.get("error", body) if isinstance(body, dict) else body
    inner = error if isinstance(error, dict) else {}
    message = inner.get("message") or inner.get("detail") or (error if isinstance(error, str) else None)
    said = message if isinstance(message, str) else json.dumps(message) if message else data.decode("utf-8", "replace")
    return {"message": said[:300].strip() or "nothing more",
            **{name: str(inner.get(name) or "") for name in ("code", "type", "param")}}


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait by the headers `Retry-After-Ms` or `Retry-After` (seconds, or a date); None without them."""
    for name, scale in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) / scale
        except ValueError:
            try:
                seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
            except (ValueError, TypeError):
                continue
        if seconds == seconds:
            return max(seconds, 0.0)
    return None
