"""Malformed input to what llama.cpp and OpenVINO decode: cases of benchmarks/bad_input.py."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

Build = Callable[[Any], Sequence[str]]


def _folder(p: Any, **files: bytes) -> str:
    """The tiny model's folder with other weights: files by their names, `__` for a dot."""
    folder: Path = p.copy(p.shared.tiny, "export")
    (folder / "model.safetensors").unlink()
    for name, data in files.items():
        (folder / name.replace("__", ".")).write_bytes(data)
    return str(folder)


def _sample(model: Callable[[Any], str], *more: str) -> Build:
    return lambda p: ["--prompts", p.prompts, "--model", model(p), "--device.threads", "1", "--out", p.out, *more]


def _without(library: str, model: Callable[[Any], str]) -> Build:
    def build(p: Any) -> list[str]:
        from importlib import util

        from trivet.generate import llama_cpp

        llama_cpp.library.cache_clear()
        real = util.find_spec
        p.stack.callback(llama_cpp.library.cache_clear)
        p.stack.enter_context(mock.patch.object(
            util, "find_spec", lambda name, *a: None if name == library else real(name, *a)))
        return list(_sample(model)(p))

    return build


def _torn(p: Any) -> str:
    """A GGUF file that was exported well and then cut off."""
    from trivet.compress.gguf_export import export_gguf
    from trivet.models.source import resolve

    export_gguf(resolve(str(p.shared.tiny)), p.folder / "torn", "Q8_0")
    file: Path = p.folder / "torn" / "model.gguf"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return str(file)


def _made_of(p: Any) -> str:
    folder = _folder(p, model__gguf=b"GGUF")
    (Path(folder) / "variant.json").write_text(json.dumps({"source": "runs/demo/ppo/policy"}))
    return folder


ROWS: list[tuple[str, str, Build, str]] = [
    ("sample", "a GGUF file that is none", _sample(lambda p: _folder(p, model__gguf=b"no such thing")),
     "llama.cpp does not load this file"),
    ("sample", "a GGUF file that is cut off", _sample(_torn), "llama.cpp does not load this file"),
    ("sample", "two GGUF files in a folder", _sample(lambda p: _folder(p, a__gguf=b"GGUF", b__gguf=b"GGUF")),
     "name the file itself"),
    ("sample", "llama.cpp is not installed", _without("xllamacpp", lambda p: _folder(p, model__gguf=b"GGUF")),
     "pip install 'trivet[llama-cpp]'"),
    ("sample", "an OpenVINO graph that is none", _sample(lambda p: _folder(p, openvino_model__xml=b"<net>")),
     "OpenVINO does not load this model"),
    ("sample", "OpenVINO is not installed", _without("openvino", lambda p: _folder(p, openvino_model__xml=b"<net/>")),
     "pip install 'trivet[openvino]'"),
    ("sft", "a GGUF file as the model to train", lambda p: [
        "--data", p.rows("chats.jsonl", [{"prompt": "Is it red?", "completion": "yes"}]), "--model", _made_of(p),
        "--device.threads", "1", "--out", p.out], "runs/demo/ppo/policy"),
]


def cases(case: Callable[..., Any]) -> list[Any]:
    """The cases; case: the class of benchmarks/bad_input.py."""
    return [case(command, name, build, words) for command, name, build, words in ROWS]
