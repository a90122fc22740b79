"""What a model's weights are stored as: told by the files of its folder, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from trivet.artifacts import read_json
from trivet.errors import TrivetError

Format = Literal["safetensors", "compressed-tensors", "gguf", "openvino"]
FORMATS: tuple[str, ...] = get_args(Format)
GGUF_FILE = "model.gguf"
"""What an export writes; a folder may hold a GGUF file of any other name."""
OPENVINO_FILE = "openvino_model.xml"
"""The graph; the weights stand beside it in openvino_model.bin. optimum-intel calls them so, too."""
RUNTIMES: dict[Format, str] = {"gguf": "llama.cpp", "openvino": "OpenVINO"}
"""Formats that a runtime of their own decodes, and its name: transformers does not load them."""


def detect_format(folder: Path) -> Format | None:
    """The format of the weights in a folder, by its files; None where there are none that are known.

    Raises TrivetError for weights that a library quantized whose form is not known here.
    """
    if (form := runtime_format(folder)) is not None:
        return form
    config = folder / "config.json"
    if not config.is_file():
        return None
    method = quantized_by(folder)
    if method is None:
        return "safetensors"
    if method == "compressed-tensors":
        return "compressed-tensors"
    raise TrivetError(f"the weights are quantized by {method!r}", file=config, field="quantization_config",
                      expected="no quantization_config, or one of compressed-tensors",
                      mend="give the model before it was quantized, and quantize that with `trivet quantize`")


def runtime_format(folder: Path) -> Format | None:
    """The format of a folder that a runtime of its own decodes; None for any other, and where safetensors weights
    stand beside the runtime's."""
    if any(folder.glob("*.safetensors")):
        return None
    if any(folder.glob("*.gguf")):
        return "gguf"
    return "openvino" if (folder / OPENVINO_FILE).is_file() else None


def quantized_by(folder: Path) -> str | None:
    """The library that quantized a folder's safetensors weights, as its config.json says."""
    about = read_json(folder / "config.json").get("quantization_config")
    method = about.get("quant_method") if isinstance(about, dict) else None
    return None if method is None else str(method)


def gguf_file(folder: Path) -> Path:
    """The GGUF file of a folder. Raises TrivetError for several: which one is meant?"""
    found = sorted(folder.glob("*.gguf"))
    if len(found) != 1:
        names = ", ".join(f.name for f in found) or "none"
        raise TrivetError(f"one GGUF file is wanted in this folder, there is: {names}", file=folder, field="model",
                          mend="name the file itself, or keep each in a folder of its own")
    return found[0]


def configured_ends(folder: Path) -> frozenset[int] | None:
    """End tokens as the generation_config.json of a folder says; None where there is none."""
    file = folder / "generation_config.json"
    if not file.is_file():
        return None
    found = read_json(file).get("eos_token_id")
    return frozenset([found] if isinstance(found, int) else found or [])
