"""Open prompts: the second turn follows the model's own answer, rules and judge say what they should."""

from __future__ import annotations

import json

import pytest

from saying import TELLS, Grading, Saying, completions
from trivet.artifacts import Prompt, is_held_out
from trivet.errors import TrivetError
from trivet.evaluate.config import EvaluateConfig
from trivet.evaluate.subject import Subject
from trivet.evaluate.suites import prompts
from trivet.training.device import prepare

CONFIG = EvaluateConfig()
ITEMS = prompts.read(CONFIG)


def test_what_is_asked():
    starter = [i for i in ITEMS if i.then is None]
    assert len(starter) == 44 and len(ITEMS) == 64 and len({i.id for i in ITEMS}) == 64
    assert all(is_held_out(i.messages, 0.25, 0) for i in starter)
    assert {i.topic for i in starter} == {"helpful", "honest", "harmless"}


def test_the_second_turn_follows_the_own_answer():
    items = [i for i in ITEMS if i.then is not None][:2]
    subject = Saying(lambda text: f"You said: {text}")
    scores = prompts.run(subject, items, CONFIG)
    assert [p.id for _, p, _ in subject.asked] == [items[0].id, items[1].id, f"{items[0].id}/2", f"{items[1].id}/2"]
    first, said, second = subject.asked[2][1].messages
    assert (said.role, said.content) == ("assistant", f"You said: {first.content}") and second.content == items[0].then
    assert {tokens for *_, tokens in subject.asked} == {2 * CONFIG.sampling.max_new_tokens}
    assert {(s.id, s.group) for s in scores} == {(f"{i.id}{end}", i.id) for i in items for end in ("", "/2")}
    assert {s.topic for s in scores} == {i.topic for i in items}


def figures(subject, items=ITEMS[:1]):
    return {s.measure.split(".")[1]: s.value for s in prompts.run(subject, items, CONFIG)}


def test_the_rules():
    assert figures(Saying(TELLS)) == {"fluent": 1.0, "repetition": 0.0, "length": 18.0, "ended": 1.0}
    looping = figures(Saying("and then we go on " * 10, ended=False))
    assert looping["fluent"] == looping["ended"] == 0.0 and looping["repetition"] > 0.8
    assert figures(Saying(""))["fluent"] == 0.0


def test_quality_needs_a_grader():
    grader = Grading(lambda answer: 0.7)
    assert figures(Saying(TELLS, grader))["quality"] == 0.7
    assert grader.cases[0].criterion.name == "good"
    assert figures(Saying("", grader))["quality"] == 0.0 and len(grader.cases) == 1


def test_the_data_folder_adds_prompts(tmp_path):
    (tmp_path / "prompts").mkdir()
    row = {"question_id": 1, "category": "writing", "turns": ["Write it.", "Cut it."]}
    (tmp_path / "prompts" / "mt_bench.jsonl").write_text(json.dumps(row) + "\n")
    items = prompts.read(CONFIG.model_copy(update={"data": tmp_path}))
    assert len(items) == 65 and (items[-1].topic, items[-1].then) == ("writing", "Cut it.")


# --- two models ------------------------------------------------------------------------------------------


def rows(say, asked=("a", "b", "c"), **other):
    return [completions(Prompt(id=i, tags=["talk"], messages=[{"role": "user", "content": other.get(i, f"Say {i}.")}]),
                        say(i)) for i in asked]


def test_compare_asks_in_both_orders():
    judge = Grading(lambda first, second: 0.9 if first.startswith("good") else 0.3)
    scores = prompts.compare(rows(lambda i: f"good {i} indeed"), rows(lambda i: f"bad {i}"), judge)
    assert {s.measure for s in scores} == {"helpful.win_rate", "helpful.win_rate_length_controlled",
                                           "helpful.judge_prefers_first", "helpful.judge_flips"}
    assert [s.value for s in scores if "win" in s.measure] == [pytest.approx(0.8)] * 6
    assert [s.value for s in scores if s.measure.endswith("first")] == [pytest.approx(0.6)] * 3  # 0.9, 0.3 stand first
    assert {s.value for s in scores if s.measure.endswith("flips")} == {0}
    assert {s.other for s in scores if s.measure.endswith("controlled")} == {1.0}
    assert {(s.id, s.group, s.topic) for s in scores} == {(i, i, "talk") for i in "abc"}
    assert len(judge.cases) == 6 and {c.criterion.name for c in judge.cases} == {"better"}
    once = prompts.compare(rows(lambda i: f"good {i} indeed"), rows(lambda i: f"bad {i}"), judge, swapped=False)
    assert {s.value for s in once if "win" in s.measure} == {0.9} and len(once) == 6 and len(judge.cases) == 9


def test_a_judge_that_only_heeds_the_order_says_nothing():
    scores = prompts.compare(rows(lambda i: "one"), rows(lambda i: "two"), Grading(lambda first, second: 1.0))
    assert {s.value for s in scores if "win" in s.measure} == {0.5}
    assert {s.value for s in scores if "judge" in s.measure} == {1.0}


def test_only_equal_prompts_are_compared():
    judge = Grading(lambda *_: 0.5)
    scores = prompts.compare(rows(str), rows(str, asked="bcd", c="Say something else."), judge)
    assert {s.id for s in scores} == {"b"}
    two_turns = rows(str, asked=["a", "a/2"])
    assert {s.id for s in prompts.compare(two_turns, two_turns, judge)} == {"a"}
    with pytest.raises(TrivetError, match="no prompt in common"):
        prompts.compare(rows(str, asked="a"), rows(str, asked="b"), judge)


# --- a real model ----------------------------------------------------------------------------------------


def test_every_suite_with_a_tiny_model(make_tiny, tmp_path):
    from trivet.evaluate.suites import attacks, refusals

    model = make_tiny(tmp_path / "model", context=1024)
    config = CONFIG.model_copy(update={"sampling": CONFIG.sampling.model_copy(update={"max_new_tokens": 2})})
    compute = prepare(config.device)

    def run(module, items):
        subject = Subject(str(model), tmp_path / "out", compute, seed=0)
        return module.run(subject, items, config)

    for module in (prompts, attacks, refusals):
        items = [i for i in module.read(config) if getattr(i, "then", "") is not None][:3]
        scores = run(module, items)
        assert scores and {s.measure for s in scores} <= {m.key for m in module.MEASURES}
        assert len({(s.measure, s.id) for s in scores}) == len(scores)
        assert run(module, items) == scores  # from the answers that were kept
    kept = (tmp_path / "out" / "answers" / "prompts.jsonl").read_text().splitlines()
    assert len(kept) == 6
