"""A pruned folder as a user has it: plain transformers loads it, and llama.cpp continues as it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from conftest import build_tiny
from exports import CPU
from trivet.compress.gguf_export import export_gguf
from trivet.compress.prune_config import PruneConfig
from trivet.generate.config import Sampling
from trivet.generate.engines import load_engine
from trivet.models.source import resolve
from trivet.stages import STAGES, run_stage

SMALL = {"calibration": {"windows": 2, "length": 64}, "held_out": {"windows": 1, "length": 64}, "dtype": "float32"}


def same_greedy(folder: Path, out: Path, tokens: int) -> None:
    """That plain transformers and llama.cpp, from the saved folder, write the same tokens."""
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    export_gguf(resolve(str(folder)), out, "F32")
    with load_engine(out, CPU) as loaded:
        loaded.engine.stops = frozenset()
        for question in ("What is the capital of France?", "Name three birds."):
            prompt = loaded.tokenizer.apply_chat_template([{"role": "user", "content": question}],
                                                          add_generation_prompt=True, return_dict=False)
            said = plain.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=tokens,
                                  min_new_tokens=tokens, eos_token_id=[],
                                  attention_mask=torch.ones(1, len(prompt), dtype=torch.long))
            ((answer,),) = loaded.engine.generate(
                [prompt], Sampling(temperature=0, max_new_tokens=tokens), n=1, seeds=[0])
            assert list(answer.token_ids) == said[0, len(prompt):].tolist() and len(answer.token_ids) == tokens


@pytest.mark.parametrize("how", [{"method": "depth", "depth": {"layers": 1, "windows": 1}},
                                 {"method": "width", "width": {"channels": 0.25}}], ids=["depth", "width"])
def test_pruned_by(how: dict[str, Any], tmp_path: Path) -> None:
    base = build_tiny(tmp_path / "base")
    run_stage(STAGES["prune"], PruneConfig.model_validate(
        {"out": tmp_path / "run", "model": str(base), "device": {"device": "cpu", "threads": 1}, **SMALL, **how}))
    same_greedy(tmp_path / "run" / "model", tmp_path / "gguf", 12)


@pytest.mark.real_weights
def test_the_embedded_model_without_six_blocks(tmp_path: Path) -> None:
    run_stage(STAGES["prune"], PruneConfig.model_validate(
        {"out": tmp_path / "run", "model": "smollm2-135m-instruct", "method": "depth",
         "device": {"device": "cpu", "threads": 1}, **SMALL, "depth": {"layers": 6, "windows": 1}}))
    same_greedy(tmp_path / "run" / "model", tmp_path / "gguf", 16)
