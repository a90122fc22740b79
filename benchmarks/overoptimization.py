"""Reward overoptimisation on our scale, and whether the guard sees it in time (Gao et al. 2022).

Gold, a reward model that stands for people's judgement, labels answers; proxies learn from few or noisy ones of these
labels; policies are trained on proxies, some with a planted fault, some leashed. Afterwards gold says which runs were
hacked, and the guard, each of its signals alone and a plain KL threshold are judged by that. docs/overoptimization.md
has the method, the rules that were fixed beforehand, and the last results.

    python benchmarks/overoptimization.py --data ../shared/data [--quick] [--json FILE] [--images DIR]
        [--only world runs gold analyse] [--folder DIR] [--workers N] [--limit N] [--scale gpu]
        [--write-calibration FILE]

Everything is made in one folder, run by run: the same command goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from common import load_average, options, report

PARTS = ("world", "runs", "gold", "analyse")


def own_options(parser: argparse.ArgumentParser) -> None:
    """What this benchmark has beside the others' options."""
    parser.add_argument("--folder", type=Path, default=Path("runs/overoptimization"), help="where everything is kept")
    parser.add_argument("--data", type=Path, help="the folder of data sets: people's judgements for gold")
    parser.add_argument("--model", help="in place of the scale's own model (the embedded one)")
    parser.add_argument("--scale", choices=("cpu", "gpu"), default="cpu", help="counts that suit a CPU, or a GPU")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS), help="these parts alone")
    parser.add_argument("--workers", type=int, help="processes that make runs (default: one a core; one on a GPU)")
    parser.add_argument("--limit", type=int, help="the first N runs of the plan alone")
    parser.add_argument("--images", type=Path, help="draw the plots into this folder")
    parser.add_argument("--write-calibration", type=Path, metavar="FILE",
                        help="the guard's calibration from the tuning runs (shipped: src/trivet/guard/defaults.json)")
    parser.add_argument("--worker", choices=("runs", "gold"), help=argparse.SUPPRESS)
    parser.add_argument("--core", type=int, help=argparse.SUPPRESS)


def study_of(chosen: argparse.Namespace) -> tuple[Any, list[Any]]:
    """The world and the plan that the options ask for."""
    from dataclasses import replace

    from overopt.plan import plan
    from overopt.scale import SCALES
    from overopt.world import World

    scale = SCALES["quick" if chosen.quick else chosen.scale]
    if chosen.model:
        scale = replace(scale, model=chosen.model)
    world = World(chosen.folder.resolve(), scale, chosen.seed)
    return world, plan(scale, chosen.seed)[: chosen.limit]


def work(chosen: argparse.Namespace) -> None:
    """The life of a worker process."""
    from overopt import runs

    runs.pin(chosen.core)
    world, specs = study_of(chosen)
    if chosen.worker == "runs":
        runs.work_off(world, specs, partial(runs.is_made, world), partial(runs.make, world))
    else:
        from overopt import gold
        from overopt.world import scorer

        device = world.device if chosen.core is None else world.device.model_copy(update={"threads": 1})
        score = scorer(world.gold, device)
        with runs.claimed(world, "gold-reference") as mine:
            if mine and not gold.gold_file(world, "reference").exists():
                gold.score_reference(world, score)
        runs.work_off(world, [s for s in specs if runs.has_answers(world, s)],
                      lambda s: gold.gold_file(world, s.name).exists(), partial(gold.score_run, world, score=score))


def main() -> None:
    """All parts in order, each of what is missing."""
    chosen = options(__doc__ or "", own_options)
    if chosen.worker:
        work(chosen)
        return
    load = load_average()
    from overopt import gold, runs
    from overopt.plan import proxies_of

    world, specs = study_of(chosen)
    runs.keep_plan(world)
    # a worker is this very command
    again = [sys.argv[0], *sys.argv[1:]]
    count = chosen.workers or (1 if world.scale.device != "cpu" else len(runs.cores()))
    if "world" in chosen.only:
        from overopt.world import build

        build(world, proxies_of(specs), chosen.data)
    if "runs" in chosen.only:
        runs.workers([*again, "--worker", "runs"], world, count, "runs",
                     lambda: sum(not runs.is_made(world, s) for s in specs))
    if "gold" in chosen.only:
        runs.workers([*again, "--worker", "gold"], world, count, "gold", lambda: (
            not gold.gold_file(world, "reference").exists()) + sum(
            runs.has_answers(world, s) and not gold.gold_file(world, s.name).exists() for s in specs))
    if "analyse" in chosen.only:
        from overopt.analyse import figures

        found = figures(world, specs)
        if chosen.write_calibration:
            from overopt.analyse import write_calibration

            write_calibration(world, specs, chosen.write_calibration)
        if chosen.images:
            from overopt.plots import draw

            draw(world, specs, found, chosen.images)
        report("overoptimization", found, chosen, load=load)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
