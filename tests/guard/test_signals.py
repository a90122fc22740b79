"""From answers to shifts: what is measured, against what baseline, and what is absent."""

from __future__ import annotations

import json
import math
import random
import statistics

import pytest

from gamed import TOPICS, record, rows, run_records
from trivet.artifacts import Message
from trivet.errors import TrivetError
from trivet.guard.base import StepRecord
from trivet.guard.detector import Shift
from trivet.guard.features import NEIGHBOURS, TEXT, features, prompt_of, sameness_column
from trivet.guard.signals import EVALUATED, SIGNALS, Moments, Watch, fisher, keys, kind_of, paired, unpaired
from trivet.judge.base import Sample


def said(text: str, prompt: str = "Why?") -> Sample:
    return Sample("p", (Message(role="user", content=prompt),), text)


def test_every_feature_of_a_full_record() -> None:
    found = features(record(rows(1, random.Random(0)), spread=[0.1] * 16))
    assert set(found) == {*TEXT, "sameness", "score", "kl", "surprise", "cut_off", "held_out_raw", "spread"}
    assert all(len(column) == 16 for column in found.values())
    row = rows(1, random.Random(0))[0]
    assert found["surprise"][0] == -row["ref_logp"] / row["tokens"] and found["length"][0] == len(row["completion"])


def test_what_a_record_lacks_gives_no_column() -> None:
    found = features(StepRecord(1, [said("Because."), said("")], [0.0, 1.0], held_out=[None, None], tokens=[1, 0],
                                ref_logp=[-1.0, 0.0]))
    assert set(found) == {*TEXT, "sameness", "score", "surprise"}
    assert found["surprise"] == [1.0, None], "an answer of no token has no mean"
    assert found["sameness"] == [None, None], "both answer one prompt"
    assert found["distance"] == [None, None], "a prompt of no content words"


def test_an_answer_is_compared_with_answers_to_other_prompts() -> None:
    alike = [said("the same words again", f"prompt {i}") for i in range(NEIGHBOURS + 3)]
    assert sameness_column(alike) == [1.0] * len(alike)
    mixed = [said("one two three", "a"), said("one two three", "a"), said("four five six", "b")]
    assert sameness_column(mixed) == [0.0, 0.0, 0.0]
    assert prompt_of(Sample("x", (Message(role="user", content="q"), Message(role="assistant", content="a"),
                                  Message(role="user", content="r")), "z")) == "r"


def test_the_baseline_is_the_untouched_policys_answers_of_both_kinds() -> None:
    watch = Watch()
    records = run_records(0, steps=2)
    assert [watch.look(r).shifts for r in records[:2]] == [{}, {}]
    assert watch.baselines["rollout"].moments["length"].n == len(TOPICS) + 16
    assert watch.baselines["evaluation"].moments["length"].n == len(TOPICS)
    shifts = watch.look(records[2]).shifts
    lengths = [float(len(s.completion)) for r in records[:2] for s in r.samples]
    now = [float(len(s.completion)) for s in records[2].samples]
    assert shifts["length"] == pytest.approx(Shift(
        statistics.fmean(now) - statistics.fmean(lengths), statistics.stdev(lengths), statistics.variance(now), 16,
        len(lengths)))
    assert shifts["kl"].difference == pytest.approx(statistics.fmean(records[2].kl)) and shifts["kl"].base == 0
    assert shifts["kl_rate"].difference == pytest.approx(
        statistics.fmean(records[2].kl) - statistics.fmean(records[1].kl))


def test_prompts_of_another_kind_are_not_taken_together() -> None:
    first = rows(0, random.Random(1), count=12, evaluation=True)
    for row in first:
        row["completion"] = row["completion"] * 4
    watch = Watch()
    watch.look(record(first, "evaluation"))
    watch.look(record(rows(1, random.Random(2))))
    assert watch.baselines["rollout"].moments["length"].n == 16


def test_the_gap_is_in_deviations_of_each_rewards_own_baseline() -> None:
    base = record(rows(1, random.Random(3), count=32))
    watch = Watch()
    watch.look(base)
    later = record(rows(2, random.Random(4), count=32, gamed=1.0))
    seen = watch.look(later)
    held = [h for h in base.held_out if h is not None]
    expected = [(s - statistics.fmean(base.scores)) / statistics.stdev(base.scores)
                - (h - statistics.fmean(held)) / statistics.stdev(held)
                for s, h in zip(later.scores, later.held_out, strict=True) if h is not None]
    assert seen.columns["gap"] == pytest.approx(expected)
    assert seen.shifts["gap"].difference > 1.5 and seen.shifts["held_out"].difference < -0.4


def test_a_reward_that_never_differs_has_no_scale() -> None:
    flat = rows(1, random.Random(5))
    for row in flat:
        row["score"] = 1.0
    watch = Watch()
    watch.look(record(flat))
    assert not {"gap", "held_out"} & watch.look(record(rows(2, random.Random(6)))).shifts.keys()


def test_half_of_the_held_out_scores_are_enough() -> None:
    def half(step: int) -> StepRecord:
        found = rows(step, random.Random(step))
        return record(found, held_out=[r["held_out"] if i % 2 else None for i, r in enumerate(found)])

    watch = Watch()
    watch.look(half(1))
    seen = watch.look(half(2))
    assert seen.shifts["gap"].n == 8 and seen.columns["gap"][0] is None


def test_evaluations_are_paired_by_prompt() -> None:
    before = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0, "e": 9.0}
    found = paired([2.0, 4.0, 3.0, 5.0, 4.0], ["a", "a", "b", "c", "d"], before, 2.0)
    assert found == Shift(statistics.fmean([2, 1, 2, 0]), 2.0, statistics.variance([2, 1, 2, 0]), 4, 0)
    assert paired([2.0, None, 3.0], ["a", "b", "c"], before, 2.0) is None
    assert unpaired([1.0, None], Moments(4, 0.0, 1.0)) is None


def test_fishers_z() -> None:
    xs = [float(i) for i in range(10)]
    ys = [x + (-1) ** i for i, x in enumerate(xs)]
    found = fisher(xs, ys)
    assert found is not None and found == (pytest.approx(math.atanh(statistics.correlation(xs, ys))), 10)
    assert fisher(xs[:7], ys[:7]) is None and fisher(xs, [1.0] * 10) is None
    perfect = fisher(xs, xs)
    assert perfect is not None and perfect[0] == pytest.approx(math.atanh(0.999))


def test_what_was_missing_at_the_start_is_not_watched() -> None:
    watch = Watch()
    bare = [{**r, "held_out": None} for r in rows(1, random.Random(0))]
    watch.look(record(bare, kl=(), ended=()))
    available = watch.available()
    assert "length" in available and not {"gap", "kl", "kl_rate", "cut_off", "evaluation/length"} & set(available)
    assert watch.lacks("gap") == "held_out" and watch.lacks("evaluation/length") == "no evaluation at the start"
    assert watch.lacks("surprise") == ""


def test_the_state_goes_round_as_json() -> None:
    whole, first, second = Watch(), Watch(), Watch()
    records = run_records(1, steps=6)
    expected = [whole.look(r).shifts for r in records]
    for cut in (1, 4):
        first = Watch()
        for r in records[:cut]:
            first.look(r)
        second = Watch()
        second.load_state(json.loads(json.dumps(first.state_dict())))
        assert [second.look(r).shifts for r in records[cut:]] == expected[cut:]


def test_each_signal_says_what_it_is() -> None:
    assert len(keys(["a:b"])) == len(SIGNALS) + 1 + len(EVALUATED) + 1
    for key in keys():
        kind = kind_of(key)
        assert kind.why and kind.up and kind.drift > 0
        assert (kind.down != "") == (kind.direction in ("down", "both"))
    assert kind_of("evaluation/mine:own").name == "mine:own"


@pytest.mark.parametrize(("given", "words"), [
    (lambda record: [1.0], "gave 1 values for 16 answers"), (lambda record: [math.nan] * 16, "gave nan"),
    (lambda record: ["x"] * 16, "gave 'x'"), (lambda record: 1 / 0, "raised ZeroDivisionError"),
    (lambda record: None, "raised TypeError")])
def test_a_signal_of_ones_own_is_checked(given, words: str) -> None:
    with pytest.raises(TrivetError, match=words):
        Watch({"mine:own": given}).look(record(rows(1, random.Random(0))))
