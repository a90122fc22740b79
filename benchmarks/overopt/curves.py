"""Gold and proxy against √KL, with the forms that Gao et al. 2022 fitted: RL d(α − β ln d), best of n d(α − β d).

d is the square root of the KL to the reference, in nats an answer. Intervals are 95%, by bootstrap over seeds, each of
which has a proxy and runs of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from overopt.gold import Reference, read_curve, reference_rows
from overopt.plan import GRID, RunSpec, proxies_of
from overopt.runs import has_answers, run_folder
from overopt.world import World, by_head
from trivet.artifacts import json_lines
from trivet.intervals import Interval, bootstrap_mean
from trivet.judge.rewards import read_calibration

RESAMPLES = 2_000
LEAST = 0.05
"""Points nearer to the reference than this √KL are left out of fits: their d ln d is all noise."""
Form = Callable[[np.ndarray], np.ndarray]


def rl_form(d: np.ndarray) -> np.ndarray:
    """[points, 2]: what α and β are multiplied by, in RL."""
    return np.stack([d, -d * np.log(d)], axis=1)


def bon_form(d: np.ndarray) -> np.ndarray:
    """[points, 2]: the same for best of n."""
    return np.stack([d, -d * d], axis=1)


@dataclass(frozen=True)
class Points:
    """One seed's curve: √KL and the gains over the reference, each [points]."""

    d: np.ndarray
    proxy: np.ndarray
    gold: np.ndarray
    steps: np.ndarray


def rl_points(world: World, spec: RunSpec, reference: Reference) -> Points:
    """A run's evaluations, the first (the reference itself) left out."""
    rows = [row for _, row in json_lines(run_folder(world, spec) / "evaluation.jsonl")]
    curve = read_curve(world, spec.name, reference)
    start, rest = rows[0], rows[1:]
    gold = [float(curve.values[curve.evaluated & (curve.times == r["step"])].mean()) for r in rest]
    return Points(np.sqrt(np.maximum([r["kl"] for r in rest], 0.0)),
                  np.array([r["reward"] - start["reward"] for r in rest]), np.array(gold),
                  np.array([r["step"] for r in rest]))


def bon_kl(n: int) -> float:
    """KL of the best of n to the reference, nats (Stiennon et al. 2020, appendix G.3; exact without ties)."""
    return math.log(n) - (n - 1) / n


def best_of_n(proxy: np.ndarray, gold: np.ndarray, n: int) -> tuple[float, float]:
    """(proxy, gold) expected of the answer that `proxy` likes best among n of the N that are given.

    The unbiased estimator over all subsets (Nakano et al. 2021, appendix I; Gao et al. 2022): the i-th answer from
    below is the best of n with probability C(i − 1, n − 1) / C(N, n).
    """
    order = np.argsort(proxy, kind="stable")
    total = math.comb(len(order), n)
    weight = np.array([math.comb(i, n - 1) / total for i in range(len(order))])
    return float(weight @ proxy[order]), float(weight @ gold[order])


def bon_points(world: World, folder: Any, states: np.ndarray, reference: Reference) -> Points:
    """A proxy's best of n = 1, 2, 4 … over the reference's pool."""
    found = read_calibration(folder)
    assert found is not None
    calibration = found[0]
    scores = (by_head(folder, states) - calibration.mean) / calibration.std
    pools: list[tuple[np.ndarray, np.ndarray]] = []
    at = 0
    for row in reference_rows(world):
        count = len(row.completions)
        gold = (np.array(reference.pools[row.id]) - reference.means[row.id]) / reference.deviation
        pools.append((scores[at : at + count], gold))
        at += count
    most = min(len(p) for p, _ in pools)
    counts = [2**k for k in range(1, most.bit_length()) if 2**k <= most]
    start = np.array([np.mean([p.mean() for p, _ in pools]), 0.0])
    means = np.array([np.mean([best_of_n(p, g, n) for p, g in pools], axis=0) - start for n in counts])
    return Points(np.sqrt([bon_kl(n) for n in counts]), means[:, 0], means[:, 1], np.array(counts))


def fit(seeds: Sequence[Points], form: Form, what: str, seed: int = 0) -> dict[str, Any] | None:
    """α and β by least squares over all seeds' points, with intervals; None where there are too few points."""
    parts = []
    for points in seeds:
        kept = points.d > LEAST
        x, y = form(points.d[kept]), getattr(points, what)[kept]
        parts.append((x.T @ x, x.T @ y))
    squares, products = np.array([a for a, _ in parts]), np.array([b for _, b in parts])
    if not parts or np.linalg.matrix_rank(squares.sum(0)) < 2:
        return None
    value = np.linalg.solve(squares.sum(0), products.sum(0))
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(parts), np.full(len(parts), 1 / len(parts)), size=RESAMPLES).astype(float)
    a, b = np.einsum("rs,sij->rij", counts, squares), np.einsum("rs,si->ri", counts, products)
    sound = np.abs(np.linalg.det(a)) > 1e-12
    drawn = np.linalg.solve(a[sound], b[sound][..., None])[..., 0]
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0) if len(parts) > 1 else np.full((2, 2), np.nan)
    return {name: Interval(float(value[k]), float(low[k]), float(high[k]), len(parts)).as_dict()
            for k, name in enumerate(("alpha", "beta"))}


def grid_points(world: World, specs: Sequence[RunSpec], reference: Reference) -> dict[str, list[Points]]:
    """The evaluation runs of Gao's grid, by condition."""
    names = [c.name for c in GRID]
    found: dict[str, list[Points]] = {}
    for name in names:
        seeds = [rl_points(world, s, reference) for s in specs if s.split == "evaluation" and s.condition.name == name
                 and has_answers(world, s)]
        if seeds:
            found[name] = seeds
    return found


def best_of_points(world: World, specs: Sequence[RunSpec], reference: Reference) -> dict[str, list[Points]]:
    """Best of n for the proxies of the evaluation runs, by recipe."""
    states = np.load(world.path("features", "reference.npy"))
    found: dict[str, list[Points]] = {}
    for proxy, seed in proxies_of([s for s in specs if s.split == "evaluation"]):
        found.setdefault(proxy.name, []).append(bon_points(world, world.proxy(proxy, seed), states, reference))
    return found


def figures(grid: dict[str, list[Points]], best: dict[str, list[Points]]) -> dict[str, Any]:
    """Fits, and where each curve ended."""
    found: dict[str, Any] = {"rl": {}, "best_of_n": {}}
    for key, curves, form in (("rl", grid, rl_form), ("best_of_n", best, bon_form)):
        for name, seeds in curves.items():
            numbers = np.arange(len(seeds))
            found[key][name] = {
                "seeds": len(seeds), "gold": fit(seeds, form, "gold"), "proxy": fit(seeds, form, "proxy"),
                "final_kl": bootstrap_mean([s.d[-1] ** 2 for s in seeds], numbers).as_dict(),
                "final_proxy": bootstrap_mean([s.proxy[-1] for s in seeds], numbers).as_dict(),
                "final_gold": bootstrap_mean([s.gold[-1] for s in seeds], numbers).as_dict()}
    return found
