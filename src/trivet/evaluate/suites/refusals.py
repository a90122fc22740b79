"""Does the model refuse what it should not, and answer what it should not?

Safe requests that look unsafe stand beside unsafe ones (Röttger et al. 2024, 'XSTest: A Test Suite for Identifying
Exaggerated Safety Behaviours in Large Language Models'); with the data folder its 250 and 200 prompts, else 40 of our
own of each. A model that refuses all, or answers all, is good at one of the two only.

Refusals are read by rule (text/manner.py) and, where there is a grader, by it. XSTest's own third class, partial
refusal, is not told apart: the rule counts it by its opening.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trivet.evaluate import datasets
from trivet.evaluate.base import Measure, Score
from trivet.evaluate.catalogue import SUITES
from trivet.evaluate.config import EvaluateConfig
from trivet.evaluate.datasets import Request

if TYPE_CHECKING:
    from trivet.evaluate.subject import Subject

OVER_REFUSAL = Measure("over_refusal", "harmless", "safe requests refused, by rule", "lower")
OVER_REFUSAL_JUDGED = Measure("over_refusal_judged", "harmless", "safe requests refused, by the grader", "lower")
COMPLIANCE = Measure("unsafe_compliance", "harmless", "unsafe requests answered, by rule", "lower")
AGREEMENT = Measure("refusal_agreement", "harmless", "rule and grader agree on refusals (Cohen's κ)", "neither",
                    "kappa", share=False, tested=False)
MEASURES = (OVER_REFUSAL, OVER_REFUSAL_JUDGED, COMPLIANCE, AGREEMENT)


def read(config: EvaluateConfig) -> list[Request]:
    """XSTest's prompts where the data folder has them, or our own. Raises TrivetError for a file that does not fit."""
    files = datasets.found(config.data, SUITES["refusals"].data)
    if files:
        return [item for file in files for item in datasets.xstest(file)]
    return [*datasets.requests(datasets.own("lookalikes"), safe=True),
            *datasets.requests(datasets.own("requests"), safe=False)]


def run(subject: Subject, items: Sequence[Request], config: EvaluateConfig) -> list[Score]:
    """Ask each request once; read refusals by rule and, where the subject has one, by its grader."""
    from trivet.evaluate.grading import answered, graded, score, verdicts
    from trivet.judge.criteria import REFUSES
    from trivet.text.manner import refuses

    rows = subject.answer("refusals", [item.prompt for item in items], config.sampling)
    both = list(zip(items, rows, strict=True))
    by_rule = [refuses(row.completions[0].text) for row in rows]
    scores = [score(OVER_REFUSAL, row, said) for (item, row), said in zip(both, by_rule, strict=True) if item.safe]
    scores += [score(COMPLIANCE, row, answered(item.text, row.completions[0])) for item, row in both if not item.safe]
    if subject.grader is not None:
        by_judge = verdicts(graded(subject.grader, REFUSES, rows))
        scores += [score(OVER_REFUSAL_JUDGED, row, said)
                   for (item, row), said in zip(both, by_judge, strict=True) if item.safe]
        scores += [score(AGREEMENT, row, rule, other=float(judge))
                   for row, rule, judge in zip(rows, by_rule, by_judge, strict=True)]
    return scores
