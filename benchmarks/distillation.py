"""A distilled student beside the same student trained on hard labels alone: equal steps, data, order and start.

The teacher is the embedded model; the student begins as every second of its blocks (14 of 30: 58% of its parameters).
Each seed draws its own order of the training rows; with it the student is trained once on hard labels alone
(`alpha` 0) and once with soft labels at each temperature, with the same settings otherwise. All are compared on
held-out rows, which share no first turn with training rows. The data are, unless --data says otherwise, the starter
set's prompts with the answers that the teacher once gave to them (720 answers, about 50,000 tokens).

    distilled_minus_hard    by temperature: held-out loss (nats a token), accuracy of the next token, KL from the
                            teacher, distilled less hard: paired by row and seed, interval by bootstrap over held-out
                            prompts; `over_seeds`: each seed's difference, with Student's interval over seeds
    kept                    accuracy over the teacher's, as DistilBERT states it: before training, hard, distilled
    share_of_parameters     of the student

    python benchmarks/distillation.py [--quick] [--json FILE] [--data FILE] [--seeds N] [--steps N]
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from common import load_average, options, report
from conftest import build_tiny
from trivet.artifacts import Completions, Message, first_turn, is_held_out, read_rows
from trivet.compress.distill_config import DistillConfig, Student
from trivet.compress.fidelity import Compared, compare, figures
from trivet.compress.lessons import question
from trivet.compress.students import make_student, parameters
from trivet.compress.variant import read_variant
from trivet.config import EMBEDDED
from trivet.data.chat import ensure_template
from trivet.data.supervised import Example, pack_rows, read_conversations, read_examples
from trivet.intervals import Interval, bootstrap_statistics
from trivet.models.source import load_causal_lm, load_tokenizer, resolve
from trivet.pipeline import starter
from trivet.stages import STAGES, run_stage
from trivet.training.device import prepare

TEMPERATURES = (1.0, 2.0, 4.0)
HELD_OUT = 0.2
HARD = "hard"
BEFORE = "before"
FIGURES = ("loss", "accuracy", "kl")


# --- what is trained on -------------------------------------------------------------------------------------------


def conversations(data: Path | None) -> list[dict[str, Any]]:
    """Rows as `distill` reads them: of a file of conversations, or of the starter set's completions."""
    if data is not None:
        return [{"messages": [m.model_dump() for m in c.messages]} for c in read_conversations(data)]
    return [{"messages": [*(m.model_dump() for m in row.messages), {"role": "assistant", "content": c.text}]}
            for row in read_rows(starter("completions"), Completions) for c in row.completions if c.ended]


def split(rows: Sequence[dict[str, Any]], folder: Path, *, limit: int | None) -> tuple[Path, Path]:
    """(training rows, held-out rows) as files; no first turn stands in both. limit: held-out rows at most."""
    sides: tuple[list[Any], list[Any]] = ([], [])
    asked: dict[str, int] = {}
    order: list[int] = []
    for row in rows:
        messages = [Message(**m) for m in row["messages"]]
        held = is_held_out(messages, HELD_OUT)
        sides[held].append(row)
        if held:
            order.append(asked.setdefault(first_turn(messages), 0))
            asked[first_turn(messages)] += 1
    # one answer to each prompt before any second one: few rows are then many prompts
    sides[1][:] = [sides[1][i] for i in sorted(range(len(order)), key=lambda i: (order[i], i))]
    paths = folder / "train.jsonl", folder / "heldout.jsonl"
    for path, side in zip(paths, (sides[0], sides[1][:limit]), strict=True):
        path.write_text("".join(json.dumps(r) + "\n" for r in side))
    return paths


def fitting(path: Path, tokenizer: Any, max_length: int) -> list[Example]:
    """The rows of a file that are no longer than max_length; the file is left with these alone."""
    lines = path.read_text().splitlines()
    kept, examples = [], []
    for line in lines:
        path.write_text(line + "\n")
        (example,) = read_examples(path, tokenizer, 1 << 20, setting="max-length")
        if len(example.ids) <= max_length:
            kept.append(line)
            examples.append(example)
    path.write_text("".join(line + "\n" for line in kept))
    if not kept:
        raise SystemExit(f"no row of {path.name} has {max_length} tokens or fewer")
    return examples


# --- training -----------------------------------------------------------------------------------------------------


def train(arm: str, seed: int, files: dict[str, Path], chosen: argparse.Namespace, epochs: float) -> Path:
    """The student of one arm (hard, or a temperature) and seed, by the stage `distill`; its folder."""
    soft = arm != HARD
    config = DistillConfig(
        out=files["work"] / f"{arm}-{seed}", data=files["train"], teacher={"by": chosen.model},
        student={"layers": chosen.layers}, alpha=chosen.alpha if soft else 0.0,
        temperature=float(arm) if soft else 1.0, epochs=epochs, batch=chosen.batch, max_length=chosen.max_length,
        optimizer={"lr": chosen.lr}, seed=seed, checkpoint={"every": 1_000_000, "keep": 1},
        device={"device": chosen.device, "threads": chosen.threads})
    run_stage(STAGES["distill"], config)
    return config.out


def groups_of(examples: Sequence[Example]) -> list[int]:
    """A number for each question: answers to one prompt are not independent."""
    numbers: dict[tuple[int, ...], int] = {}
    return [numbers.setdefault(question(e), len(numbers)) for e in examples]


def difference(soft: Sequence[Sequence[Compared]], hard: Sequence[Sequence[Compared]], groups: Sequence[int], *,
               seed: int) -> dict[str, Any]:
    """Distilled less hard of each figure, a token: paired by row and seed. soft, hard: of each seed its rows."""
    columns = np.array([[r.tokens, a.loss - b.loss, a.hits - b.hits, a.kl - b.kl]
                        for s, h in zip(soft, hard, strict=True) for r, a, b in zip(s, s, h, strict=True)])
    names = np.tile(np.asarray(groups), len(soft))
    over_rows = bootstrap_statistics(columns, names, lambda sums: sums[..., 1:] / sums[..., :1], seed=seed)
    each = np.array([c[:, 1:].sum(0) / c[:, 0].sum() for c in np.split(columns, len(soft))])
    return {name: interval.as_dict() | {"over_seeds": student_interval(each[:, i])}
            for i, (name, interval) in enumerate(zip(FIGURES, over_rows, strict=True))}


def student_interval(values: np.ndarray[Any, Any]) -> dict[str, Any]:
    """The mean of a few runs with Student's 95% interval; without one for a single run."""
    n, mean = len(values), float(values.mean())
    half = float(stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan
    return Interval(mean, mean - half, mean + half, n).as_dict() | {"values": values.tolist()}


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
        files = {"train": paths[0], "work": folder}
        rows = len(pack_rows(examples, chosen.max_length))
        per_epoch = math.ceil(rows / chosen.batch)
        epochs = chosen.steps / per_epoch
        compute = prepare(DistillConfig(data=paths[0], teacher={"by": "t"}, student={"layers": 1}, device={
            "device": chosen.device, "threads": chosen.threads}).device)
        teacher = load_causal_lm(source, torch.float32, compute.device)
        pad, groups = int(tokenizer.pad_token_id), groups_of(heldout)
        arms = [HARD, *(f"{t:g}" for t in TEMPERATURES)]
        found: dict[str, list[list[Compared]]] = {arm: [] for arm in arms}
        share = 0.0
        for seed, arm in itertools.product(range(chosen.seed, chosen.seed + chosen.seeds), arms):
            out = train(arm, seed, files, chosen, epochs)
            student = load_causal_lm(resolve(str(out / "model")), torch.float32, compute.device)
            found[arm].append(compare(student, teacher, heldout, pad))
            share = read_variant(out / "model").parameters / parameters(teacher)
            steps = json.loads((out / "summary.json").read_text())["steps"]
            shutil.rmtree(out)  # with the optimizer's state a gigabyte each
            now = figures(found[arm][-1], with_teacher=True, seed=chosen.seed)
            print(f"seed {seed}, {arm}: " + ", ".join(f"{n} {now[n].value:.4f}" for n in ("loss", "accuracy", "kl")),
                  flush=True)
        before = compare(_before(chosen, source, compute), teacher, heldout, pad)
    each = {arm: [r for seed in runs for r in seed] for arm, runs in found.items()} | {BEFORE: before}
    said = {arm: {n: i.as_dict() for n, i in figures(runs, with_teacher=True, seed=chosen.seed,
                                                     groups=groups * (len(runs) // len(groups))).items()}
            for arm, runs in each.items()}
    return {
        "share_of_parameters": share, "layers": chosen.layers, "steps": steps, "seeds": chosen.seeds,
        "training_rows": len(examples), "heldout_rows": len(heldout), "heldout_prompts": len(set(groups)),
        "heldout_tokens": int(sum(r.tokens for r in before)),
        "distilled_minus_hard": {arm: difference(found[arm], found[HARD], groups, seed=chosen.seed)
                                 for arm in arms if arm != HARD},
        "teacher": {n: said[HARD][f"teacher_{n}"] for n in ("loss", "accuracy")},
        "kept": {arm: v["kept"] for arm, v in said.items()},
        "figures": {arm: {n: v[n] for n in (*FIGURES, "agreement")} for arm, v in said.items()},
        "settings": {"alpha": chosen.alpha, "lr": chosen.lr, "batch": chosen.batch, "max_length": chosen.max_length,
                     "data": "starter" if chosen.data is None else chosen.data.name, "device": compute.words}}


def _before(chosen: argparse.Namespace, source: Any, compute: Any) -> Any:
    return make_student(Student(layers=chosen.layers), source, compute.device, seed=chosen.seed)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=EMBEDDED, help="the teacher")
    parser.add_argument("--data", type=Path, help="conversations, as `trivet sft` reads them; default: starter set")
    parser.add_argument("--layers", type=int, default=14, help="blocks of the student")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=4, help="packed rows a step")
    parser.add_argument("--max-length", type=int, default=256, help="tokens of a row")
    parser.add_argument("--heldout", type=int, default=120, help="held-out rows at most")
    parser.add_argument("--alpha", type=float, default=0.5)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)


def main() -> None:
    chosen = options(__doc__ or "", _options)
    load = load_average()
    if chosen.quick:
        chosen.layers, chosen.steps, chosen.heldout, chosen.seeds = 1, 4, 16, 2
    report("distillation", measure(chosen), chosen, load=load)


if __name__ == "__main__":
    main()
