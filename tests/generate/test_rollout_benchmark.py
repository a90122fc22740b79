"""The benchmark of rollouts runs with small counts, and its figures have their names. vLLM is left out here."""

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
    subprocess.run([sys.executable, str(BENCHMARKS / "rollout.py"), "--quick", "--no-vllm", "--model", str(model),
                    "--threads", "1", "--json", str(tmp_path / "out.json")], check=True, capture_output=True,
                   cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"})
    figures = json.loads((tmp_path / "out.json").read_text())["figures"]
    assert figures["ratio_generate"]["n"] == 1 and figures["ratio_vllm"] is None
    assert figures["tokens_per_second"] > 0 and figures["fraction_of_matmul_bound"] > 0
    assert set(figures["by_precision"]) == {"float32", "bfloat16"}
    for found in figures["by_precision"].values():
        tried = found["generate"]["tried_tokens_per_second"]
        assert set(tried) == {"dynamic", "static"} and found["generate"]["cache"] == max(tried, key=tried.get)
    best, speeds = figures["best"], {p: f["tokens_per_second"] for p, f in figures["by_precision"].items()}
    for side in ("trivet", "generate"):
        assert best[side] == max(speeds, key=lambda p: speeds[p][side]), "each side's own best"
    assert figures["tokens_per_second"] == speeds[best["trivet"]]["trivet"]
    assert figures["ratio_generate"]["value"] == pytest.approx(
        speeds[best["trivet"]]["trivet"] / speeds[best["generate"]]["generate"])
    assert figures["ratio_generate_equal_precision"] == figures["by_precision"][best["trivet"]]["ratio_generate"]


def test_the_list_is_what_it_is_said_to_be() -> None:
    rows = [json.loads(line) for line in (BENCHMARKS / "data" / "rollout_lengths.jsonl").read_text().splitlines()]
    lengths = [r["new_tokens"] for r in rows]
    assert len(rows) == len({r["id"] for r in rows}) == 64
    assert max(lengths) == 128
    assert abs(sum(lengths) / 64 / 128 - 0.4) < 0.001
