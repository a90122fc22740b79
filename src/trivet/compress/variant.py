"""A variant: one form of a model, and what is known of it, in `variant.json` beside its weights. No torch.

Bytes, bits a weight and zeros are measured on the saved files, never taken from what was asked for.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from trivet.artifacts import Row, read_json, row_error, write_json
from trivet.compress.measured import measured_bytes, measured_parameters, measured_sparsity
from trivet.errors import TrivetError
from trivet.models.formats import Format, detect_format
from trivet.models.source import ModelSource, resolve, weights_sha256

FILE = "variant.json"
SOURCE = "source"


class Variant(Row):
    """What is known of one form of a model."""

    name: str = Field(min_length=1)
    """What tables call it."""
    method: str = Field(min_length=1)
    """How it was made: source, distill, magnitude, wanda, sparsegpt, depth, width, rtn, gptq, gguf, openvino …"""
    format: Format
    """What its weights are stored as, and so which engines load it."""
    source: str
    """The model it was made of: a folder, a hub id, or the embedded one's name. Its own, where it was not made here."""
    source_sha256: str | None = None
    """Of the source's weights (`models.source.weights_sha256`)."""
    parameters: int = Field(gt=0)
    """Weights of the model, zeros included; an embedding tied to the output layer counts once."""
    bytes: int = Field(gt=0)
    """Size of the weights' files, measured."""
    bits_per_weight: float = Field(gt=0)
    """bytes · 8 / parameters: scales, headers and what was left unquantized included."""
    sparsity: float | None = Field(None, ge=0, le=1)
    """Share of zeros in the matrices of the blocks, measured on the saved file. None: not measured in this format."""
    settings: dict[str, Any] = {}
    """The settings of the method."""
    notes: list[str] = []
    """What a reader of a table must know, a plain sentence each."""


def read_variant(path: str | Path) -> Variant:
    """What is known of the model in a folder, in a GGUF file, or by a name that `models.source.resolve` knows.

    A model without variant.json is a source: it is measured. Raises TrivetError for what is no model, an adapter (it
    has no weights of its own), a damaged variant.json, and one that is not of the weights beside it.
    """
    folder = _folder(path)
    form = detect_format(folder)
    if form is None:
        raise TrivetError("this folder is no model: no config.json, GGUF file or openvino_model.xml in it", file=folder,
                          field="model", mend="give the folder of a model or of a variant")
    file = folder / FILE
    if not file.is_file():
        return _measured(folder, form, name=Path(path).name, method=SOURCE, source=str(path))
    value = read_json(file)
    try:
        variant = Variant.model_validate(value)
    except ValidationError as error:
        fault = row_error(error, Variant, file, 1)
        raise TrivetError(fault.what, file=file, field=fault.field, expected=fault.expected,
                          mend="make the variant anew by the command that wrote it") from None
    size = measured_bytes(folder, form)
    if variant.format != form or variant.bytes != size:
        raise TrivetError(f"variant.json speaks of {variant.bytes} bytes of {variant.format}, beside it stand {size} "
                          f"bytes of {form}", file=file, field="bytes",
                          mend="make the variant anew, or delete variant.json: the model is then measured as a source")
    return variant


def write_variant(folder: Path, *, name: str, method: str, source: ModelSource, settings: dict[str, Any],
                  notes: Sequence[str] = (), parameters: int | None = None, sparsity: float | None = None) -> Variant:
    """Measure the weights that stand in `folder` and write variant.json beside them.

    parameters: where the format doesn't say (OpenVINO). sparsity: where it is not safetensors, as its writer measured
    it on what the file gives back. The source's own notes are kept: a quantized pruned model is still a pruned one.
    """
    form = detect_format(folder)
    if form is None:
        raise ValueError(f"no weights of a known format in {folder}")
    said = _source_notes(source.folder)
    variant = _measured(folder, form, name=name, method=method, source=source.name,
                        source_sha256=weights_sha256(source.folder), settings=json.loads(json.dumps(settings)),
                        notes=[*said, *(n for n in notes if n not in said)], parameters=parameters, sparsity=sparsity)
    write_json(folder / FILE, variant.model_dump(mode="json"))
    return variant


def _measured(folder: Path, form: Format, *, parameters: int | None = None, sparsity: float | None = None,
              **known: Any) -> Variant:
    size = measured_bytes(folder, form)
    parameters = measured_parameters(folder, form) if parameters is None else parameters
    if form == "safetensors":
        sparsity = measured_sparsity(folder)
    return Variant(format=form, parameters=parameters, bytes=size, bits_per_weight=size * 8 / parameters,
                   sparsity=sparsity, **known)


def _source_notes(folder: Path) -> list[str]:
    return read_variant(folder).notes if (folder / FILE).is_file() else []


def _folder(path: str | Path) -> Path:
    """The folder that a path or a model's name stands for."""
    given = Path(path).expanduser()
    if given.is_file() and given.suffix == ".gguf":
        return given.parent
    if given.is_dir() and ((given / FILE).is_file() or any(given.glob("*.gguf"))
                           or (given / "openvino_model.xml").is_file()):
        return given
    source = resolve(str(path))
    if source.is_adapter:
        raise TrivetError("an adapter has no weights of its own to measure", file=source.folder, field="model",
                          mend="merge it first: trivet models merge ADAPTER OUT")
    return source.folder
