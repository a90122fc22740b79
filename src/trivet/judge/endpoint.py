"""Any OpenAI-compatible endpoint as a judge, asked for a short structured verdict.

Where the endpoint tells log-probabilities of tokens, the verdict is the probability of its first label; else 1 or 0.
What an endpoint does not know (a schema for the reply, log-probabilities, temperature, max_tokens) is left out as
soon as it says so. Failures are retried with back-off, Retry-After is honoured, and requests in flight are bounded.
"""

from __future__ import annotations

import email.utils
import json
import os
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trivet.errors import TrivetError
from trivet.generate.in_flight import Stopped, ask_all
from trivet.judge.budget import Budget
from trivet.judge.cache import Keep, Line, Spent, Verdicts, gather
from trivet.judge.cases import Case
from trivet.judge.config import Judging
from trivet.judge.criteria import WORDING, word
from trivet.judge.reply import label_probability, read_verdict

PAUSE = 0.5
"""Seconds before the first retry; doubled with each one, up to MAX_PAUSE."""
MAX_PAUSE = 30.0
MAX_WAIT = 600.0
"""Longest Retry-After that is waited for, in seconds."""
PROMPT = 1
"""Version of what is sent beside the wording."""
REMINDER = "\n\nYour last reply was no verdict. Reply with the JSON object alone."


class _Again(Exception):
    """A failure that may pass. `after`: seconds that the endpoint asks to wait."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


@dataclass(frozen=True)
class _Reply:
    text: str
    tokens: Any
    finish: str


class EndpointJudge:
    """Asks `settings.model` at `settings.by` (the endpoint's base, such as http://localhost:8000/v1)."""

    grades, symmetric, sees_ids, reads_criterion = True, False, False, True

    def __init__(self, settings: Judging, *, field: str = "judge", verdicts: Verdicts | None = None,
                 spend: Callable[[Spent], None] | None = None, pause: float = PAUSE) -> None:
        """field: what the settings are called in messages. verdicts: where what each request cost is written, and read
        for the budget. spend: told the cost of each request. pause: seconds before the first retry.
        """
        assert settings.by is not None and settings.model is not None, "judge.ask.check comes first"
        self.settings, self.field, self.verdicts, self.pause = settings, field, verdicts, pause
        self.url, self.model = settings.by.rstrip("/"), settings.model
        self.name = f"{self.model} at {self.url}"
        self._spend = spend
        before = (verdicts.spent if verdicts else {}).get(self.model, Spent(model=self.model))
        self._before, self._budget = before, Budget(before, settings.requests, settings.tokens, field=field)
        self._lock = threading.Lock()
        self._hold_until = 0.0
        self._client: Any = None
        self._key = os.environ.get(settings.key, "").strip() or "none"
        if not (self._key.isascii() and self._key.isprintable()):
            raise TrivetError("the key holds what no header can hold", field=f"{field}.key",
                              mend=f"put a valid key into the environment variable {settings.key}")
        self._options: dict[str, Any] = {"temperature": 0, "max_tokens": settings.answer_tokens, "logprobs": True,
                                         "top_logprobs": 20, "response_format": None}

    @property
    def identity(self) -> Mapping[str, Any]:
        """The address, the model's name, and the version of what is asked."""
        return {"kind": "endpoint", "url": self.url, "model": self.model, "wording": WORDING, "prompt": PROMPT,
                "longest": self.settings.longest}

    @property
    def spent(self) -> Spent:
        """What this process has spent, without earlier runs."""
        now, before = self._budget.spent, self._before
        return Spent(model=self.model, requests=now.requests - before.requests,
                     input_tokens=now.input_tokens - before.input_tokens,
                     output_tokens=now.output_tokens - before.output_tokens)

    def __call__(self, cases: Sequence[Case]) -> list[float]:
        """See Judge."""
        return gather(self, cases)

    def ask(self, cases: Sequence[Case], keep: Keep) -> None:
        """See Asking: `concurrency` requests in flight, verdicts handed on as they come.

        When one request fails for good no new one is sent, those in flight are waited for, and then it is raised.
        Ctrl-C is raised at once. Raises TrivetError for an endpoint that does not answer, or answers something else;
        a model that gives no verdict; a budget that is used up.
        """
        self._connect()
        failures = ask_all(range(len(cases)), lambda i, stop: self._verdict(cases[i], stop),
                           lambda i, verdict: keep([(i, verdict)]), self.settings.concurrency)
        if failures:
            raise failures[0]

    # --- one case ----------------------------------------------------------------------------------------

    def _verdict(self, case: Case, stop: threading.Event) -> float:
        worded = word(case, longest=self.settings.longest, as_json=True)
        text, reply = worded.text, None
        for _ in range(self.settings.retries + 1):
            reply = self._request(text, worded.labels, stop)
            verdict = read_verdict(reply.text, worded.labels)
            if verdict is not None:
                p = label_probability(reply.tokens, worded.labels)
                return float(verdict[0] == worded.labels[0]) if p is None else p
            text = worded.text + REMINDER
        assert reply is not None
        short = reply.finish == "length"
        raise TrivetError(
            f"{self.name} gave no verdict on case {case.id!r} in {self.settings.retries + 1} tries, it said: "
            f"{reply.text[:200]!r}{' … and was cut off' if short else ''}", field=f"{self.field}.model",
            expected=f'{{"verdict": "{worded.labels[0]}"}} or {{"verdict": "{worded.labels[1]}"}}',
            mend=f"raise {self.field}.answer_tokens: the model needs more room before its verdict" if short
            else "take a model that follows such instructions")

    def _request(self, text: str, labels: tuple[str, str], stop: threading.Event) -> _Reply:
        """One reply, however often it has to be asked for."""
        reason = ""
        tries = self.settings.retries + 1
        for attempt in range(tries):
            if attempt:
                self._pause(self.pause * 2 ** (attempt - 1) * random.uniform(0.75, 1.25), stop)
            try:
                return self._send(text, labels, stop)
            except _Again as error:
                reason = str(error)
                if error.after is not None and attempt + 1 < tries:
                    if error.after > MAX_WAIT:
                        raise TrivetError(f"{self.name} asks to wait {error.after:.0f} s ({reason})", field=self.field,
                                          mend="run the same command again then: what was judged is kept") from None
                    with self._lock:  # for all requests: the endpoint is busy, not this case difficult
                        self._hold_until = max(self._hold_until, time.monotonic() + error.after)
        raise TrivetError(f"{self.name} does not answer after {tries} tries ({reason})", field=f"{self.field}.by",
                          mend="see that the endpoint runs, then run the same command again: what was judged is kept")

    def _pause(self, seconds: float, stop: threading.Event) -> None:
        if stop.wait(min(seconds, MAX_PAUSE)):
            raise Stopped

    # --- one request -------------------------------------------------------------------------------------

    def _connect(self) -> None:
        if self._client is None:
            import openai

            try:
                self._client = openai.OpenAI(base_url=self.url, api_key=self._key, max_retries=0,
                                             timeout=self.settings.timeout)
            except Exception as error:  # the HTTP library's own errors for addresses that are none
                raise TrivetError(f"{self.url!r} is no address: {error}", field=f"{self.field}.by",
                                  mend="give the endpoint's base, such as http://localhost:8000/v1") from None

    def _send(self, text: str, labels: tuple[str, str], stop: threading.Event) -> _Reply:
        """Send once (again only where an option has to be left out). Raises _Again for what may pass."""
        import openai

        while True:
            while (wait := self._hold_until - time.monotonic()) > 0:
                if stop.wait(wait):
                    raise Stopped
            with self._lock:
                sent = dict(self._options)
            held = self._budget.enter(len(text), self.settings.answer_tokens, stop)
            if held is None:
                raise Stopped
            cost = Spent(model=self.model, requests=1)
            characters = 0
            try:
                raw = self._client.chat.completions.with_raw_response.create(
                    model=self.model, messages=[{"role": "user", "content": text}], **_filled(sent, labels))
                body = _decoded(raw.http_response)
                cost, characters = self._usage(body, cost), len(text)
                return _reply(body)
            except openai.APITimeoutError:
                raise _Again(f"no answer in {self.settings.timeout:g} s") from None
            except openai.APIConnectionError as error:
                raise _Again(f"no connection: {error.__cause__ or error}") from None
            except openai.APIStatusError as error:
                self._refused(error, sent)  # returns where it left an option out
            finally:
                # what a request cost is written down even when nothing came of it
                self._budget.leave(held, characters, cost)
                if self.verdicts is not None:
                    self.verdicts.add([Line(spent=cost)])
                if self._spend is not None:
                    with self._lock:
                        self._spend(cost)

    def _usage(self, body: Any, cost: Spent) -> Spent:
        usage: Any = body.get("usage") if isinstance(body, dict) else None
        try:
            return Spent(model=self.model, requests=1, input_tokens=usage["prompt_tokens"],
                         output_tokens=usage.get("completion_tokens") or 0)
        except (TypeError, KeyError, AttributeError, ValueError):
            if self.settings.tokens is not None and isinstance(body, dict) and "choices" in body:
                raise TrivetError(f"{self.name} does not tell how many tokens it used: a budget of tokens can't be "
                                  "kept", field=f"{self.field}.tokens",
                                  mend=f"give a budget of requests instead: --{self.field}.requests N") from None
            return cost

    def _refused(self, error: Any, sent: dict[str, Any]) -> None:
        """Sort a status that is no success: raises _Again or TrivetError; returns where sending again may help."""
        status, said = error.status_code, _said(error)
        if self._key != "none":
            said = said.replace(self._key, "***")
        if status == 429 and "insufficient_quota" in f"{error.code} {error.type}":
            raise TrivetError(f"{self.name} says that its quota is used up: {said}", field=f"{self.field}.key",
                              mend="see to the account, then run the same command again: what was judged is kept")
        if status in (408, 409, 429) or status >= 500:
            raise _Again(f"status {status}: {said}", _retry_after(error.response.headers))
        if status in (400, 422) and self._leave_out(f"{error.param} {said}".lower(), sent):
            return
        mend = {
            401: f"put a valid key into the environment variable {self.settings.key}",
            403: f"see what the key in {self.settings.key} is allowed to do",
            404: "check the address (it ends before /chat/completions, often in /v1) and the model's name",
        }.get(status, "check the address, the model's name, and what the endpoint expects")
        raise TrivetError(f"{self.name} answers status {status}: {said}", field=f"{self.field}.by", mend=mend)

    def _leave_out(self, said: str, sent: dict[str, Any]) -> bool:
        """Leave out, or lower, the option that the endpoint complains of; False where there is none that was sent."""
        for words, name in ((("response_format", "json_schema", "guided", "grammar"), "response_format"),
                            (("logprobs",), "top_logprobs"), (("temperature",), "temperature"),
                            (("max_tokens",), "max_tokens")):
            if name not in sent or not any(w in said for w in words):
                continue
            with self._lock:
                if self._options.get(name, self) != sent[name]:
                    return True  # another request has seen to it
                if name == "max_tokens":  # its new name
                    self._options["max_completion_tokens"] = self._options.pop(name)
                elif name == "top_logprobs" and sent[name] > 5:
                    self._options[name] = 5  # the other common limit
                else:
                    del self._options[name]
                    if name == "top_logprobs":
                        self._options.pop("logprobs", None)
            return True
        return False


def _filled(options: Mapping[str, Any], labels: tuple[str, str]) -> dict[str, Any]:
    """The options of one request: the schema of its labels in place."""
    found = dict(options)
    if "response_format" in found:
        schema = {"type": "object", "properties": {"verdict": {"type": "string", "enum": list(labels)}},
                  "required": ["verdict"], "additionalProperties": False}
        found["response_format"] = {"type": "json_schema",
                                    "json_schema": {"name": "verdict", "strict": True, "schema": schema}}
    return found


def _decoded(response: Any) -> Any:
    try:
        return json.loads(response.content)
    except (ValueError, RecursionError):
        raise _Again(f"no JSON: {response.content[:100]!r}") from None


def _reply(body: Any) -> _Reply:
    """The reply in a chat completion. Raises _Again for a body of another form."""
    try:
        choice = body["choices"][0]
        text = choice["message"].get("content")
        logprobs = choice.get("logprobs") or {}
        if text is None or isinstance(text, str):
            return _Reply(text or "", logprobs.get("content"), str(choice.get("finish_reason")))
    except (KeyError, IndexError, TypeError, AttributeError):
        pass  # said below
    raise _Again(f"no chat completion: {json.dumps(body)[:200]}")


def _said(error: Any) -> str:
    body = error.body
    if isinstance(body, dict) and isinstance(body.get("message"), str):
        return str(body["message"])[:300]
    return error.response.text[:300].strip() or "nothing more"


def _retry_after(headers: Mapping[str, str]) -> float | None:
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
