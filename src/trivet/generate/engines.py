"""One call for whatever decodes a model on this machine: torch, llama.cpp or OpenVINO, by the format of its weights.

All draw tokens by the same random numbers from the same distribution (`sampling.py`): what two engines answer to one
seed differs by their weights and their arithmetic alone.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trivet.errors import TrivetError
from trivet.generate.base import LoadedEngine
from trivet.models.formats import gguf_file, quantized_by, runtime_format

__all__ = ["LoadedEngine", "compute_of", "load_engine"]

if TYPE_CHECKING:
    from trivet.models.source import ModelSource
    from trivet.training.device import Compute


def load_engine(name: str | Path, compute: Compute, *, field: str = "model", batch_size: int = 32) -> LoadedEngine:
    """The engine for a model: a folder of any of the formats, a GGUF file, an adapter folder, a hub id.

    compute: device, precision (torch alone) and threads, as `training.device.prepare` gives it. field: the setting
    that names the model, for messages. batch_size: answers at work at once.

    Raises TrivetError for what is no model, for one that does not load, and where the runtime of its format is not
    installed.
    """
    from trivet.data.chat import ensure_template

    try:
        loaded = _load(str(name), compute, batch_size)
    except TrivetError as error:
        raise TrivetError(**error.said | {"field": field if error.field == "model" else error.field}) from error
    loaded.plain_template = ensure_template(loaded.tokenizer)
    return loaded


def compute_of(name: str | Path, compute: Compute) -> Compute:
    """What `load_engine` would compute a model with: runtimes that have the CPU alone take it where none was named.

    Raises TrivetError where another device was named.
    """
    from trivet.models.source import resolve

    if Path(name).expanduser().is_file():
        return compute.on_cpu("llama.cpp")
    source = resolve(str(name))
    form = None if source.is_adapter else runtime_format(source.folder)
    return compute.on_cpu({"gguf": "llama.cpp", "openvino": "OpenVINO"}[form]) if form in ("gguf", "openvino") \
        else compute


def _load(name: str, compute: Compute, batch_size: int) -> LoadedEngine:
    from trivet.models.source import resolve

    path = Path(name).expanduser()
    source = resolve(name)
    named = path if path.is_file() else None
    form = "gguf" if named else None if source.is_adapter else runtime_format(source.folder)
    if form == "gguf":
        from trivet.generate.llama_cpp_engine import load_gguf

        return load_gguf(named or gguf_file(source.folder), compute, batch_size)
    if form == "openvino":
        from trivet.generate.openvino_engine import load_openvino

        return load_openvino(source.folder, compute, batch_size)
    return _load_torch(source, compute, batch_size)


def _load_torch(source: ModelSource, compute: Compute, batch_size: int) -> LoadedEngine:
    from trivet.data.chat import context_length, stop_token_ids
    from trivet.generate.torch_engine import TorchEngine
    from trivet.models.source import load_causal_lm, load_tokenizer

    tokenizer: Any = load_tokenizer(source)
    method = None if source.is_adapter else quantized_by(source.folder)
    if method == "compressed-tensors" and importlib.util.find_spec("compressed_tensors") is None:
        raise TrivetError("compressed-tensors is not installed, which these weights need", file=source.folder,
                          field="model", mend="pip install 'trivet[compressed-tensors]'")
    model: Any = load_causal_lm(source, compute.trunk, compute.device)
    stops = stop_token_ids(model, tokenizer)
    engine = TorchEngine(model, tokenizer.pad_token_id, stops, batch_size=batch_size, tokenizer=tokenizer)
    return LoadedEngine(engine, tokenizer, method or "safetensors", context_length(model), stops)
