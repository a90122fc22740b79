"""What can be measured on the files of a model without loading it: bytes, parameters, zeros. No torch.

A safetensors file is read by its own header (8 bytes of length, a JSON object, the tensors' bytes), since numpy knows
no bfloat16 and a count of zeros needs none.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trivet.errors import TrivetError
from trivet.models.formats import OPENVINO_FILE, Format

WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
BLOCK = re.compile(r"\.\d+\.")
"""Tensors of a block carry its number: model.layers.3.mlp.up_proj.weight, transformer.h.3.mlp.c_fc.weight."""
ABOUT_CODES = (".weight_scale", ".weight_zero_point", ".weight_g_idx", ".weight_packed")
"""Tensors that compressed-tensors stores beside a weight's shape: no parameters of the model."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a safetensors file: bytes `start` to `end` of it."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def weight_files(folder: Path, form: Format) -> list[Path]:
    """The files that hold a model's weights, in order of name.

    Raises TrivetError where there are none, and for several GGUF files: which one is meant?
    """
    patterns = {"gguf": ["*.gguf"], "openvino": [OPENVINO_FILE, "openvino_model.bin"]}
    found = sorted(f for p in patterns.get(form, ["*.safetensors"]) for f in folder.glob(p))
    if not found:
        raise TrivetError(f"no weights ({patterns.get(form, ['*.safetensors'])[-1]}) in this folder", file=folder,
                          mend="give a model folder, whole")
    if form == "gguf" and len(found) > 1:
        raise TrivetError(f"several GGUF files in one folder: {', '.join(f.name for f in found)}", file=folder,
                          mend="keep each in a folder of its own: its variant.json stands beside it")
    return found


def measured_bytes(folder: Path, form: Format) -> int:
    """The size of a model's weight files together, in bytes, headers included."""
    return sum(f.stat().st_size for f in weight_files(folder, form))


def stored_tensors(files: Sequence[Path]) -> list[StoredTensor]:
    """The tensors of safetensors files, by their headers. Raises TrivetError for a damaged one."""
    return [t for file in files for t in _header(file)]


def _header(file: Path) -> list[StoredTensor]:
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 0 < length <= file.stat().st_size - 8:
                raise ValueError("its header is cut off")
            header = json.loads(stream.read(length))
        found = [StoredTensor(file, name, str(about["dtype"]), tuple(int(n) for n in about["shape"]),
                              8 + length + about["data_offsets"][0], 8 + length + about["data_offsets"][1])
                 for name, about in header.items() if name != "__metadata__"]
        if max((t.end for t in found), default=0) > file.stat().st_size:
            raise ValueError("its tensors are cut off")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise TrivetError(f"these weights are damaged: {error}", file=file,
                          mend="save or fetch the model anew") from None
    return found


def measured_parameters(folder: Path, form: Format) -> int:
    """How many weights the model in a folder has, zeros included; an embedding tied to the output layer counts once.

    Raises TrivetError for OpenVINO, whose files hold constants that are no weights: its exporter must say the number.
    """
    if form == "openvino":
        raise TrivetError("an OpenVINO model does not say how many parameters it has", file=folder,
                          mend="give a folder with the variant.json that its export wrote")
    files = weight_files(folder, form)
    if form == "gguf":
        from gguf import GGUFReader

        try:
            return sum(int(t.n_elements) for t in GGUFReader(files[0]).tensors)
        except Exception as error:  # of a damaged file its reader raises anything
            raise TrivetError(f"this GGUF file does not read: {error}", file=files[0],
                              mend="export or fetch it anew") from None
    tensors = stored_tensors(files)
    if form == "safetensors":
        return sum(t.elements for t in tensors)
    return sum(_shape_elements(t) if t.name.endswith(".weight_shape") else t.elements
               for t in tensors if not t.name.endswith(ABOUT_CODES))


def _shape_elements(shape: StoredTensor) -> int:
    """The elements of a packed weight, by the tensor that holds its shape."""
    import numpy

    data = numpy.fromfile(shape.file, {"I64": "<i8", "I32": "<i4"}[shape.dtype], count=shape.elements,
                          offset=shape.start)
    return math.prod(int(n) for n in data)


def measured_sparsity(folder: Path) -> float:
    """The share of zeros in the matrices of a safetensors model's blocks (norms, biases, embeddings left out).

    Of a model without such matrices 0.
    """
    import numpy

    zeros = elements = 0
    for tensor in stored_tensors(weight_files(folder, "safetensors")):
        if tensor.dtype not in WIDTHS or len(tensor.shape) < 2 or not BLOCK.search(tensor.name):
            continue
        width = WIDTHS[tensor.dtype]
        bits = numpy.memmap(tensor.file, f"<u{width}", "r", tensor.start, (tensor.elements,))
        # all bits but the sign's: -0.0 is a zero, too
        zeros += tensor.elements - int(numpy.count_nonzero(bits << numpy.array(1, bits.dtype)))
        elements += tensor.elements
    return zeros / elements if elements else 0.0
