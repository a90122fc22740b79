"""A model as OpenVINO files: openvino_model.xml (the graph) and .bin (its weights), tokenizer and configuration beside.

Integers and scales are those that the stage `quantize` computed, by rounding or GPTQ: they are stored as they are, read
back and compared. Norms and biases stay float32.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from trivet.compress.exportable import head_dim, require_form
from trivet.errors import TrivetError
from trivet.models.formats import OPENVINO_FILE

if TYPE_CHECKING:
    from trivet.compress.grid import Quantized
    from trivet.compress.openvino_graph import Form
    from trivet.models.source import ModelSource

Bits = Literal[4, 8, 16, 32]
Embeddings = Literal["keep", "8"]
KINDS = ("llama", "mistral", "qwen2")


@dataclass(frozen=True)
class ExportedGraph:
    """What an export came to."""

    file: Path
    parameters: int
    """Weights of the model; an embedding tied to the output layer counts once."""
    sparsity: float
    """Share of zeros in the matrices of the blocks, as the codes give them back."""
    notes: tuple[str, ...] = ()


def require_openvino() -> None:
    """Raises TrivetError where OpenVINO is not installed."""
    if importlib.util.find_spec("openvino") is None:
        raise TrivetError("OpenVINO is not installed", field="format", mend="pip install 'trivet[openvino]'")


def export_openvino(source: ModelSource, folder: Path, bits: Bits = 8, *, group: int | None = 64,
                    symmetric: bool = True, embeddings: Embeddings = "8") -> ExportedGraph:
    """`write_openvino` of a model that is loaded for it and rounded to nearest; an adapter is merged first.

    bits: of the blocks' matrices; 16 and 32 are floating point. group, symmetric: of 4 bits (None: a scale for each
    row); 8 bits have a scale for each row and are symmetric. embeddings: of embedding and output layer: 8 bits with a
    scale for each token, or `keep` them in float16; with floating-point `bits` they are as the rest.

    Raises TrivetError as `write_openvino` does.
    """
    import torch

    from trivet.compress.fake_quant import linear_layers
    from trivet.compress.grid import round_to_nearest
    from trivet.compress.quantize_config import Grid
    from trivet.models.source import load_causal_lm, load_tokenizer

    require_openvino()
    tokenizer = load_tokenizer(source)
    model: Any = load_causal_lm(source, torch.float32, "cpu")
    if bits >= 16:
        return write_openvino(model, tokenizer, folder, {}, floats=bits)
    quantized, odd = {}, 0
    for name, layer in linear_layers(model).items():
        grouped = bits == 4 and bool(group)
        fits = grouped and layer.weight.shape[1] % (group or 1) == 0
        odd += int(grouped and not fits)
        quantized[name] = round_to_nearest(layer.weight, Grid(
            bits=bits, group=group if fits else None, symmetric=symmetric or bits == 8, scales="float16"))
    if embeddings == "8":
        token = Grid(bits=8, group=None, scales="float16")
        quantized["model.embed_tokens"] = round_to_nearest(model.get_input_embeddings().weight, token)
        if not model.config.tie_word_embeddings:
            quantized["lm_head"] = round_to_nearest(model.get_output_embeddings().weight, token)
    found = write_openvino(model, tokenizer, folder, quantized, bits=bits)
    note = f"{odd} of its matrices have rows that are no multiple of {group} long: one scale for each row"
    return replace(found, notes=(note,)) if odd else found


def write_openvino(model: Any, tokenizer: Any, folder: Path, quantized: Mapping[str, Quantized], *, bits: int = 8,
                   floats: int = 16) -> ExportedGraph:
    """Write the OpenVINO form of a model into a folder, and read it back.

    model: in float32 on the CPU, whole. quantized: its layers in integers, by name, of 8 or 4 `bits` (embedding and
    output layer, where they are among them, of 8). floats: 32 or 16, of the matrices that are not quantized.

    Raises TrivetError for a model of another family than Llama, Mistral, Qwen2, a sliding window, rotary embeddings
    that depend on a text's length, and where OpenVINO is not installed.
    """
    require_openvino()
    import openvino as ov

    from trivet.compress.openvino_graph import build

    form = _form(model)
    state = model.state_dict()
    graph = build(form, lambda name: state[name].numpy(), state.__contains__, quantized, bits=bits, floats=floats)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / OPENVINO_FILE
    ov.save_model(graph, file, compress_to_fp16=False)
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    parameters = sum(p.numel() for p in model.parameters())
    return ExportedGraph(file, parameters, _read_back(file, state, quantized, form.tied))


def _read_back(file: Path, state: Mapping[str, Any], quantized: Mapping[str, Quantized], tied: bool) -> float:
    """The share of zeros in the blocks' matrices as the file gives them back.

    Raises TrivetError where floating-point weights are too large for their type. Integers must come back exactly.
    """
    import openvino as ov

    from trivet.compress.openvino_graph import constants, stored_matrix

    found = constants(ov.Core().read_model(file))
    zeros = elements = 0
    for name, values in state.items():
        if values.ndim != 2 or (tied and name == "lm_head.weight"):
            continue
        back, layer = stored_matrix(found, name), name.removesuffix(".weight")
        if layer in quantized:
            if not np.array_equal(back, quantized[layer].weight().cpu().numpy()):
                raise RuntimeError(f"the saved file does not give back what was computed: {name}")
        elif not np.allclose(back, values.numpy(), rtol=2.0**-10, atol=1e-7):
            raise TrivetError(f"{name} does not come back from the file as it was", field="model",
                              mend="its weights are no numbers, or too large for float16: write another format")
        if name.startswith("model.layers."):
            zeros += back.size - int(np.count_nonzero(back))
            elements += back.size
    return zeros / elements if elements else 0.0


def _form(model: Any) -> Form:
    """The sizes of a model. Raises TrivetError for one of another form."""
    from trivet.compress.openvino_graph import Form

    config = model.config
    require_form(config, KINDS, written="for OpenVINO", by="the graph")
    rotary = model.model.rotary_emb
    kind = config.rope_parameters.get("rope_type", "default")
    if kind in ("dynamic", "longrope"):
        raise TrivetError(f"rotary embeddings of the kind {kind!r} depend on the length of a text, the graph's do not",
                          field="rope_parameters", mend="choose another format")
    return Form(layers=config.num_hidden_layers, heads=config.num_attention_heads,
                kv_heads=config.num_key_value_heads, size=head_dim(config), epsilon=float(config.rms_norm_eps),
                frequencies=rotary.inv_freq.float().numpy(), scaling=float(rotary.attention_scaling),
                tied=bool(config.tie_word_embeddings))
