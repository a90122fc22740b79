"""Every stage that uses torch tells the ledger what it spent, and computes the same with and without."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from resume import COMPARED, differing, fixtures
from trivet import ledger
from trivet.cli import main
from trivet.training import probe

FAST = ["--device.threads", "1"]


def entry(out) -> ledger.Entry:
    (found,) = (e for e in ledger.read(out.parent / "ledger.jsonl") if e.name == out.name)
    return found


@pytest.fixture(scope="module")
def commands(tmp_path_factory) -> tuple[Path, dict[str, list[str]]]:
    folder = tmp_path_factory.mktemp("metering")
    return folder, fixtures(folder)


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_training_stages_are_metered_and_no_bit_changes(commands, stage, tmp_path, monkeypatch) -> None:
    folder, made = commands
    monkeypatch.syspath_prepend(folder)  # the reward function of ppo stands there
    main([*made[stage], "--out", str(tmp_path / "metered")])
    found = entry(tmp_path / "metered")
    assert found.flops is not None and found.flops["backward"] > found.flops["forward"] * 0.2 > 0
    assert found.tokens_in > 0 and found.cpu_seconds > 0
    if stage == "ppo":
        assert {"prompt", "generated", "trained"} <= found.tokens.keys()
    summary = json.loads((tmp_path / "metered" / "summary.json").read_text())
    assert summary["seconds"] == found.seconds
    monkeypatch.setattr(probe.FlopCounter, "start", lambda self: None)
    main([*made[stage], "--out", str(tmp_path / "plain")])
    assert entry(tmp_path / "plain").total_flops == 0
    assert COMPARED and differing(tmp_path / "metered", tmp_path / "plain") == []


def test_stages_that_only_read_a_model_have_no_backward_pass(tiny_model_folder, prompt_file, preference_files,
                                                             tmp_path) -> None:
    main(["sample", "--prompts", str(prompt_file), "--model", str(tiny_model_folder), "--completions", "2",
          "--sampling.max-new-tokens", "6", *FAST, "--out", str(tmp_path / "sample")])
    main(["check", "--prompts", str(prompt_file), "--model", str(tiny_model_folder), "--force", "--count", "3",
          "--sampling.max-new-tokens", "6", *FAST, "--out", str(tmp_path / "check")])
    main(["reward", "--preferences", str(preference_files[0]), "--model", str(tiny_model_folder), "--epochs", "0.2",
          "--calibration.answers", "2", "--calibration.sampling.max-new-tokens", "4", *FAST,
          "--out", str(tmp_path / "reward")])
    main(["score", "--reward", str(tmp_path / "reward" / "reward"), "--prompt", "Is it red?", "--answer", "yes",
          *FAST, "--out", str(tmp_path / "score")])
    for stage in ("sample", "check", "score"):
        found = entry(tmp_path / stage)
        assert found.flops is not None and found.flops["forward"] > 0 == found.flops["backward"]
        assert found.tokens_in > 0
    assert 24 <= entry(tmp_path / "sample").tokens_out <= 12 * 2 * 6


def test_a_stage_without_a_model_counts_none(preference_files, tmp_path) -> None:
    main(["pairs", "--input", str(preference_files[0]), "--out", str(tmp_path / "pairs")])
    assert entry(tmp_path / "pairs").flops is None
