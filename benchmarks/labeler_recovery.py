"""How well each method of aggregation recovers what was planted: who is reliable, and which answer is better.

Simulated labelers (tests/simulated.py), 3 to 30 of them, their accuracies spread evenly from 0.55 to 0.95; 100
items of 4 answers with ties and F, each judged by 3 labelers. For each number of labelers and method, over seeds:

    order         share of all pairs of answers that the aggregate orders as their true quality does (even: ½)
    reliability   Pearson's correlation of the estimated reliabilities with the planted accuracies
    log_loss      of the pairs' soft labels against the truth, in nats (a tie's probability goes to both halves,
                  labels clipped to [0.01, 0.99]): whether the probabilities can be believed

Beside the methods stands the mean labeler alone. Intervals are 95%, by bootstrap over seeds.

    python benchmarks/labeler_recovery.py [--quick] [--json FILE] [--plot FILE]
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import numpy as np

from common import load_average, options, report
from simulated import simulate
from trivet.artifacts import Ranking
from trivet.feedback.aggregation import METHODS, Aggregated, aggregate
from trivet.intervals import bootstrap_mean

LABELERS = (3, 5, 8, 12, 20, 30)
ITEMS, OVERLAP, SEEDS = 100, 3, 12
COLOURS = {"votes": "#888888", "majority": "#bbbbbb", "dawid-skene": "#d55e00", "mace": "#e69f00",
           "bradley-terry": "#0072b2", "davidson": "#56b4e9", "plackett-luce": "#009e73"}


def planted(count: int) -> list[float]:
    """Accuracies on pairs, from 0.55 to 0.95."""
    return np.linspace(0.95, 0.55, count).round(4).tolist()


def gap(truth: dict[str, np.ndarray], prompt: str, first: str, second: str) -> float:
    """How much better the first answer is in truth."""
    quality = truth[prompt]
    return float(quality[int(first.split("/")[1])] - quality[int(second.split("/")[1])])


def measure(found: Aggregated, truth: dict[str, np.ndarray], accuracies: list[float]) -> dict[str, float]:
    """The three figures of one aggregate."""
    right, loss, compared = [], [], 0
    for pair in found.pairs:
        better = gap(truth, pair.prompt_id, pair.first, pair.second) > 0
        lead = round(pair.first_better - pair.second_better, 9) * (1 if better else -1)
        right.append(0.5 + 0.5 * float(np.sign(lead)))
        label = (pair.first_better if better else pair.second_better) + pair.tie / 2
        loss.append(-math.log(min(max(label, 0.01), 0.99)))
        compared += 1
    # pairs to which everybody gave two F's are compared by nobody: even
    everything = sum(len(q) * (len(q) - 1) // 2 for q in truth.values())
    estimates = [found.reliability[f"labeler {k:02}"] for k in range(len(accuracies))]
    return {"order": (sum(right) + 0.5 * (everything - compared)) / everything,
            "log_loss": (sum(loss) + math.log(2) * (everything - compared)) / everything,
            "reliability": float(np.corrcoef(accuracies, estimates)[0, 1])}


def one_labeler(rankings: list[Ranking], truth: dict[str, np.ndarray]) -> float:
    """`order` of single rankings: what an item costs when nobody else looks at it."""
    scores = []
    for ranking in rankings:
        ranks = [99 if r is None else r for r in ranking.ranks]
        ids = [c.id for c in ranking.completions]
        scores += [0.5 + 0.5 * float(np.sign((ranks[j] - ranks[i]) * gap(truth, ranking.id, ids[i], ids[j])))
                   for i in range(len(ids)) for j in range(i)]
    return float(np.mean(scores))


def figures(counts: tuple[int, ...], seeds: int, first_seed: int) -> dict[str, Any]:
    """{method: {number of labelers: {figure: interval}}}."""
    found: dict[str, dict[str, dict[str, Any]]] = {m: {} for m in (*METHODS, "one labeler")}
    for count in counts:
        rows: dict[str, list[dict[str, float]]] = {m: [] for m in METHODS}
        alone = []
        for seed in range(first_seed, first_seed + seeds):
            rankings, truth = simulate(planted(count), ITEMS, OVERLAP, seed=1000 * count + seed)
            alone.append(one_labeler(rankings, truth))
            for method in METHODS:
                rows[method].append(measure(aggregate(rankings, method, seed=seed), truth, planted(count)))
        numbers = np.arange(seeds)
        found["one labeler"][str(count)] = {"order": bootstrap_mean(alone, numbers).as_dict()}
        for method in METHODS:
            found[method][str(count)] = {key: bootstrap_mean([r[key] for r in rows[method]], numbers).as_dict()
                                         for key in rows[method][0]}
        print(count, "labelers:", {m: round(found[m][str(count)]["order"]["value"], 3) for m in found}, flush=True)
    return found


def plot(found: dict[str, Any], path: Path) -> None:
    """The three figures against the number of labelers."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as pyplot

    titles = {"reliability": "reliability recovered\n(correlation with the planted)",
              "order": "true order recovered\n(share of pairs)", "log_loss": "log-loss of the soft labels\n(nats)"}
    figure, axes = pyplot.subplots(1, 3, figsize=(12, 4), layout="constrained")
    for axis, (key, title) in zip(axes, titles.items(), strict=True):
        for method, by_count in found.items():
            counts = [int(c) for c in by_count if key in by_count[c]]
            if not counts:
                continue
            rows = [by_count[str(c)][key] for c in counts]
            style = {"color": COLOURS.get(method, "black"), "ls": "-" if method in COLOURS else ":"}
            axis.plot(counts, [r["value"] for r in rows], marker="o", ms=3, label=method, **style)
            axis.fill_between(counts, [r["low"] for r in rows], [r["high"] for r in rows], alpha=0.12, lw=0,
                              color=style["color"])
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("labelers")
        axis.set_xticks(LABELERS)
        axis.grid(alpha=0.3)
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside right center", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    draw = None
    if "--plot" in sys.argv:
        place = sys.argv.index("--plot")
        draw = Path(sys.argv[place + 1])
        del sys.argv[place : place + 2]
    load = load_average()
    chosen = options(__doc__.splitlines()[0])
    counts, seeds = ((3, 30), 2) if chosen.quick else (LABELERS, SEEDS)
    found = figures(counts, seeds, chosen.seed)
    report("labeler_recovery", {
        "items": ITEMS, "overlap": OVERLAP, "answers": 4, "seeds": seeds, "accuracies": [0.55, 0.95], **found},
        chosen, load=load)
    if draw is not None:
        plot(found, draw)


if __name__ == "__main__":
    main()
