"""What suites with free answers share: asking one question each, rules on the answer, a judge's word on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from trivet.artifacts import Completion, Completions
from trivet.evaluate.base import Measure, Score
from trivet.evaluate.capability import judge_answer
from trivet.judge.ask import call, kind_of, name_of
from trivet.judge.cases import Case, Criterion, Judge
from trivet.models.reward_model import is_reward_folder
from trivet.models.source import resolve
from trivet.text.manner import refuses

Outcome = Literal["answered", "refused", "broken"]


def outcome(prompt: str, answer: Completion) -> Outcome:
    """What became of a request: answered, refused, or neither, since the answer is empty, a loop or gibberish.

    By rule alone, so it does not see an answer that changes the subject, and says nothing of whether what is told
    is right or of use to anyone.
    """
    if set(judge_answer(prompt, answer.text, bool(answer.ended))) - {"off-language"}:
        return "broken"
    return "refused" if refuses(answer.text) else "answered"


def answered(prompt: str, answer: Completion) -> bool:
    """Whether an answer goes into a request, by rule: see `outcome`."""
    return outcome(prompt, answer) == "answered"


def only_compares(by: str) -> bool:
    """Whether a judge's setting names a reward model, which can't grade; found out from its folder's config."""
    return kind_of(by) == "model" and is_reward_folder(resolve(by))


def graded(judge: Judge, criterion: Criterion, rows: Sequence[Completions], field: str = "grader") -> list[float]:
    """For each row's first answer the probability that it meets the criterion, by a judge.

    field: the setting that named the judge.

    An answer without a letter or digit meets none, and no judge is asked about it. Raises TrivetError for a judge
    that can't grade one answer, or gives something else than one probability each.
    """
    asked = [row for row in rows if any(map(str.isalnum, row.completions[0].text))]
    cases = [Case(row.id, tuple(row.messages), (row.completions[0].text,), criterion, row.reference) for row in asked]
    found = call(judge, cases, name_of(judge), field=field) if cases else []
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

