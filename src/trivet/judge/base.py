"""What is scored, and what scores: anything that takes samples and gives one number each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from trivet.artifacts import Message


@dataclass(frozen=True)
class Sample:
    """One answer to one prompt, as a reward sees it."""

    id: str
    messages: tuple[Message, ...]
    completion: str
    reference: str | None = None
    """The known answer, where there is one."""
    tags: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """The form in which a sample travels over HTTP."""
        return {"id": self.id, "messages": [m.model_dump() for m in self.messages],
                "completion": self.completion, "reference": self.reference, "tags": list(self.tags)}


class Reward(Protocol):
    """A reward: samples in, one finite number each out, in the same order. Higher is better."""

    def __call__(self, samples: Sequence[Sample]) -> Sequence[float]: ...
