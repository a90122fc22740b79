"""The stage `sample`: several answers to each prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trivet.artifacts import Completions, Prompt, json_lines, read_rows, write_rows
from trivet.data.chat import prompt_ids, require_room
from trivet.errors import TrivetError
from trivet.generate.base import Generated, LoadedEngine
from trivet.generate.config import SampleConfig, Sampling
from trivet.generate.engines import load_engine
from trivet.generate.stops import cut
from trivet.generate.writing import Written, answered
from trivet.runs import Run, Summary
from trivet.training.device import prepare
from trivet.training.progress import bar


class SampleSummary(Summary):
    """Counts of the stage."""

    prompts: int
    completions: int
    tokens: int
    tokens_per_second: float
    ended: float
    """Share of answers that the model ended itself."""


CHUNK = 64  # prompts between two writes: what an interruption costs at most


def text_of(tokenizer: Any, generated: Generated, stop: Sequence[str] = ()) -> str:
    """An answer's text, without its stop token, and up to the first stop string."""
    return cut(str(tokenizer.decode(generated.token_ids, skip_special_tokens=True)), stop).strip()


def prompt_seed(seed: int, prompt_id: str) -> int:
    """A prompt's seed depends on its id, not on its place in the file."""
    import hashlib

    return int.from_bytes(hashlib.sha256(f"{seed}:{prompt_id}".encode()).digest()[:6], "big")


def run(config: SampleConfig, run: Run) -> SampleSummary:
    """Sample `completions` answers to each prompt into completions.jsonl; resumes at the last whole chunk.

    Raises TrivetError for a prompt longer than the context.
    """
    compute = prepare(config.device, run.meter)
    prompts = read_rows(config.prompts, Prompt, limit=config.limit)
    with load_engine(config.model, compute, batch_size=config.batch_size) as loaded:
        return _sample(config, run, prompts, loaded)


def _sample(config: SampleConfig, run: Run, prompts: list[Prompt], loaded: LoadedEngine) -> SampleSummary:
    engine, tokenizer = loaded.engine, loaded.tokenizer
    if loaded.plain_template:
        print("the model has no chat template; a plain User:/Assistant: one is used")
    ids = [prompt_ids(tokenizer, p.messages) for p in prompts]
    require_room([len(i) for i in ids], config.sampling.max_new_tokens, loaded.context,
                 file=config.prompts, ids=[p.id for p in prompts])
    partial = run.path("partial.jsonl")
    done = _whole_rows(partial, prompts)
    total = len(prompts) * config.completions
    with bar("sampling", total) as progress:
        progress(len(done) * config.completions)
        engine.progress = progress
        for start in range(len(done), len(prompts), CHUNK):
            part = prompts[start : start + CHUNK]
            answers = engine.generate(ids[start : start + CHUNK], config.sampling, n=config.completions,
                                      seeds=[prompt_seed(config.seed, p.id) for p in part])
            run.meter.count("prompt", sum(map(len, ids[start : start + CHUNK])))
            run.meter.count("generated", sum(len(g.token_ids) for a in answers for g in a))
            for prompt, group in zip(part, answers, strict=True):
                row = completed(prompt, group, tokenizer, config.model, config.sampling)
                run.log("partial", row.model_dump())
                done.append(row)
    path = run.path("completions.jsonl")
    write_rows(path, done)
    partial.unlink()
    run.artifact("completions", path)
    every = [c for row in done for c in row.completions]
    tokens = sum(c.tokens or 0 for c in every)
    return SampleSummary(
        prompts=len(done), completions=len(every), tokens=tokens,
        tokens_per_second=round(run.meter.tokens.get("generated", 0) / run.meter.seconds, 1),
        ended=round(sum(bool(c.ended) for c in every) / len(every), 4))


def completed(prompt: Prompt, group: list[Generated], tokenizer: object, model: str,
              sampling: Sampling) -> Completions:
    """A prompt with its answers as an artifact row."""
    return answered(prompt, [Written(text_of(tokenizer, g, sampling.stop), g.ended, len(g.token_ids)) for g in group],
                    model, sampling)


def _whole_rows(path: object, prompts: list[Prompt]) -> list[Completions]:
    """Rows that an interrupted run left whole, in order; a torn last line is cut off."""
    from pathlib import Path

    path = Path(str(path))
    rows: list[Completions] = []
    if not path.exists():
        return rows
    try:
        for _, value in json_lines(path):
            rows.append(Completions.model_validate(value))
    except TrivetError:
        pass  # the line that was being written when the run was killed; sampled again below
    rows = [r for r, p in zip(rows, prompts, strict=False) if r.id == p.id]
    write_rows(path, rows)
    return rows
