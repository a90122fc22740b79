"""Gold scores of finished runs: a pass of its own, after the runs, into a folder of its own.

Nothing that decides in a run, or is tested here, reads that folder: detectors are given run folders alone
(overopt/replay.py), and `STUDY/gold` can be deleted without changing a word of theirs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from overopt.plan import RunSpec
from overopt.world import Dialogue, World, dialogues
from trivet.artifacts import Completions, Message, Row, json_lines, read_rows, write_rows

Score = Callable[[Sequence[Dialogue]], list[float]]


class GoldRow(Row):
    """Gold's raw score of one answer. time: updates that the policy had seen when it drew the answer."""

    time: int
    source: Literal["rollout", "evaluation", "reference"]
    prompt: str
    gold: float


@dataclass(frozen=True)
class GoldCurve:
    """Gold of a run's answers, relative: less the reference's mean on the same prompt, in deviations of the
    reference's answers. Each [answers]."""

    times: np.ndarray
    prompts: np.ndarray
    values: np.ndarray
    evaluated: np.ndarray
    """Whether the answer is of an evaluation, not of a rollout."""


def gold_file(world: World, name: str) -> Path:
    return world.folder / "gold" / f"{name}.jsonl"


def score_reference(world: World, score: Score) -> None:
    """The reference's own answers to the policy's prompts."""
    rows = reference_rows(world)
    scores = score(dialogues(rows))
    prompts = [r.id for r in rows for _ in r.completions]
    write_rows(gold_file(world, "reference"),
               [GoldRow(time=0, source="reference", prompt=p, gold=s) for p, s in zip(prompts, scores, strict=True)])


def reference_rows(world: World) -> list[Completions]:
    """The reference's pool: the same order as in the file of its gold and of its features."""
    return read_rows(world.path("sampled", "reference", "completions.jsonl"), Completions)


def score_run(world: World, spec: RunSpec, score: Score) -> None:
    """Every answer that a run left behind."""
    folder = world.folder / "runs" / spec.name
    found: list[tuple[int, Literal["rollout", "evaluation"], str]] = []
    texts: list[Dialogue] = []
    for source in ("rollout", "evaluation"):
        for file in sorted((folder / f"{source}s").glob("step-*.jsonl")):
            step = int(re.findall(r"\d+", file.stem)[-1])
            for _, row in json_lines(file):
                # a rollout is drawn before its step's update
                found.append((step - (source == "rollout"), source, row["id"].rsplit("/", 1)[0]))
                texts.append(([Message.model_validate(m) for m in row["messages"]], row["completion"]))
    scores = score(texts)
    write_rows(gold_file(world, spec.name), [GoldRow(time=t, source=s, prompt=p, gold=g)
                                             for (t, s, p), g in zip(found, scores, strict=True)])




@dataclass(frozen=True)
class Reference:
    """Gold of the reference's answers: each prompt's mean, and one deviation over all, in raw scores."""

    means: dict[str, float]
    deviation: float
    pools: dict[str, list[float]]


def read_reference(world: World) -> Reference:
    """What gold curves are relative to."""
    pools: dict[str, list[float]] = {}
    for row in read_rows(gold_file(world, "reference"), GoldRow):
        pools.setdefault(row.prompt, []).append(row.gold)
    every = np.array([g for pool in pools.values() for g in pool])
    return Reference({p: float(np.mean(g)) for p, g in pools.items()}, float(every.std()), pools)


def read_curve(world: World, name: str, reference: Reference) -> GoldCurve:
    """A run's gold, relative to the reference's."""
    rows = read_rows(gold_file(world, name), GoldRow)
    return GoldCurve(
        np.array([r.time for r in rows]), np.array([r.prompt for r in rows]),
        np.array([(r.gold - reference.means[r.prompt]) / reference.deviation for r in rows]),
        np.array([r.source == "evaluation" for r in rows]))


