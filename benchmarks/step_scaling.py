"""How a PPO step grows with the number of answers and with their length; and what `trivet ppo --plan` says of it.

Each point is `trivet ppo` in a process of its own on prompts of like length (the starter set's), three steps, the first
to warm up; seconds and memory are the other two's. No answer ends by itself, so that each has the length asked for.
Seconds of each phase are fitted, with no coefficient below zero, by what should make them up:

    rollout     fixed + steps of decoding + tokens + tokens × context (attention reads the cache)
    the rest    fixed + tokens + tokens × length (attention's square)

The plan's error: its seconds over the measured ones, its peak memory over the measured one, point by point. The plan is
asked right after the point, by `trivet ppo --plan`, which measures its rates then.

    python benchmarks/step_scaling.py [--quick] [--json FILE] [--plot FILE] [--model M] [--tune full] [--precision …]
    python benchmarks/step_scaling.py --draw FILE.json --plot FILE      only draws what was measured before
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from common import load_average, options, report

HERE = Path(__file__).parent
POINTS = {"quick": {"answers": (4,), "lengths": (4, 8), "length": 8, "batch": 4},
          "full": {"answers": (4, 8, 16, 32), "lengths": (16, 48, 128, 256), "length": 48, "batch": 8}}
STEPS = 3
PROMPTS = 32
"""As many as the most answers of a step: a prompt that stands twice in a micro-batch would be read once."""
MICRO = 16
PHASES = ("rollout", "scoring", "evaluate", "update")
PARTS = {"rollout": ("fixed", "a decode step", "a token", "a token and place of context"),
         "other": ("fixed", "a token", "a token and place of context")}


def brevity(samples: Sequence[Any]) -> list[float]:
    """A reward that costs nothing."""
    return [-float(len(s.completion)) for s in samples]


# --- a point, in a process of its own -------------------------------------------------------------------------


def point(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds by phase and tokens of a step, and peak memory."""
    from trivet.artifacts import Prompt, read_rows, write_rows
    from trivet.data.chat import ensure_template, prompt_ids
    from trivet.models.source import load_tokenizer, resolve
    from trivet.pipeline import starter
    from trivet.policy.config import PPOConfig
    from trivet.stages import STAGES, run_stage

    folder = Path(job["folder"])
    tokenizer = load_tokenizer(resolve(job["model"]))
    ensure_template(tokenizer)
    prompts = read_rows(Path(starter("prompts")), Prompt)
    lengths = {p.id: len(prompt_ids(tokenizer, p.messages)) for p in prompts}
    middle = statistics.median(lengths.values())
    chosen = sorted(prompts, key=lambda p: (abs(lengths[p.id] - middle), p.id))[: PROMPTS + 1]
    write_rows(folder / "prompts.jsonl", chosen[:PROMPTS])
    write_rows(folder / "watched.jsonl", chosen[PROMPTS:])
    settings = {
        "model": job["model"], "tune": job["tune"], "rollout": job["answers"], "micro_batch": MICRO,
        "seed": job["seed"], "sampling": {"max_new_tokens": job["length"]},
        "device": {"threads": job["threads"], "precision": job["precision"], "device": "cpu"}}
    config = PPOConfig(
        **settings, out=folder / "run" / "ppo", prompts=folder / "prompts.jsonl", reward=["step_scaling:brevity"],
        check=False, normalise=False, stop={"steps": STEPS}, checkpoint={"every": STEPS},
        evaluation={"prompts": folder / "watched.jsonl", "samples": 1, "every": STEPS + 1})
    with mock.patch("trivet.policy.setup.stop_token_ids", return_value=frozenset()):  # no answer ends by itself
        run_stage(STAGES["ppo"], config)
    rows = [json.loads(x) for x in (config.out / "timing.jsonl").read_text().splitlines()][1:]
    assert all(r["tokens"] == job["answers"] * job["length"] for r in rows), "an answer ended by itself"
    entry = json.loads((folder / "run" / "ledger.jsonl").read_text().splitlines()[-1])
    return {
        "answers": job["answers"], "length": job["length"], "tokens": job["answers"] * job["length"],
        "prompt": round(statistics.fmean(lengths[p.id] for p in chosen[:PROMPTS])),
        "seconds": {p: statistics.median(r[p] for r in rows) for p in PHASES},
        "peak_memory_bytes": entry["peak_memory_bytes"]}


def planned(job: dict[str, Any], prompt: int) -> dict[str, Any]:
    """What `trivet ppo --plan` says of a point, asked at its own door."""
    asked = {"model": job["model"], "tune": job["tune"], "rollout": job["answers"], "micro-batch": MICRO,
             "sampling.max-new-tokens": job["length"], "device.device": "cpu", "device.precision": job["precision"],
             "reward": "step_scaling:brevity", "plan.prompt-tokens": prompt}
    if job["threads"]:
        asked["device.threads"] = job["threads"]
    said = json.loads(_output([sys.executable, "-m", "trivet", "ppo", "--plan", "--plan.as-json",
                               *(str(x) for k, v in asked.items() for x in (f"--{k}", v))]))
    return {"seconds": {p["name"]: p["seconds"] for p in said["phases"]},
            "peak_memory_bytes": said["peak_bytes"]["whole"], "matmul": said["rates"]["matmul"]}


def _output(command: Sequence[str]) -> str:
    """What a program prints. Raises RuntimeError with its last words if it fails."""
    paths = os.pathsep.join([str(HERE.parent / "src"), str(HERE)])
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    return done.stdout


def measured(job: dict[str, Any]) -> dict[str, Any]:
    """`point` in another process, so that its peak memory is its own; and the plan of it."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "point.json"
        _output([sys.executable, str(HERE / "step_scaling.py"), "--point", json.dumps(job | {"folder": folder}),
                 str(result)])
        found: dict[str, Any] = json.loads(result.read_text())
    found["plan"] = planned(job, found["prompt"])
    print(f"{found['answers']} answers of {found['length']} tokens: "
          + ", ".join(f"{p} {s:.2f} s" for p, s in found["seconds"].items()), flush=True)
    return found


# --- what made it up ------------------------------------------------------------------------------------------


def columns(p: dict[str, Any], phase: str) -> list[float]:
    """What the seconds of a phase should be made of at a point, as PARTS names it."""
    words, length = p["answers"] * (p["prompt"] + p["length"]), p["prompt"] + p["length"]
    if phase == "rollout":
        return [1.0, p["length"], p["tokens"], p["tokens"] * (p["prompt"] + p["length"] / 2)]
    return [1.0, words, words * length]


def fit(points: Sequence[dict[str, Any]], phase: str) -> dict[str, Any]:
    """Coefficients (seconds each), share of the variance, and what each part takes at the largest point.

    Relative errors are made least, so that small steps count as much as large ones.
    """
    import numpy as np
    from scipy.optimize import nnls

    names = PARTS["rollout" if phase == "rollout" else "other"]
    table = np.array([columns(p, phase) for p in points])
    seconds = np.array([p["seconds"][phase] for p in points])
    weight = 1 / np.maximum(seconds, 1e-9)
    scale = (table * weight[:, None]).max(axis=0)
    found, _ = nnls(table * weight[:, None] / scale, np.ones(len(points)))
    found = found / scale
    said = table @ found
    spread = float(((seconds - seconds.mean()) ** 2).sum())
    largest = int(seconds.argmax())
    return {"seconds": dict(zip(names, map(float, found), strict=True)),
            "explained": 1 - float(((seconds - said) ** 2).sum()) / spread if spread else None,
            "share_at_largest": dict(zip(names, map(float, table[largest] * found / max(said[largest], 1e-12)),
                                         strict=True))}


def summary(points: list[dict[str, Any]]) -> dict[str, Any]:
    """Points, fits, and the plan's error."""
    total = {"plan": [sum(p["plan"]["seconds"].values()) for p in points],
             "step": [sum(p["seconds"].values()) for p in points]}
    ratios = [a / b for a, b in zip(total["plan"], total["step"], strict=True)]
    memory = [p["plan"]["peak_memory_bytes"] / p["peak_memory_bytes"] for p in points]

    def spread(values: list[float]) -> dict[str, float]:
        return {"median": statistics.median(values), "least": min(values), "largest": max(values)}

    # scoring here is the reward function: there is nothing to plan
    by_phase = {phase: spread([p["plan"]["seconds"][phase] / p["seconds"][phase] for p in points])
                for phase in PHASES if phase != "scoring"}
    return {"points": points, "fits": {p: fit(points, p) for p in PHASES if p != "scoring"},
            "plan_over_measured": {"step_seconds": spread(ratios), "peak_memory": spread(memory), **by_phase}}


def plot(found: dict[str, Any], path: Path) -> None:
    """Seconds by phase, with their fits, against the number of answers and against their length; and memory."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as pyplot
    import numpy as np

    points = found["points"]
    length = points[0]["length"]
    sides = (("answers", [p for p in points if p["length"] == length], f"answers a step, of {length} tokens"),
             ("length", sorted((p for p in points if p["answers"] == points[-1]["answers"]), key=lambda p: p["length"]),
              f"tokens an answer, {points[-1]['answers']} answers a step"))
    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4), layout="constrained")
    colours = dict(zip(("rollout", "evaluate", "update"), ("tab:blue", "tab:orange", "tab:green"), strict=True))
    for axis, (key, rows, label) in zip(axes, sides, strict=False):
        at = np.linspace(min(r[key] for r in rows), max(r[key] for r in rows), 60)
        for phase, colour in colours.items():
            made = list(found["fits"][phase]["seconds"].values())
            curve = []
            for x in at:
                p = {**rows[0], key: x}
                p["tokens"] = p["answers"] * p["length"]
                curve.append(float(np.dot(columns(p, phase), made)))
            axis.plot(at, curve, color=colour, lw=1)
            axis.plot([r[key] for r in rows], [r["seconds"][phase] for r in rows], "o", ms=4, color=colour, label=phase)
        axis.plot([r[key] for r in rows], [sum(r["seconds"].values()) for r in rows], "s", ms=4, color="black",
                  label="step")
        axis.plot([r[key] for r in rows], [sum(r["plan"]["seconds"].values()) for r in rows], "x", color="grey",
                  label="step, by the plan")
        axis.set_xlabel(label)
        axis.set_ylabel("seconds a step")
        axis.set_ylim(0)
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False, fontsize=9)
    order = sorted(points, key=lambda p: min(p["answers"], MICRO) * (p["prompt"] + p["length"]))
    across = [min(p["answers"], MICRO) * (p["prompt"] + p["length"]) for p in order]
    axes[2].plot(across, [p["peak_memory_bytes"] / 1e9 for p in order], "o-", ms=4, color="black", label="measured")
    axes[2].plot(across, [p["plan"]["peak_memory_bytes"] / 1e9 for p in order], "x", color="grey", label="by the plan")
    axes[2].set_xlabel(f"tokens of a micro-batch ({MICRO} answers at most)")
    axes[2].set_ylabel("peak memory, GB")
    axes[2].set_ylim(0)
    axes[2].legend(frameon=False, fontsize=9)
    axes[2].grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="a model folder (default: the embedded model)")
    parser.add_argument("--tune", choices=("lora", "full"), default="lora")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of the trunk")
    parser.add_argument("--threads", type=int, help="default: all cores")
    parser.add_argument("--plot", type=Path, help="draw it into this file")
    parser.add_argument("--draw", type=Path, help="measure nothing: draw these figures (--plot says where)")


def main() -> None:
    from trivet.config import EMBEDDED

    chosen = options(__doc__ or "", _add)
    if chosen.draw is not None:
        plot(json.loads(chosen.draw.read_text())["figures"], chosen.plot)
        return
    load = load_average()
    size: dict[str, Any] = POINTS["quick" if chosen.quick else "full"]
    job = {"model": chosen.model or EMBEDDED, "tune": chosen.tune, "precision": chosen.precision,
           "threads": chosen.threads, "seed": chosen.seed}
    points = [measured(job | {"answers": n, "length": size["length"]}) for n in size["answers"]]
    points += [measured(job | {"answers": size["batch"], "length": n}) for n in size["lengths"] if n != size["length"]]
    found = summary(points)
    report("step_scaling", found | {k: job[k] for k in ("tune", "precision", "threads")}, chosen, load=load)
    if chosen.plot:
        plot(found, chosen.plot)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--point"]:
        Path(sys.argv[3]).write_text(json.dumps(point(json.loads(sys.argv[2]))))
    else:
        main()
