"""The stage `score`: what a reward model says of answers, and what its number means."""

from __future__ import annotations

import statistics
from dataclasses import asdict
from typing import Any

from trivet.artifacts import Completions, Message, Row, read_rows, write_rows
from trivet.errors import TrivetError
from trivet.judge.base import Sample
from trivet.judge.config import ScoreConfig
from trivet.judge.scorer import load_model_reward
from trivet.runs import Run, Summary
from trivet.training.device import prepare


class ScoreRow(Row):
    """One scored answer."""

    id: str
    prompt_id: str
    raw: float
    normalised: float
    percentile: float
    win_probability: float
    text: str


class ScoreSummary(Summary):
    """Means over all answers."""

    answers: int
    normalised: float
    percentile: float
    win_probability: float


def run(config: ScoreConfig, run: Run) -> ScoreSummary:
    """Score answers into scores.jsonl. Raises TrivetError for a reward model without calibration."""
    compute = prepare(config.device, run.meter)
    samples: list[Sample] = []
    prompt_ids: list[str] = []
    if config.completions is not None:
        for row in read_rows(config.completions, Completions):
            for c in row.completions:
                samples.append(Sample(c.id, tuple(row.messages), c.text, row.reference, tuple(row.tags)))
                prompt_ids.append(row.id)
    else:
        assert config.prompt is not None and config.answer is not None
        samples = [Sample("answer", (Message(role="user", content=config.prompt),), config.answer)]
        prompt_ids = ["prompt"]
    reward = load_model_reward(config.reward, compute.trunk, compute.device, run.meter.count)
    if reward.calibration is None:
        raise TrivetError("this reward model has no calibration.json: its scores have no known range",
                          file=reward.model.source.folder, field="reward",
                          mend="train it with `trivet reward`, which calibrates it")
    rows: list[Any] = []
    for sample, prompt_id, raw in zip(samples, prompt_ids, reward.raw(samples), strict=True):
        placed = reward.place(raw)
        assert placed is not None
        rows.append(ScoreRow(id=sample.id, prompt_id=prompt_id, text=sample.completion, **asdict(placed)))
    path = run.path("scores.jsonl")
    write_rows(path, rows)
    run.artifact("scores", path)
    print(f"reference answers: {reward.facts.get('reference', 'unknown')}, "
          f"{len(reward.calibration.reference_scores)} of them; 0 is their mean, 1 their deviation")
    for row in rows[: config.show]:
        print(f"{row.normalised:+.2f}  percentile {row.percentile:5.1f}  beats a reference answer with "
              f"probability {row.win_probability:.2f}  {' '.join(row.text.split())[:70]}")
    return ScoreSummary(
        answers=len(rows), normalised=statistics.fmean(r.normalised for r in rows),
        percentile=statistics.fmean(r.percentile for r in rows),
        win_probability=statistics.fmean(r.win_probability for r in rows))
