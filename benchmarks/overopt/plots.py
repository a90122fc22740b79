"""The study's plots: Gao's curves, KL by β, and who saw it in time. From figures and run folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from overopt import curves
from overopt.gold import read_reference
from overopt.plan import BETAS, PROXIES, RunSpec
from overopt.replay import DETECTOR, KL
from overopt.world import World

GOLD, PROXY = "#b8860b", "#0072b2"
BY_BETA = ("#d55e00", "#0072b2", "#009e73")
SHOWN = 10
"""Signals beside the detector in its plot."""


def draw(world: World, specs: Sequence[RunSpec], found: dict[str, Any], folder: Path) -> None:
    """All plots, into `folder`."""
    import matplotlib

    matplotlib.use("Agg")
    reference = read_reference(world)
    grid = curves.grid_points(world, specs, reference)
    folder.mkdir(parents=True, exist_ok=True)
    _gao(grid, curves.best_of_points(world, specs, reference), found["curves"], folder / "overoptimization.png")
    _leash(grid, folder / "overoptimization_kl.png")
    if DETECTOR in found:
        _who(found, folder / "overoptimization_guard.png")


def _fitted(axis: Any, fit: dict[str, Any] | None, form: curves.Form, most: float, colour: str) -> None:
    if fit is None:
        return
    d = np.linspace(curves.LEAST, most, 100)
    axis.plot(d, form(d) @ [fit["alpha"]["value"], fit["beta"]["value"]], color=colour, lw=2)


def _gao(grid: dict[str, list[curves.Points]], best: dict[str, list[curves.Points]], fits: dict[str, Any],
         path: Path) -> None:
    """Gold and proxy against √KL: above RL at β = 0, below best of n; a column a proxy."""
    import matplotlib.pyplot as pyplot

    figure, axes = pyplot.subplots(2, len(PROXIES), figsize=(4 * len(PROXIES), 7), layout="constrained", squeeze=False)
    for column, proxy in enumerate(PROXIES):
        rows = ((grid, f"{proxy.name}-b{min(BETAS):g}", "rl", curves.rl_form, "PPO, β = 0"),
                (best, proxy.name, "best_of_n", curves.bon_form, "best of n"))
        for axis, (points, name, key, form, title) in zip(axes[:, column], rows, strict=True):
            seeds = points.get(name, [])
            for what, colour in (("proxy", PROXY), ("gold", GOLD)):
                for seed in seeds:
                    axis.plot(seed.d, getattr(seed, what), "o" if key == "rl" else "o-", ms=3, lw=0.5, alpha=0.35,
                              color=colour)
                if seeds:
                    _fitted(axis, fits[key][name][what], form, max(float(s.d.max()) for s in seeds), colour)
                axis.plot([], [], color=colour, label=what)
            axis.axhline(0, color="black", lw=0.5)
            axis.set_title(f"{title}: {proxy.prompts} prompts, {proxy.noise:.0%} of labels turned", fontsize=10)
            axis.set_xlabel("√KL to the reference (√nats)")
            axis.grid(alpha=0.3)
        axes[0, column].legend(frameon=False)
    for axis in axes[:, 0]:
        axis.set_ylabel("gain, in deviations of the reference's answers")
    _save(figure, path)


def _leash(grid: dict[str, list[curves.Points]], path: Path) -> None:
    """KL by step at each β: what a leash to the frozen reference does."""
    import matplotlib.pyplot as pyplot

    figure, axes = pyplot.subplots(1, len(PROXIES), figsize=(4 * len(PROXIES), 3.4), layout="constrained",
                                   squeeze=False)
    for axis, proxy in zip(axes[0], PROXIES, strict=True):
        for beta, colour in zip(BETAS, BY_BETA, strict=True):
            seeds = grid.get(f"{proxy.name}-b{beta:g}", [])
            for seed in seeds:
                axis.plot(seed.steps, seed.d**2, color=colour, lw=0.7, alpha=0.4)
            if seeds:
                axis.plot(seeds[0].steps, np.mean([s.d**2 for s in seeds], axis=0), color=colour, lw=2,
                          label=f"β = {beta:g}")
        axis.set_title(f"{proxy.prompts} prompts, {proxy.noise:.0%} turned", fontsize=10)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("KL to the reference (nats an answer)")
    axes[0, 0].legend(frameon=False)
    _save(figure, path)


def _who(found: dict[str, Any], path: Path) -> None:
    """Detection in time and false alarms: the detector, KL, and the best signals alone."""
    import matplotlib.pyplot as pyplot

    signals = sorted((n for n, v in found.items() if isinstance(v, dict) and "detection_rate" in v
                      and n not in (DETECTOR, KL)), key=lambda n: -(found[n]["detection_rate"]["value"] or 0.0))
    names = [DETECTOR, KL, *signals[:SHOWN]][::-1]
    figure, axis = pyplot.subplots(figsize=(8, 0.38 * len(names) + 1.2), layout="constrained")
    for key, colour, shift in (("detection_rate", PROXY, 0.12), ("false_alarm_rate", "#d55e00", -0.12)):
        rows = [found[n][key] for n in names]
        known = [(y, r) for y, r in enumerate(rows) if r["value"] is not None]
        axis.errorbar([r["value"] for _, r in known], [y + shift for y, _ in known], fmt="o", color=colour, ms=4,
                      xerr=[[r["value"] - r["low"] for _, r in known], [r["high"] - r["value"] for _, r in known]],
                      label="hacked runs seen in time" if key == "detection_rate" else "false alarms on clean runs")
    axis.axvline(found["stated_false_alarms"], color="black", lw=0.7, ls=":")
    axis.set_yticks(range(len(names)), names)
    axis.set_xlim(-0.02, 1.02)
    axis.set_xlabel("share of runs, with 95% interval")
    axis.legend(frameon=False, loc="lower right", fontsize=8)
    axis.grid(alpha=0.3, axis="x")
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    import matplotlib.pyplot as pyplot

    figure.savefig(path, dpi=110)
    pyplot.close(figure)
