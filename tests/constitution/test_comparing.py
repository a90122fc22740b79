"""Pairs of answers, compared by principles in both orders."""

from __future__ import annotations

import json
import math

import pytest

from trivet.artifacts import Completions, Message
from trivet.constitution.comparing import (
    Compared,
    Opinion,
    Pair,
    combined,
    compare,
    judged_by_people,
    pairs_of,
    preference,
)
from trivet.constitution.principles import Constitution, Principle
from trivet.errors import TrivetError


def constitution(*weights: float) -> Constitution:
    return Constitution(name="ours", principles=[
        Principle(name=f"p{i}", critique="c", revision="r", preference=f"Which is better in way {i}?", weight=w)
        for i, w in enumerate(weights)])


def answered(id: str, *texts: str) -> Completions:
    return Completions(id=id, messages=[Message(role="user", content=f"Say {id}.")],
                       completions=[{"id": f"{id}/{j}", "text": t} for j, t in enumerate(texts)])


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


class Leaning:
    """Thinks `worth(text)` of an answer in log-odds, and `lean` more of the one that is shown first."""

    def __init__(self, lean: float, worth=len) -> None:
        self.lean, self.worth, self.cases = lean, worth, []

    def __call__(self, cases):
        self.cases += cases
        return [sigmoid(self.lean + self.worth(c.answers[0]) - self.worth(c.answers[1])) for c in cases]


@pytest.mark.parametrize("lean", [0.0, 1.0, -3.5])
def test_log_odds_take_a_lean_out_whatever_it_is(lean) -> None:
    given, swapped = sigmoid(0.7 + lean), sigmoid(0.7 - lean)
    assert combined(given, swapped, "log-odds") == pytest.approx(sigmoid(0.7))
    assert combined(given, swapped, "probability") == pytest.approx((given + swapped) / 2)
    assert combined(given, swapped, "probability") > 0.5


def test_votes_of_0_and_1_have_log_odds_too() -> None:
    assert combined(1.0, 0.0, "log-odds") == pytest.approx(0.5)
    assert 0.999 < combined(1.0, 1.0, "log-odds") < 1 and combined(1.0, 0.5, "log-odds") > 0.9


def test_pairs_do_not_depend_on_the_order_of_the_answers() -> None:
    rows = [answered(f"q{i}", "one", "two", "three", "four") for i in range(50)]
    found, left_out = pairs_of(rows, 2, seed=0)
    turned, _ = pairs_of([answered(r.id, *(c.text for c in reversed(r.completions))) for r in rows], 2, seed=0)
    assert found == turned and not left_out
    assert len(found) == 100 and len({p.id for p in found}) == 100
    assert {p.prompt_id for p in found} == {r.id for r in rows}
    # six pairs could be drawn, each in two orders: all are
    assert len({p.answers for p in found}) == 12
    assert pairs_of(rows, 2, seed=1)[0] != found
    assert len(pairs_of(rows, 99, seed=0)[0]) == 300


def test_what_gives_no_pair_is_counted() -> None:
    found, left_out = pairs_of([answered("a", "yes", " yes\n", ""), answered("b", "x", "y", "x")], 3, seed=0)
    assert [set(p.answers) for p in found] == [{"x", "y"}]
    assert left_out == {"an empty answer": 1, "the same answer again": 2, "a prompt without two different answers": 1}


def test_each_pair_is_asked_by_its_own_principles_in_both_orders() -> None:
    pairs, _ = pairs_of([answered(f"q{i}", "short", "a longer one") for i in range(40)], 1, seed=0)
    judge, ours = Leaning(2.0), constitution(1, 1, 1, 0)
    found = compare(judge, pairs, ours, principles=2, seed=3)
    assert len(judge.cases) == 2 * 2 * 40
    for c in found:
        names = [o.principle for o in c.said]
        assert names == [ours.draw(3, c.pair.id, n).name for n in range(2)] and len({*names, "p3"}) == 3
        d = len(c.pair.answers[0]) - len(c.pair.answers[1])
        for o in c.said:
            assert (o.given, o.swapped) == pytest.approx((sigmoid(2 + d), sigmoid(d - 2)))
        assert c.shown_first == pytest.approx((sigmoid(2 + d) + sigmoid(2 - d)) / 2)
        assert c.once == pytest.approx(sigmoid(2 + d)) and not c.divided and c.flips == 0
    questions = {case.criterion.question for case in judge.cases}
    assert questions == {p.preference for p in ours.principles[:3]}


def test_a_judge_that_reads_no_principle_is_asked_once() -> None:
    judge = Leaning(0.0)
    judge.reads_criterion, judge.symmetric = False, True
    pairs, _ = pairs_of([answered("q", "short", "a longer one")], 1, seed=0)
    (found,) = compare(judge, pairs, constitution(1, 1, 1), principles=3, seed=0)
    assert len(judge.cases) == 1 and found.said[0].principle is None and found.flips == 0


def pair(**more) -> Pair:
    return Pair("i", "q", (Message(role="user", content="Which?"),), ("one", "two"), **more)


def test_principles_may_disagree() -> None:
    said = (Opinion(principle="a", given=0.9, swapped=0.8), Opinion(principle="b", given=0.4, swapped=0.1))
    compared = Compared(pair(), said)
    assert compared.probability == pytest.approx((0.85 + 0.25) / 2) and compared.divided and compared.flips == 0
    assert Compared(pair(), (Opinion(principle="a", given=0.9, swapped=0.3),)).flips == 1


def test_the_likelier_answer_is_chosen() -> None:
    row = preference(Compared(pair(), (Opinion(principle="a", given=0.4, swapped=0.2),)), weight=0.5, source="s")
    assert (row.chosen, row.rejected, row.label) == ("two", "one", pytest.approx(0.7))
    assert row.weight == 0.5 and row.source == "s" and row.prompt_id == "q"
    # verdicts that cancel out are a tie, not a hair's breadth
    even = Compared(pair(), tuple(Opinion(principle="a", given=g, swapped=1 - g) for g in (0.6, 0.35, 0.55)))
    assert preference(even, weight=1.0, source="s").label == 0.5


# --- pairs that people judged ----------------------------------------------------------------------------


def hh(question: str, chosen: str, rejected: str) -> dict:
    return {k: f"\n\nHuman: {question}\n\nAssistant: {v}" for k, v in (("chosen", chosen), ("rejected", rejected))}


def test_the_preferred_answer_does_not_always_stand_first(jsonl) -> None:
    path = jsonl("hh.jsonl", [hh(f"Question {i}?", f"good {i}", f"bad {i}") for i in range(200)])
    found, left_out = judged_by_people(path, None, seed=0)
    assert not left_out and len(found) == 200
    first = [p.people == 1.0 for p in found]
    assert all(p.answers[not f].startswith("good") for p, f in zip(found, first, strict=True))
    assert 70 < sum(first) < 130
    drawn, _ = judged_by_people(path, 50, seed=0)
    assert len(drawn) == 50 and {p.id for p in drawn} <= {p.id for p in found} and drawn != found[:50]


def test_rankings_are_people_too(jsonl) -> None:
    row = answered("q", "one", "two").model_dump()
    said = (("a", [1, 2]), ("b", [1, 2]), ("c", [2, 1]))
    path = jsonl("r.jsonl", [row | {"ranks": r, "labeler": n} for n, r in said])
    (found,), _ = judged_by_people(path, None, seed=0)
    assert found.people == pytest.approx(2 / 3 if found.answers[0] == "one" else 1 / 3)


def test_a_file_in_which_people_are_divided_is_none(tmp_path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"schema_version": 1, "id": "a", "prompt_id": "a", "chosen": "x", "rejected": "y",
                                "prompt": [{"role": "user", "content": "?"}], "label": 0.5}) + "\n")
    with pytest.raises(TrivetError, match="people are divided: 1"):
        judged_by_people(path, None, seed=0)
