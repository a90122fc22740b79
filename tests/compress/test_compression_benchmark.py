"""The benchmark's figures are those of the table."""

from __future__ import annotations

import json
from pathlib import Path

from compression import distilled, figures
from weighed import table


def test_figures_are_flat_and_whole() -> None:
    found = figures(table())
    assert json.loads(json.dumps(found)) == found
    assert found["fastest"] == "int4" and found["fastest_times_source"]["value"] > 4.9
    int8 = found["by_variant"]["int8"]
    for key in ("bytes", "bits_per_weight", "sparsity", "tokens_per_second_b1", "tokens_per_second_b16", "perplexity",
                "reward"):
        assert key in int8
    assert int8["bytes"] == 144_000_000 and {"value", "low", "high", "n"} == set(int8["reward"])
    assert found["by_variant"]["source"]["times_source_b1"] is None
    assert found["by_variant"]["broken"]["failed"] and found["by_variant"]["broken"]["perplexity"] is None


def test_distillation_is_read_where_it_is(tmp_path: Path) -> None:
    assert distilled(tmp_path / "none.json") is None
    (tmp_path / "d.json").write_text(json.dumps({"figures": {"distilled_minus_hard": {"value": 0.1}}}))
    assert distilled(tmp_path / "d.json") == {"value": 0.1}
