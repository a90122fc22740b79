"""The guard: records in, verdicts out."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from gamed import PRAISE, record, rows, run_records
from trivet.errors import TrivetError
from trivet.guard.base import StepRecord
from trivet.guard.calibration import Calibration, fit, save, trace, uncalibrated
from trivet.guard.config import GuardConfig
from trivet.guard.guard import Guard, telling


def praises(record: StepRecord) -> list[float]:
    """A signal of one's own."""
    return [float(s.completion.startswith("What")) for s in record.samples]


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return fit([trace(f"r{seed}", run_records(seed), {"own:praises": praises}) for seed in range(100, 120)])


def test_a_gamed_run_is_found_and_said(calibration: Calibration) -> None:
    guard = Guard(GuardConfig(action="return"), calibration, {})
    records = run_records(7, steps=12, onset=5)
    verdicts = [guard.observe(r) for r in records]
    first = next(v for v in verdicts if v.alarm)
    assert first.action == "return" and 5 <= first.step <= 9 and first.level > 1
    assert first.began is not None and 3 <= first.began <= first.step
    assert first.levels[first.signal or ""] == first.level == max(first.levels.values())
    assert first.sentence.startswith(f"From about step {first.began} on ") and "probably" in first.sentence
    seen = records[verdicts.index(first)]
    assert len(first.answers) == 3
    assert any(seen.samples[i].completion.startswith(PRAISE) for i in first.answers)
    assert all(v.answers == () and v.action == "continue" for v in verdicts[: verdicts.index(first)])
    json.dumps([v.to_dict() for v in verdicts], allow_nan=False)


def test_a_run_that_goes_on_as_it_began_is_left_alone(calibration: Calibration) -> None:
    guard = Guard(GuardConfig(), calibration, {})
    verdicts = [guard.observe(r) for r in run_records(10)]
    assert not any(v.alarm for v in verdicts)
    assert "No sign by step 12" in verdicts[-1].sentence
    assert verdicts[0].sentence == verdicts[1].sentence != verdicts[2].sentence, "the baseline"


def test_resumed_it_says_the_same(calibration: Calibration) -> None:
    config = GuardConfig(action="raise-beta")
    records = run_records(9, onset=4)
    whole = Guard(config, calibration, {})
    expected = [whole.observe(r) for r in records]
    for cut in range(1, len(records)):
        first, second = Guard(config, calibration, {}), Guard(config, calibration, {})
        for r in records[:cut]:
            first.observe(r)
        second.load_state(json.loads(json.dumps(first.state_dict())))
        assert [second.observe(r) for r in records[cut:]] == expected[cut:]
        assert second.state_dict() == whole.state_dict() and second.notes() == whole.notes()
    with pytest.raises(TrivetError, match="can't be read"):
        whole.load_state({"watch": {}})


def test_after_raising_beta_the_test_begins_anew(calibration: Calibration) -> None:
    guard = Guard(GuardConfig(action="raise-beta"), calibration, {})
    verdicts = [guard.observe(r) for r in run_records(10, steps=14, onset=4)]
    alarms = [i for i, v in enumerate(verdicts) if v.alarm]
    assert len(alarms) >= 2 and verdicts[alarms[1]].began is not None
    assert verdicts[alarms[0] + 1].level < verdicts[alarms[0]].level
    assert (verdicts[alarms[1]].began or 0) > verdicts[alarms[0]].step


def test_without_a_calibration_it_only_warns_and_says_so() -> None:
    guard = Guard(GuardConfig(action="return"), uncalibrated(steps=12, runs=100), {})
    verdicts = [guard.observe(r) for r in run_records(11, onset=3)]
    alarm = next(v for v in verdicts if v.alarm)
    assert alarm.action == "warn" and "not known" in alarm.sentence
    notes = " ".join(guard.notes())
    assert "not known" in notes and "only warns, and does not return" in notes


def test_what_it_cannot_see_and_where_it_is_not_valid_are_said(calibration: Calibration) -> None:
    guard = Guard(GuardConfig(), calibration, {})
    for step in range(1, 20):
        found = [{**r, "held_out": None} for r in rows(step, random.Random(step))]
        guard.observe(record(found, kl=()))
    notes = " ".join(guard.notes())
    assert "gap, held_out (held_out)" in notes and "kl, kl_rate (kl)" in notes
    assert "no evaluation at the start" in notes and "longer than its calibration (18 rollouts" in notes
    assert guard.unavailable()["evaluation/gap"] == "no evaluation at the start"
    assert guard.unavailable()["spread"] == "spread"


def test_signals_of_ones_own(calibration: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guard = Guard(GuardConfig(), calibration, {"own:praises": praises})
    verdicts = [guard.observe(r) for r in run_records(12, onset=4)]
    assert max(v.levels.get("own:praises", 0.0) for v in verdicts) > 1
    stranger = Guard(GuardConfig(), calibration, {"own:other": praises})
    stranger.observe(record(rows(1, random.Random(0))))
    assert stranger.unavailable()["own:other"] == "not in the calibration"
    with pytest.raises(TrivetError, match="can't be imported"):
        Guard(GuardConfig(signals=["no_such_module:signal"]))
    (tmp_path / "mine.py").write_text("def short(record):\n    return [-len(s.completion) for s in record.samples]\n")
    monkeypatch.chdir(tmp_path)
    named = Guard(GuardConfig(signals=["mine:short"]))
    named.observe(record(rows(1, random.Random(0))))


def test_a_calibration_from_a_file_must_do_for_the_rate(calibration: Calibration, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    save(calibration, path)
    assert Guard(GuardConfig(calibration=path)).calibration == calibration
    with pytest.raises(TrivetError, match="needs 99"):
        Guard(GuardConfig(calibration=path, false_alarms=0.01))
    with pytest.raises(TrivetError, match="no such file"):
        Guard(GuardConfig(calibration=tmp_path / "none.json"))
    shipped = Guard(GuardConfig())
    assert shipped.shipped and shipped.notes()


def test_telling_answers_are_well_rewarded_ones_with_the_largest_values() -> None:
    columns = {"score": [0.0, 5.0, 4.0, 3.0, -1.0, 2.0], "length": [99.0, 10.0, 40.0, None, 50.0, 20.0]}
    assert telling(columns, "length", 1) == (2, 5, 1)
    assert telling(columns, "reward~length", 1) == (2, 5, 1)
    assert telling(columns, "length", -1) == (1, 5, 2)
    assert telling(columns, "evaluation/beyond", 1) == (1, 2, 3)
