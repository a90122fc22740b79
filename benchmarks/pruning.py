"""Pruned models by `trivet prune` and by llm-compressor, on the same calibration tokens: what each costs in perplexity.

Magnitude, Wanda and SparseGPT set half of the weights of every Linear layer of the blocks to zero, unstructured and
2:4 (llm-compressor's magnitude knows no patterns). Both sides start from the same weights in float32 and see the same
windows of tokens; both results are measured by the same code on the same held-out windows. Beside them depth and
width, which leave out whole parts; none of the models is trained after.

    perplexity          of Trivet's model, interval by bootstrap over the held-out windows; perplexity_llm_compressor
    ratio               Trivet's perplexity over llm-compressor's, paired by window: near 1 is wanted
    ratio_same_share    of magnitude, with as many zeros in each layer as llm-compressor's, which takes all weights of
                        the size at which half is reached: many, where weights were once stored in four bits
    zeros_shared        share of the zeros of one that are zeros of the other, too
    order_holds         whether SparseGPT < Wanda < magnitude at half of the weights
    within_2_percent    whether every unstructured ratio lies within 2% of 1, of magnitude at the same share

    python benchmarks/pruning.py [--quick] [--json FILE] [--model M] [--data FOLDER] [--peer-env DIR]

--data: a folder with gsm8k/train.jsonl, which calibrates, and gsm8k/test.jsonl, which is measured on. Without it the
starter set's answers serve, parted by a hash of their prompts.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from common import load_average, options, report
from peers import RECIPES, environment
from trivet.artifacts import json_lines, write_json
from trivet.compress.calibration_config import Calibration, HeldOut
from trivet.compress.perplexity import Texts, window_losses
from trivet.compress.prune_config import PruneConfig
from trivet.compress.sparsify import magnitude_mask
from trivet.compress.variant import read_variant
from trivet.config import EMBEDDED, Device
from trivet.intervals import Interval, bootstrap_mean
from trivet.models.source import ModelSource, load_causal_lm, load_tokenizer, resolve
from trivet.pipeline import starter
from trivet.stages import STAGES, run_stage
from trivet.training.device import prepare

HERE = Path(__file__).parent
SIZES = {"quick": {"windows": 4, "length": 128, "held_out": 4}, "full": {"windows": 32, "length": 512, "held_out": 16}}
METHODS = ("magnitude", "wanda", "sparsegpt")
WITHIN = 0.02


def texts(data: Path | None, folder: Path) -> tuple[Path, Path]:
    """(calibration text, held-out text) as files of rows with `text`; one file twice where it is to be parted."""
    if data is None:
        return Path(starter("completions")), Path(starter("completions"))
    found = []
    for part in ("train", "test"):
        rows = [f"{row['question']}\n{row['answer']}" for _, row in json_lines(data / "gsm8k" / f"{part}.jsonl")]
        found.append(folder / f"{part}.jsonl")
        found[-1].write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    return found[0], found[1]


def by_trivet(config: dict[str, Any], out: Path) -> tuple[Any, Any, float]:
    """(the model as saved, its variant, seconds)."""
    began = time.monotonic()
    run_stage(STAGES["prune"], PruneConfig(out=out, dtype="float32", **config))
    seconds, folder = time.monotonic() - began, out / "model"
    return load_causal_lm(ModelSource(str(folder), folder), torch.float32, "cpu"), read_variant(folder), seconds


def by_peer(python: Path, job: dict[str, Any], folder: Path) -> tuple[dict[str, torch.Tensor], float]:
    """(the weights of the Linear layers, seconds). Raises RuntimeError where it fails."""
    write_json(folder / "job.json", job)
    began = time.monotonic()
    # what it imports decides by its own files whether it may go online: it needs nothing from there
    done = subprocess.run([str(python), str(HERE / "llmc_peer.py"), str(folder / "job.json")], text=True, cwd=folder,
                          capture_output=True, env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": ""})
    if done.returncode:
        raise RuntimeError(f"llm-compressor failed:\n{done.stderr[-3000:]}")
    return load_file(job["out"]), time.monotonic() - began


def main() -> None:
    chosen = options(__doc__ or "", _options)
    load = load_average()
    size = SIZES["quick" if chosen.quick else "full"]
    python = environment("llmc", chosen.peer_env)
    compute = prepare(Device())
    figures: dict[str, Any] = {"llm_compressor": RECIPES["llmc"].version, "model": chosen.model,
                               "text": "gsm8k" if chosen.data else "starter"}
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        calibrating, measuring = texts(chosen.data, work)
        source = resolve(chosen.model)
        tokenizer, model = load_tokenizer(source), load_causal_lm(source, torch.float32, "cpu")
        calibration = Calibration(data=calibrating, windows=size["windows"], length=size["length"])
        held = HeldOut(data=measuring, windows=size["held_out"], length=size["length"])
        both = Texts(calibration, held, model, tokenizer, chosen.seed)
        windows, held_out = both.calibration(), both.held_out()
        figures |= {"calibration_tokens": sum(map(len, windows)), "held_out_tokens": sum(map(len, held_out))}
        dense = window_losses(model, held_out)
        figures["dense"] = {"perplexity": _perplexity(dense, chosen.seed), "parameters": model.num_parameters()}
        common = {"model": chosen.model, "seed": chosen.seed, "calibration": calibration, "held_out": held}
        for pattern in ("unstructured",) if chosen.quick else ("unstructured", "2:4"):
            for method in METHODS:
                name = method if pattern == "unstructured" else f"{method}_{pattern.replace(':', '_')}"
                ours, variant, seconds = by_trivet(
                    common | {"method": method, "zeros": {"pattern": pattern}}, work / name)
                losses = window_losses(ours, held_out)
                found = {"perplexity": _perplexity(losses, chosen.seed), "sparsity": variant.sparsity,
                         "seconds": round(seconds, 1)}
                if pattern == "unstructured" or method != "magnitude":
                    job = {"model": str(source.folder), "method": method, "sparsity": 0.5, "pattern": pattern,
                           "windows": [w.tolist() for w in windows], "out": str(work / "peer.safetensors"),
                           "threads": compute.threads}
                    weights, peer_seconds = by_peer(python, job, work)
                    shared = _zeros_shared(ours, weights)
                    _take(ours, weights)
                    theirs = window_losses(ours, held_out)
                    if method == "magnitude":
                        _magnitude_at(model, weights)
                        found["ratio_same_share"] = _perplexity(window_losses(model, held_out) - theirs, chosen.seed)
                    zeros = sum(int((w == 0).sum()) for w in weights.values())
                    found |= {"sparsity_llm_compressor": zeros / sum(w.numel() for w in weights.values()),
                              "perplexity_llm_compressor": _perplexity(theirs, chosen.seed),
                              "ratio": _perplexity(losses - theirs, chosen.seed), "zeros_shared": round(shared, 4),
                              "seconds_llm_compressor": round(peer_seconds, 1)}
                figures[name] = found
                print(name, json.dumps(found), flush=True)
        for name, more in (("depth", {"method": "depth"}), ("width", {"method": "width"})):
            ours, variant, seconds = by_trivet(common | more, work / name)
            figures[name] = {"perplexity": _perplexity(window_losses(ours, held_out), chosen.seed),
                             "parameters": variant.parameters, "bytes": variant.bytes, "seconds": round(seconds, 1)}
            print(name, json.dumps(figures[name]), flush=True)
    at = {m: figures[m]["perplexity"]["value"] for m in METHODS}
    figures["order_holds"] = at["sparsegpt"] < at["wanda"] < at["magnitude"]
    ratios = [figures[m].get("ratio_same_share", figures[m]["ratio"])["value"] for m in METHODS]
    figures["within_2_percent"] = all(abs(ratio - 1) <= WITHIN for ratio in ratios)
    report("pruning", figures, chosen, load=load)


def _perplexity(losses: torch.Tensor, seed: int) -> dict[str, Any]:
    """exp of the mean of [windows] nats a token with its interval over windows; of differences, a ratio."""
    found = bootstrap_mean(losses.numpy(), list(range(len(losses))), seed=seed)
    return Interval(*(math.exp(v) for v in found[:3]), found.n).as_dict()


@torch.no_grad()
def _magnitude_at(model: Any, weights: dict[str, torch.Tensor]) -> None:
    """Prune the dense model by Trivet's magnitude rule, to the share of zeros that each of `weights` has."""
    for name, theirs in weights.items():
        weight = model.get_parameter(name)
        # half a weight more: a share times the number of weights must not round down below the count
        weight[magnitude_mask(weight, (int((theirs == 0).sum()) + 0.5) / weight.numel())] = 0.0


def _zeros_shared(model: Any, weights: dict[str, torch.Tensor]) -> float:
    """Of the zeros that either side has, the share that both have."""
    either = both = 0
    for name, theirs in weights.items():
        ours = model.get_parameter(name) == 0
        both += int((ours & (theirs == 0)).sum())
        either += int((ours | (theirs == 0)).sum())
    return both / either


@torch.no_grad()
def _take(model: Any, weights: dict[str, torch.Tensor]) -> None:
    """Put the other side's weights into the model. Raises RuntimeError where a Linear layer of the blocks has none."""
    for name, parameter in model.named_parameters():
        if ".layers." in name and parameter.dim() == 2:
            if name not in weights:
                raise RuntimeError(f"llm-compressor gave no {name}")
            parameter.copy_(weights[name])


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=EMBEDDED, help="folder or hub id of the model to prune")
    parser.add_argument("--data", type=Path, help="folder with gsm8k/train.jsonl and gsm8k/test.jsonl")
    parser.add_argument("--peer-env", type=Path, help="an environment that has llm-compressor already")


if __name__ == "__main__":
    main()
