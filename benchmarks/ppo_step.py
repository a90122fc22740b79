"""One PPO step by Trivet and by TRL 1.12.0 on the same work, turn about in one run, by phase.

    same_work                 what TRL does: policy, reference, critic and reward model each a whole model, all weights
                              of policy and critic trained, in bfloat16 on a CPU and a GPU alike (--precision float32:
                              both in that). TRL's weights are bfloat16 and nothing else; Trivet keeps float32 copies
                              of what it trains
    default                   Trivet as it comes: LoRA roles on one trunk, the critic a head on the policy's pass
    default_critic_separate   the same with the critic as an adapter of its own

Same work: model, prompts, the length of each answer, PPO epochs, minibatches, temperature, learning rate. Answers are
ended by length alone on both sides, so that every round has the same tokens; which ones, each side draws itself.

    equal_lengths   16 prompts of like length, 48 new tokens each
    real_lengths    64 prompts, up to 128 new tokens, lengths as in answer_lengths.json
    on a GPU        256 prompts each (the same 64 numbered 1 to 4), 128 new tokens, or the same lengths

    ratio_SIDE                TRL's seconds for a step over the side's: the median over rounds, with the least and the
                              largest
    phases                    seconds (medians), operations needed (arithmetic.py), their rate and its fraction of the
                              machine's matmul peak in that precision, measured in the same run
    update_fraction_of_peak   that of the update
    measured                  of each workload: date, load, command, versions, machine, threads, device, model (--only
                              keeps the other workload's figures, which may be another day's)
    peak_memory_ratio         a side's most memory during steps over TRL's: resident memory of the process; a GPU's own

Each side is a process of its own; all have the same number of threads, and one works at a time. At real lengths on a
CPU a side is loaded for its step and ended after it: together they need more memory than a laptop has.

    python benchmarks/ppo_step.py [--quick] [--json FILE] [--plot FILE]
    --model FOLDER --peer-env FOLDER --data PROMPTS    for a machine without a network
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from arithmetic import Decoder, Work, matmul_peak, needed
from common import load_average, options, provenance, report
from peers import ROOT, available, environment
from ppo_step_inputs import WORKLOADS, Workload, inputs
from trivet.config import EMBEDDED
from trivet.errors import TrivetError
from turns import Worker, WorkerEnded

HERE = Path(__file__).parent
# same_work has TRL's precision: --precision
SIDES: dict[str, dict[str, str]] = {
    "same_work": {"tune": "full", "critic": "separate"},
    "default": {"tune": "lora", "critic": "head", "precision": "auto"},
    "default_critic_separate": {"tune": "lora", "critic": "separate", "precision": "auto"},
}
PHASES = ("rollout", "evaluate", "scoring", "update")
TEMPERATURE = 0.7
# (rows of a training pass, rows of generation and of passes without a gradient) that TRL is tried with; on a CPU a
# trial would take as long as the measurement, two steps for each: --peer-batches 16:64 8:64 makes one
BATCHES = {"cpu": [(16, 64)], "cuda": [(256, 256), (64, 256), (64, 64), (32, 64)]}


class Sides:
    """The processes of one workload: all loaded at once, or, where the workload keeps none, each for one step."""

    def __init__(self, workload: Workload, job: dict[str, Any], chosen: argparse.Namespace, peer: Path | None) -> None:
        self.workload, self.chosen, self.peer = workload, chosen, peer
        self.job = job | {"prompts": str(workload.prompts), "rows": workload.rows, "epochs": workload.epochs,
                          "temperature": TEMPERATURE, "threads": chosen.threads, "seed": chosen.seed,
                          "micro_batch": chosen.micro_batch}
        self.trials: dict[str, Any] = {}
        self.open: dict[str, Worker] = {}
        self.facts: dict[str, dict[str, Any]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Sides:
        """Load those that are kept. TRL first, at the batch sizes that are fastest where there are several to try."""
        with ExitStack() as stack:
            for name in self.chosen.sides if self.workload.kept else ():
                self.open[name] = stack.enter_context(self._load(name))
                self.facts[name] = self.open[name].listen()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def _load(self, name: str) -> Worker:
        if name == "trl":
            return self._trl()
        return self._worker(name, sys.executable, "trivet_ppo_side.py", {"precision": self.chosen.precision}
                            | SIDES[name], [HERE, ROOT / "src"])

    def _worker(self, name: str, python: str, program: str, more: dict[str, Any], path: list[Path]) -> Worker:
        folder = Path(self.job["folder"]) / self.workload.name
        folder.mkdir(exist_ok=True)
        file = folder / f"{name}.json"
        file.write_text(json.dumps(self.job | more | {"folder": str(folder), "side": name}))
        print(f"{self.workload.name}: loading {name}", flush=True)
        return Worker([python, str(HERE / program), str(file)], {
            **os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "OMP_NUM_THREADS": str(self.chosen.threads),
            "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"})

    def _trl(self) -> Worker:
        rows = len(self.workload.rows)
        batches = [(min(b, rows), min(r, rows)) for b, r in self.chosen.peer_batches or BATCHES[self.job["device"]]]
        batches = [pair for pair in dict.fromkeys(batches) if rows % pair[0] == 0]
        if self.trials:  # found out in an earlier round
            batches = [(self.trials["batch"], self.trials["rollout_batch"])]

        def worker(pair: tuple[int, int]) -> Worker:
            return self._worker("trl", str(self.peer), "trl_ppo_peer.py",
                                {"precision": self.chosen.precision, "batch": pair[0], "rollout_batch": pair[1]},
                                [HERE])

        if not batches:
            raise TrivetError(f"none of TRL's batch sizes divides {rows} prompts", field="--peer-batches",
                              mend="give others, such as 16:64")
        if len(batches) == 1:
            self.trials = {"batch": batches[0][0], "rollout_batch": batches[0][1]} | self.trials
            return worker(batches[0])
        seconds: dict[tuple[int, int], float] = {}
        tried: dict[str, float | str] = {}
        for pair in batches:
            name = f"{pair[0]}:{pair[1]}"
            try:
                with worker(pair) as trial:
                    trial.listen()
                    trial.turn()
                    seconds[pair] = tried[name] = trial.turn()["seconds"]
            except WorkerEnded as error:
                if not error.out_of_memory:
                    raise
                tried[name] = "out of memory"
        if not seconds:
            raise TrivetError(f"TRL runs out of memory at every batch size: {', '.join(tried)}", field="--peer-batches",
                              mend="give smaller ones, such as 8:16")
        best = min(seconds, key=lambda pair: seconds[pair])
        self.trials = {"batch": best[0], "rollout_batch": best[1], "tried": tried}
        return worker(best)

    def step(self, name: str) -> dict[str, Any]:
        """One step, whose tokens must be those of the workload."""
        if name in self.open:
            found = self.open[name].turn()
        else:
            with self._load(name) as worker:
                self.facts[name] = worker.listen()
                found = worker.turn()
        wanted = sum(r["length"] for r in self.workload.rows)
        # TRL's own padding token may be drawn, once in a great while, and then counts for none
        if abs(found["tokens"] - wanted) > 0.01 * wanted:
            raise RuntimeError(f"{name} made {found['tokens']} tokens, not {wanted}: this is not the same work")
        return found


def spread(values: Sequence[float]) -> dict[str, Any]:
    """A median with the least and the largest of the rounds."""
    return {"value": statistics.median(values), "low": min(values), "high": max(values), "n": len(values)}


def measure(sides: Sides, rounds: int, peaks: dict[str, list[float]], device: str) -> dict[str, list[dict[str, Any]]]:
    """Steps of each side by round; the order turns round each time. The matmul peak is taken in every round."""
    steps: dict[str, list[dict[str, Any]]] = {name: [] for name in sides.chosen.sides}
    for name in sides.open:
        sides.step(name)
    for number in range(rounds):
        for dtype in peaks:
            peaks[dtype].append(matmul_peak(getattr(torch, dtype), device, 0.2 if sides.chosen.quick else 2.0))
        names = list(steps)
        for name in names if number % 2 == 0 else reversed(names):
            steps[name].append(found := sides.step(name))
            told = ", ".join(f"{k} {v:.2f}" for k, v in found["phases"].items())
            print(f"{sides.workload.name}: round {number + 1}, {name}: {found['seconds']:.2f} s ({told})", flush=True)
    return steps


def phases_of(name: str, steps: list[dict[str, Any]], sides: Sides, model: Decoder,
              peaks: dict[str, float]) -> dict[str, Any]:
    """Medians by phase of one side, with what each needs and its fraction of the peak in the side's precision."""
    trl = name == "trl"
    how = {"tune": "full", "critic": "separate"} if trl else {k: SIDES[name][k] for k in ("tune", "critic")}
    facts = sides.facts[name]
    work = Work(sides.workload.lengths, sides.workload.epochs,
                live=not trl and len(sides.workload.rows) <= facts["micro_batch"])
    wanted = needed(model, work, old_from_rollout=trl, **how)
    dtype = sides.chosen.precision if trl else facts["trunk"].removeprefix("torch.")
    found: dict[str, Any] = {}
    for phase in PHASES:
        seconds = statistics.median(s["phases"][phase] for s in steps)
        found[phase] = {"seconds": round(seconds, 3), "needed_gflop": round(wanted[phase] / 1e9, 1),
                        "gflop_per_second": round(wanted[phase] / seconds / 1e9, 1),
                        "fraction_of_peak": round(wanted[phase] / seconds / peaks[dtype], 4)}
    other = statistics.median(s["seconds"] - sum(s["phases"][p] for p in PHASES) for s in steps)
    return found | {"other": {"seconds": round(other, 3)}, "precision": dtype}


def figures_of(sides: Sides, steps: dict[str, list[dict[str, Any]]], model: Decoder,
               peaks: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """This workload's part of each key."""
    middle = {dtype: statistics.median(found) for dtype, found in peaks.items()}
    phases = {name: phases_of(name, rows, sides, model, middle) for name, rows in steps.items()}
    memory = {name: max(s["peak_bytes"] for s in rows) for name, rows in steps.items()}
    own: dict[str, Any] = {}
    by_phase: dict[str, Any] = {}
    if "trl" in steps:
        for name in [n for n in steps if n != "trl"]:
            pairs = list(zip(steps["trl"], steps[name], strict=True))
            own[f"ratio_{name}"] = spread([t["seconds"] / o["seconds"] for t, o in pairs])
            by_phase[name] = {p: spread([t["phases"][p] / o["phases"][p] for t, o in pairs]) for p in PHASES}
    own |= {"seconds": {name: spread([s["seconds"] for s in rows]) for name, rows in steps.items()},
            "phase_ratios": by_phase, **sides.workload.facts(),
            "micro_batch": {n: f["micro_batch"] for n, f in sides.facts.items() if n != "trl"},
            "torch": {n: f["torch"] for n, f in sides.facts.items()}, "trl_batches": sides.trials}
    return {
        "": own, "phases": phases,
        "update_fraction_of_peak": {name: found["update"]["fraction_of_peak"] for name, found in phases.items()},
        "matmul_peak_gflops": {dtype: spread([x / 1e9 for x in found]) for dtype, found in peaks.items()},
        "peak_memory_mb": {name: round(size / 1e6) for name, size in memory.items()},
        "peak_memory_ratio": {name: round(size / memory["trl"], 3) for name, size in memory.items()
                              if name != "trl"} if "trl" in memory else {},
    }


def count(text: str) -> int:
    """A number of one or more."""
    if (number := int(text)) < 1:
        raise ValueError
    return number


def pair(text: str) -> tuple[int, int]:
    """`16:64` as two numbers."""
    batch, _, rollout = text.partition(":")
    return count(batch), count(rollout or batch)


def own_options(parser: argparse.ArgumentParser) -> None:
    """Where model, prompts and peer come from; what to measure."""
    parser.add_argument("--model", help=f"a model's folder (default: {EMBEDDED}; --quick: a tiny random one)")
    parser.add_argument("--data", type=Path, help="prompts, JSON Lines (default: the starter set's)")
    parser.add_argument("--peer-env", type=Path, help="an environment that has TRL 1.12.0 (default: made here)")
    parser.add_argument("--only", choices=WORKLOADS, nargs="+", default=list(WORKLOADS),
                        help="these workloads alone; the JSON file keeps its other figures")
    parser.add_argument("--sides", choices=["trl", *SIDES], nargs="+", default=["trl", *SIDES], help="these alone")
    parser.add_argument("--rounds", type=count, default=3)
    parser.add_argument("--epochs", type=count, help="PPO epochs of both workloads (default: 2, and 1 at real lengths)")
    parser.add_argument("--threads", type=count, default=len(os.sched_getaffinity(0)), help="of each side")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16",
                        help="of TRL and of the same work; Trivet's default chooses its own")
    parser.add_argument("--micro-batch", type=count, help="Trivet's rows a pass (default: the stage's)")
    parser.add_argument("--peer-batches", type=pair, nargs="+", metavar="ROWS:ROLLOUT_ROWS",
                        help="TRL's batch sizes; of several the fastest is taken")
    parser.add_argument("--plot", type=Path, help="draw the figures into this file")


def main() -> None:
    chosen = options(__doc__ or "", own_options)
    load = load_average()
    device = chosen.device if chosen.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(chosen.threads)
    if chosen.quick:
        chosen.rounds = min(chosen.rounds, 1)
        if chosen.peer_env is None and not available("trl"):
            chosen.sides = [s for s in chosen.sides if s != "trl"]
    peer = environment("trl", chosen.peer_env) if "trl" in chosen.sides else None
    figures: dict[str, Any] = {}
    if set(chosen.only) < set(WORKLOADS) and chosen.json and chosen.json.exists():
        figures = json.loads(chosen.json.read_text())["figures"]
    with tempfile.TemporaryDirectory() as temporary:
        job, workloads, config = inputs(Path(temporary), chosen, device)
        for workload in workloads:
            peaks: dict[str, list[float]] = {"float32": [], "bfloat16": []}
            with Sides(workload, job, chosen, peer) as sides:
                steps = measure(sides, chosen.rounds, peaks, device)
            for key, part in figures_of(sides, steps, Decoder.of(config), peaks).items():
                figures.setdefault(key or workload.name, {})
                figures[key or workload.name] |= {workload.name: part} if key else part
            figures[workload.name]["measured"] = provenance(load) | {
                "seed": chosen.seed, "quick": chosen.quick, "rounds": chosen.rounds, "threads": chosen.threads,
                "device": device, "precision": chosen.precision,
                "model": chosen.model or ("tiny" if chosen.quick else EMBEDDED)}
    # the file is as quiet as the least quiet of what stands in it
    report("ppo_step", figures, chosen,
           load=max(figures[w]["measured"]["load_before"] for w in WORKLOADS if w in figures))
    if chosen.plot:
        from ppo_step_plot import plot

        plot(figures, chosen.plot)


if __name__ == "__main__":
    try:
        main()
    except TrivetError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
