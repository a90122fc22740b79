"""The learning curves of PPO's two critics: a head on the policy's pass, and weights of its own.

On the embedded model, from a critic that knows nothing (the reward is a rule). How the two are compared, and what
`matches` means, stands in curves.py. Beside it what each costs: seconds of a step's evaluation and update, and how much
of the returns' variance each explains at the end.

    python benchmarks/critics.py [--quick] [--json FILE] [--plot FILE]
    --model FOLDER, --seeds N, --steps N

--quick: a tiny random model, to see that it works.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

import curves
from common import load_average, options, report

SIDES = {"head": "a head on the policy's pass", "separate": "weights of its own"}
LAST = 3
"""Steps at the end of a run over which a critic is judged."""


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


def main() -> None:
    """Run, compare, report."""
    load, chosen = load_average(), options(__doc__ or "", partial(curves.own_options, steps=8))
    with curves.prepared(chosen) as folder:
        runs = curves.turn_about(chosen, folder, {side: {"critic": side} for side in SIDES})
    found = figures(runs)
    if chosen.plot:
        curves.plot(found, SIDES, "PPO's two critics", chosen.plot)
    report("critics", found, chosen, load=load)


if __name__ == "__main__":
    main()
