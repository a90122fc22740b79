"""RMSNorm by one function against the model's own."""

from __future__ import annotations

import pytest
import torch

from trivet.models.rms_norm import quicken_norms
from trivet.models.source import load_causal_lm, resolve

IDS = torch.arange(5, 23).view(2, 9)


@pytest.mark.parametrize("frozen", [False, True])
def test_values_and_gradients_are_the_models_own(any_tiny_model_folder, frozen) -> None:
    found = []
    for quick in (False, True):
        model = load_causal_lm(resolve(str(any_tiny_model_folder)), torch.float64, "cpu")
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():
            if "norm" in name and parameter.dim() == 1:
                torch.nn.init.normal_(parameter, mean=1.0)
                parameter.requires_grad_(not frozen)
        if quick:
            assert quicken_norms(model) == (0 if "GPT2" in type(model).__name__ else 5)
            assert quicken_norms(model) == 0  # twice is once
        out = model(input_ids=IDS).logits
        out.square().sum().backward()
        found.append((out, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    # the model's own lifts to float32 in between, ours keeps float64
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-5, atol=1e-5)
    assert found[0][1].keys() == found[1][1].keys()
    for name, gradient in found[0][1].items():
        assert torch.allclose(gradient, found[1][1][name], atol=1e-5 * float(gradient.abs().max())), name


def test_a_norm_that_says_something_else_stays() -> None:
    class Shifted(torch.nn.Module):
        """As Gemma's: by one plus the weight."""

        def __init__(self) -> None:
            super().__init__()
            self.weight, self.variance_epsilon = torch.nn.Parameter(torch.zeros(4)), 1e-6

        def forward(self, x):
            return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon) * (1 + self.weight)

    assert quicken_norms(torch.nn.Sequential(Shifted())) == 0


def test_sixteen_bits_go_the_models_own_way(tiny_model_folder) -> None:
    model = load_causal_lm(resolve(str(tiny_model_folder)), torch.bfloat16, "cpu")
    before = model(input_ids=IDS).logits
    assert quicken_norms(model) == 0
    exact = load_causal_lm(resolve(str(tiny_model_folder)), torch.float32, "cpu")
    assert quicken_norms(exact) == 5
    for parameter in exact.parameters():
        parameter.data = parameter.data.bfloat16()
    assert torch.equal(exact(input_ids=IDS).logits, before)
