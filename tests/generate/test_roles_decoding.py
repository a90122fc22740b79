"""Decoding of roles as PPO has them: adapters of a shared trunk, at work or off, take the lean step."""

from __future__ import annotations

import pytest
import torch
from torch.overrides import TorchFunctionMode

from models.test_lower import trunk
from trivet.generate import decoding as roads
from trivet.generate.config import Sampling
from trivet.generate.decoding import StaticDecoding, decoding
from trivet.generate.lean import FEW, LeanStep, _product
from trivet.generate.static_cache import SlotCache
from trivet.generate.torch_engine import TorchEngine
from trivet.models.lora_linear import FusedLinear

PROMPTS = [[7, 8, 9, 10], [11, 12, 13, 14, 15, 16]]


def step_logits(road: StaticDecoding) -> torch.Tensor:
    """Logits [2, V] after two steps on the road, with tokens 20, 21."""
    read = road.read(PROMPTS)
    cache = SlotCache(read[0], 2, 16)
    for prefix in read:
        cache.enter(prefix)
    road.step(cache, [20, 20])
    return road.step(cache, [21, 21])


def whole_logits(model) -> torch.Tensor:
    return torch.stack([model(input_ids=torch.tensor([[*p, 20, 21]]), use_cache=False).logits[0, -1]
                        for p in PROMPTS])


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("critic", ["head", "separate"])
def test_policy_and_reference_of_a_shared_trunk_take_the_lean_step(tiny_model_folder, dtype, critic) -> None:
    roles, found = trunk(tiny_model_folder, None, critic), {}
    with roles.model("policy") as model:
        for name, parameter in model.named_parameters():
            if "lora_" not in name:
                parameter.data = parameter.data.to(dtype)
    for role in ("policy", "reference", "policy"):
        with roles.model(role) as model:
            assert any(isinstance(m, FusedLinear) for m in model.modules())
            road = decoding(model, 0, 60)
            assert isinstance(road, StaticDecoding) and road.lean is not None and road.refused is None
            expected = whole_logits(model).float()
            found[role] = step_logits(road).float()
            near = 1e-4 if dtype == torch.float32 else 0.1
            assert (found[role] - expected).abs().max() < near * expected.abs().max()
    assert (found["policy"] - found["reference"]).abs().max() > 0.3 * found["reference"].abs().max()


@torch.no_grad()
@pytest.mark.parametrize(("rows", "by"), [(FEW + 1, "mm"), (FEW, "linear"), (1, "mm")])
def test_adapters_of_a_bfloat16_trunk_are_cast_once(tiny_model_folder, rows, by) -> None:
    roles = trunk(tiny_model_folder, None)
    with roles.model("policy") as model:
        layer = next(m for m in model.modules() if isinstance(m, FusedLinear))
    layer.base_layer.bfloat16()
    product, seen = _product(layer), set()

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.update((func.__name__, a.dtype) for a in args if isinstance(a, torch.Tensor))
            return func(*args, **(kwargs or {}))

    columns = torch.randn(layer.in_features, rows, generator=torch.Generator().manual_seed(0)).bfloat16()
    with Watch():
        out = product(columns, None)
    assert {dtype for _, dtype in seen} == {torch.bfloat16}  # nothing is cast
    assert {name for name, _ in seen} & {"mm", "addmm", "linear"} == {"mm", "addmm", by}
    expected = layer(columns.t()).t()
    assert out.dtype == torch.bfloat16
    assert (out - expected).abs().max() <= 0.02 * expected.abs().max()


@torch.no_grad()
def test_adapters_are_tried_even_while_they_add_nothing_and_stay_as_they_were(tiny_model_folder, monkeypatch) -> None:
    """A step that leaves adapters out passes for the reference; a fresh policy, whose B is 0, must show it."""
    roles = trunk(tiny_model_folder, None)
    for name, parameter in roles.trainable().items():
        if "lora_B" in name:
            torch.nn.init.zeros_(parameter)
    before = {n: p.clone() for n, p in roles.trainable().items()}
    lean, random = LeanStep.__call__, torch.get_rng_state()

    def wrong(self, cache, tokens):
        return lean(self, cache, tokens) if not roads.at_work(model) else lean(self, cache, tokens).roll(1, 0)

    tried = []
    why_not = roads._why_not
    monkeypatch.setattr(roads, "_why_not", lambda *a: tried.append((a[2], roads.at_work(a[0]))) or why_not(*a))
    with roles.model("reference") as model:
        assert decoding(model, 0, 60).lean is not None
    with roles.model("policy") as model:
        monkeypatch.setattr(LeanStep, "__call__", wrong)
        road = decoding(model, 0, 60)
        assert isinstance(road, StaticDecoding) and road.lean is None and "deviations off" in road.refused
        decoding(model, 0, 60)
    with roles.model("reference") as model:
        assert decoding(model, 0, 60).lean is not None
    assert tried == [(True, ()), (True, ("policy",)), (False, ("policy",))]
    assert all(torch.equal(p, before[n]) for n, p in roles.trainable().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_a_llama_that_is_refused_is_said_once(tiny_model_folder, capsys) -> None:
    with trunk(tiny_model_folder, None).model("policy") as model:
        model.model.layers[0].mlp.register_forward_hook(lambda *_: None)
        engine = TorchEngine(model, 0, frozenset())
        for _ in range(2):
            engine.generate(PROMPTS, Sampling(max_new_tokens=3), n=1, seeds=[0, 1])
    assert capsys.readouterr().out == (
        "LlamaForCausalLM looks like Llama but is decoded by its own modules, which is slower: its modules have "
        "hooks\n")
