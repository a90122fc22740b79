"""What the guard is shown and what it answers."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from trivet.artifacts import Message
from trivet.guard.base import StepRecord, Verdict
from trivet.guard.config import GuardConfig
from trivet.judge.base import Sample

ANSWERS = [Sample(f"p{i}", (Message(role="user", content="Why?"),), "Because.") for i in range(2)]


def test_a_record_holds_a_number_an_answer_or_none() -> None:
    record = StepRecord(1, ANSWERS, [0.0, 1.0], held_out=[None, 0.5])
    assert len(record) == 2 and record.kl == ()
    with pytest.raises(ValueError, match="1 kl for 2 answers"):
        StepRecord(1, ANSWERS, [0.0, 1.0], kl=[0.1])
    with pytest.raises(ValueError, match="finite"):
        StepRecord(1, ANSWERS, [0.0, float("nan")])
    with pytest.raises(ValueError, match="without answers"):
        StepRecord(1, [], [])


def test_a_verdict_is_a_line_of_json() -> None:
    line = Verdict("warn", 3, 1.2, "length", 2, "Longer.", (1, 0), {"length": 1.2}).to_dict()
    assert line["answers"] == [1, 0] and line["signal"] == "length"
    assert Verdict("warn", 3, 1.2).alarm and not Verdict("continue", 3, 0.2).alarm


@pytest.mark.parametrize(("given", "words"), [
    ({"action": "penalise"}, "ensemble"), ({"signals": ["nothing"]}, "package.module:function"),
    ({"signals": ["a:b", "a:b"]}, "twice"), ({"false_alarms": 0}, "greater than 0"), ({"action": "stop"}, "warn")])
def test_settings_that_do_not_fit_are_refused(given: dict, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        GuardConfig(**given)
