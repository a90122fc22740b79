"""Imports run one way, and the light parts stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

import trivet

SOURCE = Path(trivet.__file__).parent
# Floors of docs/design.md, lowest first. A module may import its own package and lower floors only.
FLOORS = [
    {"errors", "intervals", "process"},
    {"artifacts"},
    {"config", "ledger"},
    {"runs"},
    {"data", "text"},
    {"models"},
    {"training"},
    {"generate"},
    {"judge", "sandbox"},
    {"evaluate", "feedback", "guard", "reward"},
    {"compress", "constitution", "policy", "serve"},
    {"stages"},
    {"report", "pipeline"},
    {"cli"},
    {"__main__"},
]
FLOOR = {name: i for i, floor in enumerate(FLOORS) for name in floor}
# Two packages on one floor that may know each other: the run's page belongs to the run.
ALLOWED = {("pipeline", "report"), ("config", "errors")}


def imported(path: Path) -> set[str]:
    """First parts of the trivet modules that a file imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else \
            [a.name for a in node.names] if isinstance(node, ast.Import) else []
        found |= {n.split(".")[1] for n in names if n.startswith("trivet.")}
    return found


def files() -> list[Path]:
    return [p for p in SOURCE.rglob("*.py") if p != SOURCE / "__init__.py"]


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_run_one_way(path: Path) -> None:
    own = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    assert own in FLOOR, f"{own} has no floor: give it one"
    for other in imported(path) - {own}:
        assert FLOOR[other] < FLOOR[own] or (own, other) in ALLOWED, f"{own} must not import {other}"


def test_floors_can_fail(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    from trivet.policy.ppo import run\n")
    assert imported(bad) == {"policy"}
    assert FLOOR["policy"] > FLOOR["judge"]


def loaded_by(code: str) -> tuple[set[str], float]:
    start = time.monotonic()
    out = subprocess.run([sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"], check=True,
                         capture_output=True, text=True).stdout
    return set(out.splitlines()[-1].split()), time.monotonic() - start


@pytest.mark.parametrize("code", [
    "import trivet",
    "from trivet.cli import main; main(['--help'])",
    "from trivet.cli import main; main(['--version'])",
])
def test_import_and_help_are_light(code: str) -> None:
    modules, _ = loaded_by(code)
    assert not modules & {"torch", "transformers", "numpy", "tyro", "matplotlib"}
    # the least of three, since other tests may hold the cores
    assert min(loaded_by(code)[1] for _ in range(3)) < 0.5


def test_a_recipe_is_checked_without_torch() -> None:
    modules, _ = loaded_by("from trivet.stages import STAGES\nfor s in STAGES.values(): s.config_type()\n"
                           "import trivet.pipeline")
    assert not modules & {"torch", "transformers"}


def test_public_face() -> None:
    for name in trivet.__all__:
        assert getattr(trivet, name) is not None
    assert len(trivet.__all__) <= 20
    with pytest.raises(AttributeError, match="no attribute"):
        _ = trivet.nothing_here


@pytest.mark.parametrize(("given", "kept"), [(None, "1"), ("0", "0")])
def test_a_command_asks_torch_for_large_pages_unless_told_otherwise(
        given: str | None, kept: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    if given is not None:
        monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", given)
    code = ("import os, sys; from trivet.cli import main; main(['--version']); "
            "print(os.environ['THP_MEM_ALLOC_ENABLE'], 'torch' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-2:] == [kept, "False"]
