"""Log-probabilities without logits, against the naive way with them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from policy.test_ppo_details import PAD, roles_of, rollout_of
from trivet.policy import passes, vocabulary
from trivet.policy.loss import entropy_from_logits, logps_from_logits
from trivet.policy.rollout import micro_batch
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


@pytest.mark.parametrize("kind", ["upper", "separate"])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_a_pass_without_logits_equals_one_with_them(any_tiny_model_folder, monkeypatch, kind, dtype, close) -> None:
    """On whole models, tied output layers among them: log-probabilities, entropy, values, gradients."""
    roles = roles_of(any_tiny_model_folder, kind, dtype=dtype)
    rollout = rollout_of(roles, any_tiny_model_folder, stops=frozenset(range(0, 400, 7)))
    assert not rollout.mask.all(), "some rows are padded"
    micro = micro_batch(rollout, range(6), PAD, "cpu")
    weights, found = torch.randn(micro.response_mask.shape), []
    torch.nn.init.normal_(roles.value_head.weight)
    monkeypatch.setattr(vocabulary, "CHUNK_LOGITS", 7 * 384)
    for plain in (True, False):
        if not plain:
            monkeypatch.setattr(passes, "plain_output_layer", lambda model: None)
        with roles.model("policy") as model:
            seen = passes.response_pass(model, micro, 0.7, value_head=roles.value_head, entropy=True)
            ((seen.logps + seen.values * micro.response_mask) * weights).sum().backward()
        grads = {n: p.grad.clone() for n, p in roles.trainable().items() if p.grad is not None}
        for parameter in roles.trainable().values():
            parameter.grad = None
        found.append((seen, grads))
    (one, ours), (other, theirs) = found
    mask = micro.response_mask
    assert not one.logps[~mask].any()
    for a, b in ((one.logps, other.logps), (one.entropy, other.entropy), (one.values[mask], other.values[mask])):
        assert torch.allclose(a, b, atol=close)
    assert ours.keys() == theirs.keys() and any("lora_B" in n or "embed" in n or "wte" in n for n in ours)
    for name, grad in ours.items():
        assert torch.allclose(grad, theirs[name], atol=close * max(1.0, float(theirs[name].abs().max()))), name
