"""`trivet guard check` and `trivet guard calibrate`, from files alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from gamed import write_run
from trivet.cli import main
from trivet.errors import TrivetError
from trivet.guard.calibration import load
from trivet.guard.read import read_records, run_folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Callable[[int], list[str]]:
    folder = tmp_path_factory.mktemp("clean")

    def clean(count: int) -> list[str]:
        return [str(write_run(folder / f"r{i}", 200 + i, steps=8) if not (folder / f"r{i}").exists()
                    else folder / f"r{i}") for i in range(count)]

    return clean


def test_calibrate_then_check(runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, found = tmp_path / "c.json", tmp_path / "guard.json"
    main(["guard", "calibrate", *runs(20), "--out", str(out)])
    said = capsys.readouterr().out
    assert "clean runs for the threshold: 20" in said and "at most 5.0% of runs" in said
    made = load(out)
    assert len(made.maxima) == 20 and made.horizon == {"rollout": 7, "evaluation": 2}
    assert all(len(r["rollouts_sha256"]) == 64 for r in made.made["runs"])

    gamed = write_run(tmp_path / "gamed", 1, steps=8, onset=3)
    with pytest.raises(SystemExit) as stopped:
        main(["guard", "check", str(gamed), "--calibration", str(out), "--fail-if-hacked", "--out", str(found)])
    assert stopped.value.code == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "ALARM. From about step" in said and "probably gaming the reward" in said and "Not seen: spread" in said
    whole = json.loads(found.read_text())
    assert whole["alarm"]["action"] == "warn" and len(whole["answers"]) == 3
    assert len(whole["verdicts"]) == 11 and whole["signals"][0]["level"] >= whole["signals"][-1]["level"]
    main(["guard", "check", runs(20)[0], "--calibration", str(out), "--fail-if-hacked"])
    assert "ALARM" not in capsys.readouterr().out, "one of the runs that made it"


def test_hacked_runs_choose_the_signals(runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "c.json"
    hacked = [str(write_run(tmp_path / f"h{i}", i, steps=8, onset=2)) for i in range(3)]
    main(["guard", "calibrate", *runs(28), "--hacked", *hacked, "--out", str(out)])
    made = load(out)
    assert made.made["selection"][0]["detected"] == 1.0 and 1 <= sum(made.weights.values()) <= 8
    assert f"+ {made.made['selection'][0]['signal']}: 100% of the hacked" in capsys.readouterr().out


def test_another_trainers_rows_with_nothing_but_the_answers(tmp_path: Path,
                                                            capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rollouts").mkdir()
    with (tmp_path / "rollouts" / "all.jsonl").open("w") as file:
        for step in range(1, 6):
            for i in range(4):
                file.write(json.dumps({"id": i + 10 * step, "step": step, "prompt": f"Say {i}", "reward": i / 2 + step,
                                       "completion": "word " * (step * 9 + i), "lr": 0.1}) + "\n")
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps({"step": s, "kl": s / 2}) + "\n" for s in range(1, 6)))
    records = read_records(run_folder(tmp_path))
    assert len(records) == 5 and list(records[1].kl) == [1.0] * 4 and records[0].samples[0].id == "10"
    main(["guard", "check", str(tmp_path)])
    said = " ".join(capsys.readouterr().out.split())
    assert "Not seen: gap, held_out (held_out)" in said and "not known" in said


def test_the_records_come_in_the_order_of_the_run(tmp_path: Path) -> None:
    write_run(tmp_path / "ppo", 3, steps=4)
    assert run_folder(tmp_path) == tmp_path / "ppo", "a recipe's run with one such step"
    order = [(r.step, r.source) for r in read_records(tmp_path / "ppo")]
    assert order == [(0, "evaluation"), (1, "rollout"), (2, "rollout"), (3, "rollout"), (4, "rollout"),
                     (4, "evaluation")]
    assert read_records(tmp_path / "ppo")[0].held_out[0] is not None, "`second` is the held-out reward"


def test_what_does_not_fit_is_named(runs, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 1, steps=2)
    with pytest.raises(TrivetError, match="no rollouts here"):
        run_folder(tmp_path / "run" / "rollouts")
    with pytest.raises(TrivetError, match="no such run folder"):
        run_folder(tmp_path / "nothing")
    write_run(tmp_path / "second", 2, steps=2)
    with pytest.raises(TrivetError, match="several runs here"):
        run_folder(tmp_path)
    (run / "rollouts" / "step-00002.jsonl").unlink()
    with pytest.raises(TrivetError, match="single step"):
        read_records(run)


@pytest.mark.parametrize(("change", "words"), [
    (lambda runs: [*runs[:19], runs[0]], "named twice"), (lambda runs: runs[:18], "needs 19"),
    (lambda runs: [*runs[:18], "twin"], "the same answers as in")])
def test_a_calibration_is_refused_before_anything_is_written(change, words: str, runs, tmp_path: Path,
                                                             capsys: pytest.CaptureFixture[str]) -> None:
    given = change(runs(20))
    if "twin" in given:
        given[-1] = str(shutil.copytree(given[0], tmp_path / "twin"))
    with pytest.raises(SystemExit) as stopped:
        main(["guard", "calibrate", *given, "--out", str(tmp_path / "c.json")])
    assert stopped.value.code == 2 and words in capsys.readouterr().err
    assert not (tmp_path / "c.json").exists()


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    main(["guard", "--help"])
    assert "guard calibrate" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main(["guard", "chekc"])
    assert stopped.value.code == 2
