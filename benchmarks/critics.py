"""The learning curves of PPO's two critics: a head on the policy's pass, and weights of its own.

On the embedded model, from a critic that knows nothing (the reward is a rule). How the two are compared, and what
`matches` means, stands in curves.py. Beside it what each costs: seconds of a step's evaluation and update, and how much
of the returns' variance each explains at the end.

    python benchmarks/critics.py [--quick] [--json FILE] [--plot FILE]
    --model FOLDER, --seeds N, --steps N

--quick: a tiny random model, to see that it works.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import curves
from common import load_average, options, report
from trivet.config import EMBEDDED

SIDES = {"head": "a head on the policy's pass", "separate": "weights of its own"}
LAST = 3
"""Steps at the end of a run over which a critic is judged."""


def one(side: str, seed: int, chosen: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One run."""
    settings = {"prompts": folder / "prompts.jsonl", "model": chosen.model, "critic": side, "seed": seed}
    return curves.learn(folder / f"{side}-{seed}", settings, tokens=chosen.tokens, layers=chosen.layers,
                        steps=chosen.steps)


def figures(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """What is reported: curves with intervals, the test, the gains, what each explains and costs."""
    def explained(run: dict[str, Any]) -> float:
        return float(np.mean([m["value_explained"] for m in run["metrics"][-LAST:]]))

    def learning(run: dict[str, Any]) -> float:
        return float(run["timing"]["evaluate"] + run["timing"]["update"]) / len(run["metrics"])

    return curves.compare(runs) | {
        **{f"explained_{side}": curves.interval(np.array([explained(r) for r in found]))
           for side, found in runs.items()},
        **{f"seconds_{side}": curves.interval(np.array([learning(r) for r in found])) for side, found in runs.items()}}


def add(parser: argparse.ArgumentParser) -> None:
    """Its own options."""
    parser.add_argument("--model", help=f"a model's folder (default: {EMBEDDED}; --quick: a tiny random one)")
    parser.add_argument("--seeds", type=int, default=4, help="runs a side")
    parser.add_argument("--steps", type=int, default=8)
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
        curves.write_prompts(folder / "prompts.jsonl")
        runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
        for seed in range(chosen.seed, chosen.seed + chosen.seeds):
            for side in SIDES:
                runs[side].append(one(side, seed, chosen, folder))
                print(f"{side}, seed {seed}: {runs[side][-1]['seconds']:.0f} s, "
                      f"{[round(r, 2) for r in runs[side][-1]['rewards']]}", file=sys.stderr, flush=True)
    found = figures(runs)
    if chosen.plot:
        curves.plot(found, SIDES, "PPO's two critics", chosen.plot)
    report("critics", found, chosen, load=load)


if __name__ == "__main__":
    main()
