"""What a stage prints when it is done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trivet.report import guard
from trivet.runs import Summary


def figure(value: Any) -> str:
    """A figure for people: `0.67 [0.62, 0.71]` for an interval, a few digits for a number."""
    if isinstance(value, dict) and {"value", "low", "high"} <= value.keys():
        low, high = value["low"], value["high"]
        if value["value"] is None:
            return f"not known  n={value.get('n')}"
        bounds = "no interval from one prompt" if low is None or high is None else f"{low:.3f}, {high:.3f}"
        return f"{value['value']:.3f} [{bounds}]" + (f"  n={value['n']}" if "n" in value else "")
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def print_summary(summary: Summary, out: Path) -> None:
    """The figures of a stage and where its artifacts are."""
    from rich.table import Table

    from trivet.training.progress import console

    hidden = {"schema_version", "fingerprint", "artifacts", "stage", "seconds"}
    table = Table(show_header=False, box=None, pad_edge=False)
    for key, value in summary.model_dump(mode="json", exclude=hidden).items():
        if value is None or isinstance(value, list) or (isinstance(value, dict) and "value" not in value):
            continue  # lists and nested tables are for the report
        table.add_row(key.replace("_", " "), figure(value))
    console.print(f"[bold]{summary.stage}[/bold] done in {summary.seconds:.1f} s")
    console.print(table)
    if said := guard.terminal(summary.model_dump(mode="json")):
        console.print(f"guard: {said}", markup=False, highlight=False)
    for kind, artifact in summary.artifacts.items():
        console.print(f"  {kind}: {out / artifact.path}")


def print_figures(figures: dict[str, Any], page: Path) -> None:
    """The closing table of a recipe: what was gained, at what distance, in what time, and where the report is."""
    from rich.table import Table

    from trivet.training.progress import console

    table = Table(title="what the run came to", title_justify="left", show_header=False, pad_edge=False)
    names = {
        "reward_before": "reward on held-out prompts before", "reward_after": "and after",
        "reward_gain": "gain, paired by prompt", "second_reward_gain": "gain by the second reward model",
        "length_gain": "change in length (tokens)", "kl": "KL to the reference (nats)",
        "reward_accuracy": "reward model's accuracy", "length_baseline": "best rule by length alone",
        "stop": "ended by",
    }
    for key, name in names.items():
        if figures.get(key) is not None:
            table.add_row(name, figure(figures[key]))
    for step, seconds in figures["seconds"].items():
        table.add_row(f"time of {step}", f"{seconds:.1f} s")
    table.add_row("time in all", f"{sum(figures['seconds'].values()):.1f} s")
    console.print(table)
    if said := guard.terminal(figures):
        console.print(f"guard: {said}", markup=False, highlight=False)
    print(f"report: {page}", flush=True)
