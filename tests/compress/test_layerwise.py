"""Block by block: the statistics are those of the whole model's run, and later blocks see the changed ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, BloomConfig, BloomForCausalLM

from trivet.compress.layerwise import block_linears, change_layerwise
from trivet.errors import TrivetError


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def windows(count: int = 5, length: int = 12) -> list[torch.Tensor]:
    return list(torch.randint(5, 300, (count, length), generator=torch.Generator().manual_seed(0)))


def inputs_of(model, batch) -> dict[str, torch.Tensor]:
    """What comes into each Linear layer when the whole model runs, [tokens, in] in float64."""
    found: dict[str, torch.Tensor] = {}
    hooks = [m.register_forward_pre_hook(lambda _, args, name=n: found.update({name: args[0]}))
             for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    with torch.no_grad():
        model(input_ids=torch.stack(batch), use_cache=False)
    for hook in hooks:
        hook.remove()
    return {n: x.flatten(0, 1).double() for n, x in found.items() if n != "lm_head"}


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("gram", [True, False])
def test_the_statistics_are_those_of_a_whole_run(kind, gram, make_tiny, tmp_path) -> None:
    model, seen = load(make_tiny(tmp_path, kind)), {}
    change_layerwise(model, windows(), lambda name, layer, s: seen.update({name: s}), gram=gram, batch_size=2)
    expected = inputs_of(model, windows())
    assert set(seen) == set(expected) and len(seen) == 14
    for name, x in expected.items():
        found = seen[name]
        assert found.tokens == 60
        assert torch.allclose(found.squares.double(), x.square().sum(0), rtol=1e-4)
        if gram:
            assert torch.allclose(found.gram.double(), x.T @ x, rtol=1e-3, atol=1e-3)
        else:
            assert found.gram is None


def test_later_blocks_see_what_changed_ones_give(make_tiny, tmp_path) -> None:
    """In the order of the blocks: of a block's own layers all see its unchanged self."""
    model, twin, seen = load(make_tiny(tmp_path)), load(tmp_path), {}

    def halve(name, layer, statistics) -> None:
        seen[name] = statistics
        layer.weight.mul_(0.5)

    change_layerwise(model, windows(), halve, gram=False)
    for number, linears in enumerate(block_linears(twin)):
        expected = inputs_of(twin, windows())
        for name, layer in linears.items():
            assert torch.allclose(seen[name].squares.double(), expected[name].square().sum(0), rtol=1e-4), number
            layer.weight.data.mul_(0.5)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_windows_of_other_lengths_and_chosen_layers(make_tiny, tmp_path) -> None:
    model, seen, blocks_done = load(make_tiny(tmp_path)), {}, []
    mixed = [*windows(3, 12), *windows(2, 7)]
    change_layerwise(model, mixed, lambda name, layer, s: seen.update({name: s}), gram=True, batch_size=2,
                     wanted=lambda name: name.endswith("down_proj"), progress=blocks_done.append)
    assert set(seen) == {f"model.layers.{i}.mlp.down_proj" for i in range(2)} and blocks_done == [1, 1]
    both = [inputs_of(model, mixed[:3]), inputs_of(model, mixed[3:])]
    for name, found in seen.items():
        x = torch.cat([part[name] for part in both])
        assert found.tokens == 50 and torch.allclose(found.gram.double(), x.T @ x, rtol=1e-3, atol=1e-3)


def test_nothing_is_left_on_the_model(make_tiny, tmp_path) -> None:
    model = load(make_tiny(tmp_path))
    ids = torch.stack(windows())
    with torch.no_grad():
        before = model(input_ids=ids).logits

    def fail(name, layer, statistics) -> None:
        if name.endswith("1.mlp.up_proj"):
            raise RuntimeError(name)

    with pytest.raises(RuntimeError):
        change_layerwise(model, windows(), fail, gram=False)
    change_layerwise(model, windows(), lambda *_: None, gram=False)
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, before)
    assert not any(m._forward_pre_hooks or "forward" in vars(m) for m in model.modules())


def test_models_that_do_not_fit_are_refused(make_tiny, tmp_path) -> None:
    with pytest.raises(TrivetError, match="GPT2LMHeadModel hold no Linear layers"):
        change_layerwise(load(make_tiny(tmp_path, "gpt2")), windows(), lambda *_: None, gram=False)
    bloom = BloomForCausalLM(BloomConfig(vocab_size=300, hidden_size=16, n_layer=2, n_head=2)).eval()
    with pytest.raises(TrivetError, match="BloomForCausalLM hand on more"):
        change_layerwise(bloom, windows(), lambda *_: None, gram=False)


def test_a_layer_that_no_token_reaches_is_named(make_tiny, tmp_path) -> None:
    model = load(make_tiny(tmp_path))
    model.model.layers[1].mlp.extra = nn.Linear(4, 4)
    with pytest.raises(TrivetError, match=r"reaches model.layers.1.mlp.extra"):
        change_layerwise(model, windows(), lambda *_: None, gram=False)
