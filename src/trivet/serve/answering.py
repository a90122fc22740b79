"""What answers a conversation: a model, or a way of using one (retrieval, a program, an agent). Types alone.

    ChatModel   draws answers to messages, and scores given ones; an engine of `generate/`, or an endpoint
    Way         turns a conversation into one `Reply`, and says each `Step` as it happens

A way knows the model by this interface alone, so that it is tested with a scripted one, and works behind the server,
from the command line and in a notebook alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from trivet.artifacts import Message
from trivet.generate.config import Sampling

StepKind = Literal["search", "program", "tool", "thought", "check", "note"]


@dataclass(frozen=True)
class Step:
    """Something that happened on the way to an answer, to be shown to people and kept in the trace."""

    kind: StepKind
    title: str
    """One line: what was done."""
    text: str = ""
    """What came of it: passages found, a program, its values, a tool's result."""
    data: dict[str, Any] = field(default_factory=dict)
    """The same for machines; JSON."""


@dataclass(frozen=True)
class Source:
    """A passage that an answer cites."""

    number: int
    """The n of [n] in the text."""
    title: str
    location: str
    """Where it stands: a path or URL, with page or heading."""
    text: str
    modified: str | None = None
    """When its document was last changed, ISO 8601."""


@dataclass(frozen=True)
class ToolCall:
    """A call that a model asks for by its template's own form."""

    id: str
    name: str
    arguments: str
    """JSON as the model wrote it: it may be malformed."""


@dataclass(frozen=True)
class Called:
    """A turn of the assistant that asks for tools."""

    calls: tuple[ToolCall, ...]
    text: str = ""


@dataclass(frozen=True)
class Observed:
    """What a tool gave, as the turn that follows a `Called`."""

    id: str
    """Of the call."""
    name: str
    text: str


Turn = Message | Called | Observed
"""A turn of a conversation that a model is asked to go on with; the last two where it has `native_tools` alone."""


@dataclass(frozen=True)
class Drawn:
    """One answer of a model."""

    text: str
    ended: bool
    """False: cut off at max_new_tokens."""
    prompt_tokens: int
    tokens: int
    calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True)
class Reply:
    """What a way ends with."""

    text: str
    sources: tuple[Source, ...] = ()
    steps: tuple[Step, ...] = ()
    """All that were said, in order."""
    abstained: bool = False
    """No answer could be given; the text says so."""
    fell_back: str | None = None
    """Why the way's own means were not used and plain words answer instead; None where they were."""
    prompt_tokens: int = 0
    tokens: int = 0


class ChatModel(Protocol):
    """A model that answers conversations. All calls are asynchronous: the server asks many at a time."""

    name: str
    native_tools: bool
    """Its chat template knows tools: `draw` takes them, and `Drawn.calls` holds what was asked for."""
    scores: bool
    """`score` works."""

    async def draw(self, messages: Sequence[Turn], sampling: Sampling, *, n: int = 1, seed: int = 0,
                   tools: Sequence[dict[str, Any]] = ()) -> list[Drawn]:
        """n answers. tools: JSON schemas as OpenAI's `tools`; refused where `native_tools` is False.

        Raises TrivetError where the conversation does not fit the model's context.
        """

    async def score(self, messages: Sequence[Turn], answers: Sequence[str]) -> list[float]:
        """The summed log-probability of each answer's tokens after the messages, in nats, at temperature 1."""


Say = Callable[[Step], None]


class Way(Protocol):
    """A way from a conversation to a reply."""

    async def answer(self, messages: Sequence[Message], model: ChatModel, sampling: Sampling, *, seed: int = 0,
                     say: Say = lambda step: None) -> Reply:
        """The reply to the last message. say: told each step as it happens; `Reply.steps` holds the same."""
