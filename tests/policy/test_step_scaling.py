"""The benchmark of a step's growth: from end to end with small counts, and its fit on seconds that are known."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "step_scaling.py"


def test_quick(make_tiny, tmp_path) -> None:
    model = make_tiny(tmp_path / "tiny", context=2048)
    subprocess.run([sys.executable, str(BENCHMARK), "--quick", "--model", str(model), "--threads", "1",
                    "--json", str(tmp_path / "out.json"), "--plot", str(tmp_path / "out.png")],
                   check=True, capture_output=True, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"})
    figures = json.loads((tmp_path / "out.json").read_text())["figures"]
    assert [(p["answers"], p["length"]) for p in figures["points"]] == [(4, 8), (4, 4)]
    assert set(figures["fits"]) == {"rollout", "evaluate", "update"}
    for error in figures["plan_over_measured"].values():
        assert 0 < error["least"] <= error["median"] <= error["largest"]
    assert (tmp_path / "out.png").stat().st_size > 10_000


def test_no_prompt_stands_twice_in_a_step() -> None:
    from step_scaling import POINTS, PROMPTS

    assert max(n for size in POINTS.values() for n in (*size["answers"], size["batch"])) <= PROMPTS


def test_the_fit_finds_what_made_the_seconds() -> None:
    from step_scaling import columns, fit

    points = [{"answers": n, "length": r, "prompt": 40, "tokens": n * r, "seconds": {}}
              for n, r in ((4, 48), (8, 48), (16, 48), (32, 48), (8, 16), (8, 128), (8, 256))]
    made = {"rollout": [0.5, 0.01, 0.002, 1e-5], "update": [0.3, 0.004, 1e-5]}
    for phase, parts in made.items():
        for p in points:
            p["seconds"][phase] = sum(a * b for a, b in zip(columns(p, phase), parts, strict=True))
        found = fit(points, phase)
        assert list(found["seconds"].values()) == pytest.approx(parts, rel=1e-4)
        assert found["explained"] == pytest.approx(1.0)
        assert sum(found["share_at_largest"].values()) == pytest.approx(1.0)
