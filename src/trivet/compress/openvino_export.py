"""A model as OpenVINO files: openvino_model.xml (the graph) and .bin (its weights), tokenizer and configuration beside.

Weights are stored as float32, float16, int8 (a scale for each row) or int4 (a scale for each group of a row), rounded
to nearest; norms and biases stay float32. What is rounded by GPTQ before, in the same groups, keeps its grid.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from trivet.errors import TrivetError
from trivet.models.formats import OPENVINO_FILE

if TYPE_CHECKING:
    from trivet.compress.openvino_graph import Packing
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
    notes: tuple[str, ...]


def export_openvino(source: ModelSource, folder: Path, bits: Bits = 8, *, group: int = 64, symmetric: bool = True,
                    embeddings: Embeddings = "8") -> ExportedGraph:
    """Write the OpenVINO form of a model into a folder. An adapter is merged first.

    group: of int4, neighbours in a row that share a scale; int8 has one for each row. symmetric: of int4; int8 always
    is. embeddings: int8, or `keep` them in float16; with floating-point `bits` they are as the rest.

    Raises TrivetError for a model of another family than Llama, Mistral, Qwen2, a sliding window, and where OpenVINO
    is not installed.
    """
    import torch

    from trivet.models.source import load_causal_lm, load_tokenizer

    if importlib.util.find_spec("openvino") is None:
        raise TrivetError("OpenVINO is not installed", field="format", mend="pip install 'trivet[openvino]'")
    import openvino as ov

    from trivet.compress.openvino_graph import Packing, build

    tokenizer = load_tokenizer(source)
    model: Any = load_causal_lm(source, torch.float32, "cpu")
    form = _form(model, source)
    packing = Packing(bits, group if bits == 4 else 0, symmetric or bits != 4)
    table = packing if bits >= 16 else Packing(16 if embeddings == "keep" else 8)
    state = model.state_dict()
    graph = build(form, lambda name: state[name].numpy(), state.__contains__, packing, table)
    folder.mkdir(parents=True, exist_ok=True)
    ov.save_model(graph, folder / OPENVINO_FILE, compress_to_fp16=False)
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    matrices = {n: v.numpy() for n, v in state.items() if n.startswith("model.layers.") and v.ndim == 2}
    odd = sum(bits == 4 and v.shape[1] % group != 0 for v in matrices.values())
    notes = [f"{odd} of its matrices have rows that are no multiple of {group} long: one scale for each row"] if odd \
        else []
    parameters = sum(p.numel() for p in model.parameters())
    return ExportedGraph(folder / OPENVINO_FILE, parameters, _read_back(folder / OPENVINO_FILE, matrices, packing),
                         tuple(notes))


def _read_back(file: Path, matrices: dict[str, np.ndarray], packing: Packing) -> float:
    """The share of zeros in the blocks' matrices as the file gives them back.

    Raises TrivetError where a weight comes back further off than rounding takes it.
    """
    import openvino as ov

    from trivet.compress.openvino_graph import constants, stored_matrix

    found = constants(ov.Core().read_model(file))
    zeros = elements = 0
    for name, values in matrices.items():
        back = stored_matrix(found, name)
        largest = float(np.abs(values).max())
        # a step of a group is at most the spread of the whole matrix by the number of codes; float16 has 11 bits
        step = 2 * largest / (2**packing.bits - 2) if packing.bits < 16 else largest * 2.0**-10
        if not np.abs(back - values).max() <= step + 1e-6:
            raise TrivetError(f"{name} does not come back from the file as it was", file=file, field="model",
                              mend="its weights hold no numbers, or are too large for this type: try bits 32")
        zeros += back.size - int(np.count_nonzero(back))
        elements += back.size
    return zeros / elements if elements else 0.0


def _form(model: Any, source: ModelSource) -> Any:
    """The sizes of a model. Raises TrivetError for one of another form."""
    from trivet.compress.openvino_graph import Form

    config = model.config
    if config.model_type not in KINDS:
        raise TrivetError(f"a model of the kind {config.model_type!r} can't be written for OpenVINO here",
                          file=source.folder, field="model", expected=", ".join(KINDS),
                          mend="choose another format, such as compressed-tensors")
    window = getattr(config, "sliding_window", None)
    if window is not None and window < config.max_position_embeddings and getattr(config, "use_sliding_window", True):
        raise TrivetError(f"its attention sees the last {window} tokens only, which the graph does not do",
                          file=source.folder, field="sliding_window", mend="choose another format")
    if config.hidden_act != "silu":
        raise TrivetError(f"its activation is {config.hidden_act!r}, the graph computes silu", file=source.folder,
                          field="hidden_act", mend="choose another format")
    rotary = model.model.rotary_emb
    kind = config.rope_parameters.get("rope_type", "default")
    if kind in ("dynamic", "longrope"):
        raise TrivetError(f"rotary embeddings of the kind {kind!r} depend on the length of a text, the graph's do not",
                          file=source.folder, field="rope_parameters", mend="choose another format")
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Form(layers=config.num_hidden_layers, heads=config.num_attention_heads,
                kv_heads=config.num_key_value_heads, size=int(head), epsilon=float(config.rms_norm_eps),
                frequencies=rotary.inv_freq.float().numpy(), scaling=float(rotary.attention_scaling),
                tied=bool(config.tie_word_embeddings))
