"""A run's files as records: rollouts/*.jsonl, evaluations/*.jsonl, metrics.jsonl, of `ppo` or of another trainer.

Needed of each answer are `step`, `messages` (or `prompt`, a text), `completion` and `score` (or `reward`). What else a
row may have is in AnswerRow; other fields are passed over. A signal whose fields are missing is absent.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, model_validator

from trivet.artifacts import Message, Row, json_lines, read_rows, sha256_path
from trivet.config import load_yaml
from trivet.errors import TrivetError
from trivet.guard.base import Source, StepRecord
from trivet.judge.base import Sample

FOLDERS: dict[Source, str] = {"rollout": "rollouts", "evaluation": "evaluations"}


class AnswerRow(Row):
    """One answer of a run. Unlike the rows that stages hand on, it may have fields that are not known here."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)
    name: str | None = Field(None, alias="id")
    step: int = Field(ge=0)
    messages: list[Message] = Field(min_length=1)
    completion: str
    score: float
    """In one scale over the whole run."""
    kl: float | None = None
    """Nats, summed over the answer."""
    ref_logp: float | None = None
    """By the reference, nats, summed over the answer."""
    tokens: int | None = Field(None, ge=0)
    ended: bool | None = None
    held_out: float | None = None
    """By a reward model that was not trained on."""
    spread: float | None = None
    """Standard deviation over an ensemble of reward models."""

    @model_validator(mode="before")
    @classmethod
    def _lift(cls, data: Any) -> Any:
        """`prompt` as text, ids that are numbers, `reward` for score, `second` (of an evaluation) for held_out."""
        if isinstance(data, dict):
            data = dict(data)
            if "messages" not in data and isinstance(data.get("prompt"), str):
                data["messages"] = [{"role": "user", "content": data["prompt"]}]
            if isinstance(data.get("id"), int):
                data["id"] = str(data["id"])
            for other, name in (("reward", "score"), ("second", "held_out")):
                if data.get(name) is None and data.get(other) is not None:
                    data[name] = data[other]
        return data


def run_folder(path: Path) -> Path:
    """The folder that holds rollouts/: the one given, or the only one in it that does (a recipe's run).

    Raises TrivetError where there is none, or several.
    """
    if not path.is_dir():
        raise TrivetError("there is no such run folder", file=path, mend="give a folder that holds rollouts/*.jsonl")
    if _files(path, "rollout"):
        return path
    inner = sorted(p for p in path.iterdir() if p.is_dir() and _files(p, "rollout"))
    if len(inner) == 1:
        return inner[0]
    if inner:
        raise TrivetError(f"several runs here have rollouts: {', '.join(p.name for p in inner)}", file=path,
                          mend=f"name one, such as {inner[0]}")
    raise TrivetError("no rollouts here", file=path, expected="rollouts/*.jsonl, a row an answer: step, messages, "
                      "completion, score …", mend="give the folder of a `ppo` run, or write another trainer's answers "
                      "in this form (docs/guides/guard.md)")


def read_records(folder: Path) -> list[StepRecord]:
    """The records of a run in the order in which they came: at each step the rollout, then the evaluation.

    Raises TrivetError naming file, line and field.
    """
    means = _mean_kl(folder / "metrics.jsonl")
    found = [_record(step, source, rows, means) for source in FOLDERS
             for step, rows in _by_step(row for file in _files(folder, source) for row in read_rows(file, AnswerRow))]
    # the rollout of step n is drawn by the policy after n - 1 updates, an evaluation at step n by that after n
    found = sorted(found, key=lambda r: (r.step, r.source == "evaluation"))
    if all(sum(r.source == source for r in found) < 2 for source in FOLDERS):
        raise TrivetError("this run has a single step: nothing can have changed", file=folder,
                          mend="give a run of two steps or more")
    return found


def facts(folder: Path) -> dict[str, Any]:
    """What identifies a run: the hashes of its answers, and of its settings model, rewards and seed if it is ours."""
    found: dict[str, Any] = {"folder": folder.name}
    for name in FOLDERS.values():
        if (folder / name).is_dir():
            found[f"{name}_sha256"] = sha256_path(folder / name)
    settings = settings_of(folder)
    return found | {k: settings[k] for k in ("model", "reward", "seed") if k in settings}


def settings_of(folder: Path) -> dict[str, Any]:
    """The run's config.yaml, empty for a run without one. Raises TrivetError for broken YAML."""
    return load_yaml(folder / "config.yaml")[0] if (folder / "config.yaml").is_file() else {}


def _files(folder: Path, source: Source) -> list[Path]:
    inner = folder / FOLDERS[source]
    return sorted(p for p in inner.iterdir() if p.suffix in (".jsonl", ".parquet")) if inner.is_dir() else []


def _by_step(rows: Iterable[AnswerRow]) -> list[tuple[int, list[AnswerRow]]]:
    groups: dict[int, list[AnswerRow]] = {}
    for row in rows:
        groups.setdefault(row.step, []).append(row)
    return sorted(groups.items())


def _record(step: int, source: Source, rows: list[AnswerRow], means: dict[int, float]) -> StepRecord:
    kl = [r.kl for r in rows if r.kl is not None]
    if not kl and source == "rollout" and step in means:
        kl = [means[step]] * len(rows)  # the trainer's own mean; how answers vary about it is not known
    ended = [r.ended for r in rows if r.ended is not None]
    return StepRecord(
        step, [Sample(r.name or f"{step}/{i}", tuple(r.messages), r.completion) for i, r in enumerate(rows)],
        [r.score for r in rows], kl=kl if len(kl) == len(rows) else (), ref_logp=[r.ref_logp for r in rows],
        tokens=[r.tokens for r in rows], ended=ended if len(ended) == len(rows) else (),
        held_out=[r.held_out for r in rows], spread=[r.spread for r in rows], source=source)


def _mean_kl(path: Path) -> dict[int, float]:
    """The mean KL of each step as metrics.jsonl has it, where it does."""
    if not path.is_file():
        return {}
    rows = [row for _, row in json_lines(path)]
    return {row["step"]: float(row["kl"]) for row in rows
            if isinstance(row.get("step"), int) and isinstance(row.get("kl"), int | float)}
