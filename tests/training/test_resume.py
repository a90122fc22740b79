"""`kill -9` at several points of each training stage; run again; equal bit for bit to an uninterrupted run.

benchmarks/resume.py does it at 20 random moments a stage.
"""

from __future__ import annotations

import json
import shutil
import signal
import time

import pytest

from resume import Stage, differing, finish, fixtures, kill_when, lines

STAGES = ("sft", "reward", "ppo", "grpo", "dpo", "distill", "distill-stored")


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    found = fixtures(folder)
    for stage in STAGES:
        finish(found[stage], folder / f"{stage}-whole", folder)
    return folder, found


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("row", [1, 5, 9])
def test_killed_and_resumed_equals_uninterrupted(commands, stage, row) -> None:
    folder, found = commands
    out = folder / f"{stage}-{row}"
    assert kill_when(found[stage], out, folder, lambda o: lines(o / "metrics.jsonl") >= row, 0.0)
    assert not (out / "summary.json").exists()
    finish(found[stage], out, folder)
    assert differing(folder / f"{stage}-whole", out) == []


@pytest.mark.parametrize("stage", STAGES)
def test_killed_while_the_last_files_are_written(commands, stage) -> None:
    """After the last step, before the summary: the rest is done again from the last checkpoint."""
    folder, found = commands
    out = folder / f"{stage}-late"
    steps = lines(folder / f"{stage}-whole" / "metrics.jsonl")
    assert kill_when(found[stage], out, folder, lambda o: lines(o / "metrics.jsonl") >= steps, 0.01)
    finish(found[stage], out, folder)
    assert differing(folder / f"{stage}-whole", out) == []


def test_a_torn_checkpoint_is_passed_over(commands) -> None:
    folder, found = commands
    out = folder / "torn"
    assert kill_when(found["ppo"], out, folder, lambda o: lines(o / "metrics.jsonl") >= 8, 0.0)
    newest = max((out / "checkpoints").glob("step-*"))
    weights = newest / "tensors" / "shard-00001-model-00001-of-00001.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    finish(found["ppo"], out, folder)
    assert differing(folder / "ppo-whole", out) == []


def test_the_comparison_can_fail(commands) -> None:
    folder, _ = commands
    copy = folder / "copy"
    shutil.copytree(folder / "ppo-whole", copy)
    assert differing(folder / "ppo-whole", copy) == []
    rows = (copy / "metrics.jsonl").read_text().splitlines()
    row = json.loads(rows[3])
    row["kl"] += 1e-15 + abs(row["kl"]) * 1e-15
    rows[3] = json.dumps(row)
    (copy / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    assert differing(folder / "ppo-whole", copy) == ["metrics.jsonl"]


@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_ctrl_c_saves_and_says_how_to_go_on(commands, stage) -> None:
    folder, found = commands
    out = folder / f"{stage}-ctrl-c"
    process = Stage(found[stage], out, folder)
    while lines(out / "metrics.jsonl") < 4:
        assert process.running(), process.wait()[1]
        time.sleep(0.001)
    process.send(signal.SIGINT)
    code, output = process.wait()
    assert code == 130
    assert "run the same command again" in output
    assert "Traceback" not in output
    saved = max(int(p.name.split("-")[1]) for p in (out / "checkpoints").glob("step-*"))
    assert saved == lines(out / "metrics.jsonl"), "the step in which it was stopped is saved"
    finish(found[stage], out, folder)
    assert differing(folder / f"{stage}-whole", out) == []


def test_a_finished_stage_is_not_done_twice(commands) -> None:
    folder, found = commands
    code, output = Stage(found["ppo"], folder / "ppo-whole", folder).wait()
    assert code == 0
    assert "nothing to do" in output


def test_another_configuration_is_refused(commands) -> None:
    folder, found = commands
    code, output = Stage([*found["ppo"], "--clip", "0.3"], folder / "ppo-whole", folder).wait()
    assert code == 2
    assert "clip differs" in output
    assert "--overwrite" in output
