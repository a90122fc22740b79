"""Tool calls in a model's own form: how its chat template is told of tools, and how its calls are read.

Which form a template has is tried and not looked up: it is rendered with a made-up tool, and knows tools if the tool's
name appears. Calls are read in the forms that the field's templates teach their models:

    <tool_call>{"name": …, "arguments": {…}}</tool_call>      Hermes, Qwen, SmolLM3 and many others
    [TOOL_CALLS][{"name": …, "arguments": {…}}]               Mistral
    <|python_tag|>{"name": …, "parameters": {…}}, or bare     Llama 3.1 and later
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from trivet.artifacts import Message
from trivet.errors import TrivetError
from trivet.serve.answering import Called, Observed, ToolCall, Turn

STARTS = ("<tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "{")
"""What an answer that calls a tool may begin with."""
_HERMES = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|\Z)", re.DOTALL)
_PROBE = "trivet_probe_tool"
MOST = 16
"""Calls that are read out of one answer."""


def knows_tools(tokenizer: Any) -> bool:
    """Whether the chat template tells the model of tools, and takes a tool's result as a turn."""
    tool = {"type": "function", "function": {"name": _PROBE, "description": "x", "parameters": {
        "type": "object", "properties": {}}}}
    turns: list[Turn] = [Message(role="user", content="x"), Called((ToolCall("c1", _PROBE, "{}"),)),
                         Observed("c1", _PROBE, "trivet probe result")]
    try:
        text = render(tokenizer, turns, [tool])
        without = render(tokenizer, turns[:1], ())
    except TrivetError:
        return False
    return text.count(_PROBE) >= 2 and "trivet probe result" in text and _PROBE not in without


def render(tokenizer: Any, turns: Sequence[Turn], tools: Sequence[dict[str, Any]] = ()) -> str:
    """A conversation up to where the answer begins, in the words of the model's template.

    Raises TrivetError for a template that refuses it.
    """
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template([_template_dict(t) for t in turns], tokenize=False,
                                                 add_generation_prompt=True, tools=list(tools) or None))
    except (TemplateError, TypeError, ValueError, KeyError) as error:
        roles = ", ".join(turn_json(t)["role"] for t in turns)
        raise TrivetError(f"the model's chat template refuses this conversation ({roles}): {error}", field="messages",
                          mend="leave out what it can't take (often the system's turn, two turns of one speaker in a "
                          "row, or tools)") from None


def turn_json(turn: Turn) -> dict[str, Any]:
    """A turn as OpenAI's interface has it."""
    if isinstance(turn, Called):
        return {"role": "assistant", "content": turn.text or None, "tool_calls": [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
            for c in turn.calls]}
    if isinstance(turn, Observed):
        return {"role": "tool", "tool_call_id": turn.id, "name": turn.name, "content": turn.text}
    return {"role": turn.role, "content": turn.content}


def _template_dict(turn: Turn) -> dict[str, Any]:
    """A turn as chat templates take it: arguments are objects there, where they are JSON at all."""
    found = turn_json(turn)
    for call in found.get("tool_calls", ()):
        with suppress(ValueError):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    if isinstance(turn, Called):
        found["content"] = turn.text
    return found


def may_call(text: str) -> bool:
    """Whether an answer that begins so may yet turn out to be a call: it is held back until that is known."""
    text = text.lstrip()
    return any(text.startswith(s) or s.startswith(text) for s in STARTS)


def read_calls(text: str, names: Sequence[str], prefix: str) -> tuple[str, tuple[ToolCall, ...]]:
    """The words of an answer, and the calls in it. names: tools that were offered. prefix: of the calls' ids.

    What looks like a call and is none (broken JSON, a bare object that names no tool on offer) stays text, but for
    a marked one with a name: its arguments are handed on as they are, since their reader can say what is wrong.
    """
    found: list[tuple[str, str]] = []
    words = text
    if "<tool_call>" in text:
        for body in _HERMES.findall(text):
            found += _calls_in(body, names, marked=True)
        words = _HERMES.sub("", text) if found else text
    elif "[TOOL_CALLS]" in text:
        words, _, body = text.partition("[TOOL_CALLS]")
        found = _calls_in(body.strip(), names, marked=True)
    elif text.lstrip().startswith(("<|python_tag|>", "{")):
        found = _calls_in(text.strip().removeprefix("<|python_tag|>"), names, marked=False)
        words = "" if found else text
    if not found:
        return text, ()
    return words.strip(), tuple(ToolCall(f"{prefix}{k}", name, arguments)
                                for k, (name, arguments) in enumerate(found[:MOST]))


def _calls_in(body: str, names: Sequence[str], *, marked: bool) -> list[tuple[str, str]]:
    """(name, arguments) of each call in one block."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        named = re.match(r'\s*\[?\s*\{\s*"name"\s*:\s*"([\w.-]+)"\s*,\s*"(?:arguments|parameters)"\s*:\s*', body)
        if marked and named and named[1] in names:
            return [(named[1], body[named.end():].rstrip().removesuffix("}").rstrip())]
        return []
    calls = []
    for one in value if isinstance(value, list) else [value]:
        name = one.get("name") if isinstance(one, dict) else None
        arguments = one.get("arguments", one.get("parameters", {})) if isinstance(one, dict) else None
        if not isinstance(name, str) or (not marked and name not in names):
            return []
        calls.append((name, arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)))
    return calls
