"""Kept verdicts: nothing is asked twice, torn lines are dropped, damaged ones told."""

from __future__ import annotations

import json

import pytest

from trivet.artifacts import Message
from trivet.errors import TrivetError
from trivet.judge.cache import Kept, Line, Verdicts, case_key
from trivet.judge.cases import Case, Criterion
from trivet.judge.criteria import BETTER, GOOD


def case(answer: str = "a", id: str = "c", **changes) -> Case:
    fields = dict(messages=(Message(role="user", content="Q?"),), answers=(answer, "b"), criterion=BETTER)
    return Case(id, **{**fields, **changes})


class Counting:
    """A judge by the length of the first answer; it remembers what it was asked, and may break off."""

    name, grades, symmetric, sees_ids = "counting", True, False, False

    def __init__(self, identity: dict | None = None, fail_at: int | None = None) -> None:
        self.identity = {"kind": "test"} if identity is None else (identity or None)
        self.asked: list[str] = []
        self.fail_at = fail_at

    def ask(self, cases, keep) -> None:
        for i, c in enumerate(cases):
            if len(self.asked) == self.fail_at:
                raise TrivetError("broken off", mend="go on")
            self.asked.append(c.answers[0])
            keep([(i, 1 / (1 + len(c.answers[0])))])


def test_nothing_is_asked_twice(tmp_path) -> None:
    file = tmp_path / "new" / "verdicts.jsonl"
    judge = Counting()
    kept = Kept(judge, Verdicts(file))
    assert not file.parent.exists()
    cases = [case("a"), case("bbb"), case("a", "again")]
    assert kept(cases) == [0.5, 0.25, 0.5] == kept(cases)
    assert judge.asked == ["a", "bbb"]  # what is alike is one question, whatever its id
    later = Counting()
    assert Kept(later, Verdicts(file))([case("bbb"), case("cc")]) == [0.25, 1 / 3]
    assert later.asked == ["cc"]
    first = json.loads(file.read_text().splitlines()[0])
    assert (first["case"], first["criterion"], first["probability"]) == ("c", "better", 0.5)


def test_an_interrupted_run_goes_on(tmp_path) -> None:
    file = tmp_path / "verdicts.jsonl"
    cases = [case("x" * i) for i in range(1, 6)]
    with pytest.raises(TrivetError, match="broken off"):
        Kept(Counting(fail_at=3), Verdicts(file))(cases)
    later = Counting()
    assert Kept(later, Verdicts(file))(cases) == [1 / (1 + i) for i in range(1, 6)]
    assert later.asked == ["xxxx", "xxxxx"]


@pytest.mark.parametrize("other", [
    case("A"), case(answers=("b", "a")), case(answers=("a",)), case(criterion=GOOD),
    case(criterion=Criterion("better", "another question")), case(reference="r"),
    case(messages=(Message(role="user", content="Q!"),)), case(messages=(Message(role="system", content="Q?"),)),
])
def test_whatever_a_judge_reads_is_part_of_the_key(other) -> None:
    assert case_key({"j": 1}, case()) != case_key({"j": 1}, other)
    assert case_key({"j": 1}, case()) != case_key({"j": 2}, case())
    assert case_key({"j": 1}, case()) == case_key({"j": 1}, case(id="d"))
    assert case_key({"j": 1}, case(), with_id=True) != case_key({"j": 1}, case(id="d"), with_id=True)


def test_a_judge_that_nobody_knows_is_always_asked(tmp_path) -> None:
    judge = Counting(identity={})
    kept = Kept(judge, Verdicts(tmp_path / "v.jsonl"))
    assert kept([case("a")]) == kept([case("a")]) == [0.5]
    assert judge.asked == ["a", "a"] and not (tmp_path / "v.jsonl").exists()


@pytest.mark.parametrize("torn", ['{"schema_version":1,"key":"k2","proba', '{"schema_version":1', "\x00", "{"])
def test_a_torn_last_line_is_dropped(tmp_path, torn) -> None:
    file = tmp_path / "v.jsonl"
    Verdicts(file).add([Line(key="k1", case="c", criterion="better", probability=0.3)])
    whole = file.read_text()
    file.write_text(whole + torn)
    again = Verdicts(file)
    assert again.get("k1") == 0.3 and again.get("k2") is None and file.read_text() == whole
    again.add([Line(key="k3", case="c", criterion="better", probability=0.4)])
    assert len(Verdicts(file)) == 2


@pytest.mark.parametrize(("line", "words"), [
    ("{nonsense", "broken JSON"), ('{"key": "k", "case": "c", "criterion": "b", "probability": 1.5}', "probability"),
    ('{"other": 1}', "this field is missing"),
    ('{"schema_version": 9}', "schema_version"),
])
def test_a_damaged_line_is_told_with_its_place(tmp_path, line, words) -> None:
    file = tmp_path / "v.jsonl"
    kept = '{"key":"k","case":"c","criterion":"better","probability":0.5}'
    file.write_text(f"{kept}\n{line}\n{kept}\n")
    with pytest.raises(TrivetError, match=words) as caught:
        Verdicts(file)
    assert caught.value.line == 2


def test_a_folder_that_cannot_be_written(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrivetError):
        Kept(Counting(), Verdicts(tmp_path / "file" / "v.jsonl"))([case()])

