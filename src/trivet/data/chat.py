"""How a conversation becomes tokens: the model's own chat template, and where there is none a plain one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trivet.artifacts import Message
from trivet.errors import TrivetError

# For base models without a chat template; the end token closes an answer, so that a model can learn to stop.
PLAIN_TEMPLATE = (
    "{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}Assistant: {{ m['content'] }}{{ eos_token }}\n"
    "{% elif m['role'] == 'system' %}{{ m['content'] }}\n"
    "{% else %}User: {{ m['content'] }}\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}Assistant: {% endif %}"
)


def ensure_template(tokenizer: Any) -> bool:
    """Give a tokenizer without a chat template the plain one; True if it had to be given."""
    if tokenizer.chat_template:
        return False
    tokenizer.chat_template = PLAIN_TEMPLATE
    return True


def as_dicts(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.content} for m in messages]


def chat_text(tokenizer: Any, messages: Sequence[Message], *, open_answer: bool = False) -> str:
    """A conversation in the words of the model's chat template; open_answer: with the head of an answer to come.

    Raises TrivetError for a template that is broken or refuses the conversation.
    """
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(as_dicts(messages), tokenize=False, add_generation_prompt=open_answer))
    except (TemplateError, TypeError) as error:
        roles = ", ".join(m.role for m in messages)
        raise TrivetError(f"the model's chat template refuses this conversation ({roles}): {error}", field="messages",
                          mend="leave out what it can't take (often the system's turn, or two turns of one speaker in "
                          "a row), or mend chat_template in the model's folder") from error


def prompt_ids(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Token ids of a conversation up to where the assistant's answer begins."""
    text = chat_text(tokenizer, messages, open_answer=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def dialogue_ids(tokenizer: Any, messages: Sequence[Message], answer: str) -> tuple[list[int], int]:
    """Token ids of a conversation with its answer and end mark, and how many of them are the prompt's.

    The answer is tokenized apart from the prompt, so that the prompt's ids are the same for every answer.
    White space that the template puts after the end mark is dropped.
    """
    prompt_text = chat_text(tokenizer, messages, open_answer=True)
    whole = chat_text(tokenizer, [*messages, Message(role="assistant", content=answer)])
    if not whole.startswith(prompt_text):
        # A template that changes earlier turns (such as one that drops old reasoning): close it ourselves
        whole = prompt_text + answer + tokenizer.eos_token
    prompt = tokenizer(prompt_text, add_special_tokens=False)["input_ids"]
    rest = tokenizer(whole[len(prompt_text):].rstrip("\n "), add_special_tokens=False)["input_ids"]
    return [*prompt, *rest], len(prompt)


def stop_token_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end an answer: the generation configuration's and the tokenizer's end tokens."""
    stops: set[int] = {int(tokenizer.eos_token_id)}
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if isinstance(configured, int):
        stops.add(configured)
    elif configured:
        stops.update(int(i) for i in configured)
    return frozenset(stops)


def context_length(model: Any) -> int | None:
    """The longest sequence the model was made for, where its configuration says so."""
    config = model.config.get_text_config()
    return getattr(config, "max_position_embeddings", None)


def require_room(
    lengths: Sequence[int], new_tokens: int, context: int | None, *, file: Path | str | None, ids: Sequence[str],
    setting: str = "sampling.max-new-tokens",
) -> None:
    """Raise TrivetError naming the first prompt that leaves no room for the answer in the context."""
    if context is None:
        return
    for length, name in zip(lengths, ids, strict=True):
        if length + new_tokens > context:
            raise TrivetError(
                f"prompt {name!r} has {length} tokens; with {new_tokens} new ones it is longer than the "
                f"model's context of {context}", file=file, field="messages",
                mend=f"shorten or drop this prompt, or lower --{setting}")


def conversation_ids(tokenizer: Any, messages: Sequence[Message], *, last_only: bool = False) -> tuple[
        list[int], list[bool]]:
    """Token ids of a whole conversation, and for each whether the assistant wrote it (its end mark included).

    last_only: mark what the last message alone holds, not earlier turns of the assistant.

    Raises ValueError where the chat template does not build a conversation turn by turn.
    """
    ids: list[int] = []
    written: list[bool] = []
    done = ""

    def add(text: str, by_assistant: bool) -> None:
        found = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids.extend(found)
        written.extend([by_assistant] * len(found))

    for index, message in enumerate(messages):
        if message.role != "assistant":
            continue
        before = chat_text(tokenizer, messages[:index], open_answer=True)
        after = chat_text(tokenizer, messages[: index + 1])
        if not (before.startswith(done) and after.startswith(before)):
            raise ValueError("the chat template does not build a conversation turn by turn")
        answer = after[len(before):]
        bare = answer.rstrip("\n ")
        add(before[len(done):], False)
        add(bare, not last_only or index == len(messages) - 1)
        done = before + bare
    return ids, written
