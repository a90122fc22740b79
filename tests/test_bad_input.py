"""Malformed input ends in exit code 2 and a message that says what to do; the cases are those of the benchmark."""

from __future__ import annotations

from pathlib import Path

import pytest

from bad_input import CASES, Case, Shared, run_case, runnable
from trivet.artifacts import Prompt, atomic_folder, read_rows
from trivet.cli import main, parse
from trivet.config import load_yaml, yaml_value
from trivet.errors import TrivetError
from trivet.stages import STAGES


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    """Tiny models that the cases read and none changes."""
    return Shared(tmp_path_factory.mktemp("bad-input"))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.title)
def test_bad_input(case: Case, tmp_path: Path, shared: Shared) -> None:
    if not runnable(case):
        pytest.skip("needs another user, or a disk of its own")
    outcome = run_case(case, tmp_path, shared)
    assert not outcome.faults, "\n".join([*outcome.faults, outcome.message])


def test_every_command_is_tried() -> None:
    assert {c.command for c in CASES} == {*STAGES, "run", "compress", "report", "ledger", "constitution", "guard",
                                           "models", "sandbox", "label", "trivet"}
    assert len(CASES) >= 60


def test_a_case_can_fail(tmp_path: Path, shared: Shared) -> None:
    """What is well-formed is told from what is not: the right words, the right code, nothing left."""
    good = Case("pairs", "good rankings", lambda p: ["--input", p.rankings], "no such words")
    faults = run_case(good, tmp_path, shared).faults
    assert faults[:3] == ["exit code 0", "no line that says what to do", "the words 'no such words' are not in it"]
    assert "train.jsonl" in faults[3] and "summary.json" in faults[3]


# --- what must stay possible ---------------------------------------------------------------------------------


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "Is it red?"}\r\n')
    assert read_rows(path, Prompt)[0].messages[0].content == "Is it red?"


def test_the_command_line_mends_what_does_not_go_together_in_yaml(tmp_path: Path) -> None:
    file = tmp_path / "ppo.yaml"
    file.write_text("prompts: p.jsonl\nreward: [a]\nkl: {where: loss, estimator: k1}\n")
    kind = STAGES["ppo"].config_type()
    assert parse(kind, ["--config", str(file), "--kl.estimator", "k2"], "ppo", "").kl.estimator == "k2"
    with pytest.raises(TrivetError, match=r"ppo\.yaml:3, field 'kl'"):
        parse(kind, ["--config", str(file), "--seed", "1"], "ppo", "")


def test_yaml_may_merge_and_repeat_by_alias(tmp_path: Path) -> None:
    file = tmp_path / "ppo.yaml"
    file.write_text("prompts: p.jsonl\nreward: [a]\noptimizer: &a {lr: 1.0e-3}\nlora: {r: 4}\ndevice: {}\n"
                    "checkpoint: {every: 3}\nstop:\n  <<: {steps: 7}\n")
    found = parse(STAGES["ppo"].config_type(), ["--config", str(file)], "ppo", "")
    assert (found.optimizer.lr, found.stop.steps, found.checkpoint.every) == (1e-3, 7, 3)


def test_help_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["ppo", "--help"])
    out, err = capsys.readouterr()
    assert stopped.value.code == 0 and not err
    assert "--kl.coef" in out and "Decoupled weight decay" in out


def test_a_field_may_be_named_on_and_a_word_be_no(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("guard: {on: false}\nword: no\nyes: True\n")
    assert load_yaml(file)[0] == {"guard": {"on": False}, "word": "no", "yes": True}


def test_a_typed_setting_is_what_yaml_reads_else_a_text() -> None:
    assert [yaml_value(t) for t in ("1.5", "[a, b]", "null", "red", "2024-13-45", "&a [*a]", "!!bool x", "[")] == [
        1.5, ["a", "b"], None, "red", "2024-13-45", "&a [*a]", "!!bool x", "["]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "model") as folder:
        (folder / "a").write_text("1")
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "model") as folder:
        (folder / "b").write_text("2")
        raise RuntimeError
    assert [p.name for p in tmp_path.rglob("*")] == ["model", "a"]
