"""Student beside teacher on held-out text: each figure by hand."""

from __future__ import annotations

import math

import pytest
import torch

from trivet.compress.fidelity import Compared, compare, figures
from trivet.data.supervised import Example
from trivet.models.source import load_causal_lm, resolve


def examples() -> list[Example]:
    torch.manual_seed(0)
    return [Example(tuple(torch.randint(5, 200, (n,)).tolist()), (False,) * 2 + (True,) * (n - 2)) for n in (9, 5, 12)]


def test_each_figure_is_what_it_says(any_tiny_model_folder, make_tiny, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("trivet.compress.fidelity.CHUNK", 1)
    student = load_causal_lm(resolve(str(any_tiny_model_folder)), torch.float32, "cpu")
    teacher = load_causal_lm(resolve(str(make_tiny(tmp_path / "t", seed=3))), torch.float32, "cpu")
    for row, example in zip(compare(student, teacher, examples(), 0), examples(), strict=True):
        ids = torch.tensor([example.ids])
        with torch.no_grad():
            q, p = (torch.softmax(m(ids).logits[0, 1:-1].double(), -1) for m in (student, teacher))
        labels = list(example.ids[2:])
        assert row.tokens == len(labels)
        assert row.loss == pytest.approx(-sum(math.log(float(q[i, t])) for i, t in enumerate(labels)), rel=1e-4)
        assert row.teacher_loss == pytest.approx(-sum(math.log(float(p[i, t])) for i, t in enumerate(labels)), rel=1e-4)
        assert row.hits == sum(int(q[i].argmax()) == t for i, t in enumerate(labels))
        assert row.teacher_hits == sum(int(p[i].argmax()) == t for i, t in enumerate(labels))
        assert row.agreed == sum(int(q[i].argmax()) == int(p[i].argmax()) for i in range(len(labels)))
        assert row.kl == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-3)
    alone = compare(student, None, examples(), 0)
    assert all(r.teacher_loss == r.kl == 0 and r.loss > 0 for r in alone)


def test_figures_are_shares_of_tokens() -> None:
    rows = [Compared(10, 20, 4, 10, 8, 5, 6), Compared(30, 45, 11, 30, 22, 15, 24)]
    found = figures(rows, with_teacher=True, seed=0)
    assert found["loss"].value == 65 / 40 and found["accuracy"].value == 15 / 40
    assert found["teacher_accuracy"].value == 30 / 40 and found["kept"].value == 0.5
    assert found["kl"].value == 0.5 and found["agreement"].value == 30 / 40
    assert set(figures(rows, with_teacher=False, seed=0)) == {"loss", "accuracy"}


def test_of_a_teacher_that_is_never_right_no_share_is_said() -> None:
    found = figures([Compared(10, 20, 4, 10, 0, 5, 6)] * 2, with_teacher=True, seed=0)["kept"]
    assert found.as_dict() == {"value": None, "low": None, "high": None, "n": 2}
