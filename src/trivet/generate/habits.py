"""Which options of a request an endpoint's model takes, as found out by its refusals."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from typing import Any

_COMPLAINTS = {
    "response_format": ("response_format", "json_schema", "guided", "grammar"),
    "top_logprobs": ("logprobs",),
    "temperature": ("temperature",),
    "max_tokens": ("max_tokens",),
    "seed": ("seed",),
    "top_k": ("top_k",),
    "top_p": ("top_p",),
    "stop": ("stop",),
}
"""Words by which an endpoint names an option that it does not take."""
FEWER_LOGPROBS = 5
"""What `top_logprobs` is lowered to before it is left out: the other common limit."""


class Habits:
    """Fits requests to what is known, and learns from refusals. All who ask one model at one address share it."""

    def __init__(self, name: str) -> None:
        """name: of the model and its address, for what is said when an option is left out."""
        self.name = name
        self._lock = threading.Lock()
        self._left_out: set[str] = set()
        self._renamed: dict[str, str] = {}
        self._most: dict[str, int] = {}

    def takes(self, option: str) -> bool:
        """Whether an option is sent, as far as is known."""
        return option not in self._left_out

    def fit(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options as they are to be sent."""
        with self._lock:
            return dict(pair for name, value in options.items() if (pair := self._fitted(name, value)) is not None)

    def _fitted(self, name: str, value: Any) -> tuple[str, Any] | None:
        if name in self._left_out:
            return None
        return self._renamed.get(name, name), min(value, self._most[name]) if name in self._most else value

    def learn(self, said: str, sent: Mapping[str, Any]) -> bool:
        """Leave out, rename or lower the option that the endpoint complains of; False where none of those sent is
        meant. Options that another name or value may stand for are tried so first.
        """
        for name, words in _COMPLAINTS.items():
            if name not in sent or not any(re.search(rf"(?<![a-z]){w}(?![a-z])", said.lower()) for w in words):
                continue
            with self._lock:
                if self._fitted(name, sent[name]) != (name, sent[name]):
                    return True  # another request has seen to it
                if name == "max_tokens":
                    self._renamed[name] = "max_completion_tokens"
                elif name == "top_logprobs" and sent[name] > FEWER_LOGPROBS:
                    self._most[name] = FEWER_LOGPROBS
                else:
                    self._left_out |= {name, "logprobs"} if name == "top_logprobs" else {name}
                    print(f"{self.name} does not take {name!r}: it is left out", flush=True)
            return True
        return False
