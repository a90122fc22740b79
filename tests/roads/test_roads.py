"""The whole road on real weights, with --quick: every shipped recipe, from the command line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from trivet.cli import main

pytestmark = pytest.mark.real_weights


def test_quickstart(tmp_path) -> None:
    main(["run", "quickstart", "--quick", "--out", str(tmp_path / "demo")])
    figures = json.loads((tmp_path / "demo" / "summary.json").read_text())
    for key in ("reward_accuracy", "reward_before", "reward_after", "reward_gain"):
        assert set(figures[key]) == {"value", "low", "high", "n"}
        assert figures[key]["n"] == 44, "held-out prompts of the starter set"
    assert set(figures["seconds"]) == {"check", "pairs", "halves", "reward", "second", "ppo"}
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "held-out" in page


def test_harmlessness(tmp_path) -> None:
    data = os.environ.get("TRIVET_DATA")
    if not data or not (Path(data) / "hh-harmless").is_dir():
        pytest.skip("needs TRIVET_DATA with hh-harmless")
    main(["run", "harmlessness", "--quick", "--out", str(tmp_path / "h"), "--set", f"data={data}",
          "reward.max_length=160"])
    summary = json.loads((tmp_path / "h" / "reward" / "summary.json").read_text())
    assert summary["heldout_pairs"] > 50
    assert json.loads((tmp_path / "h" / "pairs" / "summary.json").read_text())["heldout_pairs"] >= 300
