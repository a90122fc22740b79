"""Where a student comes from: another model, the teacher with fewer blocks, or sizes in a file and random weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from trivet.compress.distill_config import Student
from trivet.config import load_yaml
from trivet.errors import TrivetError
from trivet.models.source import ModelSource, adapter_base, load_causal_lm
from trivet.models.surgery import PER_LAYER, drop_layers, evenly_spaced
from trivet.training.device import seed_all

FIXED = ("model_type", "vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
"""What a file of sizes may repeat, and not change."""


def make_student(settings: Student, basis: ModelSource, device: str, *, seed: int) -> Any:
    """The student before training, in float32. basis: the model that `settings.by` names, or the teacher.

    The same at each call with one seed. Raises TrivetError for more blocks than there are, an architecture that can't
    be cut, and sizes that don't fit.
    """
    if settings.sizes is not None:
        seed_all(seed)
        return _random(settings.sizes, basis).to(device).eval()
    model = load_causal_lm(basis, torch.float32, device)
    if settings.layers is None:
        return model
    there = int(model.config.get_text_config().num_hidden_layers)
    if settings.layers > there:
        raise TrivetError(f"{settings.layers} blocks are to be kept of a model that has {there}",
                          field="student.layers", mend=f"give a number from 1 to {there}")
    return drop_layers(model, evenly_spaced(there, settings.layers)).eval()


def _random(file: Path, basis: ModelSource) -> Any:
    """A model of the basis's family with the sizes of a file, and random weights."""
    folder = (adapter_base(basis) if basis.is_adapter else basis).folder
    like = AutoConfig.from_pretrained(folder)
    sizes, lines = load_yaml(file)  # JSON is YAML, too
    known = like.to_dict()
    changed: dict[str, Any] = {}
    for name, value in sizes.items():
        line = lines.get((name,))
        if name not in known:
            raise TrivetError(f"a model of the family {like.model_type!r} has no such size", file=file, line=line,
                              field=str(name), expected="sizes such as hidden_size, intermediate_size, "
                              "num_hidden_layers, num_attention_heads, num_key_value_heads", mend="remove or rename it")
        if value == known[name]:
            continue
        if name in FIXED:
            raise TrivetError(f"the student has {value!r} here, its teacher {known[name]!r}", file=file, line=line,
                              field=name, mend="leave it out: the student shares its teacher's family and tokenizer")
        if type(known[name]) is int and (type(value) is not int or value < 1):
            raise TrivetError(f"{value!r} is no size", file=file, line=line, field=name,
                              expected="a whole number from 1", mend="correct it")
        changed[name] = value
    model = _built(like, _with_dependents(changed, known), file)
    if (folder / "generation_config.json").is_file():  # which tokens end an answer
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model


def _with_dependents(changed: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes with those that follow from them, where the file does not give these itself."""
    found = dict(changed)
    if {"hidden_size", "num_attention_heads"} & changed.keys() and "head_dim" not in changed and "head_dim" in known:
        heads = found.get("num_attention_heads", known["num_attention_heads"])
        found["head_dim"] = found.get("hidden_size", known["hidden_size"]) // heads
    if "num_hidden_layers" in changed:
        for name in PER_LAYER:
            entries = known.get(name)
            if entries and name not in changed:  # the pattern goes on, or ends sooner
                found[name] = [entries[i % len(entries)] for i in range(found["num_hidden_layers"])]
    return found


def _built(like: Any, sizes: Mapping[str, Any], file: Path) -> Any:
    mend = "choose sizes that fit: heads must divide hidden_size, and key/value heads the heads"
    config = copy.deepcopy(like)
    try:
        for name, value in sizes.items():
            setattr(config, name, value)
        config.validate()
        heads = getattr(config, "num_attention_heads", None)
        shared = getattr(config, "num_key_value_heads", None) or heads
        if heads and shared and heads % shared:
            raise ValueError(f"{heads} heads can't share {shared} key/value heads evenly")
        if heads and config.hidden_size % heads and "head_dim" not in sizes:
            raise ValueError(f"a hidden size of {config.hidden_size} does not divide by {heads} heads")
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except Exception as error:  # of sizes that don't go together each architecture raises its own kind
        said = str(error).strip().splitlines()
        raise TrivetError(f"there is no model of these sizes: {said[-1].strip() if said else type(error).__name__}",
                          file=file, field="student.sizes", mend=mend) from error


def parameters(model: Any) -> int:
    """Weights of a model; tied ones count once."""
    return sum(p.numel() for p in model.parameters())
