"""The suite of instructions, with subjects that obey, refuse, or talk nonsense."""

from __future__ import annotations

import pytest

from fakes import FakeSubject, shares
from solver import solve
from trivet.evaluate.catalogue import SUITES, draw
from trivet.evaluate.config import EvaluateConfig
from trivet.evaluate.suites import instructions

CONFIG = EvaluateConfig()


def test_items_are_the_same_for_all_seeds():
    items = instructions.read(CONFIG)
    assert items == instructions.read(EvaluateConfig(seed=5))
    assert len(items) == instructions.POOL and len({i.id for i in items}) == len(items)
    assert len(draw(items, SUITES["instructions"].standard, 3)) == SUITES["instructions"].standard


def test_obeying_is_found():
    items = [i for i in instructions.read(CONFIG) if not any(c.family == "words at least" for c in i.constraints)]
    answers = {item.text: solve(item) for item in items}
    subject = FakeSubject(answers.__getitem__)
    scores = instructions.run(subject, items, CONFIG)
    found = shares(scores, instructions.MEASURES)
    assert found == {"instructions": 1.0, "constraints": 1.0}
    assert sum(s.measure == "helpful.constraints" for s in scores) == sum(len(i.constraints) for i in items)
    [(suite, sampling)] = subject.asked
    assert suite == "instructions" and sampling.max_new_tokens == 2 * CONFIG.sampling.max_new_tokens


@pytest.mark.parametrize("reply", [
    "", "I'm sorry, but I can't help with that.", "xqzt wrtk bvnm plkj hgfd zxcv qwrt",
    "It is so. " * 40,
])
def test_what_is_no_answer_obeys_nothing(reply):
    """Without this, refusing would obey every `do not`."""
    scores = instructions.run(FakeSubject(lambda _: reply), instructions.read(CONFIG), CONFIG)
    assert shares(scores, instructions.MEASURES) == {"instructions": 0.0, "constraints": 0.0}


def test_scores_by_hand():
    item = next(i for i in instructions.read(CONFIG) if [c.family for c in i.constraints] == ["question", "no letter"])
    letter = item.constraints[1].values[0]
    whole, first, second = instructions.judge(item, f"It has the letter {letter}. Is it so?", ended=True)
    assert (whole.value, first.value, second.value) == (0, 1, 0)
    assert (whole.group, first.group, whole.topic, first.topic) == (item.id, item.id, "2 at once", "question")


def test_the_torn_last_word_of_an_answer_cut_off_is_not_held_against_it():
    item = next(i for i in instructions.read(CONFIG) if [c.family for c in i.constraints] == ["lower case"])
    answer = "it is an old house xqzt"
    whole, _ = instructions.judge(item, answer, ended=True)
    cut, _ = instructions.judge(item, answer, ended=False)
    assert (whole.value, cut.value) == (0, 1)
