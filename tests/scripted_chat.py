"""A `ChatModel` that says what a test tells it to, and remembers what it was asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from trivet.generate.config import Sampling
from trivet.serve.answering import Drawn, ToolCall, Turn

Says = str | tuple[ToolCall, ...]


class ScriptedChat:
    """Replies come from a list, one each, or from a function of the messages."""

    name = "scripted"

    def __init__(self, replies: Sequence[Says] | Callable[[Sequence[Turn]], Says], *, native_tools: bool = False,
                 logp: Callable[[str], float] | None = None) -> None:
        self.replies = replies if callable(replies) else list(replies)
        self.native_tools, self.scores, self.logp = native_tools, logp is not None, logp
        self.asked: list[list[Turn]] = []
        self.tools: list[Sequence[dict[str, Any]]] = []
        self.samplings: list[Sampling] = []

    async def draw(self, messages: Sequence[Turn], sampling: Sampling, *, n: int = 1, seed: int = 0,
                   tools: Sequence[dict[str, Any]] = ()) -> list[Drawn]:
        assert not tools or self.native_tools
        self.asked.append(list(messages))
        self.tools.append(tools)
        self.samplings.append(sampling)
        said = [self.replies(messages) if callable(self.replies) else self.replies.pop(0) for _ in range(n)]
        return [Drawn(s, True, 10, len(s.split())) if isinstance(s, str) else Drawn("", True, 10, 5, s) for s in said]

    async def score(self, messages: Sequence[Turn], answers: Sequence[str]) -> list[float]:
        assert self.logp is not None
        return [self.logp(a) for a in answers]
