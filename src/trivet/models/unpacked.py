"""Weights in the form of compressed-tensors, unpacked as they are loaded: the model is then an ordinary one.

The library would unpack them at the first pass, and leave scales, shapes and a wrapped `forward` on each layer behind;
whatever looks at a layer's weight before, or counts or saves parameters after, would be misled.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trivet.errors import TrivetError

LIBRARY = "compressed_tensors"
LEFT_BEHIND = ("weight_scale", "weight_zero_point", "weight_shape", "weight_packed", "weight_g_idx")


def require_library(file: Path | None = None, *, field: str = "model", mend: str = "") -> None:
    """Raise TrivetError where compressed-tensors is not installed. mend: another way out, if there is one."""
    if importlib.util.find_spec(LIBRARY) is None:
        raise TrivetError("compressed-tensors is not installed, which this format needs", file=file, field=field,
                          mend="pip install 'trivet[compressed-tensors]'" + mend)


def load_unpacked(load: Callable[[], Any]) -> Any:
    """What `load` loads, its weights unpacked: exactly the stored numbers, where it loads in float32.

    Layers whose inputs are rounded while the model runs keep the library's `forward`, which does that.
    """
    # the library draws bars of its own on stderr; what fails is raised
    with contextlib.redirect_stderr(io.StringIO()):
        model = load()
        model.hf_quantizer.compressor.decompress_model(model)
    plain = True
    for module in model.modules():
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is None:
            continue
        if scheme.input_activations is not None:
            plain = False
            continue
        vars(module).pop("forward", None)
        for name in LEFT_BEHIND:
            if hasattr(module, name):
                delattr(module, name)
        del module.quantization_scheme, module.quantization_status
    if plain:  # nothing is left to say of the file's format
        del model.config.quantization_config, model.hf_quantizer
        model.is_quantized = False
    return model
