"""The benchmark of reward training runs from end to end with small counts, and its figures have their names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_quick(make_tiny, tmp_path) -> None:
    model = make_tiny(tmp_path / "tiny", context=2048)
    subprocess.run([sys.executable, str(BENCHMARKS / "reward_training.py"), "--quick", "--model", str(model),
                    "--threads", "1", "--json", str(tmp_path / "out.json")], check=True, capture_output=True,
                   cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"})
    figures = json.loads((tmp_path / "out.json").read_text())["figures"]
    assert figures["rankings"] == 8
    assert figures["pairs"] == 48
    assert 0 <= figures["accuracy"]["low"] <= figures["accuracy"]["value"] <= figures["accuracy"]["high"] <= 1
    assert figures["tokens"]["trl"] > 3 * figures["tokens"]["trivet"]
    assert figures["step_seconds"]["trivet"] > 0
    if figures["ratio_trl"] is not None:  # TRL's environment is there
        assert figures["ratio_trl"]["n"] == 1
        assert 0 <= figures["accuracy_trl"]["value"] <= 1


def test_the_bootstrap_of_a_median_holds_it() -> None:
    from reward_training import median

    found = median([3.0, 1.0, 2.0, 5.0, 4.0], seed=0)
    assert found.value == 3.0
    assert 1.0 <= found.low <= 3.0 <= found.high <= 5.0
    assert found.n == 5


WORKER = """
import sys
sys.path.insert(0, {folder!r})
from turns import hand_over, last_words
print("noise of a library")
told = hand_over({{"step": 1}})
if told == "die":
    raise ValueError("as asked")
last_words({{"told": told}})
"""


def test_workers_take_turns(tmp_path) -> None:
    from turns import Worker

    program = tmp_path / "worker.py"
    program.write_text(WORKER.format(folder=str(BENCHMARKS)))
    with Worker([sys.executable, str(program)]) as worker:
        assert worker.listen() == {"step": 1}
        assert worker.turn("on") == {"told": "on"}
    with pytest.raises(RuntimeError, match="ValueError: as asked"), Worker([sys.executable, str(program)]) as worker:
        worker.listen()
        worker.turn("die")
