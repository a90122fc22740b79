"""What tests of the exports share: a tiny model, a text, and how far an engine's probabilities are from the model's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from conftest import make_tokenizer
from trivet.generate.engines import load_engine
from trivet.training.device import Compute

CPU = Compute("cpu", torch.float32, 1)
TEXT = "What should I cook tonight? Try rice with beans."
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 64}


def build(folder: Path, **changes: Any) -> Path:
    """A tiny Llama model of another shape than conftest's."""
    tokenizer = make_tokenizer()
    torch.manual_seed(1)
    shape: dict[str, Any] = dict(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.2, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    LlamaForCausalLM(LlamaConfig(**shape | changes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def largest_difference(model: Path, folder: Path) -> float:
    """Between the probabilities that transformers and the engine of an export give a text."""
    with load_engine(folder, CPU) as loaded:
        ids = loaded.tokenizer(TEXT)["input_ids"]
        plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        expected = plain(input_ids=torch.tensor([ids])).logits[0].softmax(-1).detach().numpy()
        return float(np.abs(np.exp(loaded.engine.distribution(ids)) - expected).max())
