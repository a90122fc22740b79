"""What judges gave is checked; pairs are asked in both orders; which judge a setting names."""

from __future__ import annotations

import subprocess
import sys

import pytest

from trivet.artifacts import Message
from trivet.errors import TrivetError
from trivet.judge.ask import Both, both_orders, call, check, grades, kind_of, make_judge, name_of, swap
from trivet.judge.cases import Case
from trivet.judge.config import Judging
from trivet.judge.criteria import BETTER, GOOD


def pair(a: str, b: str, id: str = "c") -> Case:
    return Case(id, (Message(role="user", content="Which?"),), (a, b), BETTER)


def test_both_orders_cancel_a_preference_for_the_first() -> None:
    def first_lover(cases):  # likes what stands first by 0.2, and "good" by 0.2
        return [0.5 + 0.2 + 0.2 * ((c.answers[0] == "good") - (c.answers[1] == "good")) for c in cases]

    rows = both_orders(first_lover, [pair("good", "bad"), pair("bad", "good", "d"), pair("x", "y", "e")])
    assert [r.id for r in rows] == ["c", "d", "e"]
    assert [r.probability for r in rows] == pytest.approx([0.7, 0.3, 0.5])
    assert (rows[0].given, rows[0].swapped) == pytest.approx((0.9, 0.5))
    once = both_orders(first_lover, [pair("good", "bad")], swapped=False)
    assert once == [Both("c", pytest.approx(0.9), pytest.approx(0.9), pytest.approx(0.9))]


def test_a_judge_that_cannot_see_the_order_is_asked_once() -> None:
    class Even:
        symmetric = True
        asked = 0

        def __call__(self, cases):
            self.asked += len(cases)
            return [0.6] * len(cases)

    judge = Even()
    assert both_orders(judge, [pair("a", "b")])[0].swapped == 0.6 and judge.asked == 1


def test_only_pairs_have_an_order() -> None:
    with pytest.raises(TrivetError, match="holds 1 answers, not two"):
        swap(Case("c", (), ("a",), GOOD))


@pytest.mark.parametrize(("given", "words"), [
    ([0.5], "1 verdicts for 2 cases"), ([0.5, float("nan")], "gave nan for case 'd'"), ([0.5, 1.2], "gave 1.2"),
    ([-0.1, 0.5], "gave -0.1 for case 'c'"), (["A", "B"], "not a sequence of numbers"), (None, "gave NoneType"),
    ("AB", "gave str"),
])
def test_what_a_judge_gives_is_checked(given, words) -> None:
    with pytest.raises(TrivetError, match=words):
        call(lambda cases: given, [pair("a", "b"), pair("a", "b", "d")], "mine:f")


@pytest.mark.parametrize(("by", "kind"), [
    ("http://localhost:8000/v1", "endpoint"), ("https://h/v1", "endpoint"), ("mine:f", "function"),
    ("runs/reward/reward", "model"), ("smollm2-135m-instruct", "model"), ("owner/name", "model"),
])
def test_kinds(by, kind) -> None:
    assert kind_of(by) == kind


@pytest.mark.parametrize(("settings", "words"), [
    (dict(by="no_such_module_here:f"), "can't be imported"),
    (dict(by="http://localhost:8000/v1"), "--grader.model NAME"),
    (dict(by="http://:99999/v1", model="m"), "no address"),
    (dict(by="runs/not/there"), "as a judge"),
    (dict(by=" "), "no judge is given"),
    (dict(by="math:sqrt", votes=3), "nothing to vote on"), (dict(by="owner/name", votes=2), "nothing to vote on"),
])
def test_bad_settings_are_found_out_before_anything_is_loaded(settings, words, tmp_path) -> None:
    with pytest.raises(TrivetError, match=words) as caught:
        check(Judging(**settings), field="grader")
    assert caught.value.field is not None and caught.value.field.startswith("grader.")
    with pytest.raises(TrivetError):
        make_judge(Judging(**settings), None, folder=tmp_path / "new", field="grader")
    assert not (tmp_path / "new").exists()


def test_none_is_none(tmp_path) -> None:
    check(Judging())
    assert make_judge(Judging(), None, folder=tmp_path) is None


def test_what_nobody_says_of_a_function() -> None:
    def judge(cases):
        return [0.5] * len(cases)

    assert grades(judge) and name_of(judge) == "judge"


def test_asking_needs_no_torch() -> None:
    code = ("import trivet.judge.ask, trivet.judge.criteria, trivet.judge.length, trivet.judge.cache, sys; "
            "from trivet.judge.config import Judging; trivet.judge.ask.check(Judging(by='math:sqrt')); "
            "sys.exit('torch' in sys.modules or 'openai' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_larger_budget_is_no_other_run() -> None:
    from trivet.config import fingerprint
    from trivet.evaluate.config import EvaluateConfig

    def mark(**judge):
        return fingerprint("evaluate", EvaluateConfig(judge=Judging(by="http://h/v1", model="m", **judge)), {})

    assert mark(requests=5) == mark(requests=50, tokens=9, key="K", retries=1, timeout=1, concurrency=2) == mark()
    assert mark(longest=500) != mark() != mark(both_orders=False)
