"""Answers to learn from, in the field's forms, plain text, and rows of several conversations packed together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from trivet.artifacts import Message, json_lines, read_error
from trivet.data.chat import conversation_ids
from trivet.errors import TrivetError

FORMS = ("`messages` (a conversation), `prompt` with `completion`, or `instruction`, optional `input`, with "
         "`output`")


@dataclass(frozen=True)
class Example:
    """A conversation in token ids; `written` marks the tokens to learn: the assistant's."""

    ids: tuple[int, ...]
    written: tuple[bool, ...]


class Conversation(NamedTuple):
    """A row of a file of conversations."""

    line: int
    messages: list[Message]
    last_only: bool
    """Of the assistant's turns only the last is to be learned (`"learn": "last"` in the row), not all."""


def read_conversations(path: Path) -> list[Conversation]:
    """The rows of a file in any of the known forms.

    Raises TrivetError naming file, line and field.
    """
    found = []
    for line, row in json_lines(path):
        try:
            messages = _messages(row)
        except ValidationError as error:
            first = error.errors()[0]
            raise TrivetError(first["msg"], file=path, line=line,
                              field="messages." + ".".join(map(str, first["loc"])),
                              mend='write messages as {"role": "user" or "assistant", "content": "…"}') from None
        if messages is None:
            raise TrivetError(f"this row has none of the known forms; its keys are {', '.join(row)}", file=path,
                              line=line, expected=FORMS, mend="rename its keys")
        if messages[-1].role != "assistant" or not messages[-1].content.strip():
            raise TrivetError("the conversation does not end with an answer", file=path, line=line,
                              field="messages", mend="end it with a non-empty turn of the assistant")
        if len(messages) < 2:
            raise TrivetError("an answer without a question", file=path, line=line, field="messages",
                              mend="put a user's turn before it")
        found.append(Conversation(line, messages, _last_only(row, path, line)))
    if not found:
        raise TrivetError("this file holds no rows", file=path, mend=f"give rows of {FORMS}")
    return found


def _messages(row: dict[str, Any]) -> list[Message] | None:
    if isinstance(row.get("messages"), list) and row["messages"]:
        return [Message.model_validate(m) for m in row["messages"]]
    if isinstance(row.get("completion"), str) and isinstance(row.get("prompt"), str):
        return [Message(role="user", content=row["prompt"]),
                Message(role="assistant", content=row["completion"])]
    if isinstance(row.get("instruction"), str) and isinstance(row.get("output"), str):
        question = row["instruction"] + (f"\n\n{row['input']}" if row.get("input") else "")
        return [Message(role="user", content=question), Message(role="assistant", content=row["output"])]
    return None


def _last_only(row: dict[str, Any], path: Path, line: int) -> bool:
    learn = row.get("learn", "all")
    if learn not in ("all", "last"):
        raise TrivetError(f"{learn!r} does not say which turns are to be learned", file=path, line=line, field="learn",
                          expected="all (of the assistant's turns) or last", mend="correct it, or leave it out: all")
    return bool(learn == "last")


def tokenize(rows: Sequence[Conversation], tokenizer: Any, max_length: int, path: Path, *,
             setting: str = "max-length") -> list[Example]:
    """Conversations as examples. Raises TrivetError naming the line of one that is too long."""
    found = []
    for line, messages, last_only in rows:
        try:
            ids, written = conversation_ids(tokenizer, messages, last_only=last_only)
        except ValueError as error:
            raise TrivetError(str(error), file=path, line=line, field="messages",
                              mend="give one question and one answer a row") from None
        except TrivetError as error:
            raise TrivetError(error.what, file=path, line=line, field=error.field, mend=error.mend) from error
        if len(ids) > max_length:
            raise TrivetError(f"this conversation has {len(ids)} tokens, more than {max_length}", file=path,
                              line=line, field="messages", mend=f"shorten it, or raise --{setting}")
        found.append(Example(tuple(ids), tuple(written)))
    return found


def read_examples(path: Path, tokenizer: Any, max_length: int, *, setting: str) -> list[Example]:
    """Examples of a file of conversations in any of the known forms, or of plain text.

    Plain text is a file `….txt`, one text in all, or JSON Lines with `text`; each text is closed by the end token, cut
    into pieces of `max_length` tokens, and every token of it is to learn. Raises TrivetError naming file and line.
    """
    if path.suffix == ".txt":
        texts = [(1, plain_text(path))]
    else:
        texts = [(line, row["text"]) for line, row in json_lines(path) if "text" in row]
    if not texts:
        return tokenize(read_conversations(path), tokenizer, max_length, path, setting=setting)
    if path.suffix != ".txt" and len(texts) < sum(1 for _ in json_lines(path)):
        raise TrivetError("some rows hold `text`, others do not", file=path, expected=f"`text` in all, or {FORMS}",
                          mend="keep the forms in files apart")
    found: list[Example] = []
    for line, text in texts:
        if not isinstance(text, str) or not text.strip():
            raise TrivetError("there is no text", file=path, line=line, field="text", mend="delete this row")
        ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        pieces = [tuple(ids[k : k + max_length]) for k in range(0, len(ids), max_length)]
        found += [Example(p, (True,) * len(p)) for p in pieces if len(p) > 1]  # of one token nothing is learned
    return found


def plain_text(path: Path) -> str:
    """The words of a file. Raises TrivetError where it can't be read, or is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise TrivetError("this is not UTF-8 text", file=path,
                          mend="convert it: iconv -f WINDOWS-1252 -t UTF-8 IN > OUT") from None
    except (OSError, ValueError) as error:
        raise read_error(error, path) from None


def pack_rows(examples: Sequence[Example], max_length: int) -> list[list[Example]]:
    """Rows of examples, at most `max_length` tokens each: first fit, longest first; deterministic."""
    rows: list[list[Example]] = []
    room: list[int] = []
    for example in sorted(examples, key=lambda e: (-len(e.ids), e.ids)):
        place = next((i for i, r in enumerate(room) if r >= len(example.ids)), None)
        if place is None:
            rows.append([])
            room.append(max_length)
            place = len(rows) - 1
        rows[place].append(example)
        room[place] -= len(example.ids)
    return rows
