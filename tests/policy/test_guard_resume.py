"""`ppo` with the guard's own detector: each action, and kill -9 before and after the alarm."""

from __future__ import annotations

import json
import signal

import pytest

from guarded_runs import ACTIONS, alarms, guarded
from resume import Stage, differing, finish, kill_when, lines
from trivet.artifacts import read_json
from trivet.training import checkpoints


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guarded")
    return folder, guarded(folder)


@pytest.fixture(scope="module")
def whole(place):
    """The step of the first alarm of each command, uninterrupted."""
    folder, commands = place
    found = {}
    for action, arguments in commands.items():
        finish(arguments, folder / f"{action}-whole", folder)
        found[action] = alarms(folder / f"{action}-whole")[0]["step"]
        assert 2 < found[action] < 12, "an alarm in the midst of the run, or the tests below say nothing"
    return found


def test_each_action_was_taken(place, whole) -> None:
    folder, _ = place
    metrics = {a: [json.loads(x) for x in (folder / f"{a}-whole" / "metrics.jsonl").read_text().splitlines()]
               for a in ACTIONS}
    assert len(metrics["warn"]) == 14
    assert any(r.get("guard_signal") == "kl" and r["guard_level"] > 1 for r in metrics["warn"])
    coefficients = [r["kl_coef"] for r in metrics["raise-beta"]]
    assert coefficients[whole["raise-beta"]] > 1.5 * coefficients[whole["raise-beta"] - 1]
    # before the alarm the penalised score is the score less what is cut off; from it on another one
    for row in metrics["penalise"]:
        plain = row["score"] - (1 - row["ended"])
        assert (row["score_penalised"] == pytest.approx(plain, abs=1e-4)) == (row["step"] <= whole["penalise"])
    found = read_json(folder / "return-whole" / "summary.json")
    assert found["stop"] == "guard" and found["guard"]["returned_to"] <= found["steps"] == whole["return"]


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("after", [-2, 0, 2])
def test_killed_and_resumed_equals_uninterrupted(place, whole, action, after) -> None:
    """`kill -9` two steps before the alarm, at it, and two steps after it; where it returns: at it, a little later."""
    folder, commands = place
    out, row = folder / f"{action}{after}", whole[action] + after
    if action == "return":
        row = min(row, whole[action])
    struck = kill_when(commands[action], out, folder, lambda o: lines(o / "metrics.jsonl") >= row,
                       0.01 if action == "return" and after > 0 else 0.0)
    assert struck and not (out / "summary.json").exists()
    finish(commands[action], out, folder)
    assert differing(folder / f"{action}-whole", out) == []
    one, other = (read_json(f / "summary.json")["guard"] for f in (out, folder / f"{action}-whole"))
    assert {k: v for k, v in one.items() if k != "share_of_step_time"} == {
        k: v for k, v in other.items() if k != "share_of_step_time"}


def test_killed_over_and_over(place, whole) -> None:
    """At every second step of a run that returns: what is kept for the way back survives each of them."""
    folder, commands = place
    out = folder / "often"
    for row in range(1, whole["return"] + 1, 2):
        kill_when(commands["return"], out, folder, lambda o, row=row: lines(o / "metrics.jsonl") >= row, 0.0)
        found = checkpoints.complete(out / "checkpoints")
        kept = {checkpoints.step_of(c) for c in found}
        assert {read_json(c / "state.json")["guard"]["best_step"] for c in found} <= kept
    finish(commands["return"], out, folder)
    assert differing(folder / "return-whole", out) == []


def test_ctrl_c_after_an_alarm_keeps_it(place, whole) -> None:
    folder, commands = place
    out = folder / "ctrl-c"
    process = Stage(commands["raise-beta"], out, folder)
    while lines(out / "metrics.jsonl") < whole["raise-beta"]:
        assert process.running(), process.wait()[1]
    process.send(signal.SIGINT)
    code, output = process.wait()
    assert code == 130, output
    state = read_json(checkpoints.latest(out / "checkpoints") / "state.json")
    assert state["guard"]["alarms"] >= 1 and state["guard"]["detector"]
    finish(commands["raise-beta"], out, folder)
    assert differing(folder / "raise-beta-whole", out) == []
