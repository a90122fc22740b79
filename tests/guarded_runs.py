"""Commands of `ppo` on a tiny model in which the guard alarms in the midst of the run, one for each action."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from resume import fixtures
from trivet.guard.calibration import Calibration, save

ACTIONS = {
    "warn": [], "raise-beta": ["--kl.coef", "0.01"],
    "penalise": ["--guard.ensemble", "held:other", "--guard.ensemble-weight", "0.5"],
    "return": ["--evaluation.every", "2", "--checkpoint.keep", "1"]}


def guarded(folder: Path) -> dict[str, list[str]]:
    """By action, the command less --out; its files are made in `folder`."""
    ppo = fixtures(folder)["ppo"]
    (folder / "held.py").write_text(
        "def out(samples):\n    return [-abs(len(s.completion) - 12) / 4 for s in samples]\n\n\n"
        "def other(samples):\n    return [s.completion.count('e') - 0.1 * len(s.completion) for s in samples]\n")
    # KL alone, which rises in any run: of "clean" runs whose sums came to 4, which takes some steps
    save(Calibration(horizon={"rollout": 14}, signals=["kl"], maxima=[[4.0]] * 19, drifts={"kl": 4.0}),
         folder / "calibration.json")
    common = [*ppo, "--evaluation.reward", "held:out", "--guard.calibration", str(folder / "calibration.json"),
              "--evaluation.during", "2", "--optimizer.schedule", "constant", "--optimizer.lr", "2e-2"]
    return {action: [*common, "--guard.action", action, *more] for action, more in ACTIONS.items()}


def alarms(out: Path) -> list[dict[str, Any]]:
    """The lines of a run's guard.jsonl that are alarms."""
    return [r for r in (json.loads(x) for x in (out / "guard.jsonl").read_text().splitlines())
            if r["action"] != "continue"]
