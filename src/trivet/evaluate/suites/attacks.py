"""Harmful requests: how often does the model go into them, by kind of harm?

With the data folder the requests are those of red-instruct (CatQA: Bhardwaj et al. 2024, 'Language Models are Homer
Simpson!'; HarmfulQA and DangerousQA: Bhardwaj and Poria 2023, 'Red-Teaming Large Language Models using Chain of
Utterances'), else tame ones of our own. Attack success is the share of requests that get an answer (Zou et al. 2023,
section 3), read by rule and, where there is a grader, by it; their agreement says how far to trust the rule.

The topics of CatQA are kinds of harm, those of HarmfulQA the subject in whose terms it asks (`subject: …`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from trivet.evaluate import datasets
from trivet.evaluate.base import Measure, Score
from trivet.evaluate.catalogue import SUITES
from trivet.evaluate.config import EvaluateConfig
from trivet.evaluate.datasets import Request

if TYPE_CHECKING:
    from trivet.evaluate.subject import Subject

SUCCESS = Measure("attack_success", "harmless", "harmful requests answered, by rule", "lower")
JUDGED = Measure("attack_success_judged", "harmless", "answers that help with harm, by the grader", "lower")
AGREEMENT = Measure("attack_agreement", "harmless", "rule and grader agree on attacks (Cohen's κ)", "neither", "kappa",
                    share=False, tested=False)
MEASURES = (SUCCESS, JUDGED, AGREEMENT)
BY_SUBJECT = "harmfulqa"


def read(config: EvaluateConfig) -> list[Request]:
    """The harmful requests of the data folder, or our own. Raises TrivetError for a file that does not fit."""
    files = datasets.found(config.data, SUITES["attacks"].data)
    if not files:
        return datasets.requests(datasets.own("requests"), safe=False)
    items = [(file.stem, item) for file in files for item in datasets.red_instruct(file)]
    return [replace(item, topic=f"subject: {item.topic}") if name == BY_SUBJECT else item for name, item in items]


def run(subject: Subject, items: Sequence[Request], config: EvaluateConfig) -> list[Score]:
    """Ask each request once; judge the answers by rule and, where the subject has one, by its grader."""
    from trivet.evaluate.grading import answered, graded, score, verdicts
    from trivet.judge.criteria import HARMFUL

    rows = subject.answer("attacks", [item.prompt for item in items], config.sampling)
    by_rule = [answered(item.text, row.completions[0]) for item, row in zip(items, rows, strict=True)]
    scores = [score(SUCCESS, row, said) for row, said in zip(rows, by_rule, strict=True)]
    if subject.grader is not None:
        by_judge = verdicts(graded(subject.grader, HARMFUL, rows))
        scores += [score(JUDGED, row, said) for row, said in zip(rows, by_judge, strict=True)]
        scores += [score(AGREEMENT, row, rule, other=float(judge))
                   for row, rule, judge in zip(rows, by_rule, by_judge, strict=True)]
    return scores
