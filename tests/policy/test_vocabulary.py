"""Log-probabilities without logits, against the naive way with them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trivet.policy import vocabulary
from trivet.policy.loss import entropy_from_logits, logps_from_logits
from trivet.policy.vocabulary import linear_logps


@pytest.mark.parametrize("rows", [1, 3, 7, 100])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_values_and_gradients_equal_those_through_logits(monkeypatch, rows, bias, temperature) -> None:
    monkeypatch.setattr(vocabulary, "CHUNK_LOGITS", rows * 11)
    torch.manual_seed(rows)
    layer = nn.Linear(5, 11, bias=bias, dtype=torch.float64)
    hidden = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    tokens, weights = torch.randint(11, (7,)), torch.randn(7)
    wanted = [hidden, *layer.parameters()]
    logits = layer(hidden)
    expected = logps_from_logits(logits[None], tokens[None], temperature)[0]
    naive = torch.autograd.grad((expected * weights).sum(), wanted)
    logps, entropy = linear_logps(hidden, layer, tokens, temperature, entropy=True)
    assert torch.allclose(logps.double(), expected.double(), atol=1e-6)
    assert torch.allclose(entropy.double(), entropy_from_logits(logits.detach(), temperature).double(), atol=1e-6)
    for ours, theirs in zip(torch.autograd.grad((logps * weights).sum(), wanted), naive, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_large_logits_stay_finite() -> None:
    layer = nn.Linear(1, 3, bias=False)
    layer.weight.data = torch.tensor([[1e4], [-1e4], [0.0]])
    logps, entropy = linear_logps(torch.ones(2, 1), layer, torch.tensor([0, 1]), 0.7, entropy=True)
    assert logps.tolist() == pytest.approx([0.0, -2e4 / 0.7])
    assert entropy.tolist() == pytest.approx([0.0, 0.0])


def test_frozen_weights_get_no_gradient_and_no_tokens_are_no_trouble() -> None:
    layer = nn.Linear(4, 6).requires_grad_(False)
    hidden = torch.randn(3, 4, requires_grad=True)
    logps, entropy = linear_logps(hidden, layer, torch.tensor([0, 1, 2]), 1.0)
    logps.sum().backward()
    assert entropy is None and layer.weight.grad is None and hidden.grad.abs().sum() > 0
    none, _ = linear_logps(hidden[:0], layer, torch.zeros(0, dtype=torch.long), 1.0)
    assert none.shape == (0,)
    with pytest.raises(ValueError, match="temperature"):
        linear_logps(hidden, layer, torch.tensor([0, 1, 2]), 0.0)
