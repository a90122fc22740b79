"""The guard's picture: what reward and held-out reward did, and below it what the guard made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trivet.report import plots
from trivet.report.plots import FAINT, FIRST, GRID, INK, SECOND, WARN, Points
from trivet.report.words import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TOP = 3.0
"""Levels above are drawn at the edge: what matters is where the threshold, 1, was crossed."""
_FEW = 4
"""Signals whose own level is drawn, at most: those that came highest."""

Line = Sequence[tuple[float, float]]
"""(step, value)."""


@dataclass(frozen=True)
class Picture:
    """What is drawn. Rewards are in deviations from the start, levels in thresholds."""

    reward: Points
    held_out: Points
    reward_rollouts: Line
    held_out_rollouts: Line
    level: Line
    signals: dict[str, Line] = field(default_factory=dict)
    """Each signal's own level by step."""
    alarms: Sequence[float] = ()
    began: float | None = None
    signal: str = ""
    """The alarming signal, in words."""
    alarming: str = ""
    """The same by its key in `signals`."""
    returned_to: float | None = None


def figure(found: Picture) -> Figure:
    """Above: both rewards by step, evaluations with their 95% band. Below: the guard's level, 1 is an alarm."""
    from matplotlib.figure import Figure

    with plots.style():
        drawn = Figure(figsize=(10.4, 4.9), layout="constrained")
        above, below = drawn.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        above.axhline(0, color=FAINT, linewidth=0.8)
        _rewards(above, found)
        _levels(below, found)
        for axes in (above, below):
            _marks(axes, found, named=axes is above)
        above.set_ylabel("change (deviations)")
        below.set_ylabel("guard's level")
        plots.step_axis(below)
        plots.legend(drawn, 4)
    return drawn


def _rewards(axes: Axes, found: Picture) -> None:
    for line, points, colour, marker, words in (
            (found.reward_rollouts, found.reward, FIRST, "o", "reward it was trained on"),
            (found.held_out_rollouts, found.held_out, SECOND, "s", "held-out reward model")):
        many = bool(points)
        if line:
            axes.plot(*zip(*plots.means(list(line))[0], strict=True), color=colour, linewidth=0.8,
                      alpha=0.4 if many else 1.0, label=f"{words}{', rollouts' if many else ', by rollouts'}")
        if points:
            steps, known = [s for s, _ in points], [i for _, i in points]
            low = [i["low"] if i.get("low") is not None else i["value"] for i in known]
            high = [i["high"] if i.get("high") is not None else i["value"] for i in known]
            axes.fill_between(steps, low, high, color=colour, alpha=0.16, linewidth=0)
            axes.plot(steps, [i["value"] for i in known], f"{marker}-", color=colour, markersize=5, linewidth=1.8,
                      label=words)
    if found.returned_to is not None and (at := [i for s, i in found.held_out if s == found.returned_to]):
        axes.plot([found.returned_to], [at[0]["value"]], "o", markersize=13, markerfacecolor="none",
                  markeredgecolor=INK, markeredgewidth=1.6, label=f"went back to step {found.returned_to:g}")


def _levels(axes: Axes, found: Picture) -> None:
    ranked = sorted(found.signals, key=lambda n: -max(y for _, y in found.signals[n]))
    for name in [n for n in ranked if n != found.alarming][:_FEW]:
        axes.plot(*_cut(found.signals[name]), color=FAINT, linewidth=0.8)
    if found.level:
        axes.plot(*_cut(found.level), color=INK, linewidth=1.6)
    if found.signals.get(found.alarming):
        axes.plot(*_cut(found.signals[found.alarming]), color=WARN, linewidth=2.2)
    axes.axhline(1, color=WARN, linewidth=1.1, linestyle=(0, (4, 3)))
    highest = max((y for _, y in found.level), default=0.0)
    axes.set_ylim(0, min(TOP, max(1.25, 1.1 * highest)))
    axes.text(0.004, 1, "alarm", transform=axes.get_yaxis_transform(), va="bottom", fontsize=8.5, color=WARN)
    if found.alarms and found.signal:
        first = found.alarms[0]
        start, last = found.level[0][0], found.level[-1][0]
        left = first - start > 0.2 * (last - start)  # where the level is still low there is room for words
        axes.annotate(found.signal, (first, 0.9), xycoords=axes.get_xaxis_transform(), xytext=(-8 if left else 8, 0),
                      textcoords="offset points", ha="right" if left else "left", va="center", color=WARN,
                      fontsize=10, fontweight="bold")


def _cut(line: Line) -> tuple[list[float], list[float]]:
    return [s for s, _ in line], [min(y, TOP) for _, y in line]


def _marks(axes: Axes, found: Picture, *, named: bool) -> None:
    """Where the change began and where the guard fired; further alarms thin."""
    if found.began is not None:
        axes.axvline(found.began, color=INK, linewidth=1.3, linestyle=(0, (1, 1.6)),
                     label=f"change began: step {found.began:g}" if named else None)
    for place, step in enumerate(found.alarms):
        axes.axvline(step, color=WARN, linewidth=1.0 if place else 2.0,
                     label=f"guard fired: step {step:g}" if named and not place else None)
    if found.began is not None and found.alarms:
        axes.axvspan(found.began, found.alarms[0], color=GRID, alpha=0.5, linewidth=0)


def alt(found: Picture) -> str:
    """The picture in words."""
    parts = [f"{words} {number(points[-1][1]['value'], sign=True)} deviations at step {points[-1][0]:g}"
             for words, points in (("reward", found.reward), ("held-out reward model", found.held_out)) if points]
    if found.began is not None:
        parts.append(f"the change began at step {found.began:g}")
    parts.append(f"the guard fired at step {found.alarms[0]:g}, by {found.signal}" if found.alarms else
                 "the guard did not fire")
    if found.returned_to is not None:
        parts.append(f"the run went back to step {found.returned_to:g}")
    highest = max((y for _, y in found.level), default=0.0)
    return f"Two line charts by step. Above: {'; '.join(parts)}. Below: the guard's level, at most {number(highest)} " \
           "of its threshold."
