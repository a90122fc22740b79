"""The JSON of OpenAI's interface: chunks, whole answers, log-probabilities, errors."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from trivet.errors import TrivetError
from trivet.serve.answering import Reply, Step, ToolCall
from trivet.serve.batching import Likely, QueueFull, Stopping, Token
from trivet.serve.limits import Refused

DONE = b"data: [DONE]\n\n"
ALIVE = b": keep-alive\n\n"
"""A comment, which readers of event streams leave out."""


@dataclass
class Head:
    """What all parts of one answer share."""

    prefix: str
    object: str
    model: str
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.id = f"{self.prefix}-{secrets.token_hex(12)}"

    def part(self, choices: Sequence[Mapping[str, Any]], **more: Any) -> dict[str, Any]:
        """A chunk, or the whole."""
        return {"id": self.id, "object": self.object, "created": self.created, "model": self.model,
                "choices": list(choices), **more}


def event(value: Mapping[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def usage(prompt: int, generated: int) -> dict[str, int]:
    """Tokens in and out."""
    return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}


def reason(token: Token) -> str | None:
    """Why an answer ended, None where it has not."""
    return None if not token.finished else "stop" if token.ended else "length"


def calls_json(calls: Sequence[ToolCall], *, numbered: bool) -> list[dict[str, Any]]:
    """Tool calls; numbered: as chunks have them."""
    return [({"index": k} if numbered else {}) | {"id": c.id, "type": "function", "function": {
        "name": c.name, "arguments": c.arguments}} for k, c in enumerate(calls)]


class Logprobs:
    """Log-probabilities of one answer's tokens, in the chat's form and in the older one of plain completions."""

    def __init__(self, tokenizer: Any, stops: frozenset[int]) -> None:
        self.tokenizer, self.stops = tokenizer, stops
        self.content: list[dict[str, Any]] = []
        self.old: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        self._length = 0

    def add(self, token: Token) -> None:
        """A token more; the one that ends an answer is not told, as it has no text."""
        if token.likely is None or token.id in self.stops:
            return
        text = self._text(token.id)
        self.content.append(self._one(token.likely) | {"top_logprobs": [self._one(t) for t in token.top]})
        for name, value in (("tokens", text), ("token_logprobs", token.likely.logp), ("text_offset", self._length),
                            ("top_logprobs", {self._text(t.id): t.logp for t in token.top} or None)):
            self.old[name].append(value)
        self._length += len(text)

    def take(self) -> dict[str, Any] | None:
        """What came since it was last taken, in the chat's form; None: nothing."""
        found, self.content = self.content, []
        return {"content": found, "refusal": None} if found else None

    def take_old(self) -> dict[str, list[Any]] | None:
        """The same in the older form."""
        found, self.old = self.old, {name: [] for name in self.old}
        return found if found["tokens"] else None

    def _one(self, likely: Likely) -> dict[str, Any]:
        text = self._text(likely.id)
        return {"token": text, "logprob": likely.logp, "bytes": None if "�" in text else list(text.encode())}

    def _text(self, token: int) -> str:
        return str(self.tokenizer.decode([token]))


def step_json(step: Step) -> dict[str, Any]:
    """A step, for the page and whoever asked for steps."""
    return asdict(step)


def reply_json(reply: Reply, *, steps: bool = True) -> dict[str, Any]:
    """What a way adds to its text."""
    found: dict[str, Any] = {"sources": [asdict(s) for s in reply.sources], "abstained": reply.abstained,
                             "fell_back": reply.fell_back}
    return found | ({"steps": [step_json(s) for s in reply.steps]} if steps else {})


def error_json(error: TrivetError) -> tuple[int, dict[str, Any], dict[str, str]]:
    """(status, body, headers) of an error, in OpenAI's form."""
    status, kind, code, headers = 400, "invalid_request_error", None, dict[str, str]()
    if isinstance(error, Refused):
        status, kind = error.status, error.kind
        if error.after is not None:
            headers["Retry-After"] = str(max(1, round(error.after)))
        if status == 401:
            code, headers["WWW-Authenticate"] = "invalid_api_key", "Bearer"
    elif isinstance(error, QueueFull):
        status, kind, code, headers = 429, "rate_limit_error", "queue_full", {"Retry-After": "1"}
    elif isinstance(error, Stopping):
        status, kind, headers = 503, "server_error", {"Retry-After": "5"}
    elif error.field == "model" and "failed" in error.what:
        status, kind = 500, "server_error"
    elif "room for" in error.what or "longer than" in error.what:
        code = "context_length_exceeded"
    message = f"{error.what}; {error.mend}" + (f" (expected: {error.expected})" if error.expected else "")
    return status, {"error": {"message": message, "type": kind, "param": error.field, "code": code}}, headers
