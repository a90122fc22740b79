"""Malformed input ends in exit code 2 and a message that says what to do; the cases are those of the benchmark."""

from __future__ import annotations

from pathlib import Path

import pytest
from bad_input import CASES, Case, Shared, run_case, runnable

from trivet.artifacts import Prompt, read_rows


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
    from trivet.stages import STAGES

    assert {c.command for c in CASES} == {*STAGES, "run", "report", "models", "trivet"}
    assert len(CASES) >= 60


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "Is it red?"}\r\n')
    assert read_rows(path, Prompt)[0].messages[0].content == "Is it red?"
