"""Grade-school maths by exact answer (Cobbe et al. 2021, 'Training Verifiers to Solve Math Word Problems').

Zero-shot, in the model's chat format: it is asked to reason and to end with `#### NUMBER`. Right is what has the known
number after its last `####`, or, without one, as its last number. The field's usual figures are for eight examples in
the prompt, and are higher for small models that do not follow the form.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trivet.artifacts import Message, Prompt
from trivet.evaluate import datasets
from trivet.evaluate.base import Measure, Score
from trivet.evaluate.catalogue import SUITES
from trivet.evaluate.config import EvaluateConfig
from trivet.evaluate.datasets import Problem
from trivet.judge.maths import final_number

if TYPE_CHECKING:
    from trivet.evaluate.subject import Subject

RIGHT = Measure("gsm8k", "capable", "grade-school maths, answer exact", "higher")
MEASURES = (RIGHT,)
ASK = "Think step by step. At the end, write the final number after ####."
LONGER = 2
"""A solution may be so many times as long as other answers."""


def read(config: EvaluateConfig) -> list[Problem]:
    """The problems of the data folder; none without it. Raises TrivetError for a file that does not fit."""
    return [item for file in datasets.found(config.data, SUITES["gsm8k"].data) for item in datasets.gsm8k(file)]


def run(subject: Subject, items: Sequence[Problem], config: EvaluateConfig) -> list[Score]:
    """Ask each problem once, with twice the tokens of other answers."""
    from trivet.evaluate.grading import score

    prompts = [Prompt(id=item.id, messages=[Message(role="user", content=f"{item.question}\n\n{ASK}")],
                      reference=str(final_number(item.answer))) for item in items]
    longer = config.sampling.model_copy(update={"max_new_tokens": LONGER * config.sampling.max_new_tokens})
    return [score(RIGHT, row, final_number(row.completions[0].text) == final_number(item.answer))
            for item, row in zip(items, subject.answer("gsm8k", prompts, longer), strict=True)]
