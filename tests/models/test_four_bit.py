"""A trunk in four bits: refused where it can't be, configured as QLoRA says; run where bitsandbytes is installed."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from trivet.config import LoRA
from trivet.errors import TrivetError
from trivet.models import four_bit
from trivet.models.four_bit import quantization
from trivet.models.roles import SharedTrunk
from trivet.models.source import resolve


def test_it_needs_a_gpu(tiny_model_folder) -> None:
    with pytest.raises(TrivetError, match="CUDA GPU") as error:
        SharedTrunk(resolve(str(tiny_model_folder)), torch.bfloat16, "cpu", LoRA(), four_bit=True)
    assert error.value.field == "four_bit" and error.value.mend


def test_it_needs_bitsandbytes(monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TrivetError, match="bitsandbytes is not installed"):
        quantization(torch.bfloat16, "cuda")


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_roles_stand_on_a_quantized_trunk(make_tiny, tmp_path, monkeypatch) -> None:
    """On a CPU, which the stage refuses for its speed: the road is the same."""
    import bitsandbytes
    from transformers import LlamaConfig, LlamaForCausalLM

    from policy.test_ppo_details import config, rollout_of, stepped
    from trivet.models.lora import stands_on
    from trivet.models.roles import weights_hash

    real = quantization
    monkeypatch.setattr(four_bit, "quantization", lambda dtype, device: real(dtype, "cuda"))
    folder = make_tiny(tmp_path / "m", "llama")
    LlamaForCausalLM(LlamaConfig(  # bitsandbytes packs 64 numbers at least
        vocab_size=400, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, pad_token_id=0)).save_pretrained(folder)
    source = resolve(str(folder))
    roles = SharedTrunk(source, torch.bfloat16, "cpu", LoRA(r=4), critic="separate", four_bit=True)
    with roles.model("reference") as model:
        assert sum(isinstance(m, bitsandbytes.nn.Linear4bit) for m in model.modules()) == 14
    frozen, learned = weights_hash(roles.frozen()), {n: p.clone() for n, p in roles.trainable().items()}
    stats, _ = stepped(roles, rollout_of(roles, folder), config(optimizer={"lr": 1e-3}))
    assert stats.ratio_first < 0.02
    assert weights_hash(roles.frozen()) == frozen
    assert any(not torch.equal(p, learned[n]) for n, p in roles.trainable().items() if "lora_B" in n)
    assert all(p.dtype == torch.float32 for p in roles.trainable().values())
    roles.save_policy(tmp_path / "adapter", {})
    assert stands_on(tmp_path / "adapter", source)
