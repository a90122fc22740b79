"""The benchmark of the learning curve through vLLM: it runs with small counts, and its test can fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from curves import permutation, short_words

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "vllm_curve.py"


def test_quick(tmp_path) -> None:
    subprocess.run([sys.executable, str(BENCHMARK), "--quick", "--json", str(tmp_path / "out.json"), "--plot",
                    str(tmp_path / "out.png")], check=True, capture_output=True, cwd=tmp_path,
                   env=os.environ | {"OMP_NUM_THREADS": "1"})
    figures = json.loads((tmp_path / "out.json").read_text())["figures"]
    assert len(figures["curve_torch"]) == len(figures["curve_vllm"]) == 3
    assert figures["runs_torch"][0][0] == figures["runs_vllm"][0][0], "before the first step both are the same"
    assert figures["matches"] == (figures["p"] > 0.1) and figures["staleness"] == 0
    assert abs(figures["mismatch"]) < 1e-3 and figures["gain_difference"]["n"] == 2
    assert (tmp_path / "out.png").stat().st_size > 5000


def test_another_curve_is_found() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(8, 7))
    risen = noise + 3 * np.arange(7)
    assert permutation(risen[:4], noise[4:]) < 0.05
    assert permutation(noise[:4], noise[4:]) > 0.1


def test_the_reward_likes_short_words() -> None:
    from trivet.judge.base import Sample

    said = [Sample("a", (), text) for text in ("a bb ccc", "constitutional", "")]
    assert short_words(said) == [3.0, -9.0, 0.0]
