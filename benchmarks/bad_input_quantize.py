"""Malformed input to `trivet quantize`: cases of benchmarks/bad_input.py, kept apart for their number."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

Build = Callable[[Any], Sequence[str]]
TEXT = [{"text": f"Question {i}: is the moon made of cheese? No, it is made of rock and dust, {i} times."}
        for i in range(60)]


def _given(p: Any, *more: str, model: str = "") -> list[str]:
    """`trivet quantize` of a tiny model on good text, briefly."""
    text = p.rows("good-text.jsonl", TEXT)
    return ["--model", model or p.tiny, "--group", "16", "--calibration.data", text, "--held-out.data", text,
            "--calibration.windows", "2", "--calibration.length", "32", "--held-out.windows", "2", "--held-out.length",
            "32", "--device.threads", "1", "--out", p.out, *more]


def _with(*more: str) -> Build:
    return lambda p: _given(p, *more)


def _of(folder: Callable[[Any], str]) -> Build:
    return lambda p: _given(p, model=folder(p))


def _packed(p: Any) -> str:
    """A model that is quantized already, by what its config.json says."""
    config = json.loads((p.shared.tiny / "config.json").read_text())
    about = {"quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized"}}
    return str(p.damaged(p.shared.tiny, "config.json", json.dumps(config | about).encode()))


def _burst(p: Any) -> str:
    """A model with a weight that is no number."""
    import torch
    from safetensors.torch import load_file, save_file

    folder: Path = p.copy(p.shared.tiny, "burst")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


def _without_library(p: Any) -> list[str]:
    from importlib import util

    real = util.find_spec
    p.stack.enter_context(mock.patch.object(
        util, "find_spec", lambda name, *a: None if name == "compressed_tensors" else real(name, *a)))
    return _given(p, "--format", "compressed-tensors")


def cases(case: Callable[..., Any]) -> list[Any]:
    """The cases; case: the class of benchmarks/bad_input.py."""
    rows: list[tuple[str, Build, str]] = [
        ("five bits", _with("--bits", "5"), "--bits"),
        ("a group that does not divide a row", _with("--group", "24"), "a row of 32 is no multiple of the group of 24"),
        ("a group of one", _with("--group", "1"), "field 'group'"),
        ("a format of its own", _with("--format", "awq"), "--format"),
        ("three bits, packed", _with("--bits", "3", "--format", "compressed-tensors"), "--format safetensors"),
        ("embeddings, packed", _with("--embeddings", "8", "--format", "compressed-tensors"),
         "compressed-tensors keeps embeddings"),
        ("rounded inputs at four bits", _with("--activations", "8"), "activations: 8 goes with"),
        ("GPTQ for llama.cpp", _with("--format", "gguf", "--group", "64", "--method", "gptq"),
         "GPTQ goes with --format safetensors"),
        ("bits of a GGUF file", _with("--format", "gguf", "--group", "64", "--bits", "8"), "give --type"),
        ("a GGUF type for another format", _with("--type", "Q8_0"), "type goes with --format gguf"),
        ("three bits for OpenVINO", _with("--format", "openvino", "--bits", "3"), "openvino stores 8 or 4 bits"),
        ("eight bits in groups for OpenVINO", _with("--format", "openvino", "--bits", "8"), "for each row at 8"),
        ("act order without gptq", _with("--act-order"), "--method gptq"),
        ("negative damping", _with("--method", "gptq", "--damping", "-1"), "field 'damping'"),
        ("compressed-tensors is not installed", _without_library, "pip install 'trivet[compressed-tensors]'"),
        ("a model that is nothing", lambda p: _given(p, model="nothing/at/all"), "field 'model'"),
        ("a model of Conv1D layers", _of(lambda p: str(p.shared.gpt2)), "hold no Linear layers"),
        ("a reward model", _of(lambda p: p.reward), "a reward model"),
        ("a model that is quantized already", _of(_packed), "quantized already"),
        ("weights that are no numbers", _of(_burst), "numbers that are not finite"),
        ("torn weights", _of(lambda p: p.torn(p.shared.tiny, "model.safetensors")), "the model does not load"),
        ("windows longer than the context", _with("--held-out.length", "300"), "longer than the model's context"),
        ("calibration longer than the context", _with("--method", "gptq", "--calibration.length", "300"),
         "longer than the model's context"),
        ("too little held-out text", _with("--held-out.windows", "900"), "lower --held-out.length"),
        ("too little calibration text", _with("--method", "gptq", "--calibration.windows", "900"),
         "lower --calibration.length"),
        ("calibration text that is not there", _with("--method", "gptq", "--calibration.data", "nowhere.jsonl"),
         "no such file"),
        ("held-out text of no known form", lambda p: _given(p, "--held-out.data", p.rows("odd.jsonl", [{"a": 1}])),
         "none of the known forms"),
    ]
    return [case("quantize", name, build, words) for name, build, words in rows]
