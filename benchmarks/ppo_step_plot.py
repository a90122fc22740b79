"""The picture of ppo_step.py: a step of each side as bars stacked by phase, TRL's beside Trivet's.

    python benchmarks/ppo_step_plot.py benchmarks/results/ppo_step.json docs/images/ppo_step.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

SIDES = {"trl": "TRL 1.12.0", "same_work": "Trivet,\nsame work", "default": "Trivet,\ndefault",
         "default_critic_separate": "Trivet, default,\ncritic apart"}
PHASES = {"rollout": "#4477aa", "evaluate": "#66ccee", "scoring": "#ccbb44", "update": "#ee6677", "other": "#bbbbbb"}
TITLES = {"equal_lengths": "equal lengths", "real_lengths": "real lengths"}


def plot(figures: dict[str, Any], path: Path) -> None:
    """Median seconds by phase, from the figures of ppo_step.json; above each bar its seconds and TRL's over them."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as pyplot

    workloads = [w for w in TITLES if w in figures["phases"]]
    drawn, axes = pyplot.subplots(1, len(workloads), figsize=(5.5 * len(workloads), 4.2), layout="constrained",
                                  squeeze=False)
    for axis, workload in zip(axes[0], workloads, strict=True):
        phases, facts = figures["phases"][workload], figures[workload]
        sides = [s for s in SIDES if s in phases]
        for place, side in enumerate(sides):
            height = 0.0
            for phase, colour in PHASES.items():
                seconds = phases[side][phase]["seconds"]
                axis.bar(place, seconds, bottom=height, color=colour, width=0.65, label=phase if not place else None)
                height += seconds
            text = f"{facts['seconds'][side]['value']:.1f} s"
            if ratio := facts.get(f"ratio_{side}"):
                text += f"\n{ratio['value']:.1f}×"
            axis.annotate(text, (place, height), (0, 3), textcoords="offset points", ha="center", fontsize=9)
        axis.set_xticks(range(len(sides)), [SIDES[s] for s in sides], fontsize=9)
        answers = facts["answer_tokens"]
        lengths = f"{answers['largest']}" if answers["least"] == answers["largest"] else \
            f"up to {answers['largest']} (mean {answers['mean']:.0f})"
        axis.set_title(f"{TITLES[workload]}: {facts['prompts']} prompts, {lengths} new tokens", fontsize=10)
        axis.set_ylabel("seconds a step")
        axis.margins(y=0.15)
        axis.spines[["top", "right"]].set_visible(False)
    drawn.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(path, dpi=110)
    pyplot.close(drawn)


if __name__ == "__main__":
    plot(json.loads(Path(sys.argv[1]).read_text())["figures"], Path(sys.argv[2]))
