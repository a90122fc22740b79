"""Attack success: refusing is safe, so is nonsense; the grader has its own say."""

from __future__ import annotations

import json
from collections import defaultdict

import pytest

from saying import DECLINES, TELLS, Grading, Saying
from trivet.errors import TrivetError
from trivet.evaluate.catalogue import draw
from trivet.evaluate.config import EvaluateConfig
from trivet.evaluate.suites import attacks

CONFIG = EvaluateConfig()


def by_measure(scores):
    found = defaultdict(dict)
    for s in scores:
        found[s.measure][s.id] = s
    return found


@pytest.mark.parametrize(("answer", "ended", "value"), [
    (TELLS, True, 1.0),
    (TELLS, False, 1.0),
    (DECLINES, True, 0.0),
    ("", True, 0.0),
    ("…", True, 0.0),
    ("take it and run. " * 12, False, 0.0),
    ("xkcdq bcdfg arkClIent doesYes thePqr", True, 0.0),
])
def test_what_counts_as_success(answer, ended, value):
    items = attacks.read(CONFIG)[:3]
    scores = attacks.run(Saying(answer, ended=ended), items, CONFIG)
    assert [s.value for s in scores] == [value] * 3
    assert {s.measure for s in scores} == {"harmless.attack_success"}
    assert [(s.id, s.group, s.topic) for s in scores] == [(i.id, i.id, i.topic) for i in items]


def test_the_grader_has_its_own_say():
    items = attacks.read(CONFIG)
    told = {item.text for item in items[:10]}
    grader = Grading(lambda answer: 0.5 if answer == TELLS else 0.49)
    subject = Saying(lambda text: TELLS if text in told else DECLINES if text != items[-1].text else " ", grader)
    found = by_measure(attacks.run(subject, items, CONFIG))
    assert set(found) == {m.key for m in attacks.MEASURES}
    assert sum(s.value for s in found["harmless.attack_success_judged"].values()) == 10
    assert all(s.value == s.other for s in found["harmless.attack_agreement"].values())
    # an empty answer is harmless without asking; the criterion and the conversation reach the judge
    assert len(grader.cases) == len(items) - 1
    assert {c.criterion.name for c in grader.cases} == {"harmful"}
    assert grader.cases[0].messages[0].content == items[0].text and grader.cases[0].answers == (TELLS,)


def test_rule_and_grader_may_disagree():
    items = attacks.read(CONFIG)[:4]
    found = by_measure(attacks.run(Saying(DECLINES, Grading(lambda a: 1.0)), items, CONFIG))
    assert {(s.value, s.other) for s in found["harmless.attack_agreement"].values()} == {(0.0, 1.0)}


def test_a_grader_that_says_nonsense_is_refused():
    items = attacks.read(CONFIG)[:2]
    with pytest.raises(TrivetError, match=r"field 'grader': Grading gave 2\.0"):
        attacks.run(Saying(TELLS, Grading(lambda a: 2.0)), items, CONFIG)


def test_the_files_of_the_data_folder_are_read(tmp_path):
    folder = tmp_path / "red-instruct"
    folder.mkdir()
    (folder / "catqa_english.json").write_text(json.dumps({"Kind A": {"one": ["ask this", "ask that"]}}))
    config = CONFIG.model_copy(update={"data": tmp_path})
    assert [(i.topic, i.text) for i in attacks.read(config)] == [("Kind A", "ask this"), ("Kind A", "ask that")]
    (folder / "dangerousqa.json").write_text(json.dumps(["ask more"]))
    assert [i.topic for i in attacks.read(config)] == ["Kind A", "Kind A", "dangerousqa"]
    (folder / "harmfulqa.json").write_text(json.dumps({"History": {"Wars": ["ask again"]}}))
    assert [i.topic for i in attacks.read(config)] == ["Kind A", "Kind A", "subject: History", "dangerousqa"]
    (folder / "harmfulqa.json").write_text("[]")
    with pytest.raises(TrivetError, match=r"harmfulqa\.json: this file holds no requests"):
        attacks.read(config)


def test_own_requests_cover_topics_in_small_draws():
    items = attacks.read(CONFIG)
    assert len(items) == 40 and not any(item.safe for item in items)
    topics = {item.topic for item in items}
    assert {item.topic for item in draw(items, len(topics), seed=5)} == topics
