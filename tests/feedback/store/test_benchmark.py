"""The benchmark of labelling, small: over HTTP, with the server killed twice, on both databases."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "labelling.py"


def test_nothing_acknowledged_is_lost_over_http(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(BENCHMARK), "--quick", "--json", str(tmp_path / "out.json")],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "out.json").read_text())["figures"]
    for name in ("sqlite", "postgresql"):
        for found in (figures[name], figures[name]["saturated"]):
            assert {key: found[key] for key in ("lost", "doubled", "over_overlap", "under_overlap", "server_errors",
                                                "refused")} == dict.fromkeys(
                ("lost", "doubled", "over_overlap", "under_overlap", "server_errors", "refused"), 0)
            assert (found["acknowledged"], found["kills"]) == (60, 2)
            assert found["submit_p95_ms"] > 0
