"""Rules and graders on free answers."""

from __future__ import annotations

import pytest

from saying import DECLINES, TELLS, Grading, completions
from trivet.artifacts import Completion, Prompt
from trivet.errors import TrivetError
from trivet.evaluate.base import Measure
from trivet.evaluate.grading import answered, graded, score, verdicts
from trivet.judge.criteria import GOOD

ROWS = [completions(Prompt(id=i, tags=["kind"], messages=[{"role": "user", "content": i}], reference="7"), text)
        for i, text in (("a", TELLS), ("b", " "), ("c", DECLINES))]


@pytest.mark.parametrize(("text", "value"), [
    (TELLS, True), (DECLINES, False), ("", False), ("!" * 60, False), ("so be it " * 9, False),
    ("Сначала возьмите красную коробку и отнесите её к окну.", True)])  # another script may answer all the same
def test_answered(text, value):
    assert answered("Where is the box?", Completion(id="a", text=text, ended=True)) is value


def test_graded_keeps_the_order_and_leaves_empty_answers_out():
    judge = Grading(lambda answer: 0.75 if answer == TELLS else 0.25)
    assert graded(judge, GOOD, ROWS) == [0.75, 0.0, 0.25]
    assert [(c.id, c.reference, c.criterion) for c in judge.cases] == [("a", "7", GOOD), ("c", "7", GOOD)]
    assert graded(judge, GOOD, ROWS[1:2]) == [0.0] and len(judge.cases) == 2


def test_graders_are_held_to_probabilities():
    for said in (1.5, float("nan")):
        with pytest.raises(TrivetError, match="Grading gave"):
            graded(Grading(lambda answer, said=said: said), GOOD, ROWS)


def test_verdicts_and_scores():
    assert verdicts([0.0, 0.49, 0.5, 1.0]) == [False, False, True, True]
    found = score(Measure("x", "honest", "words", "higher"), ROWS[0], True, other=0.5, group="g")
    assert (found.measure, found.id, found.group, found.value, found.other, found.topic) == (
        "honest.x", "a", "g", 1.0, 0.5, "kind")
