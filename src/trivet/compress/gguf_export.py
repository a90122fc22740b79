"""A model as a GGUF file, which llama.cpp runs: weights, tokenizer and chat template in one file.

Matrices of the blocks are stored in blocks of 32 weights (Q8_0, Q4_0 …) or 256 (K-quants) with a scale of their own;
norms and biases stay float32. The embedding, which is the output layer too where both are tied, has a setting of its
own: at 135M parameters it is a fifth of the weights, and the output layer is sensitive.

The legacy types are quantized by the package `gguf`, K-quants by llama.cpp's own code, and need it installed. A row
that is no multiple of 256 long can't be a K-quant: it falls back as llama.cpp's `llama-quantize` falls back, and the
notes say so.
"""

from __future__ import annotations

import ctypes
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from trivet.compress.exportable import head_dim, require_form
from trivet.compress.gguf_tokenizer import PROBES, UNKNOWN, write_tokenizer
from trivet.compress.quantize_config import GGUFType
from trivet.errors import TrivetError
from trivet.models.formats import GGUF_FILE

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

    from trivet.models.source import ModelSource

Embeddings = Literal["keep", "8"]
_FALLBACK = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
_FILE_TYPES = {"F32": "ALL_F32", "Q4_K": "MOSTLY_Q4_K_S", "Q5_K": "MOSTLY_Q5_K_S"}
_ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2"}


@dataclass(frozen=True)
class LayerError:
    """What rounding did to a layer's weights: ‖W - Ŵ‖² and ‖W‖²."""

    layer: str
    weights: int
    squared_error: float
    squared_norm: float


@dataclass(frozen=True)
class Exported:
    """What an export came to, as measured on the file."""

    file: Path
    parameters: int
    sparsity: float
    """Share of zeros in the matrices of the blocks, as the file gives them back."""
    errors: tuple[LayerError, ...]
    """What rounding did to each matrix that is stored in a quantized type."""
    notes: tuple[str, ...]


def export_gguf(source: ModelSource, folder: Path, kind: GGUFType = "Q8_0", *,
                embeddings: Embeddings = "8") -> Exported:
    """`write_gguf` of a model that is loaded for it; an adapter is merged first. Raises TrivetError as that does."""
    import torch

    from trivet.models.source import load_causal_lm, load_tokenizer

    require_runtime(kind)
    tokenizer = load_tokenizer(source)
    model = load_causal_lm(source, torch.float32, "cpu")
    return write_gguf(model, tokenizer, folder, kind, embeddings=embeddings, name=Path(source.name).name)


def write_gguf(model: Any, tokenizer: Any, folder: Path, kind: GGUFType = "Q8_0", *, embeddings: Embeddings = "8",
               name: str = "model") -> Exported:
    """Write `model.gguf` into a folder, with the tokenizer's files beside it, and read it back.

    model: in float32 on the CPU, whole. embeddings: of embedding and output layer: Q8_0, or `keep` them in float16;
    where `kind` is no quantized type they are of that type. name: what the file says the model is called.

    Raises TrivetError for a model of another family than Llama, Mistral, Qwen2, rotary embeddings of another kind, a
    tokenizer that is no byte-level BPE, and K-quants without llama.cpp.
    """
    from gguf import GGUFWriter

    require_runtime(kind)
    family = _family(model.config)
    layers = model.config.num_hidden_layers
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / GGUF_FILE
    writer = GGUFWriter(file, family)
    fallen: Counter[tuple[str, str]] = Counter()
    try:
        _header(writer, model.config, kind, name)
        parts = write_tokenizer(writer, tokenizer, model.config.vocab_size)
        for _, stored, values in _tensors(model, family):
            given = _type_of(stored, values.shape, kind, embeddings, layers)
            if values.ndim > 1 and (wanted := _type_of(stored, (256, 256), kind, embeddings, layers)) != given:
                fallen[wanted, given] += 1
            writer.add_tensor(stored, _quantized(values, given), raw_dtype=_ggml(given))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
    tokenizer.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    notes = [f"{count} of its matrices are {given} instead of {wanted}: their rows are no multiple of 256 long"
             for (wanted, given), count in sorted(fallen.items())]
    return _read_back(file, model, family, [*notes, *_tokenizer_notes(file, tokenizer, parts.pre)])


def require_runtime(kind: GGUFType) -> None:
    """Raises TrivetError for a K-quant where llama.cpp, whose code makes them, is not installed."""
    if "_K" in kind:
        from trivet.generate.llama_cpp import library

        library()


def _family(config: Any) -> str:
    """llama.cpp's name of the architecture. Raises TrivetError for one that is not known here."""
    require_form(config, _ARCHITECTURES, written="as GGUF", by="llama.cpp")
    kind = config.rope_parameters.get("rope_type", "default")
    if kind not in ("default", "linear", "llama3"):
        raise TrivetError(f"rotary embeddings of the kind {kind!r} can't be written as GGUF here",
                          field="rope_parameters", expected="default, linear, llama3", mend="choose another format")
    return _ARCHITECTURES[config.model_type]


def _header(writer: Any, config: Any, kind: GGUFType, name: str) -> None:
    from gguf import LlamaFileType, RopeScalingType

    writer.add_name(name)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    # a narrowed model keeps its heads' size: heads times size is then not the width
    writer.add_key_length(head_dim(config))
    writer.add_value_length(head_dim(config))
    writer.add_rope_dimension_count(head_dim(config))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    writer.add_file_type(LlamaFileType[_FILE_TYPES.get(kind, f"MOSTLY_{kind}")])
    writer.add_quantization_version(2)


def _tensors(model: Any, family: str) -> Iterator[tuple[str, str, np.ndarray]]:
    """(name in the model, in the file, values float32) of a model's weights, a tied output layer left out."""
    import gguf

    config = model.config
    arch = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2}[family]
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    if config.rope_parameters.get("rope_type") == "llama3":
        yield "rope_freqs", "rope_freqs.weight", llama3_factors(config.rope_parameters, head_dim(config))
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if stored is None:
            raise TrivetError(f"llama.cpp knows no weight {name!r} in this architecture", field="model",
                              mend="choose another format")
        values = tensor.numpy()
        if family == "llama" and ".q_proj." in name:
            values = interleaved(values, config.num_attention_heads)
        elif family == "llama" and ".k_proj." in name:
            values = interleaved(values, config.num_key_value_heads)
        yield name, stored, values


def interleaved(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key projection [heads·size, …] in the order that llama.cpp turns pairs of this architecture.

    transformers turns feature i of a head with feature i + size/2, llama.cpp features 2i and 2i + 1.
    """
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)


def llama3_factors(rope: dict[str, Any], size: int) -> np.ndarray:
    """What Llama 3 divides its rotary frequencies by [size / 2], float32: 1 for the fast ones, `factor` for the slow.

    As transformers.modeling_rope_utils computes it, which scales the frequencies themselves.
    """
    frequency = rope["rope_theta"] ** -(np.arange(0, size, 2, dtype=np.float64) / size)
    turns = rope["original_max_position_embeddings"] * frequency / (2 * math.pi)
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def more_bits(layer: int, layers: int) -> bool:
    """Whether Q4_K_M gives a block's value and down projections six bits: `use_more_bits` of llama.cpp's quantizer."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _type_of(name: str, shape: tuple[int, ...], kind: GGUFType, embeddings: Embeddings, layers: int) -> str:
    """The type that a tensor is stored in."""
    if len(shape) < 2:
        return "F32"
    if kind in ("F32", "F16", "BF16"):
        return kind
    wanted: str = kind
    if name in ("token_embd.weight", "output.weight"):
        wanted = "F16" if embeddings == "keep" else "Q8_0"
    elif kind == "Q4_K_M":
        high = name.split(".")[2] in ("attn_v", "ffn_down") and more_bits(int(name.split(".")[1]), layers)
        wanted = "Q6_K" if high else "Q4_K"
    if wanted in _FALLBACK and shape[-1] % 256:
        wanted = _FALLBACK[wanted]
    if wanted not in ("F16", "F32") and shape[-1] % 32:
        return "F16"
    return wanted


def _ggml(name: str) -> GGMLQuantizationType:
    from gguf import GGMLQuantizationType

    return GGMLQuantizationType[name]


def _quantized(values: np.ndarray, name: str) -> np.ndarray:
    """A tensor's bytes in a type; plain arrays for float32 and float16."""
    import gguf

    if name in ("F32", "F16"):
        return values.astype(np.float32 if name == "F32" else np.float16)
    if not name.endswith("_K"):
        return np.asarray(gguf.quants.quantize(values, _ggml(name)))
    from trivet.generate.llama_cpp import library

    rows = np.ascontiguousarray(values, np.float32)
    found = np.empty((rows.shape[0], library().ggml_row_size(int(_ggml(name)), rows.shape[1])), np.uint8)
    library().ggml_quantize_chunk(int(_ggml(name)), rows.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
                                  found.ctypes.data, 0, rows.shape[0], rows.shape[1], None)
    return found


def _read_back(file: Path, model: Any, family: str, notes: list[str]) -> Exported:
    """What the file that was written gives back. Raises TrivetError where that is no numbers."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    written = {t.name: t for t in GGUFReader(file).tensors}
    zeros = elements = 0
    errors = []
    for name, stored, values in _tensors(model, family):
        tensor = written[stored]
        if values.ndim < 2:
            continue
        back = dequantize(tensor.data, tensor.tensor_type)
        if not np.isfinite(back).all():
            raise TrivetError(f"{stored} holds values that are no numbers", file=file, field="model",
                              mend="its weights are too large for this type, or damaged: try F32 or BF16")
        if tensor.tensor_type.name not in ("F32", "F16", "BF16"):
            errors.append(LayerError(name.removesuffix(".weight"), values.size,
                                     float(np.square(back - values, dtype=np.float64).sum()),
                                     float(np.square(values, dtype=np.float64).sum())))
        if stored.startswith("blk."):
            zeros += back.size - int(np.count_nonzero(back))
            elements += back.size
    parameters = sum(int(t.n_elements) for t in written.values())
    return Exported(file, parameters, zeros / elements if elements else 0.0, tuple(errors), tuple(notes))


def _tokenizer_notes(file: Path, tokenizer: Any, pre: str) -> list[str]:
    """Whether llama.cpp splits texts as the model's tokenizer does. Trivet's engine brings the model's own."""
    if pre == UNKNOWN:
        return ["how its tokenizer splits text is not known to llama.cpp: other programs may read prompts otherwise"]
    from trivet.generate import llama_cpp

    if not llama_cpp.installed():
        return []
    model = llama_cpp.Model(file, vocab_only=True)
    try:
        other = sum(model.tokenize(text) != list(tokenizer(text, add_special_tokens=False)["input_ids"])
                    for text in PROBES)
    finally:
        model.close()
    return [f"llama.cpp's own tokenizer splits {other} of {len(PROBES)} texts otherwise"] if other else []
