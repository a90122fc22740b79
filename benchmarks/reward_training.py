"""A reward model on 4-way rankings by Trivet's `reward` and by TRL's RewardTrainer: the same pairs, turn about.

The starter set's rankings (three readings a prompt, their majority), or those of --data, become pairs; only prompts
whose four answers are ranked without a tie are trained on, so that each gives six pairs, and every pair is trained
once by both. Both get the same token ids, model, precision, optimizer, learning rate, schedule, adapters (LoRA on
all linear layers; or all weights), the same penalty that centres scores, as many pairs an optimizer step.

What differs is the work that each makes of it: TRL forwards chosen and rejected of each pair, 12 dialogues a ranking;
Trivet forwards a prompt and its four answers once. TRL gets the micro-batch and the order that are fastest for it
(--trial tries them): pairs of like length together, since it pads a batch to its longest.

Each is a process of its own that trains a step when told to and else sleeps. Timed is a whole optimizer step: making
the batch, forward, backward, AdamW. A ratio is TRL's seconds over Trivet's in the same round; before the first round
both have made one step.

    ratio_trl        TRL's seconds over Trivet's, LoRA against LoRA: median over rounds, interval by bootstrap over them
    accuracy         of Trivet's model on held-out pairs, interval by bootstrap over prompts; accuracy_trl, and
    accuracy_minus_trl, paired. Both models are read by the same code from the folders they were saved in.
    full             the same for all weights against all weights (speed and memory only)
    peak_memory_ratio  Trivet's peak resident memory over TRL's, of the two processes, up to the end of the last step

    python benchmarks/reward_training.py [--quick] [--json FILE] [--model M] [--data FILE] [--peer-env DIR] [--trial]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import load_average, options, report
from peers import available, environment
from trivet.artifacts import Message, Preference, first_turn, read_rows, write_rows
from trivet.config import EMBEDDED, Device, LoRA
from trivet.data.chat import dialogue_ids, ensure_template
from trivet.feedback.config import PairsConfig
from trivet.intervals import Interval, bootstrap_mean, paired_bootstrap
from trivet.models.reward_model import load_reward_model
from trivet.models.source import load_tokenizer, resolve
from trivet.pipeline import starter
from trivet.reward.config import RewardConfig
from trivet.reward.metrics import pair_correct
from trivet.reward.train import run as train_reward
from trivet.runs import Run
from trivet.stages import STAGES, run_stage
from trivet.training.device import prepare
from turns import Stopwatch, Worker, hand_over, last_words, peak_memory

HERE = Path(__file__).parent
PAIRS = 6
"""Of a ranking of four answers without a tie."""
RANKINGS = 4
"""A step: 24 pairs."""
SIZES: dict[str, dict[str, int]] = {"quick": {"steps": 2, "full_steps": 2, "heldout": 4},
                                    "full": {"steps": 16, "full_steps": 4, "heldout": 48}}
RATES = {"lora": 3e-4, "full": 3e-5}
TRL_SETTINGS: tuple[tuple[int, bool], ...] = ((4, True), (8, True), (24, True), (8, False))
"""(pairs a micro-batch, pairs of like length together) that --trial tries; the first is the default."""


# --- what is trained on ---------------------------------------------------------------------------------------


def material(data: Path, model: str, work: Path, rankings: int, heldout: int, max_length: int,
             seed: int) -> tuple[list[Preference], list[Preference]]:
    """(pairs of `rankings` rankings, six each; held-out pairs of other prompts), by the stage `pairs`.

    Raises ValueError where the file holds fewer whole rankings.
    """
    made = work / "pairs"
    run_stage(STAGES["pairs"], PairsConfig(input=data, method="majority", heldout=0.25, seed=seed, out=made))
    tokenizer = load_tokenizer(resolve(model))
    ensure_template(tokenizer)

    def whole(rows: list[Preference]) -> dict[str, list[Preference]]:
        found: dict[str, list[Preference]] = defaultdict(list)
        for row in rows:
            found[row.prompt_id].append(row)
        return {i: members for i, members in found.items() if len(members) == PAIRS and all(
            max(map(len, token_ids(tokenizer, r))) <= max_length for r in members)}

    train, held = (whole(read_rows(made / f"{side}.jsonl", Preference)) for side in ("train", "heldout"))
    if len(train) < rankings or not held:
        raise ValueError(f"{len(train)} rankings of four answers without a tie are too few for {rankings}, "
                         f"or none is held out ({len(held)})")
    return ([r for members in list(train.values())[:rankings] for r in members],
            [r for members in list(held.values())[:heldout] for r in members])


def token_ids(tokenizer: Any, row: Preference) -> tuple[list[int], list[int]]:
    """(chosen, rejected) dialogues of a pair, as Trivet's stage makes them."""
    chosen, rejected = (dialogue_ids(tokenizer, row.prompt, t.strip())[0] for t in (row.chosen, row.rejected))
    return chosen, rejected


# --- Trivet's process -----------------------------------------------------------------------------------------


class StepByStep(Run):
    """The run folder of a stage that sleeps after each step until the next one is asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.watch = Stopwatch()

    def log(self, name: str, row: dict[str, Any]) -> None:
        super().log(name, row)
        if name == "metrics":
            hand_over(self.watch.stop() | {"step": row["step"], "peak_memory": peak_memory()})
            self.watch.start()


def work(job: dict[str, Any]) -> None:
    """The stage `reward`, as `trivet reward` runs it, one step a turn."""
    run = StepByStep(Path(job["save"]))
    train_reward(RewardConfig(
        out=run.folder, preferences=Path(job["preferences"]), model=job["model"], tune=job["tune"],
        lora=LoRA(r=job["r"], alpha=job["alpha"]), epochs=1, batch=RANKINGS, max_length=job["max_length"],
        optimizer={"lr": job["lr"]}, centering=job["centering"], seed=job["seed"],
        device=Device(device="cpu", precision=job["precision"], threads=job["threads"]),
        # not what is measured: as little of it as goes
        calibration={"answers": 2, "sampling": {"max_new_tokens": 2}}), run)
    last_words({"saved": str(run.folder / "reward")})


# --- turn about -----------------------------------------------------------------------------------------------


def trivet_worker(job: dict[str, Any]) -> Worker:
    paths = os.pathsep.join([str(HERE.parent / "src"), str(HERE)])
    return Worker([sys.executable, str(HERE / "reward_training.py"), "--worker", json.dumps(job)],
                  {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"})


def trl_worker(python: Path, job: dict[str, Any], micro_batch: int, grouped: bool) -> Worker:
    told = job | {"micro_batch": micro_batch, "grouped": grouped, "batch": RANKINGS * PAIRS,
                  "save": job["save"] + "-trl"}
    hidden = ("PYTHONPATH", "PYTHONHOME")
    return Worker([str(python), str(HERE / "trl_reward_peer.py"), json.dumps(told)],
                  {k: v for k, v in os.environ.items() if k not in hidden}
                  | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(job["threads"]), "TOKENIZERS_PARALLELISM": "false"})


def rounds(job: dict[str, Any], python: Path | None, settings: tuple[int, bool]) -> dict[str, Any]:
    """Both sides' steps, turn about: seconds a round, peak memory, where each model was saved.

    python: of TRL's environment; None leaves TRL out.
    """
    found: dict[str, Any] = {}
    with trivet_worker(job) as ours:
        ours.listen()  # warm
        if python is None:
            mine = [ours.turn() for _ in range(1, job["steps"])]
            ended = ours.turn()
            return {"trivet": mine, "saved": ended["saved"], "peak": {"trivet": mine[-1]["peak_memory"]}}
        with trl_worker(python, job, *settings) as theirs:
            theirs.listen()
            turns: dict[str, list[dict[str, float]]] = {"trivet": [], "trl": []}
            for i in range(1, job["steps"]):
                sides = [("trivet", ours), ("trl", theirs)]
                for name, worker in sides if i % 2 else reversed(sides):
                    turns[name].append(worker.turn())
            mine, other = ours.turn(), theirs.turn()
            # at the last step's end: saving and calibration come after it
            found = turns | {"saved": mine["saved"], "saved_trl": other["saved"],
                             "peak": {name: rows[-1]["peak_memory"] for name, rows in turns.items()}}
    return found


def trial(job: dict[str, Any], python: Path) -> tuple[tuple[int, bool], dict[str, float]]:
    """The settings with which TRL is fastest, and the seconds of a step with each."""
    seconds = {}
    for micro_batch, grouped in TRL_SETTINGS:
        with trl_worker(python, job | {"steps": 3}, micro_batch, grouped) as worker:
            worker.listen()
            seconds[(micro_batch, grouped)] = min(worker.turn()["seconds"], worker.turn()["seconds"])
            worker.turn("end")
    best = min(seconds, key=lambda s: seconds[s])
    return best, {f"{m} pairs{', like lengths together' if g else ''}": round(s, 2) for (m, g), s in seconds.items()}


def speed(found: dict[str, Any], seed: int) -> dict[str, Any]:
    """Medians of seconds and of the ratio, and memory."""
    seconds = {n: [t["seconds"] for t in found[n]] for n in ("trivet", "trl") if n in found}
    cpu = {n: statistics.median(t["cpu_seconds"] for t in found[n]) for n in seconds}
    figures: dict[str, Any] = {"step_seconds": {n: statistics.median(s) for n, s in seconds.items()},
                               "step_cpu_seconds": cpu, "peak_memory_bytes": found["peak"],
                               "rounds": len(found["trivet"]), "ratio_trl": None}
    if "trl" in seconds:
        ratios = [t / o for t, o in zip(seconds["trl"], seconds["trivet"], strict=True)]
        figures |= {"ratio_trl": median(ratios, seed).as_dict(), "ratio_trl_cpu": cpu["trl"] / cpu["trivet"],
                    "peak_memory_ratio": found["peak"]["trivet"] / found["peak"]["trl"]}
    return figures


def median(values: Sequence[float], seed: int) -> Interval:
    """The median with a percentile bootstrap interval over its values."""
    import numpy as np

    given = np.asarray(values)
    drawn = np.random.default_rng(seed).integers(0, len(given), (10_000, len(given)))
    low, high = np.quantile(np.median(given[drawn], axis=1), (0.025, 0.975))
    return Interval(float(np.median(given)), float(low), float(high), len(given))


def right(folder: str, rows: Sequence[Preference]) -> list[float]:
    """Of each held-out pair, whether the saved model puts the better answer first (1, 0; 0.5 for a tie)."""
    import torch

    model = load_reward_model(resolve(folder), torch.float32, "cpu")
    dialogues: list[tuple[list[Message], str]] = [(r.prompt, t) for r in rows for t in (r.chosen, r.rejected)]
    scores = model.score(dialogues)
    return list(pair_correct([a - b for a, b in zip(scores[::2], scores[1::2], strict=True)]))


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    """The figures of this file's head."""
    size = SIZES["quick" if chosen.quick else "full"]
    python = None
    if chosen.peer_env or not chosen.quick or available("trl"):
        python = environment("trl", chosen.peer_env)
    compute = prepare(Device(device="cpu", precision=chosen.precision, threads=chosen.threads))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        train, held = material(chosen.data, chosen.model, folder, RANKINGS * size["steps"], size["heldout"],
                               chosen.max_length, chosen.seed)
        source = resolve(chosen.model)
        tokenizer = load_tokenizer(source)
        ensure_template(tokenizer)
        figures: dict[str, Any] = {}
        settings: tuple[int, bool] = TRL_SETTINGS[0]
        for tune in ("lora", "full"):
            steps = size["steps" if tune == "lora" else "full_steps"]
            rows = train[: steps * RANKINGS * PAIRS]
            ids = [dict(zip(("chosen_ids", "rejected_ids"), token_ids(tokenizer, r), strict=True)) for r in rows]
            write_rows(folder / f"{tune}.jsonl", rows)
            (folder / f"{tune}.json").write_text(json.dumps(ids))
            job = {"model": str(source.folder), "preferences": str(folder / f"{tune}.jsonl"), "tune": tune,
                   "pairs": str(folder / f"{tune}.json"), "steps": steps, "lr": RATES[tune], "r": LoRA().r,
                   "alpha": LoRA().alpha, "centering": 0.01, "max_length": chosen.max_length, "seed": chosen.seed,
                   "threads": compute.threads, "precision": chosen.precision, "save": str(folder / tune)}
            if chosen.trial and tune == "lora" and python is not None:
                settings, figures["trl_trial_seconds"] = trial(job, python)
            found = rounds(job, python, settings)
            if tune == "full":
                figures["full"] = speed(found, chosen.seed)
                continue
            figures |= speed(found, chosen.seed) | {
                "rankings": steps * RANKINGS, "pairs": len(rows), "pairs_a_step": RANKINGS * PAIRS,
                "tokens": {"trivet": _packed(tokenizer, rows), "trl": sum(len(x) for p in ids for x in p.values())}}
            groups = [first_turn(r.prompt) for r in held]
            ours = right(found["saved"], held)
            figures["heldout_pairs"] = len(held)
            figures["accuracy"] = bootstrap_mean(ours, groups, seed=chosen.seed).as_dict()
            if python is not None:
                theirs = right(found["saved_trl"], held)
                figures["accuracy_trl"] = bootstrap_mean(theirs, groups, seed=chosen.seed).as_dict()
                figures["accuracy_minus_trl"] = paired_bootstrap(ours, theirs, groups, seed=chosen.seed).as_dict()
        return figures | {"trl": {"micro_batch": settings[0], "like_lengths_together": settings[1]},
                          "precision": chosen.precision, "threads": compute.threads}


def _packed(tokenizer: Any, rows: Sequence[Preference]) -> int:
    """Tokens that Trivet forwards an epoch: each prompt once, each answer once."""
    total, seen = 0, set()
    for row in rows:
        for text in (row.chosen, row.rejected):
            ids, start = dialogue_ids(tokenizer, row.prompt, text.strip())
            total += start * ((row.prompt_id, None) not in seen)
            total += (len(ids) - start) * ((row.prompt_id, text) not in seen)
            seen |= {(row.prompt_id, None), (row.prompt_id, text)}
    return total


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=EMBEDDED, help="a model folder")
    parser.add_argument("--data", type=Path, default=Path(starter("rankings")),
                        help="rankings of four answers, JSON Lines (default: the starter set's)")
    parser.add_argument("--peer-env", type=Path, help="an environment that has TRL (default: made, .venv-trl)")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of the trunk")
    parser.add_argument("--max-length", type=int, default=1024, help="tokens of a dialogue at most")
    parser.add_argument("--threads", type=int, help="default: all cores")
    parser.add_argument("--trial", action="store_true", help="first find out how TRL is fastest (some minutes more)")


def main() -> None:
    chosen = options(__doc__ or "", _add)
    load = load_average()
    report("reward_training", measure(chosen), chosen, load=load)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(json.loads(sys.argv[2]))
    else:
        main()
