"""The blocks below the adapters run once for a batch, and nothing else changes: not a bit of values or gradients."""

from __future__ import annotations

import pytest
import torch

from trivet.config import LoRA
from trivet.models.lower import blocks
from trivet.models.output_layer import plain_output_layer
from trivet.models.roles import SeparateModels, SharedTrunk
from trivet.models.source import load_causal_lm, resolve

IDS = torch.arange(5, 23).view(2, 9)


def trunk(folder, layers: int | None, critic: str = "head") -> SharedTrunk:
    torch.manual_seed(0)
    roles = SharedTrunk(resolve(str(folder)), torch.float32, "cpu", LoRA(r=4, last_layers=layers), critic=critic)
    for name, parameter in roles.trainable().items():
        if "lora_B" in name:  # 0 at first: roles would be alike
            torch.nn.init.normal_(parameter, std=0.3)
    return roles


def calls(model) -> list[int]:
    """How often each block's own arithmetic runs, counted from now on."""
    counts = [0] * len(blocks(model))
    for i, block in enumerate(blocks(model)):
        def count(module, args, output, i=i) -> None:
            counts[i] += 1
        next(m for n, m in block.named_modules() if n.endswith("mlp")).register_forward_hook(count)
    return counts


def logits(roles, role: str, lower=None) -> torch.Tensor:
    with roles.model(role, lower) as model:
        return model(input_ids=IDS, use_cache=False).logits


def test_every_role_says_the_same_bits_with_shared_blocks(any_tiny_model_folder) -> None:
    roles = trunk(any_tiny_model_folder, 1, "separate")
    with torch.no_grad():
        alone = {role: logits(roles, role) for role in ("policy", "reference", "critic")}
        lower = roles.lower_blocks()
        with roles.model("policy") as model:
            counts = calls(model)
        for role in ("policy", "reference", "critic", "policy"):
            assert torch.equal(logits(roles, role, lower), alone[role])
        assert counts == [1, 4]
        assert torch.equal(logits(roles, "policy"), alone["policy"])  # and without: as it was
        assert counts == [2, 5]
    assert not torch.equal(alone["policy"], alone["reference"])


def test_gradients_are_the_same_bits(any_tiny_model_folder) -> None:
    roles = trunk(any_tiny_model_folder, 1)
    found = []
    lower = roles.lower_blocks()
    for keeper in (None, lower, lower):
        logits(roles, "policy", keeper).square().sum().backward()
        found.append({n: p.grad.clone() for n, p in roles.trainable().items() if p.grad is not None})
        for parameter in roles.trainable().values():
            parameter.grad = None
    assert found[0] and all(torch.equal(found[0][n], other[n]) for other in found[1:] for n in found[0])


def test_an_error_inside_a_pass_leaves_the_model_whole(tiny_model_folder) -> None:
    roles = trunk(tiny_model_folder, 1)
    before, lower = logits(roles, "policy"), roles.lower_blocks()
    logits(roles, "policy", lower)
    with pytest.raises(KeyError), roles.model("policy", lower):
        raise KeyError
    assert torch.equal(logits(roles, "policy"), before)


@pytest.mark.parametrize("layers", [None, 2])
def test_nothing_is_shared_where_every_block_is_adapted(tiny_model_folder, layers) -> None:
    assert trunk(tiny_model_folder, layers).lower_blocks() is None


def test_models_of_their_own_share_nothing(tiny_model_folder) -> None:
    assert SeparateModels(resolve(str(tiny_model_folder)), torch.float32, "cpu").lower_blocks() is None


def test_a_plain_output_layer_is_known_from_one_that_is_scaled_or_capped(any_tiny_model_folder) -> None:
    model = load_causal_lm(resolve(str(any_tiny_model_folder)), torch.float32, "cpu")
    assert plain_output_layer(model) is model.get_output_embeddings()

    class Capped(type(model)):
        def forward(self, *args, **kwargs):
            found = super().forward(*args, **kwargs)
            found.logits = 30 * torch.tanh(found.logits / 30)
            return found

    capped = load_causal_lm(resolve(str(any_tiny_model_folder)), torch.float32, "cpu")
    capped.__class__ = Capped
    assert plain_output_layer(capped) is None


def test_gemma2_caps_its_logits() -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    model = Gemma2ForCausalLM(Gemma2Config(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=64))
    assert plain_output_layer(model) is None


def gpt_neo(folder):
    """A model whose blocks give tuples."""
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    from conftest import make_tokenizer

    tokenizer = make_tokenizer()
    GPTNeoForCausalLM(GPTNeoConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_layers=2, num_heads=4, intermediate_size=64, window_size=8,
        attention_types=[[["global", "local"], 1]], max_position_embeddings=64, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_blocks_that_give_more_than_a_state_are_not_shared(tmp_path) -> None:
    roles = trunk(gpt_neo(tmp_path / "neo"), 1)
    assert roles.lower_blocks() is None
    assert logits(roles, "policy").isfinite().all()


def test_what_is_kept_of_another_batch_is_refused(tiny_model_folder) -> None:
    roles = trunk(tiny_model_folder, 1)
    lower = roles.lower_blocks()
    logits(roles, "policy", lower)
    with pytest.raises(ValueError, match="a batch of"), roles.model("policy", lower) as model:
        model(input_ids=IDS[:1])
