"""Text as windows of tokens, all of one length: what calibrates, ranks and measures a model that is made smaller.

A text is a row of a JSON Lines file in any of the field's forms, or a `….txt` file. Conversations are written out by
the model's own chat template. Texts are mixed by a seed, each closed by the end token, laid end to end and cut into
windows. A part of the texts can be held out: a hash of a text's first turn decides, so that none stands on both sides.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import ValidationError
from torch import Tensor

from trivet.artifacts import Message, is_held_out, json_lines
from trivet.data.chat import chat_text, ensure_template
from trivet.data.supervised import plain_text
from trivet.errors import TrivetError

FORMS = ("`text`, `messages` (a conversation or a prompt), `prompt` with `completion`, `completions` or `chosen`, or "
         "`instruction` with `output`")
Part = Literal["all", "train", "held-out"]
HELD_OUT = 0.2
"""Share of the texts that is held out, unless told otherwise."""


def default_text(purpose: Literal["calibration", "held-out"]) -> Path:
    """Text that comes with Trivet: to calibrate the starter set's prompts with answers, held out its own prose.

    The answers were sampled from the embedded model and are as weak as it is; about 50,000 tokens.
    """
    if purpose == "calibration":
        return Path(str(files("trivet").joinpath("starter/completions.jsonl")))
    return Path(str(files("trivet").joinpath("evaluate/questions/prose.jsonl")))


class Text(NamedTuple):
    """A text of a file: a conversation, or plain words. `key` decides whether it is held out."""

    line: int
    messages: list[Message] | None
    words: str
    key: str


def read_texts(path: Path) -> list[Text]:
    """The texts of a file: a `….txt` file is one text, JSON Lines hold one a row (a row of completions: one each).

    Raises TrivetError naming file, line and field.
    """
    if path.suffix == ".txt":
        found = [Text(1, None, words, words) for words in [plain_text(path)] if words.strip()]
    else:
        found = [text for line, row in json_lines(path) for text in _of_row(row, path, line)]
    if not found:
        raise TrivetError("there is no text in this file" if path.suffix == ".txt" else "this file holds no rows",
                          file=path, mend=f"give a .txt file, or rows of {FORMS}")
    return found


def _of_row(row: dict[str, Any], path: Path, line: int) -> list[Text]:
    try:
        found = _forms(row)
    except ValidationError as error:
        first = error.errors()[0]
        raise TrivetError(first["msg"], file=path, line=line, field=".".join(map(str, ("messages", *first["loc"]))),
                          mend='write messages as {"role": "user" or "assistant", "content": "…"}') from None
    if found is None:
        raise TrivetError(f"this row has none of the known forms; its keys are {', '.join(row) or 'none'}", file=path,
                          line=line, expected=FORMS, mend="rename its keys")
    texts = []
    for each in found:
        if isinstance(each, str):
            text = Text(line, None, each, each)
        else:
            text = Text(line, each, "", next((m.content for m in each if m.role == "user"), each[0].content))
        if not any(words.strip() for words in ([text.words] if text.messages is None else
                                               [m.content for m in text.messages])):
            raise TrivetError("there is no text in this row", file=path, line=line, mend="delete this row")
        texts.append(text)
    return texts


def _forms(row: dict[str, Any]) -> list[str | list[Message]] | None:
    """The texts of a row, None where it has none of the known forms."""
    if isinstance(row.get("text"), str):
        return [row["text"]]
    start: list[Message] | None = None
    for name in ("messages", "prompt"):
        if start is None and isinstance(row.get(name), list) and row[name]:
            start = [Message.model_validate(m) for m in row[name]]
    if start is None and isinstance(row.get("prompt"), str):
        start = [Message(role="user", content=row["prompt"])]
    if start is None:
        if not (isinstance(row.get("instruction"), str) and isinstance(row.get("output"), str)):
            return None
        question = row["instruction"] + (f"\n\n{row['input']}" if row.get("input") else "")
        return [[Message(role="user", content=question), Message(role="assistant", content=row["output"])]]
    if isinstance(row.get("completions"), list):
        answers = [c.get("text") if isinstance(c, dict) else None for c in row["completions"]]
    else:
        answers = [row[name] for name in ("completion", "chosen") if name in row]
    if any(not isinstance(answer, str) for answer in answers):
        return None
    return [[*start, Message(role="assistant", content=str(a))] for a in answers] if answers else [start]


def part_of(texts: Sequence[Text], part: Part, share: float = HELD_OUT) -> list[Text]:
    """The texts that are held out, those that are not, or all. A text alone in its file is parted by its paragraphs.

    share: of the texts that are held out, by a hash of their first turn: the same in every run, whatever the seed.
    """
    if part == "all":
        return list(texts)
    if len(texts) == 1 and texts[0].messages is None:
        pieces = [p for p in re.split(r"\n\s*\n", texts[0].words) if p.strip()]
        texts = [Text(texts[0].line, None, p, p) for p in pieces]
    held = [is_held_out([Message(role="user", content=t.key)], share) for t in texts]
    return [t for t, out in zip(texts, held, strict=True) if out == (part == "held-out")]


def text_ids(tokenizer: Any, text: Text) -> list[int]:
    """The token ids of a text: words as they are, a conversation as the model's chat template writes it.

    Raises TrivetError for a conversation that the template refuses.
    """
    if text.messages is None:
        return list(tokenizer(text.words, add_special_tokens=False)["input_ids"])
    written = chat_text(tokenizer, text.messages, open_answer=text.messages[-1].role != "assistant")
    return list(tokenizer(written, add_special_tokens=False)["input_ids"])


def read_windows(path: Path, tokenizer: Any, length: int, count: int | None = None, seed: int = 0, *,
                 part: Part = "all", share: float = HELD_OUT, setting: str = "calibration") -> list[Tensor]:
    """`count` windows of `length` token ids each (int64, [length]) out of a file's texts; None: as many as there are.

    The tokenizer's beginning token, where it has one, stands before each text, its end token behind. A tokenizer
    without a chat template is given the plain one. setting: the part of the configuration that holds `data`, `length`
    and `windows`, for messages.

    Raises TrivetError for a file that can't be read, and where it holds fewer windows than are asked for.
    """
    if length < 2:
        raise ValueError(f"windows of {length} tokens")
    ensure_template(tokenizer)
    texts = part_of(read_texts(path), part, share)
    random.Random(seed).shuffle(texts)
    wanted = None if count is None else count * length
    ids: list[int] = []
    first = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    for text in texts:
        try:
            found = text_ids(tokenizer, text)
        except TrivetError as error:
            raise TrivetError(error.what, file=path, line=text.line, field=error.field, mend=error.mend) from error
        if found[:1] == first:
            found = found[1:]
        if found[-1:] == [tokenizer.eos_token_id]:
            found = found[:-1]
        ids += [*first, *found, tokenizer.eos_token_id]
        if wanted is not None and len(ids) >= wanted:
            break
    there = len(ids) // length
    if there < (count or 1):
        raise TrivetError(
            f"{'the held-out part of ' if part == 'held-out' else ''}this text has {len(ids):,} tokens: "
            f"{there} window{'' if there == 1 else 's'} of {length}, not {count or 1}", file=path, field=setting,
            mend=f"give more text, or lower --{setting}.length or --{setting}.windows")
    return list(torch.tensor(ids[: (count or there) * length]).view(-1, length))
