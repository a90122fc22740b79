"""llm-compressor's pruning of a model on given windows of tokens, in its own environment (benchmarks/peers.py).

    python llmc_peer.py JOB.json

JOB: {"model": folder, "method": magnitude | wanda | sparsegpt, "sparsity": share, "pattern": "unstructured" | "N:M",
"windows": [[token ids]], "threads": count, "out": file}. Written is `out`, safetensors with the weight of each Linear
layer of the blocks, in float32, by its name in the model. Knows nothing of Trivet.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from llmcompressor import oneshot
from llmcompressor.core import Event, EventType, State
from llmcompressor.modifiers.pruning import MagnitudePruningModifier, SparseGPTModifier, WandaPruningModifier
from safetensors.torch import save_file
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

BLOCKS = r"re:.*\.layers\.\d+$"
LINEARS = r"re:.*\.layers\.\d+\..*_proj$"


def magnitude(model: Any, sparsity: float) -> None:
    """Its magnitude modifier goes by a training schedule, which `oneshot` never starts: start it by hand."""
    modifier = MagnitudePruningModifier(targets=[LINEARS], init_sparsity=sparsity, final_sparsity=sparsity, start=0.0,
                                        end=1.0, update=1.0, update_scheduler="linear")
    state = State(model=model)
    modifier.on_initialize(state)
    event = Event(type_=EventType.BATCH_START, global_step=0)
    modifier.on_start(state, event)
    for name in modifier.parameterized_layers_:
        modifier.apply_mask_weight(name)
    modifier.on_end(state, event)
    modifier.on_finalize(state)


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(job["threads"])
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    if job["method"] == "magnitude":
        if job["pattern"] != "unstructured":
            sys.exit("llm-compressor's magnitude modifier knows no N:M patterns")
        magnitude(model, job["sparsity"])
    else:
        kind = {"wanda": WandaPruningModifier, "sparsegpt": SparseGPTModifier}[job["method"]]
        structure = "0:0" if job["pattern"] == "unstructured" else job["pattern"]
        ids = [torch.tensor([window]) for window in job["windows"]]
        loader = DataLoader([{"input_ids": i[0], "attention_mask": torch.ones_like(i[0])} for i in ids], batch_size=1)
        oneshot(model=model, dataset=loader, num_calibration_samples=len(ids),
                recipe=[kind(sparsity=job["sparsity"], mask_structure=structure, targets=[BLOCKS])])
    found = {name: p.detach().float().contiguous() for name, p in model.named_parameters()
             if ".layers." in name and name.endswith("_proj.weight")}
    save_file(found, job["out"])


if __name__ == "__main__":
    main()
