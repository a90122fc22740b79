"""What OpenAI's clients send, checked: what is supported, what does no harm, and what is refused in words.

Names and meanings are those of OpenAI's API reference (chat completions, completions).
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trivet.artifacts import Message
from trivet.errors import TrivetError
from trivet.generate.config import Sampling
from trivet.serve.answering import Called, Observed, ToolCall, Turn

REFUSED = {"logit_bias", "functions", "function_call", "modalities", "audio", "prediction", "web_search_options",
           "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty", "suffix", "verbosity",
           "reasoning_effort", "prompt_logprobs", "guided_json", "guided_regex", "structured_outputs"}
"""What would change the answer and is not there: refused unless it says 'nothing' (null, 0, empty)."""


class _Body(BaseModel):
    model_config = ConfigDict(extra="allow")

    model: str = Field(min_length=1)
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    n: int | None = Field(None, ge=1, le=128)
    seed: int | None = None
    temperature: float | None = Field(None, ge=0, le=10)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    max_tokens: int | None = Field(None, ge=1)
    stop: str | list[str] | None = None

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with a chunk that counts tokens."""
        return bool((self.stream_options or {}).get("include_usage"))

    def sampling(self, defaults: Sampling) -> Sampling:
        """How answers are drawn: what the request says, over the server's defaults."""
        said = {"temperature": self.temperature, "top_p": self.top_p, "max_new_tokens": self.limit,
                "top_k": None if self.top_k is None else max(self.top_k, 0),
                "stop": [self.stop] if isinstance(self.stop, str) else self.stop}
        return Sampling.model_validate(defaults.model_dump() | {k: v for k, v in said.items() if v is not None})

    @property
    def limit(self) -> int | None:
        """New tokens at most, where the request says."""
        return self.max_tokens


class _Function(BaseModel):
    name: str = Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(BaseModel):
    """A tool on offer."""

    type: Literal["function"]
    function: _Function


class _AskedCall(BaseModel):
    id: str
    type: Literal["function"] = "function"
    function: dict[str, Any]


class _Part(BaseModel):
    type: str
    text: str | None = None


class ChatTurn(BaseModel):
    """A message as it is sent."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[_Part] | None = None
    name: str | None = None
    tool_calls: list[_AskedCall] | None = None
    tool_call_id: str | None = None


class ResponseFormat(BaseModel):
    """The form that an answer must have."""

    type: str


class ChatRequest(_Body):
    """POST /v1/chat/completions."""

    messages: list[ChatTurn] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: ResponseFormat | None = None
    steps: bool = False
    """Ours: a stream also holds what happens on the way (searches, programs, tools), in chunks' `trivet`."""

    @property
    def limit(self) -> int | None:
        """See _Body."""
        return self.max_completion_tokens or self.max_tokens

    def turns(self) -> list[Turn]:
        """The conversation. Raises TrivetError for parts that are no text, and for a tool's turn without its call."""
        found: list[Turn] = []
        names: dict[str, str] = {}
        for k, turn in enumerate(self.messages):
            text = _text(turn, k)
            if turn.role == "tool":
                if turn.tool_call_id not in names:
                    raise TrivetError("a tool's message answers no call before it", field=f"messages.{k}.tool_call_id",
                                      expected="the id of a call in an assistant's message",
                                      mend="send the assistant's message with its tool_calls, too")
                found.append(Observed(turn.tool_call_id, names[turn.tool_call_id], text))
            elif turn.role == "assistant" and turn.tool_calls:
                calls = tuple(ToolCall(c.id, str(c.function.get("name", "")), str(c.function.get("arguments", "{}")))
                              for c in turn.tool_calls)
                names |= {c.id: c.name for c in calls}
                found.append(Called(calls, text))
            else:
                role: Any = "system" if turn.role == "developer" else turn.role
                found.append(Message(role=role, content=text))
        return found


class CompletionRequest(_Body):
    """POST /v1/completions: a text (or token ids) is continued, no chat template stands before it."""

    prompt: Annotated[str | list[str] | list[int] | list[list[int]], Field(union_mode="left_to_right")] = ""
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool | None = None
    best_of: int | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt by itself."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [[int(i) for i in self.prompt]]
        return [p if isinstance(p, str) else [int(i) for i in p] for p in self.prompt]  # type: ignore[union-attr]


def _text(turn: ChatTurn, place: int) -> str:
    if turn.content is None:
        return ""
    if isinstance(turn.content, str):
        return turn.content
    for part in turn.content:
        if part.type not in ("text", "input_text", "output_text") or part.text is None:
            raise TrivetError(f"this model reads text, not {part.type!r}", field=f"messages.{place}.content",
                              expected="text", mend="leave other parts out")
    return "".join(part.text or "" for part in turn.content)


def read(kind: type[_Body], body: bytes) -> Any:
    """A request from its body. Raises TrivetError naming the field."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise TrivetError("the body is no JSON", field="body", expected="a JSON object",
                          mend="send the request as OpenAI's clients do") from None
    if not isinstance(value, dict):
        raise TrivetError("the body is no JSON object", field="body", expected="a JSON object",
                          mend="send the request as OpenAI's clients do")
    try:
        request = kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        raise TrivetError(str(first["msg"]), field=".".join(str(p) for p in first["loc"]) or "body",
                          mend="see OpenAI's reference of this request") from None
    for name in sorted(REFUSED & set(value)):
        if value[name] not in (None, 0, 0.0, 1, {}, [], "") or (name != "repetition_penalty" and value[name] == 1):
            raise TrivetError(f"{name} is not supported by this server", field=name, mend="leave it out")
    if isinstance(request, ChatRequest):
        if request.response_format is not None and request.response_format.type != "text":
            raise TrivetError("answers can't be held to a form", field="response_format", expected="text",
                              mend="leave it out, and ask for the form in words")
        if request.tool_choice not in (None, "auto", "none"):
            raise TrivetError("a model can't be made to call a tool", field="tool_choice", expected="auto or none",
                              mend="leave it out")
    if isinstance(request, CompletionRequest):
        if request.echo and request.logprobs is not None:
            raise TrivetError("log-probabilities of the prompt are not told", field="echo", mend="leave echo out")
        if request.best_of not in (None, 1, request.n):
            raise TrivetError("best_of is not supported by this server", field="best_of", mend="leave it out")
    stops = request.stop if isinstance(request.stop, list) else [request.stop] if request.stop is not None else []
    if len(stops) > 16 or not all(stops):
        raise TrivetError("these stop strings are not understood", field="stop",
                          expected="up to 16 texts, none of them empty", mend="leave out empty ones")
    return request
