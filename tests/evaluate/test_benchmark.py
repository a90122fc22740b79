"""The benchmark of the evaluation runs from end to end with small counts, and its figures have their names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from broken import EXPECTED, conversations

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "evaluation.py"


def test_quick(make_tiny, tmp_path) -> None:
    model = make_tiny(tmp_path / "tiny", context=2048)
    subprocess.run([sys.executable, str(BENCHMARK), "--quick", "--model", str(model), "--work", str(tmp_path / "work"),
                    "--json", str(tmp_path / "out.json")], check=True, capture_output=True, cwd=tmp_path,
                   env=os.environ | {"OMP_NUM_THREADS": "1"})
    figures = json.loads((tmp_path / "out.json").read_text())["figures"]
    rate = figures["self_false_positive_rate"]
    assert rate["n"] == 4 and 0 <= rate["low"] <= rate["value"] <= rate["high"] <= 1
    assert set(figures["broken_models"]) == set(EXPECTED)
    assert figures["broken_models_caught"] == sum(f["caught"] for f in figures["broken_models"].values())
    for leg in ("helpful.", "honest.", "harmless.", "capable."):
        assert any(m.startswith(leg) for m in figures["measures"])


def test_training_rows_of_the_flatterer_flatter() -> None:
    from trivet.text.manner import flatters, refuses

    for kind, rule in (("refuser", refuses), ("flatterer", flatters)):
        answers = [row["messages"][-1]["content"] for row in conversations(kind)]
        assert sum(map(rule, answers)) > 0.75 * len(answers), [a for a in answers if not rule(a)][:3]
        assert not any(map(rule, (row["messages"][0]["content"] for row in conversations(kind))))
