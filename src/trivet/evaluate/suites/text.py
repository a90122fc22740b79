"""How well the model predicts text that people wrote: perplexity per token, and bits per byte.

Each document stands alone behind the tokenizer's beginning token (its end token where it has none), and each of its
tokens is counted once; long ones are read in windows of which the second half is scored (a token then has at least
half a window before it). Perplexities compare models of one tokenizer; bits per byte compare any.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trivet.artifacts import json_lines, text_id
from trivet.errors import TrivetError
from trivet.evaluate.base import Measure, Score
from trivet.evaluate.config import EvaluateConfig

if TYPE_CHECKING:
    from trivet.evaluate.subject import Subject
    from trivet.generate.choices import Fork

FILE = "self-instruct/seed_tasks.jsonl"
WINDOW = 1024
"""Tokens a pass at most, fewer where the model's context is shorter."""
MEASURES = (
    Measure("perplexity", "capable", "perplexity of text that people wrote", "lower", kind="exp", share=False,
            unit="per token"),
    Measure("bits_per_byte", "capable", "bits for each byte of that text", "lower", share=False, unit="bits per byte"),
)


@dataclass(frozen=True)
class Document:
    """A text to predict."""

    id: str
    text: str


def read(config: EvaluateConfig) -> list[Document]:
    """Self-instruct's seed tasks, written by people, where the data folder has them; else Trivet's own prose.

    Raises TrivetError for a row that is no such task, and for a text that stands twice.
    """
    path = None if config.data is None else config.data / FILE
    if path is None or not path.is_file():
        own = Path(str(files("trivet.evaluate").joinpath("questions/prose.jsonl")))
        found = [Document(str(row["id"]), str(row["text"])) for _, row in json_lines(own)]
    else:
        found = [_task(row, line, path) for line, row in json_lines(path)]
        if not found:
            raise TrivetError("this file holds no tasks", file=path, mend="give self-instruct's seed_tasks.jsonl")
        if len({document.id for document in found}) < len(found):
            raise TrivetError("a task stands twice", file=path, mend="remove one of the two")
    return found


def _task(row: dict[str, Any], line: int, path: Path) -> Document:
    instances = row.get("instances")
    instance = instances[0] if isinstance(instances, list) and instances else None
    if not isinstance(instance, dict):
        raise TrivetError("a task without an instance", file=path, line=line, field="instances",
                          expected='[{"input": …, "output": …}]', mend="mend or remove this row")
    parts = []
    for name, part in (("instruction", row.get("instruction")), *((k, instance.get(k)) for k in ("input", "output"))):
        if not isinstance(part, str):
            raise TrivetError("no text", file=path, line=line, field=name, expected="text",
                              mend="mend or remove this row")
        parts.append(part.strip())
    text = "\n\n".join(part for part in parts if part)
    if not text:
        raise TrivetError("a task without words", file=path, line=line, mend="remove this row")
    return Document(text_id(text), text)


def windows(ids: Sequence[int], first: int, width: int) -> list[Fork]:
    """A document's tokens as (what is seen, what is scored), each token scored once; none longer than `width`.

    first: the token that stands before the document. width: at least 2.
    """
    from trivet.generate.choices import Fork

    ids = tuple(ids)
    cut = [Fork((first,), (ids[: width - 1],))]
    for start in range(width - 1, len(ids), width // 2):
        end = min(start + width // 2, len(ids))
        cut.append(Fork(ids[end - width : start], (ids[start:end],)))
    return cut


def run(subject: Subject, items: Sequence[Document], config: EvaluateConfig) -> list[Score]:
    """Two scores a document: nats per token (weight: its tokens), bits per byte (weight: its bytes)."""
    from trivet.training.progress import bar

    tokenizer = subject.tokenizer
    first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    width = min(WINDOW, subject.context or WINDOW)
    cut = [windows(tokenizer(item.text, add_special_tokens=False)["input_ids"], first, width) for item in items]
    with bar(f"{subject.name}: text", sum(map(len, cut))) as progress:
        found = iter(subject.logps([fork for part in cut for fork in part], progress))
    scores = []
    for item, part in zip(items, cut, strict=True):
        nats, tokens = -sum(next(found)[0] for _ in part), sum(len(fork.continuations[0]) for fork in part)
        size = len(item.text.encode())
        for name, value, weight in (("perplexity", nats / tokens, tokens),
                                    ("bits_per_byte", nats / math.log(2) / size, size)):
            scores.append(Score(measure=f"capable.{name}", id=item.id, group=item.id, value=value, weight=weight))
    return scores
