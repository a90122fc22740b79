"""The fused LoRA layer against PEFT's own, in values and gradients."""

from __future__ import annotations

import copy

import pytest
import torch

from models.test_lower import IDS, logits, trunk
from trivet.models.lora_linear import FusedLinear
from trivet.models.source import load_causal_lm, resolve


def fused_and_plain(folder):
    """A model with LoRA layers in float64, and a copy whose layers are PEFT's own."""
    from peft import LoraConfig, get_peft_model

    from trivet.models.lora_linear import fuse

    base = load_causal_lm(resolve(str(folder)), torch.float64, "cpu")
    torch.manual_seed(0)
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=12, lora_dropout=0.0, target_modules="all-linear",
                                            fan_in_fan_out="GPT2" in type(base).__name__)).double()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    plain = copy.deepcopy(model)
    fuse(model)
    return model, plain


def test_values_and_gradients_are_those_of_peft(any_tiny_model_folder) -> None:
    found = []
    models = fused_and_plain(any_tiny_model_folder)
    assert any(isinstance(m, FusedLinear) for m in models[0].modules())
    assert not any(isinstance(m, FusedLinear) for m in models[1].modules())
    for model in models:
        out = model(input_ids=IDS).logits
        out.square().sum().backward()
        found.append((out, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    assert torch.allclose(found[0][0], found[1][0])
    assert found[0][1].keys() == found[1][1].keys()
    assert all(torch.allclose(g, found[1][1][n]) for n, g in found[0][1].items())
    with models[0].disable_adapter(), models[1].disable_adapter():
        assert torch.equal(*(m(input_ids=IDS).logits for m in models))


def test_a_bfloat16_trunk_is_not_lifted_to_float32(tiny_model_folder) -> None:
    """The product is made in the trunk's precision; weights and gradients of the adapter stay float32."""
    roles = trunk(tiny_model_folder, None)
    exact = logits(roles, "policy").detach()
    with roles.model("policy") as model:
        for name, parameter in model.named_parameters():
            if "lora_" not in name:
                parameter.data = parameter.data.bfloat16()
    seen = []
    layer = next(m for m in model.modules() if isinstance(m, FusedLinear))
    layer.register_forward_hook(lambda module, args, out: seen.append((args[0].dtype, out.dtype)))
    found = logits(roles, "policy")
    assert set(seen) == {(torch.bfloat16, torch.bfloat16)}
    assert (found - exact).abs().max() < 0.1 * exact.abs().max()
    found.float().square().sum().backward()
    grads = [p.grad for n, p in roles.trainable().items() if "lora_" in n]
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in grads)


@pytest.mark.parametrize("change", ["dropout", "dora", "two"])
def test_layers_that_are_more_than_a_product_stay_pefts(tiny_model_folder, change) -> None:
    from peft import LoraConfig, get_peft_model

    from trivet.models.lora_linear import fuse

    settings = {"r": 4, "target_modules": ["q_proj"]}
    settings |= {"dropout": {"lora_dropout": 0.5}, "dora": {"use_dora": True}, "two": {}}[change]
    base = load_causal_lm(resolve(str(tiny_model_folder)), torch.float32, "cpu")
    model = get_peft_model(base, LoraConfig(**settings))
    torch.manual_seed(0)
    if change == "two":
        model.add_adapter("other", LoraConfig(**settings))
        model.base_model.set_adapter(["default", "other"])
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.eval()
    before = model(input_ids=IDS).logits
    fuse(model)
    assert torch.equal(model(input_ids=IDS).logits, before)
