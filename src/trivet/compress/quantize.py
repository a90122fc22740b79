"""The stage `quantize`: weights as integers, by rounding or GPTQ; written, measured on the file, compared with the
source."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trivet.artifacts import atomic_folder, read_json, write_json
from trivet.compress.compared import compare
from trivet.compress.fake_quant import linear_layers, require_groups
from trivet.compress.gguf_export import export_gguf
from trivet.compress.gptq import gptq
from trivet.compress.grid import Quantized, round_to_nearest
from trivet.compress.layerwise import InputStatistics, change_layerwise
from trivet.compress.openvino_export import export_openvino
from trivet.compress.packed_form import read_packed, save_packed
from trivet.compress.perplexity import Texts
from trivet.compress.quantize_config import Grid, QuantizeConfig
from trivet.compress.variant import Variant, read_variant, write_variant
from trivet.errors import TrivetError
from trivet.generate.engines import load_engine
from trivet.generate.llama_cpp import library
from trivet.models.embedded import MARK
from trivet.models.formats import detect_format
from trivet.models.merge import save_merged
from trivet.models.source import ModelSource, adapter_base, load_causal_lm, load_tokenizer, resolve
from trivet.models.unpacked import require_library
from trivet.runs import Run, Summary
from trivet.training.device import prepare, seed_all
from trivet.training.progress import bar

TOKEN = Grid(bits=8, group=None)
"""Of embeddings and output layers: 8 bits, a scale a token."""
NOT_SMALLER = "the numbers of a quantized model in float32: any loader reads them, the file is not smaller"
OLD_GRID = ("its source was itself dequantized from 4 bits (groups of 32, each with a minimum of its own): near that "
            "old grid 4 bits cost less than they would a model that never was quantized")
OWN_GRID = ("its source was itself dequantized from this very form: hardly anything is lost of it, more would be of "
            "another model")
GPU_ONLY = "8-bit weights with inputs as they are: vLLM computes them on GPUs alone (on a CPU give --activations 8)"


class QuantizeSummary(Summary):
    """What came out, measured on the saved file; intervals over windows of held-out text."""

    variant: str
    parameters: int
    quantized_share: float | None
    """Of the parameters, those that are integers now. None: the exporter of the format does not tell."""
    bytes: int
    bits_per_weight: float
    weight_error: float | None
    """‖W - Ŵ‖ / ‖W‖ over all layers that were quantized. None: as above."""
    source_perplexity: float
    perplexity: float
    log_perplexity_ratio: dict[str, Any]
    kl: dict[str, Any]
    agreement: dict[str, Any]
    notes: list[str]


def run(config: QuantizeConfig, run: Run) -> QuantizeSummary:
    """Write a variant folder `model` and what was measured of it.

    Raises TrivetError for a model that can't be quantized or is already, groups that do not fit, and text that is too
    little.
    """
    if config.format == "compressed-tensors":
        require_library(field="format", mend=", or --format safetensors")
    compute = prepare(config.device, run.meter)
    seed_all(config.seed)
    source = resolve(config.model)
    if not source.is_adapter and (form := detect_format(source.folder)) != "safetensors":
        raise TrivetError(f"this model is quantized already: its weights are {form}", file=source.folder, field="model",
                          mend="give the model that it was made of (variant.json beside it names it)")
    if config.format in ("gguf", "openvino"):
        _require_not_rounded(source, config.format)
    if config.format == "gguf":
        library()  # without llama.cpp what is written could not be compared
    tokenizer = load_tokenizer(source)
    model = load_causal_lm(source, torch.float32, compute.device)
    _require_finite(model)
    texts = Texts(config.calibration, config.held_out, model, tokenizer, config.seed)
    held_out = texts.held_out()
    errors: list[dict[str, Any]] = []
    if config.format in ("gguf", "openvino"):
        del model
        with atomic_folder(run.path("model")) as folder:
            variant = _export(folder, source, config)
    else:
        windows = texts.calibration() if config.method == "gptq" else []
        run.meter.count("scored", sum(map(len, windows)))
        quantized, errors = _rounded(model, windows, config)
        with atomic_folder(run.path("model")) as folder:
            variant = _save(model, tokenizer, folder, source, config, quantized)
        del model, quantized
        write_json(run.path("layers.json"), {"schema_version": 1, "layers": errors})
        run.artifact("layers", run.path("layers.json"))
    run.artifact("model", run.path("model"))
    compute = dataclasses.replace(compute, trunk=torch.float32)
    with load_engine(config.model, compute) as one, load_engine(run.path("model"), compute) as other:
        found = compare(one.engine.distribution, other.engine.distribution, held_out, config.seed)
    run.meter.count("scored", 2 * sum(map(len, held_out)))
    error, norm = (sum(row[name] for row in errors) for name in ("squared_error", "squared_norm"))
    return QuantizeSummary(
        variant=variant.name, parameters=variant.parameters, bytes=variant.bytes,
        quantized_share=sum(row["weights"] for row in errors) / variant.parameters if errors else None,
        bits_per_weight=variant.bits_per_weight, weight_error=(error / norm) ** 0.5 if norm else None,
        source_perplexity=found.source_perplexity, perplexity=found.perplexity,
        log_perplexity_ratio=found.log_ratio.as_dict(), kl=found.kl.as_dict(), agreement=found.agreement.as_dict(),
        notes=variant.notes)


def _rounded(model: Any, windows: list[Tensor], config: QuantizeConfig
             ) -> tuple[dict[str, Quantized], list[dict[str, Any]]]:
    """The integers of the layers that are to be quantized, by name, and what that did to each. Changes the model."""
    layers: dict[str, Any] = dict(linear_layers(model))
    require_groups(layers, config.grid)
    others = _embedding_and_head(model, config)
    before = {name: m.weight.detach().clone().cpu() for name, m in (layers | others).items()}
    quantized = _gptq(model, layers, windows, config) if config.method == "gptq" else {
        name: round_to_nearest(m.weight, config.grid) for name, m in layers.items()}
    quantized |= {name: round_to_nearest(m.weight, TOKEN.model_copy(update={"scales": config.scales}))
                  for name, m in others.items()}
    with torch.no_grad():
        for name, layer in (layers | others).items():
            layer.weight.copy_(quantized[name].weight())
    return quantized, _errors(before, quantized)


def _require_not_rounded(source: ModelSource, form: str) -> None:
    """Raise TrivetError for numbers that were rounded by `quantize` already: a runtime's own grid rounds them again."""
    if source.is_adapter or not (source.folder / "variant.json").is_file():
        return
    variant = read_variant(source.folder)
    if variant.method in ("rtn", "gptq"):
        raise TrivetError(f"these weights were rounded already ({variant.name}), and {form} would round them once more",
                          file=source.folder, field="model", mend=f"give the model it was made of: {variant.source}")


def _require_finite(model: Any) -> None:
    for name, weight in model.named_parameters():
        if not bool(torch.isfinite(weight).all()):
            raise TrivetError(f"{name} holds numbers that are not finite: no grid fits them", field="model",
                              mend="give a model that was saved whole, before its training burst")


def _embedding_and_head(model: Any, config: QuantizeConfig) -> dict[str, Any]:
    """The embedding and the output layer, by name, as far as they are to be quantized.

    Raises TrivetError for an output layer that is to be quantized while the embedding, which it is, is to be kept.
    """
    names = {id(m): name for name, m in model.named_modules()}
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is None or head.weight is embedding.weight
    if tied and config.head == 8 and config.table == "keep":
        raise TrivetError("this model's output layer is its embedding (tied)", field="head",
                          mend="give --embeddings 8, which quantizes both, or leave --head keep")
    wanted = ([embedding] if config.table == 8 else []) + ([head] if config.head == 8 and not tied else [])
    return {names[id(m)]: m for m in wanted}


def _gptq(model: Any, layers: dict[str, Any], windows: list[Tensor], config: QuantizeConfig
          ) -> dict[str, Quantized]:
    """Layer by layer, each knowing what the rounded layers before it give it. Changes the model."""
    found: dict[str, Quantized] = {}

    def change(name: str, layer: nn.Linear, statistics: InputStatistics) -> None:
        assert statistics.gram is not None
        found[name] = gptq(layer.weight, statistics.gram, config.grid, damping=config.damping,
                           act_order=config.act_order)
        layer.weight.copy_(found[name].weight())

    with bar("blocks", model.config.get_text_config().num_hidden_layers) as progress:
        change_layerwise(model, windows, change, gram=True, progress=progress)
    return {name: found[name] for name in layers}


def _errors(before: dict[str, Tensor], quantized: dict[str, Quantized]) -> list[dict[str, Any]]:
    """What rounding did to each layer: its weights, ‖W - Ŵ‖², ‖W‖², and the root of their ratio."""
    rows = []
    for name, found in quantized.items():
        error = float((found.weight().cpu() - before[name].float()).double().square().sum())
        norm = float(before[name].double().square().sum())
        rows.append({"layer": name, "weights": before[name].numel(), "squared_error": error, "squared_norm": norm,
                     "error": (error / norm) ** 0.5 if norm else 0.0})
    return rows


def _save(model: Any, tokenizer: Any, folder: Path, source: ModelSource, config: QuantizeConfig,
          quantized: dict[str, Quantized]) -> Variant:
    notes = [NOT_SMALLER] if config.format == "safetensors" else []
    sparsity = None
    if config.format == "safetensors":
        save_merged(model, tokenizer, folder, source.name, "quantize")
    else:
        save_packed(model, tokenizer, folder, quantized, config.grid, act_order=config.act_order,
                    activations=config.activations == 8)
        read = read_packed(folder, config.grid)
        wrong = [n for n, q in quantized.items() if not torch.equal(read[n], q.weight().cpu())]
        if wrong or read.keys() != quantized.keys():
            raise RuntimeError(f"the saved file does not give back what was computed: {wrong[:3]}")
        sparsity = sum(int((w == 0).sum()) for w in read.values()) / sum(w.numel() for w in read.values())
        if config.bits == 8 and config.activations == "keep":
            notes.append(GPU_ONLY)
    if config.table == 8:
        notes.append("the embedding (and an output layer tied to it) is quantized, too: 8 bits, a scale a token")
    notes += _of_the_old_grid(source, config.bits)
    settings = config.model_dump(mode="json", include={
        "method", "bits", "group", "symmetric", "scales", "embeddings", "head", "activations"})
    if config.method == "gptq":
        settings |= config.model_dump(mode="json", include={"damping", "act_order", "calibration"})
    return write_variant(folder, name=config.label, method=config.method, source=source, settings=settings, notes=notes,
                         sparsity=sparsity)


def _export(folder: Path, source: ModelSource, config: QuantizeConfig) -> Variant:
    """The form of another runtime, by its exporter, which reads back what it wrote."""
    table: Literal["keep", "8"] = "8" if config.table == 8 else "keep"
    settings: dict[str, Any]
    if config.format == "gguf":
        written = export_gguf(source, folder, config.kind, embeddings=table)
        digits = re.match(r"Q(\d)", config.kind)
        bits, settings = int(digits[1]) if digits else 16, {"type": config.kind, "embeddings": table}
        notes, parameters, sparsity = written.notes, written.parameters, written.sparsity
    else:
        bits, settings = config.bits, {"bits": config.bits, "embeddings": table}
        if bits == 4:
            settings |= {"group": config.group, "symmetric": config.symmetric}
        graph = export_openvino(source, folder, 4 if bits == 4 else 8, group=config.group or 0,
                                symmetric=config.symmetric, embeddings=table)
        notes, parameters, sparsity = graph.notes, graph.parameters, graph.sparsity
    return write_variant(folder, name=config.label, method=config.format, source=source, settings=settings,
                         notes=[*notes, *_of_the_old_grid(source, bits, settings.get("type", ""))],
                         parameters=parameters, sparsity=sparsity)


def _of_the_old_grid(source: ModelSource, bits: int, kind: str = "") -> list[str]:
    """What must be said of few bits, where the source comes from the embedded model."""
    if bits > 4 or not any(_from_embedded(source)):
        return []
    return [OWN_GRID if kind == "Q4_1" else OLD_GRID]


def _from_embedded(source: ModelSource) -> Iterator[bool]:
    """Whether a model, or one that it was made of, is the embedded one: a bool each, the source's first."""
    seen: set[Path] = set()
    while source.folder not in seen:
        seen.add(source.folder)
        yield (source.folder / MARK).is_file()
        if source.is_adapter:
            source = adapter_base(source)
            continue
        for file, field in (("variant.json", "source"), ("trivet_model.json", "from")):
            if (source.folder / file).is_file():
                name = str(read_json(source.folder / file, field)[field])
                break
        else:
            return
        try:
            source = resolve(name)
        except TrivetError:  # it is no longer there
            return
