"""Quantized weights in the form of compressed-tensors, as vLLM and transformers load them; and read back.

Packed (`pack-quantized`): a layer's integers, several to an int32, with their scales, zero points and shape. With
rounded activations (`int-quantized`): int8 weights with a scale a row. The library does the packing and the unpacking;
what is written is read back and must be what was computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trivet.compress.grid import DTYPES, Quantized
from trivet.compress.measured import stored_tensors, weight_files
from trivet.compress.quantize_config import Grid


def packed_tensors(layer: str, quantized: Quantized, bits: int, *, packed: bool = True) -> dict[str, Tensor]:
    """The tensors that stand for a layer's weight [O, I], by their names in the file.

    packed: as int32 [O, ⌈I / ⌊32 / bits⌋⌉]; else as int8 [O, I].
    """
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    codes = quantized.codes.cpu().contiguous()
    found = {f"{layer}.weight_scale": quantized.scales.cpu().contiguous()}
    if not packed:
        return found | {f"{layer}.weight": codes}
    found[f"{layer}.weight_packed"] = pack_to_int32(codes, bits)
    found[f"{layer}.weight_shape"] = torch.tensor(codes.shape)
    if quantized.zeros is not None:
        found[f"{layer}.weight_zero_point"] = pack_to_int32(quantized.zeros.cpu(), bits, packed_dim=0).contiguous()
    return found


def quantization_config(grid: Grid, ignored: list[str], *, act_order: bool, activations: bool) -> dict[str, Any]:
    """What config.json says of it. ignored: names of Linear layers that are not quantized."""
    from compressed_tensors import __version__
    from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme

    form = "int-quantized" if activations else "pack-quantized"
    weights = QuantizationArgs(num_bits=grid.bits, symmetric=grid.symmetric, group_size=grid.group,
                               strategy="channel" if grid.group is None else "group",
                               actorder="weight" if act_order else None)
    inputs = QuantizationArgs(num_bits=8, strategy="token", dynamic=True) if activations else None
    scheme = QuantizationScheme(targets=["Linear"], weights=weights, input_activations=inputs, format=form)
    config = QuantizationConfig(config_groups={"group_0": scheme}, format=form, ignore=ignored,
                                quantization_status="compressed")
    return {**config.model_dump(mode="json"), "version": __version__}


def save_packed(model: Any, tokenizer: Any, folder: Path, layers: Mapping[str, Quantized], grid: Grid, *,
                act_order: bool = False, activations: bool = False) -> None:
    """Write a model whose named Linear layers are quantized; everything else in the type of the grid's scales."""
    from huggingface_hub import save_torch_state_dict

    dtype = DTYPES[grid.scales]
    tensors: dict[str, Tensor] = {}
    tied = model.get_output_embeddings()
    if tied is not None and tied.weight is not model.get_input_embeddings().weight:
        tied = None
    for name, tensor in model.state_dict().items():
        layer = name.removesuffix(".weight")
        if layer in layers:
            tensors |= packed_tensors(layer, layers[layer], grid.bits, packed=not activations)
        elif tied is None or model.get_submodule(name.rpartition(".")[0]) is not tied:
            tensors[name] = (tensor.to(dtype) if tensor.is_floating_point() else tensor).cpu().contiguous()
    ignored = [name for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and name not in layers]
    save_torch_state_dict(tensors, folder, filename_pattern="model{suffix}.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict() | {"quantization_config": quantization_config(
        grid, ignored, act_order=act_order, activations=activations), "dtype": grid.scales,
        "architectures": [type(model).__name__]}
    type(model.config).from_dict(config).save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def read_packed(folder: Path, grid: Grid) -> dict[str, Tensor]:
    """The float32 weights [O, I] of a folder's quantized layers, by the layers' names, as the library unpacks them."""
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
    from safetensors import safe_open

    stored: dict[str, Tensor] = {}
    files = weight_files(folder, "compressed-tensors")
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            about = [t.name for t in stored_tensors([file])]
            stored |= {name: tensors.get_tensor(name) for name in about}
    found = {}
    for name, scales in ((n, t) for n, t in stored.items() if n.endswith(".weight_scale")):
        layer = name.removesuffix(".weight_scale")
        zeros = stored.get(f"{layer}.weight_zero_point")
        if (codes := stored.get(f"{layer}.weight")) is None:
            shape = torch.Size(stored[f"{layer}.weight_shape"].tolist())
            codes = unpack_from_int32(stored[f"{layer}.weight_packed"], grid.bits, shape)
        if zeros is not None:
            zeros = unpack_from_int32(zeros, grid.bits, scales.shape, packed_dim=0)
        found[layer] = Quantized(codes, scales, zeros).weight()
    return found
