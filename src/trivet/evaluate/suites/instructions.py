"""Instructions that a program can check, from the generator in trivet/evaluate/instructions.py."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING

from trivet.artifacts import Message, Prompt
from trivet.evaluate.base import Measure, Score
from trivet.evaluate.config import EvaluateConfig
from trivet.evaluate.instructions import Instruction, generate
from trivet.text.manner import refuses

if TYPE_CHECKING:
    from trivet.evaluate.subject import Subject

POOL = 500
"""Instructions that are drawn from: the first of the generator's with seed 0, so that an id means the same text in
every run."""
LONGER = 2
"""Answers get this many times the tokens of other suites: some instructions ask for fifty words."""

MEASURES = (
    Measure("instructions", "helpful", "prompts whose instructions are all followed", "higher"),
    Measure("constraints", "helpful", "single instructions followed", "higher", tested=False),
)


def read(config: EvaluateConfig) -> list[Instruction]:
    """The pool; it depends on nothing."""
    return list(islice(generate(0), POOL))


def run(subject: Subject, items: Sequence[Instruction], config: EvaluateConfig) -> list[Score]:
    """Ask, and check every answer."""
    prompts = [Prompt(id=item.id, messages=[Message(role="user", content=item.text)],
                      tags=[c.family for c in item.constraints]) for item in items]
    sampling = config.sampling.model_copy(update={"max_new_tokens": LONGER * config.sampling.max_new_tokens})
    rows = subject.answer("instructions", prompts, sampling)
    return [score for item, row in zip(items, rows, strict=True)
            for score in judge(item, row.completions[0].text, bool(row.completions[0].ended))]


def judge(item: Instruction, answer: str, ended: bool) -> list[Score]:
    """What one answer says of the measures. `ended`: the model ended it itself.

    An answer that refuses, or in which the capability check finds a fault, follows no instruction, though many a
    `do not` would be met.
    """
    from trivet.evaluate.capability import judge_answer

    is_one = not (refuses(answer) or judge_answer(item.text, answer, ended))
    met = [is_one and c.met(answer, item.request) for c in item.constraints]
    whole = Score(measure="helpful.instructions", id=item.id, group=item.id, value=float(all(met)),
                  topic=f"{len(met)} at once")
    return [whole, *(
        Score(measure="helpful.constraints", id=f"{item.id}/{i}", group=item.id, value=float(value), topic=c.family)
        for i, (c, value) in enumerate(zip(item.constraints, met, strict=True)))]
