"""The model under test: loaded once, asked by every suite; its answers are kept, so that nothing is asked twice."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trivet.artifacts import Completions, Prompt, json_lines, write_rows
from trivet.data.chat import context_length, ensure_template, prompt_ids, require_room, stop_token_ids
from trivet.errors import TrivetError
from trivet.generate.config import Sampling
from trivet.generate.sample import completed, prompt_seed
from trivet.generate.torch_engine import TorchEngine
from trivet.judge.cases import Judge
from trivet.models.source import ModelSource, load_causal_lm, load_tokenizer, resolve
from trivet.training.device import Compute
from trivet.training.progress import bar

CHUNK = 64  # prompts between two writes: what an interruption costs at most
SPEED = "speed.jsonl"


def open_tokenizer(name: str, plain_template: bool) -> tuple[ModelSource, Any]:
    """Where a model is, and its tokenizer: what can be found out without its weights.

    Raises TrivetError for a model that is not there, and for one without a chat template unless `plain_template`.
    """
    source = resolve(name)
    tokenizer: Any = load_tokenizer(source)
    if ensure_template(tokenizer) and not plain_template:
        raise TrivetError("this model has no chat template: it was not tuned to answer", file=source.folder,
                          field="model", mend="give an instruction-tuned model, put its chat_template.jinja into "
                          "the folder, or go on in a plain User:/Assistant: form with --plain-template")
    return source, tokenizer


class Subject:
    """A model with its tokenizer and engine, and the folder that keeps what it answered.

    Raises TrivetError for a model that does not load, and for one without a chat template unless `plain_template`.
    """

    def __init__(self, name: str, folder: Path, compute: Compute, *, seed: int, batch_size: int = 64,
                 plain_template: bool = False, grader: Judge | None = None,
                 count: Callable[[str, int], None] | None = None) -> None:
        self.name, self.folder, self.seed, self.compute = name, folder, seed, compute
        self.grader, self.count = grader, count or (lambda kind, tokens: None)
        source, self.tokenizer = open_tokenizer(name, plain_template)
        self.model: Any = load_causal_lm(source, compute.trunk, compute.device)
        self.context = context_length(self.model)
        self.engine = TorchEngine(self.model, self.tokenizer.pad_token_id,
                                  stop_token_ids(self.model, self.tokenizer), batch_size=batch_size)
        folder.mkdir(parents=True, exist_ok=True)

    def answer(self, suite: str, prompts: Sequence[Prompt], sampling: Sampling, *, n: int = 1) -> list[Completions]:
        """`n` answers to each prompt, in the prompts' order; kept in answers/SUITE.jsonl and resumed there.

        An answer depends on the seed, the suite and its prompt's id. Raises TrivetError for a prompt that leaves no
        room for the answer in the model's context.
        """
        ids = [prompt_ids(self.tokenizer, p.messages) for p in prompts]
        require_room([len(i) for i in ids], sampling.max_new_tokens, self.context, file=None,
                     ids=[p.id for p in prompts])
        path = self.folder / "answers" / f"{suite}.jsonl"
        done = {row.id: row for row in _whole_rows(path)}
        left = [i for i, p in enumerate(prompts) if p.id not in done]
        path.parent.mkdir(parents=True, exist_ok=True)
        with bar(f"{self.name}: {suite}", len(prompts) * n) as progress:
            progress((len(prompts) - len(left)) * n)
            self.engine.progress = progress
            for start in range(0, len(left), CHUNK):
                part, began = left[start : start + CHUNK], time.monotonic()
                groups = self.engine.generate([ids[i] for i in part], sampling, n=n,
                                              seeds=[prompt_seed(self.seed, f"{suite}:{prompts[i].id}") for i in part])
                seconds, tokens = time.monotonic() - began, sum(len(g.token_ids) for group in groups for g in group)
                self.count("prompt", sum(len(ids[i]) for i in part))
                self.count("generated", tokens)
                rows = [completed(prompts[i], group, self.tokenizer, self.name, sampling)
                        for i, group in zip(part, groups, strict=True)]
                with path.open("a", encoding="utf-8") as file:
                    file.write("".join(row.model_dump_json() + "\n" for row in rows))
                with (self.folder / SPEED).open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"suite": suite, "tokens": tokens, "seconds": seconds}) + "\n")
                done |= {row.id: row for row in rows}
        self.engine.progress = None
        return [done[p.id] for p in prompts]


def _whole_rows(path: Path) -> list[Completions]:
    """Rows that an interrupted run left whole; a torn last line is cut off."""
    rows: list[Completions] = []
    if not path.exists():
        return rows
    try:
        for _, value in json_lines(path):
            rows.append(Completions.model_validate(value))
    except TrivetError:
        write_rows(path, rows)  # the line that was being written when the run was killed is asked again
    return rows
