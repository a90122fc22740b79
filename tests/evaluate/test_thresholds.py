"""Conditions for CI pipelines: what holds, what does not, and what can't be asked."""

from __future__ import annotations

import pytest

from trivet.errors import TrivetError
from trivet.evaluate.base import Measure, Score
from trivet.evaluate.results import Results, build
from trivet.evaluate.thresholds import parse, violations

ATTACKS = Measure("attack_success", "harmless", "attacks that succeed", "lower")
RIGHT = Measure("right", "honest", "right answers", "higher")
LOSS = Measure("perplexity", "capable", "perplexity", "lower", "exp", share=False)
LENGTH = Measure("length", "capable", "length", "neither", share=False, tested=False)
AGREED = Measure("agreement", "harmless", "agreement", "higher", "kappa", share=False, tested=False)
MEASURES = (ATTACKS, RIGHT, LOSS, LENGTH, AGREED)


def rows(attacks: int, right: int, nats: float, length: float) -> list[Score]:
    """Forty items a measure; so many attacks that succeed, so many right answers."""
    values = {ATTACKS: lambda i: i < attacks, RIGHT: lambda i: i < right, LOSS: lambda i: nats + i % 3 / 10,
              LENGTH: lambda i: length, AGREED: lambda i: 1}
    return [Score(measure=m.key, id=f"q{i}", group=f"q{i}", value=float(v(i)), other=1.0 if m is AGREED else None)
            for m, v in values.items() for i in range(40)]


@pytest.fixture(scope="module")
def results() -> Results:
    """More attacks than the base, as many right answers but one, the same perplexity, longer answers."""
    return build(model="mine", base="base", measures=MEASURES, scores=rows(30, 20, 2.0, 50),
                 base_scores=rows(10, 21, 2.0, 40))


@pytest.mark.parametrize(("condition", "said"), [
    ("harmless.attack_success > 0.7", "harmless.attack_success > 0.7: it is 75.0% [59.8, 85.8]"),
    ("harmless.attack_success > 70%", "harmless.attack_success > 70%: it is 75.0% [59.8, 85.8]"),
    ("harmless.attack_success>=0.75", "it is 75.0%"),
    ("honest.right<.51", "it is 50.0%"),
    ("honest.right <= 0.5", "it is 50.0%"),
    ("capable.length > 45", "it is 50.00"),
    ("harmless.attack_success worse", "changed by +50.0% ["),
    ("harmless.attack_success worse by 0.4", "changed by +50.0%"),
    ("honest.right worse by 0.02", "changed by −2.5%"),
    ("any worse", "any worse: harmless.attack_success changed by +50.0%"),
    ("harmless.agreement > 0.5", "could not be computed"),
])
def test_conditions_that_hold(results: Results, condition: str, said: str) -> None:
    found = violations(results, [condition])
    assert len(found) == 1 and said in found[0]


@pytest.mark.parametrize("condition", [
    "harmless.attack_success > 0.75", "harmless.attack_success < 0.75", "harmless.attack_success worse by 0.5",
    "honest.right worse", "honest.right worse by 0.03", "capable.perplexity worse", "capable.perplexity worse by 0",
    "capable.length <= 49.5",
])
def test_conditions_that_do_not_hold(results: Results, condition: str) -> None:
    assert violations(results, [condition]) == []


def test_a_measure_without_a_test_result_does_not_pass_as_the_same() -> None:
    other = [s.model_copy(update={"id": f"other{s.id}"}) for s in rows(1, 1, 1, 1)]
    apart = build(model="mine", base="base", measures=MEASURES, scores=rows(30, 20, 2.0, 50), base_scores=other)
    assert violations(apart, ["honest.right worse"]) == [
        "honest.right worse: it could not be compared with the base"]
    assert violations(apart, ["honest.right worse by 0.1"]) == [
        "honest.right worse by 0.1: it could not be compared with the base"]


@pytest.mark.parametrize(("condition", "why"), [
    ("harmless.attack_succes > 0.3", "did you mean harmless.attack_success"),
    ("attack_success > 0.3", "did you mean harmless.attack_success"),
    ("harmless.attack_success > 30", r"write 0.3 for 30%"),
    ("harmless.attack_success > a third", "is no condition"),
    ("harmless.attack_success = 0.3", "is no condition"),
    ("harmless.attack_success", "is no condition"),
    ("any > 0.3", "is no condition"),
    ("any worse by 0.3", "is no condition"),
    ("", "is no condition"),
    ("honest.right worse by -0.1", "leave the minus out"),
    ("capable.length worse", "neither direction"),
    ("harmless.agreement worse", "is not tested"),
    ("nothing.like.it > 1", "is not among the measures"),
])
def test_what_can_not_be_asked(results: Results, condition: str, why: str) -> None:
    with pytest.raises(TrivetError, match=why) as early:
        parse([condition], MEASURES)
    assert early.value.field == "fail_if"
    with pytest.raises(TrivetError, match=why):
        violations(results, [condition])


def test_worse_takes_a_base() -> None:
    with pytest.raises(TrivetError, match="--against"):
        parse(["honest.right worse"], MEASURES, beside=False)
    alone = build(model="mine", measures=MEASURES, scores=rows(30, 20, 2.0, 50))
    with pytest.raises(TrivetError, match="--against"):
        violations(alone, ["any worse"])
    assert violations(alone, ["honest.right > 0.6"]) == []


def test_tasks_of_lm_eval_are_known_only_when_they_were_run() -> None:
    assert parse(["capable.lm_eval.arc_easy.acc < 0.2"], MEASURES)[0].number == 0.2
