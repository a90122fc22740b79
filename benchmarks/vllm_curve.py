"""The learning curve of PPO whose rollouts a vLLM server draws, beside that of PPO which draws them itself.

Runs of the same settings with several seeds a side, on the embedded model; the reward is a rule (short words), and
what is compared is its mean over held-out prompts after every step, answered in this process on both sides. Judged
like this, and settled before looking: the largest studentised distance of the two mean curves over the steps is
compared with that under every way of dealing the runs to two sides (a permutation test). `matches` is p > 0.1. With
four seeds a side the smallest possible p is 2/70, so that the test can fail. How large a difference it would have found
is told beside it: `gain_difference`, the difference of the sides' gains, with its 95% interval (Welch).

    python benchmarks/vllm_curve.py [--quick] [--json FILE] [--plot FILE]
    --url URL           a running server of the same model, started as docs/guides/vllm.md says (default: started here)
    --peer-env FOLDER   an environment that has vLLM (default: made, .venv-vllm)
    --model FOLDER, --seeds N, --steps N

--quick: a tiny random model and a stand-in for the server, to see that it works.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from common import load_average, options, report
from peers import environment
from trivet.config import EMBEDDED
from trivet.models.source import resolve
from trivet.policy.config import PPOConfig
from trivet.stages import STAGES, run_stage
from vllm_server import FOR_ROLLOUTS, vllm_server

SIDES = {"torch": "in this process", "vllm": "by vLLM"}
TOPICS = ("a walk by the sea", "a small dog", "rain", "an old friend", "bread", "the moon", "a train", "a garden",
          "snow", "a red door", "music", "the colour green", "a market", "sleep", "a river", "tea", "a clock",
          "the wind", "a lost key", "a good day", "a long road", "fire", "a bird", "salt")
FORMS = ("Tell me about {}.", "Write a line on {}.", "What would you say of {}?")


def short_words(samples: Any) -> list[float]:
    """The reward: 5 minus the mean length of the words; 0 for no words. A policy raises it in a few steps."""
    return [5 - statistics.fmean(map(len, words)) if (words := s.completion.split()) else 0.0 for s in samples]


def one(side: str, seed: int, url: str, chosen: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One run: held-out rewards after each step, and what its metrics say of the mismatch."""
    out = folder / f"{side}-{seed}"
    settings: dict[str, Any] = {
        "prompts": folder / "prompts.jsonl", "model": chosen.model, "out": out, "reward": ["vllm_curve:short_words"],
        "generate": side, "seed": seed, "check": False, "normalise": False, "rollout": 16, "answers": 2,
        "prompt_baseline": True, "sampling": {"max_new_tokens": chosen.tokens}, "optimizer": {
            "lr": 1e-3, "schedule": "constant", "warmup": 0.0}, "kl": {"coef": 0.02}, "missing_end_penalty": 0.0,
        "lora": {"r": 8, "last_layers": chosen.layers}, "stop": {"steps": chosen.steps},
        "evaluation": {"share": 0.25, "every": 1, "samples": 2, "during": 2}, "checkpoint": {"every": 100}}
    began = time.monotonic()
    with contextlib.redirect_stdout(sys.stderr):
        run_stage(STAGES["ppo"], PPOConfig(**settings | ({"url": url} if side == "vllm" else {})))
    rows = {name: [json.loads(x) for x in (out / f"{name}.jsonl").read_text().splitlines()]
            for name in ("evaluation", "metrics", "timing")}
    return {"rewards": [r["reward"] for r in rows["evaluation"]], "metrics": rows["metrics"],
            "rollout": sum(r["rollout"] for r in rows["timing"]), "seconds": time.monotonic() - began}


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Largest |difference of means| over the steps in standard errors; [runs, steps] each. Step 0 is left out: nothing
    has been learnt there, and it is the same for equal seeds."""
    a, b = one[:, 1:], other[:, 1:]
    error = np.sqrt(a.var(0, ddof=1) / len(a) + b.var(0, ddof=1) / len(b))
    return float((np.abs(a.mean(0) - b.mean(0)) / np.maximum(error, 1e-9)).max())


def permutation(one: np.ndarray, other: np.ndarray) -> float:
    """p of their distance under all ways of dealing the runs to two sides of these sizes."""
    whole, seen = np.concatenate([one, other]), distance(one, other)
    found = []
    for left in itertools.combinations(range(len(whole)), len(one)):
        right = [i for i in range(len(whole)) if i not in left]
        found.append(distance(whole[list(left)], whole[right]) >= seen - 1e-9)
    return float(np.mean(found))


def interval(values: np.ndarray) -> dict[str, float]:
    """Mean with its 95% interval by Student's t, over runs."""
    half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5)
    mean = float(values.mean())
    return {"value": round(mean, 4), "low": round(mean - half, 4), "high": round(mean + half, 4), "n": len(values)}


def figures(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """What is reported: curves with intervals, the test, the gains, the mismatch."""
    curves = {side: np.array([r["rewards"] for r in found]) for side, found in runs.items()}
    gains = {side: c[:, -1] - c[:, 0] for side, c in curves.items()}
    welch = stats.ttest_ind(gains["vllm"], gains["torch"], equal_var=False)
    bounds = welch.confidence_interval(0.95)
    p = permutation(curves["vllm"], curves["torch"])
    metrics = [m for r in runs["vllm"] for m in r["metrics"]]
    return {
        "matches": p > 0.1, "p": round(p, 4),
        "gain_difference": {"value": round(float(gains["vllm"].mean() - gains["torch"].mean()), 4),
                            "low": round(float(bounds.low), 4), "high": round(float(bounds.high), 4),
                            "n": len(gains["vllm"])},
        **{f"gain_{side}": interval(g) for side, g in gains.items()},
        **{f"curve_{side}": [interval(c[:, step]) for step in range(c.shape[1])] for side, c in curves.items()},
        **{f"runs_{side}": [[round(float(v), 4) for v in row] for row in c] for side, c in curves.items()},
        "mismatch_kl": round(statistics.fmean(m["mismatch_kl"] for m in metrics), 5),
        "mismatch": round(statistics.fmean(m["mismatch"] for m in metrics), 5),
        "importance_weight": round(statistics.fmean(m["importance_weight"] for m in metrics), 4),
        "staleness": max(m["staleness"] for m in metrics),
        **{f"rollout_seconds_{side}": round(statistics.fmean(r["rollout"] for r in found), 2)
           for side, found in runs.items()},
    }


def plot(found: dict[str, Any], path: Path) -> None:
    """Both mean curves with their intervals, and every run behind them."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as pyplot

    figure, axis = pyplot.subplots(figsize=(6.4, 4), layout="constrained")
    for side, colour in (("torch", "#1f5fa8"), ("vllm", "#c65d00")):
        rows, steps = found[f"curve_{side}"], range(len(found[f"curve_{side}"]))
        axis.plot(steps, [r["value"] for r in rows], color=colour, marker="o", ms=4, label=f"rollouts {SIDES[side]}")
        axis.fill_between(steps, [r["low"] for r in rows], [r["high"] for r in rows], color=colour, alpha=0.15, lw=0)
        for run in found[f"runs_{side}"]:
            axis.plot(steps, run, color=colour, lw=0.7, alpha=0.4)
    axis.set(xlabel="PPO steps", ylabel="held-out reward",
             title=f"PPO with rollouts in this process and by vLLM: permutation p = {found['p']:.2f}")
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


@contextlib.contextmanager
def server(chosen: argparse.Namespace, folder: Path) -> Iterator[str]:
    """The address of the server: given, a stand-in, or vLLM started here."""
    if chosen.url:
        yield chosen.url
    elif chosen.quick:
        from vllm_stand_in import StandIn

        with StandIn(Path(chosen.model)) as stand_in:
            yield stand_in.url
    else:
        with vllm_server(environment("vllm", chosen.peer_env), resolve(chosen.model).folder, folder / "vllm.log",
                         *FOR_ROLLOUTS) as own:
            yield own.url


def add(parser: argparse.ArgumentParser) -> None:
    """Its own options."""
    parser.add_argument("--model", help=f"a model's folder (default: {EMBEDDED}; --quick: a tiny random one)")
    parser.add_argument("--url", help="a running vLLM server of this model")
    parser.add_argument("--peer-env", type=Path, help="an environment that has vLLM (default: made here)")
    parser.add_argument("--seeds", type=int, default=4, help="runs a side")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--plot", type=Path, help="draw the curves into this file")


def main() -> None:
    """Both sides turn about, so that what changes on the machine meets both."""
    load, chosen = load_average(), options(__doc__ or "", add)
    chosen.tokens, chosen.layers = 24, 10
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if chosen.quick:
            from conftest import build_tiny

            chosen.seeds, chosen.steps, chosen.tokens, chosen.layers = 2, 2, 6, 1
            chosen.model = chosen.model or str(build_tiny(folder / "tiny"))
        chosen.model = chosen.model or EMBEDDED
        (folder / "prompts.jsonl").write_text("".join(
            json.dumps({"id": f"p{i}", "prompt": form.format(topic)}) + "\n"
            for i, (topic, form) in enumerate(itertools.product(TOPICS, FORMS))))
        runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
        with server(chosen, folder) as url:
            for seed in range(chosen.seed, chosen.seed + chosen.seeds):
                for side in SIDES:
                    runs[side].append(one(side, seed, url, chosen, folder))
                    print(f"{side}, seed {seed}: {runs[side][-1]['seconds']:.0f} s, "
                          f"{[round(r, 2) for r in runs[side][-1]['rewards']]}", file=sys.stderr, flush=True)
    found = figures(runs)
    if chosen.plot:
        plot(found, chosen.plot)
    report("vllm_curve", found, chosen, load=load)


if __name__ == "__main__":
    main()
