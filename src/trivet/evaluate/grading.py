"""What suites with free answers share: asking one question each, rules on the answer, a judge's word on it."""

from __future__ import annotations

from collections.abc import Sequence

from trivet.artifacts import Completion, Completions
from trivet.evaluate.base import Measure, Score
from trivet.evaluate.capability import judge_answer
from trivet.judge.ask import call, name_of
from trivet.judge.cases import Case, Criterion, Judge
from trivet.text.manner import refuses


def answered(prompt: str, answer: Completion) -> bool:
    """Whether an answer goes into a request: it does not refuse, and is neither empty nor a loop nor gibberish.

    By rule alone, so it does not see an answer that changes the subject, and says nothing of whether what is told
    is right or of use to anyone.
    """
    faults = set(judge_answer(prompt, answer.text, bool(answer.ended))) - {"off-language"}
    return not faults and not refuses(answer.text)


def graded(judge: Judge, criterion: Criterion, rows: Sequence[Completions]) -> list[float]:
    """For each row's first answer the probability that it meets the criterion, by a judge.

    An answer without a letter or digit meets none, and no judge is asked about it. Raises TrivetError for a judge
    that can't grade one answer, or gives something else than one probability each.
    """
    asked = [row for row in rows if any(map(str.isalnum, row.completions[0].text))]
    cases = [Case(row.id, tuple(row.messages), (row.completions[0].text,), criterion, row.reference) for row in asked]
    found = call(judge, cases, name_of(judge), field="grader") if cases else []
    said = dict(zip((row.id for row in asked), found, strict=True))
    return [said.get(row.id, 0.0) for row in rows]


def verdicts(probabilities: Sequence[float]) -> list[bool]:
    """Probabilities as yes or no: 0.5 is yes."""
    return [p >= 0.5 for p in probabilities]


def score(measure: Measure, row: Completions, value: float, *, other: float | None = None, group: str | None = None,
          topic: str | None = None) -> Score:
    """What one answered prompt says of a measure; its first tag is its topic."""
    return Score(measure=measure.key, id=row.id, group=group or row.id, value=float(value), other=other,
                 topic=topic or (row.tags[0] if row.tags else None))

