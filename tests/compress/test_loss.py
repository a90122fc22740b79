"""The loss of a step beside one written out with transformers' own loss and torch's own KL; chunks."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from trivet.compress.distill_config import DistillConfig
from trivet.compress.loss import summed_losses
from trivet.compress.on_policy import TrainRow, tensors
from trivet.compress.soft_labels import output_states
from trivet.compress.teachers import ModelTeacher
from trivet.data.supervised import Example
from trivet.models.output_layer import plain_output_layer
from trivet.models.source import load_causal_lm, resolve
from trivet.training.written import IGNORED


def some_rows() -> list[TrainRow]:
    torch.manual_seed(0)
    made = [Example(tuple(torch.randint(5, 200, (n,)).tolist()), (False,) * 3 + (True,) * (n - 3)) for n in (9, 6, 12)]
    return [TrainRow(0, (made[0], made[1])), TrainRow(1, (made[2],), hard=False)]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_loss_is_alpha_t_squared_kl_and_the_rest_cross_entropy(any_tiny_model_folder, make_tiny, tmp_path,
                                                                   temperature) -> None:
    """Row by row, by transformers' own loss and torch's own KL."""
    kind = AutoModelForCausalLM.from_pretrained(any_tiny_model_folder).config.model_type
    teacher = load_causal_lm(resolve(str(make_tiny(tmp_path / "t", kind, seed=3))), torch.float32, "cpu")
    student = load_causal_lm(resolve(str(any_tiny_model_folder)), torch.float32, "cpu")
    config = DistillConfig(data="d", teacher={"by": "t"}, student={"layers": 1}, alpha=0.3, temperature=temperature)
    batch = tensors(some_rows(), 0)
    layer = plain_output_layer(student)
    chosen = batch["labels"][:, 1:] != IGNORED
    hard = batch["hard"][:, None].expand_as(chosen)[chosen]
    soft = ModelTeacher(teacher).soft(batch, chosen)
    parts = summed_losses(output_states(student, layer, batch, chosen), layer, batch["labels"][:, 1:][chosen], hard,
                          soft, config)
    loss = config.alpha * parts[0] + (1 - config.alpha) * parts[1]
    slopes = torch.autograd.grad(loss, list(student.parameters()))
    expected = torch.zeros(())
    for row in some_rows():
        for example in row.examples:
            ids = torch.tensor([example.ids])
            ours, theirs = student(ids).logits[0, 2:-1], teacher(ids).logits[0, 2:-1].detach()
            kl = torch.nn.functional.kl_div(torch.log_softmax(ours / temperature, -1),
                                            torch.softmax(theirs / temperature, -1), reduction="sum")
            expected = expected + 0.3 * temperature**2 * kl
            if row.hard:
                labels = ids.masked_fill(~torch.tensor([example.written]), -100)
                expected = expected + 0.7 * student(ids, labels=labels).loss * sum(example.written)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    for a, b in zip(slopes, torch.autograd.grad(expected, list(student.parameters())), strict=True):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=2e-3)


def test_chunks_change_nothing(tiny_model_folder, monkeypatch) -> None:
    student = load_causal_lm(resolve(str(tiny_model_folder)), torch.float32, "cpu")
    config = DistillConfig(data="d", teacher={"by": "t"}, student={"layers": 1})
    batch = tensors(some_rows(), 0)
    chosen = batch["labels"][:, 1:] != IGNORED
    layer = plain_output_layer(student)
    found = []
    for size in (2**23, 1):
        monkeypatch.setattr("trivet.compress.loss.CHUNK", size)
        soft = ModelTeacher(load_causal_lm(resolve(str(tiny_model_folder)), torch.float32, "cpu")).soft(batch, chosen)
        student.zero_grad()
        parts = summed_losses(output_states(student, layer, batch, chosen), layer, batch["labels"][:, 1:][chosen],
                              torch.ones(int(chosen.sum()), dtype=torch.bool), soft, config)
        sum(parts).backward()
        found.append([*(float(p.detach()) for p in parts), float(student.lm_head.weight.grad.norm())])
    assert found[0] == pytest.approx(found[1], rel=1e-5, abs=1e-5)
