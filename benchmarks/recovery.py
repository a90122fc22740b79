"""Depth against width at equal size: the embedded model pruned both ways, then taught by the whole one.

Depth leaves out whole blocks, width so many feed-forward channels of every block that as many parameters are left.
Both are then distilled from the unpruned model: the same rows in the same order, the same steps and settings, by each
seed an order of its own. All are compared on held-out rows, which share no first turn with training rows; the data are
those of benchmarks/distillation.py.

    parameters              of each; sizes_differ_by: the share by which they do
    figures                 held-out loss (nats a token), accuracy of the next token, KL from the teacher: of both
                            before recovery and after it (over seeds)
    depth_minus_width       before and after, paired by row (and seed); `over_seeds`: Student's interval over seeds
    kept                    accuracy over the teacher's

    python benchmarks/recovery.py [--quick] [--json FILE] [--data FILE] [--seeds N] [--steps N] [--blocks N]
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from common import load_average, options, report
from conftest import build_tiny
from distillation import FIGURES, conversations, difference, fitting, groups_of, split
from trivet.compress.distill_config import DistillConfig
from trivet.compress.fidelity import Compared, compare, figures
from trivet.compress.prune_config import PruneConfig
from trivet.compress.students import parameters
from trivet.config import EMBEDDED
from trivet.data.chat import ensure_template
from trivet.data.supervised import pack_rows
from trivet.models.source import load_causal_lm, load_tokenizer, resolve
from trivet.stages import STAGES, run_stage
from trivet.training.device import prepare

WAYS = ("depth", "width")
EQUAL = 0.005
"""Sizes that differ by no more are equal."""


def prune(way: str, chosen: argparse.Namespace, out: Path, more: dict[str, Any]) -> Path:
    """The pruned model's folder."""
    config = PruneConfig.model_validate({
        "out": out, "model": chosen.model, "method": way, "dtype": "float32", "seed": chosen.seed,
        "calibration": {"windows": chosen.windows, "length": chosen.max_length},
        "held_out": {"windows": 2, "length": chosen.max_length}, way: more,
        "device": {"device": chosen.device, "threads": chosen.threads}})
    run_stage(STAGES["prune"], config)
    return config.out / "model"


def recover(pruned: Path, seed: int, train: Path, out: Path, epochs: float, chosen: argparse.Namespace) -> Path:
    """The same taught by the unpruned model; its folder."""
    config = DistillConfig(
        out=out, data=train, teacher={"by": chosen.model}, student={"by": str(pruned)}, alpha=chosen.alpha,
        temperature=chosen.temperature, epochs=epochs, batch=chosen.batch, max_length=chosen.max_length,
        optimizer={"lr": chosen.lr}, seed=seed, checkpoint={"every": 1_000_000, "keep": 1},
        device={"device": chosen.device, "threads": chosen.threads})
    run_stage(STAGES["distill"], config)
    return config.out / "model"


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    """The figures of this file's head."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if chosen.quick:
            chosen.model = str(build_tiny(folder / "tiny"))
        source = resolve(chosen.model)
        tokenizer: Any = load_tokenizer(source)
        ensure_template(tokenizer)
        paths = split(conversations(chosen.data), folder, limit=chosen.heldout)
        examples, heldout = (fitting(p, tokenizer, chosen.max_length) for p in paths)
        groups, pad = groups_of(heldout), int(tokenizer.pad_token_id)
        epochs = chosen.steps / math.ceil(len(pack_rows(examples, chosen.max_length)) / chosen.batch)
        compute = prepare(DistillConfig(data=paths[0], teacher={"by": "t"}, student={"layers": 1}, device={
            "device": chosen.device, "threads": chosen.threads}).device)
        teacher = load_causal_lm(source, torch.float32, compute.device)

        pruned = {"depth": prune("depth", chosen, folder / "depth", {"layers": chosen.blocks, "windows": 2})}
        counts = {"teacher": parameters(teacher), "depth": _parameters(pruned["depth"])}
        # of every block three matrices have a row or a column for each channel
        shape = teacher.config
        each = shape.num_hidden_layers * shape.hidden_size * 3
        share = (counts["teacher"] - counts["depth"]) / each / shape.intermediate_size
        pruned["width"] = prune("width", chosen, folder / "width", {"channels": share})
        counts["width"] = _parameters(pruned["width"])
        apart = abs(counts["width"] / counts["depth"] - 1)
        if apart > EQUAL and not chosen.quick:
            raise SystemExit(f"the two differ in size by {apart:.1%}: {counts}")

        before = {way: compare(load_causal_lm(resolve(str(pruned[way])), torch.float32, compute.device), teacher,
                               heldout, pad) for way in WAYS}
        after: dict[str, list[list[Compared]]] = {way: [] for way in WAYS}
        for seed, way in itertools.product(range(chosen.seed, chosen.seed + chosen.seeds), WAYS):
            model = recover(pruned[way], seed, paths[0], folder / f"{way}-{seed}", epochs, chosen)
            steps = json.loads((model.parent / "summary.json").read_text())["steps"]
            student = load_causal_lm(resolve(str(model)), torch.float32, compute.device)
            after[way].append(compare(student, teacher, heldout, pad))
            shutil.rmtree(model.parent)  # with the optimizer's state a gigabyte each
            now = figures(after[way][-1], with_teacher=True, seed=chosen.seed)
            print(f"seed {seed}, {way}: " + ", ".join(f"{n} {now[n].value:.4f}" for n in FIGURES), flush=True)
    said = {f"{way}_{when}": figures(rows, with_teacher=True, seed=chosen.seed,
                                     groups=groups * (len(rows) // len(groups)))
            for way in WAYS
            for when, rows in (("before", before[way]), ("after", [r for run in after[way] for r in run]))}
    return {
        "parameters": counts, "sizes_differ_by": apart, "blocks_left_out": chosen.blocks, "channels_share": share,
        "steps": steps, "seeds": chosen.seeds, "training_rows": len(examples), "heldout_rows": len(heldout),
        "heldout_prompts": len(set(groups)), "heldout_tokens": int(sum(r.tokens for r in before["depth"])),
        "depth_minus_width": {
            "before": difference([before["depth"]], [before["width"]], groups, seed=chosen.seed),
            "after": difference(after["depth"], after["width"], groups, seed=chosen.seed)},
        "teacher": {n: said["depth_before"][f"teacher_{n}"].as_dict() for n in ("loss", "accuracy")},
        "kept": {name: f["kept"].as_dict() for name, f in said.items()},
        "figures": {name: {n: f[n].as_dict() for n in (*FIGURES, "agreement")} for name, f in said.items()},
        "settings": {"alpha": chosen.alpha, "temperature": chosen.temperature, "lr": chosen.lr, "batch": chosen.batch,
                     "max_length": chosen.max_length, "device": compute.words,
                     "data": "starter" if chosen.data is None else chosen.data.name}}


def _parameters(folder: Path) -> int:
    return parameters(load_causal_lm(resolve(str(folder)), torch.float32, "cpu"))


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=EMBEDDED, help="the model that is pruned, and teaches")
    parser.add_argument("--data", type=Path, help="conversations, as `trivet sft` reads them; default: starter set")
    parser.add_argument("--blocks", type=int, default=6, help="blocks that depth leaves out")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=4, help="packed rows a step")
    parser.add_argument("--max-length", type=int, default=256, help="tokens of a row")
    parser.add_argument("--windows", type=int, default=16, help="windows of text that pruning reads")
    parser.add_argument("--heldout", type=int, default=120, help="held-out rows at most")
    parser.add_argument("--alpha", type=float, default=0.9)
    parser.add_argument("--temperature", type=float, default=2.0)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)


def main() -> None:
    chosen = options(__doc__ or "", _options)
    load = load_average()
    if chosen.quick:
        chosen.blocks, chosen.steps, chosen.heldout, chosen.seeds, chosen.windows = 1, 4, 16, 2, 2
        chosen.max_length = 128
    report("recovery", measure(chosen), chosen, load=load)


if __name__ == "__main__":
    main()
