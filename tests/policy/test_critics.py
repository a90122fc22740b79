"""The benchmark of PPO's two critics: it runs with small counts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "critics.py"


def test_quick(tmp_path) -> None:
    subprocess.run([sys.executable, str(BENCHMARK), "--quick", "--json", str(tmp_path / "out.json"), "--plot",
                    str(tmp_path / "out.png")], check=True, capture_output=True, cwd=tmp_path,
                   env=os.environ | {"OMP_NUM_THREADS": "1"})
    figures = json.loads((tmp_path / "out.json").read_text())["figures"]
    assert len(figures["curve_head"]) == len(figures["curve_separate"]) == 3
    assert figures["runs_head"][0][0] == figures["runs_separate"][0][0], "before the first step both are the same"
    assert figures["runs_head"] != figures["runs_separate"]
    assert figures["explained_head"]["n"] == 2 and figures["seconds_separate"]["value"] > 0
    assert (tmp_path / "out.png").stat().st_size > 5000
