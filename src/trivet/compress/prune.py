"""The stage `prune`: a smaller or sparser model out of a model, measured on what was saved."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trivet.artifacts import atomic_folder, read_json
from trivet.compress.depth import least_missed, measurements
from trivet.compress.layerwise import InputStatistics, block_linears, change_layerwise
from trivet.compress.perplexity import Texts, perplexity
from trivet.compress.prune_config import ZEROS, PruneConfig
from trivet.compress.sparsify import Pattern, magnitude_mask, sparsegpt, taken, wanda_mask
from trivet.compress.variant import Variant, write_variant
from trivet.compress.width import narrow
from trivet.errors import TrivetError
from trivet.models.formats import detect_format
from trivet.models.merge import save_merged
from trivet.models.source import ModelSource, load_causal_lm, load_tokenizer, resolve
from trivet.models.surgery import require_groups, sizes
from trivet.runs import Run, Summary
from trivet.training.device import prepare, seed_all
from trivet.training.progress import bar

DENSE = "zeros in a dense file: neither smaller nor faster, in any engine here"
PATTERN = ("zeros by the pattern {} in a dense file: neither smaller nor faster, except in an engine and on hardware "
           "that skip them")


class PruneSummary(Summary):
    """What was removed, measured on the saved folder."""

    method: str
    parameters_before: int
    parameters: int
    bytes: int
    """Of the weights' files."""
    sparsity: float
    """Share of zeros in the matrices of the blocks."""
    perplexity_before: float
    """On the held-out text."""
    perplexity: float
    note: str
    """What it means for size and speed."""


def run(config: PruneConfig, run: Run) -> PruneSummary:
    """Prune a model into a folder that any loader takes, with its `variant.json`.

    Raises TrivetError for a model or text that does not fit, before anything is written.
    """
    compute = prepare(config.device, run.meter)
    seed_all(config.seed)
    source = resolve(config.model)
    _require_plain(source)
    tokenizer = load_tokenizer(source)
    model: Any = load_causal_lm(source, torch.float32, compute.device)
    wanted = _checked(config, model)
    texts = Texts(config.calibration, config.held_out, model, tokenizer, config.seed)
    calibrating = [] if config.method == "magnitude" else texts.calibration()
    measuring = texts.held_out()
    before, parameters = perplexity(model, measuring), model.num_parameters()
    run.meter.count("scored", 2 * sum(map(len, measuring)))
    if config.method in ZEROS:
        found = _set_zeros(config, run, model, list(wanted), calibrating)
    elif config.method == "depth":
        model, found = _shorten(config, run, model, calibrating)
    else:
        model, found = _narrow(config, run, model, calibrating)
    model.to(dtype=_stored_as(config, source))
    zeros = _zeros(model)
    with atomic_folder(run.path("model")) as folder:
        save_merged(model, tokenizer, folder, config.model, "prune")
        note = _note(config, model, parameters)
        variant = write_variant(folder, name=config.out.name, method=config.method, source=source, settings=found,
                                notes=[note])
        _require_as_made(variant, zeros, wanted)
        del model
        saved = load_causal_lm(ModelSource(str(folder), folder), torch.float32, compute.device)
        after = perplexity(saved, measuring)
    run.artifact("model", run.path("model"))
    assert variant.sparsity is not None
    return PruneSummary(
        method=config.method, parameters_before=parameters, parameters=variant.parameters, bytes=variant.bytes,
        sparsity=round(variant.sparsity, 6), perplexity_before=round(before, 4), perplexity=round(after, 4), note=note)


def _require_plain(source: ModelSource) -> None:
    """Raise TrivetError for a model that is quantized already."""
    if not source.is_adapter and detect_format(source.folder) != "safetensors":
        raise TrivetError("the weights of this model are quantized", file=source.folder, field="model",
                          mend="prune first, and quantize what comes out")


def _checked(config: PruneConfig, model: Any) -> dict[str, int]:
    """How many weights of which layers become zero, none where whole parts go.

    Raises TrivetError where the settings don't fit the model.
    """
    if config.method == "depth":
        _layers_to_remove(config, model)
    elif config.method == "width":
        _check_width(config, model)
    if config.method not in ZEROS:
        return {}
    linears = {name: layer for block in block_linears(model) for name, layer in block.items()}
    if config.zeros.targets != "all-linear":
        for target in config.zeros.targets:
            if not any(name.endswith(f".{target}") for name in linears):
                ends = sorted({name.rpartition(".")[2] for name in linears})
                raise TrivetError(f"{target!r} fits no layer of this model", field="zeros.targets",
                                  mend=f"the layers are: {', '.join(ends)}")
        linears = {n: m for n, m in linears.items() if n.endswith(tuple(f".{t}" for t in config.zeros.targets))}
    if not linears:
        raise TrivetError("no layers are named", field="zeros.targets", mend="name some, or leave it out: all")
    pattern = _pattern(config)
    for name, layer in linears.items():
        if pattern is not None and layer.in_features % pattern[1]:
            raise TrivetError(f"{name} has rows of {layer.in_features} weights, which don't fall into groups of "
                              f"{pattern[1]}", field="zeros.pattern", mend="use another pattern, or choose layers")
    wanted = {name: _zeros_of(config, layer.out_features, layer.in_features) for name, layer in linears.items()}
    if empty := [name for name, count in wanted.items() if count == 0]:
        raise TrivetError(f"a share of {config.zeros.sparsity:g} leaves no weight of {empty[0]} to become zero: "
                          "each choice rounds down", field="zeros.sparsity", mend="raise it")
    return wanted


def _zeros_of(config: PruneConfig, out: int, columns: int) -> int:
    """How many of out · columns weights become zero: of the layer, of each row, or of columns chosen together."""
    if (pattern := _pattern(config)) is not None:
        return out * columns * pattern[0] // pattern[1]
    share = config.zeros.sparsity
    if config.method == "wanda":
        return out * taken(share, columns)
    if config.method == "magnitude":
        return taken(share, out * columns)
    return sum(taken(share, out * min(config.zeros.columns, columns - start))
               for start in range(0, columns, config.zeros.columns))


def _check_width(config: PruneConfig, model: Any) -> None:
    found = sizes(model)
    if config.width.groups >= found.groups:
        raise TrivetError(f"the model has {found.groups} attention groups in a block, {config.width.groups} of them "
                          "can't be left out", field="width.groups",
                          mend=f"leave out {found.groups - 1} at most" if found.groups > 1 else
                          "leave out feed-forward channels instead: --width.channels")
    require_groups(model, found.groups - config.width.groups)
    if config.width.channels and not _channels_to_remove(config, model):
        raise TrivetError(f"{config.width.channels:g} of {found.channels} channels are less than one",
                          field="width.channels", mend="raise it")


def _pattern(config: PruneConfig) -> Pattern | None:
    if config.zeros.pattern == "unstructured":
        return None
    n, m = config.zeros.pattern.split(":")
    return int(n), int(m)


def _layers_to_remove(config: PruneConfig, model: Any) -> int:
    layers = sizes(model).layers
    count = config.depth.layers if config.depth.layers is not None else round(config.depth.share * layers)
    if not 0 < count < layers:
        raise TrivetError(f"{count} of the model's {layers} blocks can't be left out",
                          field="depth.layers" if config.depth.layers is not None else "depth.share",
                          mend=f"leave out 1 to {layers - 1}" if layers > 1 else "the model has one block: use width")
    return count


def _channels_to_remove(config: PruneConfig, model: Any) -> int:
    return int(config.width.channels * sizes(model).channels)


# --- the methods -------------------------------------------------------------------------------------


def _set_zeros(config: PruneConfig, run: Run, model: Any, chosen: Sequence[str], windows: Sequence[Tensor]) -> dict[
        str, Any]:
    """Prune the chosen layers in place."""
    zeros, pattern, wanted = config.zeros, _pattern(config), set(chosen)

    def change(name: str, layer: nn.Linear, statistics: InputStatistics) -> None:
        began = time.monotonic()
        if config.method == "wanda":
            layer.weight[wanda_mask(layer.weight, statistics.squares, zeros.sparsity, pattern)] = 0.0
        else:
            assert statistics.gram is not None
            layer.weight.copy_(_sparsegpt(name, layer, statistics.gram, config))
        run.log("timing", {"layer": name, "tokens": statistics.tokens, "seconds": round(time.monotonic() - began, 4)})

    if config.method == "magnitude":
        with torch.no_grad():
            for name in chosen:
                weight = model.get_submodule(name).weight
                weight[magnitude_mask(weight, zeros.sparsity, pattern)] = 0.0
    else:
        with bar(f"pruning by {config.method}", len(block_linears(model))) as progress:
            change_layerwise(model, windows, change, gram=config.method == "sparsegpt", wanted=wanted.__contains__,
                             batch_size=config.batch_size, progress=progress)
        run.meter.count("scored", sum(map(len, windows)))
    said = zeros.model_dump(include={"sparsity", "pattern", "targets"} | (
        {"damping", "columns"} if config.method == "sparsegpt" else set()))
    return said | ({} if config.method == "magnitude" else {"calibration_tokens": sum(map(len, windows))})


def _sparsegpt(name: str, layer: nn.Linear, gram: Tensor, config: PruneConfig) -> Tensor:
    try:
        return sparsegpt(layer.weight, gram, config.zeros.sparsity, _pattern(config), damping=config.zeros.damping,
                         block=config.zeros.columns)
    except torch.linalg.LinAlgError as error:
        raise TrivetError(f"the Hessian of {name} can't be inverted", field="zeros.damping",
                          mend="raise it, or give more calibration text") from error


def _shorten(config: PruneConfig, run: Run, model: Any, windows: Sequence[Tensor]) -> tuple[Any, dict[str, Any]]:
    count, ranking = _layers_to_remove(config, model), windows[: config.depth.windows]
    tries = measurements(sizes(model).layers, count, config.depth.order)
    with bar("leaving out blocks", tries * len(ranking)) as progress:
        model, removed = least_missed(model, ranking, count, config.depth.order, progress)
    run.meter.count("scored", tries * sum(map(len, ranking)))
    return model, {"removed": [{"layer": r.layer, "loss_without": round(r.loss, 6)} for r in removed],
                   "order": config.depth.order, "calibration_tokens": sum(map(len, ranking))}


def _narrow(config: PruneConfig, run: Run, model: Any, windows: Sequence[Tensor]) -> tuple[Any, dict[str, Any]]:
    channels = _channels_to_remove(config, model)
    with bar("narrowing blocks", sizes(model).layers) as progress:
        found = narrow(model, windows, channels, config.width.groups, damping=config.width.damping,
                       batch_size=config.batch_size, progress=progress)
    run.meter.count("scored", sum(map(len, windows)))
    return found.model, {
        "channels_removed": channels, "groups_removed": config.width.groups, "damping": config.width.damping,
        "channel_errors": [round(e, 6) for e in found.channel_errors],
        "group_errors": [round(e, 6) for e in found.group_errors], "calibration_tokens": sum(map(len, windows))}


# --- what was made ------------------------------------------------------------------------------------


def _stored_as(config: PruneConfig, source: ModelSource) -> torch.dtype:
    if config.dtype != "auto":
        return torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
    if source.is_adapter:
        return torch.float32  # what an adapter adds is small: bfloat16 would round it away
    said = read_json(source.folder / "config.json")
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(
        str(said.get("dtype") or said.get("torch_dtype")), torch.float32)


def _zeros(model: Any) -> dict[str, tuple[int, int]]:
    """(zeros, weights) of each Linear layer of the blocks."""
    return {name: (int((layer.weight == 0).sum()), layer.weight.numel())
            for block in block_linears(model) for name, layer in block.items()}


def _require_as_made(variant: Variant, zeros: Mapping[str, tuple[int, int]], wanted: Mapping[str, int]) -> None:
    """Raise RuntimeError unless the saved file holds the model's zeros, and each layer as many as were asked for."""
    there, weights = (sum(counts) for counts in zip(*zeros.values(), strict=True))
    if variant.sparsity is None or abs(variant.sparsity - there / weights) > 1e-9:
        raise RuntimeError(f"the saved file holds a share of {variant.sparsity} zeros, the model {there / weights}")
    for name, count in wanted.items():
        if zeros[name][0] < count:
            raise RuntimeError(f"{count} weights of {name} were to become zero, {zeros[name][0]} are")


def _note(config: PruneConfig, model: Any, before: int) -> str:
    if config.method in ZEROS:
        return DENSE if config.zeros.pattern == "unstructured" else PATTERN.format(config.zeros.pattern)
    found, now = sizes(model), model.num_parameters()
    return (f"really smaller: {now:,} of {before:,} parameters ({now / before:.0%}), {found.layers} blocks of "
            f"{found.channels} channels and {found.heads} heads; not trained since")
