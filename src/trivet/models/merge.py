"""An adapter merged into its base: a whole model folder, from which a next round starts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from trivet.artifacts import atomic_folder, write_json
from trivet.errors import TrivetError
from trivet.models.source import ModelSource, load_causal_lm, load_tokenizer, resolve


def save_merged(model: Any, tokenizer: Any, folder: Path, base: str, stage: str) -> Path:
    """A model folder in float32, adapters merged: the next stage's reference is the tuned model."""
    if hasattr(model, "merge_and_unload"):
        model = model.float().merge_and_unload()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_json(folder / "trivet_model.json", {"schema_version": 1, "from": base, "stage": stage})
    return folder


def merge_policy(policy: ModelSource, folder: Path, stage: str) -> Path:
    """Write the policy in a folder (an adapter, or a whole model) as a whole model into `folder`.

    Merged in float32 on the CPU, whatever it was trained in. Raises TrivetError for what is no language model.
    """
    model = load_causal_lm(policy, torch.float32, "cpu")
    return save_merged(model, load_tokenizer(policy), folder, policy.name, stage)


def merge_command(name: str, out: Path) -> Path:
    """`trivet models merge`: the adapter `name` merged into a new folder. Raises TrivetError where that is taken."""
    source = resolve(name)
    if not source.is_adapter:
        raise TrivetError("this is a whole model already", file=source.folder, mend="use it as it is")
    if os.path.exists(out):
        raise TrivetError("something stands there already", file=out, mend="choose another folder")
    with atomic_folder(out) as folder:
        merge_policy(source, folder, "merge")
    return out
