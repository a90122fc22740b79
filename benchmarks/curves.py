"""Learning curves of two ways to run PPO, beside each other: the runs, the test, the plot.

Runs of the same settings with several seeds a side; the reward is a rule (short words), and what is compared is its
mean over held-out prompts after every step. Judged like this, and settled before looking: the largest studentised
distance of the two mean curves over the steps is compared with that under every way of dealing the runs to two sides
(a permutation test). `matches` is p > 0.1. With four seeds a side the smallest possible p is 2/70, so that the test can
fail. How large a difference it would have found is told beside it: `gain_difference`, the difference of the sides'
gains, with its 95% interval (Welch).
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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from trivet.config import EMBEDDED
from trivet.policy.config import PPOConfig
from trivet.stages import STAGES, run_stage

TOPICS = ("a walk by the sea", "a small dog", "rain", "an old friend", "bread", "the moon", "a train", "a garden",
          "snow", "a red door", "music", "the colour green", "a market", "sleep", "a river", "tea", "a clock",
          "the wind", "a lost key", "a good day", "a long road", "fire", "a bird", "salt")
FORMS = ("Tell me about {}.", "Write a line on {}.", "What would you say of {}?")
COLOURS = ("#1f5fa8", "#c65d00")

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))


def own_options(parser: argparse.ArgumentParser, *, steps: int) -> None:
    """The options of such a comparison. steps: of a run, by default."""
    parser.add_argument("--model", help=f"a model's folder (default: {EMBEDDED}; --quick: a tiny random one)")
    parser.add_argument("--seeds", type=int, default=4, help="runs a side")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--plot", type=Path, help="draw the curves into this file")


@contextlib.contextmanager
def prepared(chosen: argparse.Namespace) -> Iterator[Path]:
    """A folder for the runs, with their prompts; `chosen` gets the model and the sizes, small ones for --quick."""
    chosen.tokens, chosen.layers = 24, 10
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if chosen.quick:
            from conftest import build_tiny

            chosen.seeds, chosen.steps, chosen.tokens, chosen.layers = 2, 2, 6, 1
            chosen.model = chosen.model or str(build_tiny(folder / "tiny"))
        chosen.model = chosen.model or EMBEDDED
        write_prompts(folder / "prompts.jsonl")
        yield folder


def turn_about(chosen: argparse.Namespace, folder: Path,
               sides: Mapping[str, Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The runs of both sides, seed by seed, turn about, so that what changes on the machine meets both.

    folder: of `prepared`. sides: the settings in which they differ, by name.
    """
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for seed in range(chosen.seed, chosen.seed + chosen.seeds):
        for side, settings in sides.items():
            shared = {"prompts": folder / "prompts.jsonl", "model": chosen.model, "seed": seed}
            found = learn(folder / f"{side}-{seed}", shared | dict(settings), tokens=chosen.tokens,
                          layers=chosen.layers, steps=chosen.steps)
            runs[side].append(found)
            print(f"{side}, seed {seed}: {found['seconds']:.0f} s, {[round(r, 2) for r in found['rewards']]}",
                  file=sys.stderr, flush=True)
    return runs


def short_words(samples: Any) -> list[float]:
    """The reward: 5 minus the mean length of the words; 0 for no words. A policy raises it in a few steps."""
    return [5 - statistics.fmean(map(len, words)) if (words := s.completion.split()) else 0.0 for s in samples]


def write_prompts(path: Path) -> Path:
    """Prompts of our own."""
    path.write_text("".join(json.dumps({"id": f"p{i}", "prompt": form.format(topic)}) + "\n"
                            for i, (topic, form) in enumerate(itertools.product(TOPICS, FORMS))))
    return path


def learn(out: Path, settings: Mapping[str, Any], *, tokens: int, layers: int, steps: int) -> dict[str, Any]:
    """One run with these settings over the shared ones: held-out rewards after each step, its metrics and seconds.

    tokens: of an answer at most; layers: how many blocks, the last ones, have adapters.
    """
    shared: dict[str, Any] = {
        "out": out, "reward": ["curves:short_words"], "check": False, "normalise": False, "rollout": 16,
        "sampling": {"max_new_tokens": tokens}, "optimizer": {"lr": 1e-3, "schedule": "constant", "warmup": 0.0},
        "kl": {"coef": 0.02}, "missing_end_penalty": 0.0, "lora": {"r": 8, "last_layers": layers},
        "stop": {"steps": steps}, "evaluation": {"share": 0.25, "every": 1, "samples": 2, "during": 2},
        "checkpoint": {"every": 100}}
    began = time.monotonic()
    with contextlib.redirect_stdout(sys.stderr):
        run_stage(STAGES["ppo"], PPOConfig(**shared | settings))
    rows = {name: [json.loads(x) for x in (out / f"{name}.jsonl").read_text().splitlines()]
            for name in ("evaluation", "metrics", "timing")}
    timing = {phase: sum(r[phase] for r in rows["timing"]) for phase in rows["timing"][0] if phase not in
              ("step", "tokens")}
    return {"rewards": [r["reward"] for r in rows["evaluation"]], "metrics": rows["metrics"], "timing": timing,
            "seconds": time.monotonic() - began}


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


def compare(runs: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Curves and gains of two sides with intervals, and the test of the second against the first."""
    curves = {side: np.array([r["rewards"] for r in found]) for side, found in runs.items()}
    gains = {side: c[:, -1] - c[:, 0] for side, c in curves.items()}
    first, second = curves
    bounds = stats.ttest_ind(gains[second], gains[first], equal_var=False).confidence_interval(0.95)
    p = permutation(curves[second], curves[first])
    return {
        "matches": p > 0.1, "p": round(p, 4),
        "gain_difference": {"value": round(float(gains[second].mean() - gains[first].mean()), 4),
                            "low": round(float(bounds.low), 4), "high": round(float(bounds.high), 4),
                            "n": len(gains[second])},
        **{f"gain_{side}": interval(g) for side, g in gains.items()},
        **{f"curve_{side}": [interval(c[:, step]) for step in range(c.shape[1])] for side, c in curves.items()},
        **{f"runs_{side}": [[round(float(v), 4) for v in row] for row in c] for side, c in curves.items()},
    }


def plot(found: Mapping[str, Any], labels: Mapping[str, str], title: str, path: Path) -> None:
    """Both mean curves with their intervals, and every run behind them. labels: of the sides, by their names."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as pyplot

    figure, axis = pyplot.subplots(figsize=(6.4, 4), layout="constrained")
    for (side, label), colour in zip(labels.items(), COLOURS, strict=True):
        rows, steps = found[f"curve_{side}"], range(len(found[f"curve_{side}"]))
        axis.plot(steps, [r["value"] for r in rows], color=colour, marker="o", ms=4, label=label)
        axis.fill_between(steps, [r["low"] for r in rows], [r["high"] for r in rows], color=colour, alpha=0.15, lw=0)
        for run in found[f"runs_{side}"]:
            axis.plot(steps, run, color=colour, lw=0.7, alpha=0.4)
    axis.set(xlabel="PPO steps", ylabel="reward on held-out prompts",
             title=f"{title}: permutation p = {found['p']:.2f}")
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
