"""benchmarks/distillation.py, recovery.py: what they split, pair and say; and that their quick forms run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import distillation
import recovery
from trivet.compress.fidelity import Compared
from trivet.data.supervised import Example


def test_no_first_turn_stands_on_both_sides(tmp_path) -> None:
    rows = [{"messages": [{"role": "user", "content": f"Question {i % 20}?"}, {"role": "assistant", "content": f"{i}"}]}
            for i in range(60)]
    sides = [[json.loads(x) for x in p.read_text().splitlines()]
             for p in distillation.split(rows, tmp_path, limit=None)]
    train, held = ({r["messages"][0]["content"] for r in side} for side in sides)
    assert train and held and not train & held and len(sides[0]) + len(sides[1]) == 60
    few = distillation.split(rows, tmp_path, limit=len(held))[1].read_text().splitlines()
    assert {json.loads(x)["messages"][0]["content"] for x in few} == held


def test_differences_are_paired_by_row_and_seed() -> None:
    def run(shift: float) -> list[Compared]:
        return [Compared(10, 20 + i + shift, 4, 0, 0, 5 + shift, 6) for i in range(4)]

    soft, hard = [run(-2), run(-4)], [run(0), run(0)]
    found = distillation.difference(soft, hard, [0, 0, 1, 2], seed=0)
    assert found["loss"]["value"] == pytest.approx(-0.3) and found["loss"]["n"] == 3
    assert found["accuracy"]["value"] == 0
    seeds = found["kl"]["over_seeds"]
    assert seeds["values"] == pytest.approx([-0.2, -0.4]) and seeds["value"] == pytest.approx(-0.3)
    # Student's interval of two values by hand: mean ± t(0.975, 1) · s / √2
    assert seeds["high"] - seeds["value"] == pytest.approx(12.7062 * np.std([-0.2, -0.4], ddof=1) / 2**0.5, rel=1e-4)


def test_answers_to_one_question_are_one_group() -> None:
    examples = [Example((1, 2, 3), (False, False, True)), Example((1, 2, 4), (False, False, True)),
                Example((5, 2, 3), (False, False, True))]
    assert distillation.groups_of(examples) == [0, 0, 1]


def test_its_quick_form_runs(tmp_path, monkeypatch) -> None:
    out = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", ["distillation.py", "--quick", "--threads", "1", "--json", str(out)])
    distillation.main()
    found = json.loads(Path(out).read_text())["figures"]
    assert set(found["distilled_minus_hard"]) == {"1", "2", "4"}
    assert found["steps"] == 4 and found["seeds"] == 2 and 0 < found["share_of_parameters"] < 1
    assert found["kept"]["hard"]["n"] == found["heldout_prompts"]


def test_the_quick_form_of_depth_against_width_runs(tmp_path, monkeypatch) -> None:
    out = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", ["recovery.py", "--quick", "--threads", "1", "--json", str(out)])
    recovery.main()
    found = json.loads(out.read_text())["figures"]
    assert found["parameters"]["depth"] < found["parameters"]["teacher"] > found["parameters"]["width"]
    assert found["steps"] == 4 and found["seeds"] == 2 and found["heldout_tokens"] > 0
    before, after = (found["depth_minus_width"][when] for when in ("before", "after"))
    assert len(before["kl"]["over_seeds"]["values"]) == 1 and len(after["kl"]["over_seeds"]["values"]) == 2
    each = found["figures"]
    # the difference is that of the two columns, which are of the same rows
    assert after["loss"]["value"] == pytest.approx(each["depth_after"]["loss"]["value"]
                                                   - each["width_after"]["loss"]["value"], abs=1e-6)
