"""The life-cycle chart: a row a phase, a column for each kind of effort, and what it bought. See plots.py for style."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trivet.report import plots
from trivet.report.words import duration

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from trivet.report.lifecycle import Item, Lifecycle

WIDTH, BOUGHT = 10.4, 4.2  # inches: the whole, and the words of what was bought
LINE = 64  # characters of these words
MOST_LINES = 6


def efforts(found: Lifecycle) -> dict[str, list[tuple[float, str]]]:
    """Columns of the chart: (value, in words) by phase; those of which nothing is known are left out."""
    from trivet.report.lifecycle import columns

    items = found.phases
    words = columns(items, found.prices.currency if found.prices else "")
    every: dict[str, tuple[str, Any]] = {
        "machine's time": ("time", lambda i: i.seconds), "people's time": ("people", lambda i: i.people_seconds),
        "FLOPs": ("FLOPs", lambda i: i.flops), "energy": ("energy", lambda i: i.energy_joules),
        "cost": ("cost", lambda i: i.cost)}
    return {head: [(float(value(i) or 0), said) for i, said in zip(items, words[name], strict=True)]
            for head, (name, value) in every.items() if name in words}


def figure(found: Lifecycle) -> Figure:
    """The chart of a run's phases, the first on top."""
    from matplotlib.figure import Figure

    columns = efforts(found)
    texts = [_lines(i.bought) for i in found.phases]
    heights = [max(2, t.count("\n") + 1) for t in texts]
    with plots.style():
        chart = Figure(figsize=(WIDTH, 0.6 + 0.17 * sum(heights) + 0.12 * len(heights)), layout="constrained")
        share = (WIDTH - BOUGHT) / max(2, len(columns))
        axes = chart.subplots(1, len(columns) + 1, sharey=True, squeeze=False,
                              width_ratios=[share] * len(columns) + [BOUGHT])[0]
        # rows are as high as their words
        tops = [sum(heights[:k]) + 0.7 * k for k in range(len(heights))]
        places = [t + h / 2 for t, h in zip(tops, heights, strict=True)]
        for axis, (name, values) in zip(axes, columns.items(), strict=False):
            colours = [plots.FIRST if i.finished else plots.FAINT for i in found.phases]
            bars = axis.barh(places, [v for v, _ in values], height=1.3, color=colours)
            axis.bar_label(bars, [w for _, w in values], padding=3, fontsize=8.5)
            axis.set_title(name, loc="left", fontsize=9, color=plots.INK)
            axis.set_xlim(0, 2.0 * max([v for v, _ in values] + [1e-9]))
            axis.set_xticks([])
            axis.grid(visible=False)
            axis.spines["bottom"].set_visible(False)
        axes[0].set_yticks(places, [i.name for i in found.phases])
        axes[0].set_ylim(tops[-1] + heights[-1] + 0.3, -0.3)
        words = axes[-1]
        words.set_title("what it bought", loc="left", fontsize=9, color=plots.INK)
        words.set_xlim(0, 1)
        words.axis("off")
        for place, text in zip(places, texts, strict=True):
            words.text(0, place, text, va="center", fontsize=8, linespacing=1.25)
    return chart


def _lines(text: str) -> str:
    lines = textwrap.wrap(plots.clean(text), LINE) or ["–"]
    return "\n".join(lines if len(lines) <= MOST_LINES else [*lines[: MOST_LINES - 1], "…"])


def alt(found: Lifecycle) -> str:
    """The chart in words."""
    return "Bar chart of the phases of a run: " + "; ".join(_said(i) for i in found.phases) + "."


def _said(item: Item) -> str:
    return f"{item.name} {duration(item.seconds)}" + (f", bought {item.bought}" if item.bought else "")


def alone(chart: Figure, words: str) -> str:
    """A chart as an SVG file of its own: the page's light colours, on its card."""
    style = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
    root = style[: style.index("}")]
    colours = dict(re.findall(r"(--[\w-]+):\s*(#[0-9a-f]+)", root))
    text = re.sub(r"var\((--[\w-]+)\)", lambda v: colours[v[1]], plots.svg(chart, "lifecycle", words))
    opening, rest = text.split(">", 1)
    fonts = "font-family: system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
    opening = opening.replace("<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" style="{fonts}" ')
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{opening}>' \
           f'<rect width="100%" height="100%" fill="{colours["--card"]}"/>{rest}\n'
