"""The model under test: loaded once, asked by every suite; its answers are kept, so that nothing is asked twice."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trivet.artifacts import Completions, Prompt, json_lines, row_error
from trivet.data.chat import context_length, ensure_template, prompt_ids, require_room, stop_token_ids
from trivet.errors import TrivetError
from trivet.generate.base import LoadedEngine, LocalEngine
from trivet.generate.choices import Fork, score_forks
from trivet.generate.config import Sampling
from trivet.generate.sample import completed, prompt_seed
from trivet.generate.torch_engine import TorchEngine
from trivet.judge.cases import Judge
from trivet.models.source import ModelSource, load_causal_lm, load_tokenizer, resolve
from trivet.training.device import Compute
from trivet.training.progress import bar

CHUNK = 64  # prompts between two writes: what an interruption costs at most
SPEED = "speed.jsonl"
_DELETE = "delete this line: what is missing is asked again"


def open_tokenizer(name: str, plain_template: bool) -> tuple[ModelSource, Any]:
    """Where a model is, and its tokenizer: what can be found out without its weights.

    Raises TrivetError for a model that is not there, and for one without a chat template unless `plain_template`.
    """
    source = resolve(name)
    tokenizer: Any = load_tokenizer(source)
    if ensure_template(tokenizer) and not plain_template:
        raise no_template(source.folder)
    return source, tokenizer


def no_template(model: str | Path) -> TrivetError:
    """The error of a model without a chat template."""
    return TrivetError("this model has no chat template: it was not tuned to answer", file=model, field="model",
                       mend="give an instruction-tuned model, put its chat_template.jinja into the folder, or go on in "
                       "a plain User:/Assistant: form with --plain-template")


class Subject:
    """A model with its tokenizer and engine, and the folder that keeps what it answered.

    Raises TrivetError for a model that does not load, and for one without a chat template unless `plain_template`.
    """

    def __init__(self, name: str, folder: Path, compute: Compute, *, seed: int, batch_size: int = 64,
                 plain_template: bool = False, grader: Judge | None = None,
                 count: Callable[[str, int], None] | None = None, loaded: LoadedEngine | None = None) -> None:
        """loaded: an engine that holds the model, of whatever kind; else torch loads it here. `model` is None where it
        is not torch that holds the weights."""
        self.name, self.folder, self.seed, self.compute = name, folder, seed, compute
        self.grader, self.count = grader, count or (lambda kind, tokens: None)
        if loaded is None:
            source, self.tokenizer = open_tokenizer(name, plain_template)
            model: Any = load_causal_lm(source, compute.trunk, compute.device)
            self.engine: LocalEngine = TorchEngine(
                model, self.tokenizer.pad_token_id, stop_token_ids(model, self.tokenizer), batch_size=batch_size,
                tokenizer=self.tokenizer)
            self.context = context_length(model)
        else:
            if loaded.plain_template and not plain_template:
                raise no_template(name)
            self.engine, self.tokenizer, self.context = loaded.engine, loaded.tokenizer, loaded.context
        self.model: Any = self.engine.model if isinstance(self.engine, TorchEngine) else None
        folder.mkdir(parents=True, exist_ok=True)

    def answer(self, suite: str, prompts: Sequence[Prompt], sampling: Sampling, *, n: int = 1) -> list[Completions]:
        """`n` answers to each prompt, in the prompts' order; kept in answers/SUITE.jsonl and resumed there.

        An answer depends on the seed, the suite and its prompt's id, and to the last bits on the prompts of its chunk:
        a chunk that is not whole is asked again as a whole, so that an interruption changes nothing. Raises TrivetError
        for a prompt that leaves no room for the answer in the model's context, and for kept answers that are damaged.
        """
        ids = [prompt_ids(self.tokenizer, p.messages) for p in prompts]
        require_room([len(i) for i in ids], sampling.max_new_tokens, self.context, file=None,
                     ids=[p.id for p in prompts])
        path = self.folder / "answers" / f"{suite}.jsonl"
        chunks = [range(start, min(start + CHUNK, len(prompts))) for start in range(0, len(prompts), CHUNK)]
        done = _kept(path, [[prompts[i].id for i in chunk] for chunk in chunks])
        path.parent.mkdir(parents=True, exist_ok=True)
        with bar(f"{self.name}: {suite}", len(prompts) * n) as progress:
            self.engine.progress = progress
            for chunk in chunks:
                if prompts[chunk[0]].id in done:
                    progress(len(chunk) * n)
                    continue
                part, began = [ids[i] for i in chunk], time.monotonic()
                groups = self.engine.generate(part, sampling, n=n,
                                              seeds=[prompt_seed(self.seed, f"{suite}:{prompts[i].id}") for i in chunk])
                seconds, tokens = time.monotonic() - began, sum(len(g.token_ids) for group in groups for g in group)
                self.count("prompt", sum(map(len, part)))
                self.count("generated", tokens)
                rows = [completed(prompts[i], group, self.tokenizer, self.name, sampling)
                        for i, group in zip(chunk, groups, strict=True)]
                with path.open("a", encoding="utf-8") as file:
                    file.write("".join(row.model_dump_json() + "\n" for row in rows))
                cut_torn_line(self.folder / SPEED)
                with (self.folder / SPEED).open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"suite": suite, "tokens": tokens, "seconds": seconds}) + "\n")
                done |= {row.id: row for row in rows}
        self.engine.progress = None
        return [done[p.id] for p in prompts]

    def logps(self, forks: Sequence[Fork], progress: Callable[[int], Any] | None = None) -> list[list[float]]:
        """Log-probability of each continuation of each fork: by trees where torch holds the model, else by the engine's
        own `score`, one continuation after the other.

        Raises TrivetError for what is longer than the context, and where the engine can't score.
        """
        if self.model is not None:
            found = score_forks(self.model, forks, progress=progress, count=self.count)
            return [[s.logp for s in scored] for scored in found]
        if not self.engine.capabilities.score:
            raise TrivetError("this engine tells no log-probabilities of given text", file=self.name, field="model",
                              mend="leave out what needs them (text, truthfulqa), or give the model in another format")
        sums = []
        for fork in forks:
            prompts = [fork.prompt] * len(fork.continuations)
            require_room([len(fork.prompt) + len(c) for c in fork.continuations], 0, self.context, file=None,
                         ids=["of the text"] * len(prompts))
            sums.append([math.fsum(logps) for logps in self.engine.score(prompts, fork.continuations)])
            self.count("scored", sum(len(fork.prompt) + len(c) for c in fork.continuations))
            if progress is not None:
                progress(1)
        return sums


def cut_torn_line(path: Path) -> None:
    """Cut off what stands behind the last line end: the line that was being written when a run was killed."""
    if path.exists():
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)


def speeds(folder: Path) -> list[dict[str, Any]]:
    """What a subject noted of its speed: suite, tokens, seconds of each chunk; a torn last line is passed over.

    Raises TrivetError for a damaged line.
    """
    path, found = folder / SPEED, []
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            found.append({"suite": str(row["suite"]), "tokens": int(row["tokens"]), "seconds": float(row["seconds"])})
        except (ValueError, TypeError, KeyError):
            raise TrivetError("this line was damaged", file=path, line=number,
                              expected='{"suite": …, "tokens": …, "seconds": …}', mend=_DELETE) from None
    return found


def _kept(path: Path, chunks: Sequence[Sequence[str]]) -> dict[str, Completions]:
    """The answers in a file, by their prompts' ids, after it was cut back to the last of `chunks` that is whole.

    chunks: ids of the prompts that are to be answered, in their order; before them may stand answers to others. Raises
    TrivetError, and leaves the file as it is, for a damaged line, unless it is the last one and torn.
    """
    cut_torn_line(path)
    found: dict[str, tuple[int, Completions]] = {}
    for number, value in json_lines(path) if path.exists() else ():
        try:
            row = Completions.model_validate(value)
        except ValidationError as error:
            fault = row_error(error, Completions, path, number)
            raise TrivetError(fault.what, file=path, line=number, field=fault.field, mend=_DELETE) from None
        if row.id in found:
            raise TrivetError(f"the answer to {row.id!r} stands twice", file=path, line=number, field="id",
                              mend=_DELETE)
        found[row.id] = number, row
    whole = next((i for i, chunk in enumerate(chunks) if not all(name in found for name in chunk)), len(chunks))
    again = [found[name][0] for chunk in chunks[whole:] for name in chunk if name in found]
    if again:
        first = min(again)
        with path.open("rb") as file:
            size = sum(len(file.readline()) for _ in range(first - 1))
        os.truncate(path, size)
        found = {name: place for name, place in found.items() if place[0] < first}
    return {name: row for name, (_, row) in found.items()}
