"""Tiny random models of each architecture that can be cut smaller, with norms and biases that are not all alike."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

KINDS = {"llama": (LlamaConfig, LlamaForCausalLM), "mistral": (MistralConfig, MistralForCausalLM),
         "qwen2": (Qwen2Config, Qwen2ForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM),
         "smollm3": (SmolLM3Config, SmolLM3ForCausalLM)}


def make(kind: str = "llama", *, tied: bool = True, **more: Any) -> Any:
    """Four blocks of 40 channels and 3 groups of 2 heads of 8."""
    configuration, model = KINDS[kind]
    torch.manual_seed(1)
    shape = dict(vocab_size=50, hidden_size=48, intermediate_size=40, num_hidden_layers=4, num_attention_heads=6,
                 num_key_value_heads=3, max_position_embeddings=64, initializer_range=0.3, tie_word_embeddings=tied,
                 head_dim=8, bos_token_id=None, eos_token_id=1, pad_token_id=0)
    made = model(configuration(**shape | more)).eval()
    for name, parameter in made.named_parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.3)
    return made
