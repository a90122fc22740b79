"""The picture of an evaluation: every share as a dot with its interval, by leg, model beside base."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from trivet.evaluate.base import Leg
from trivet.evaluate.results import LEGS, Figure, Line, Results
from trivet.evaluate.table import MARKS, columns, short
from trivet.report import plots
from trivet.report.plots import FAINT, FIRST, INK, SECOND, THIRD, WARN

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

_MODELS = ((FIRST, "o"), (THIRD, "s"), (WARN, "^"), (INK, "v"))
_WIDE, _ROW, _LABEL = 10.4, 0.36, 46


class Dots(NamedTuple):
    """A measure's row: figures of the base (None: it has none) and of each model, and what the tests said."""

    leg: Leg
    words: str
    base: Figure | None
    models: tuple[Figure | None, ...]
    marks: tuple[str, ...]


def shares(tables: Sequence[Results]) -> list[Dots]:
    """The measures that lie between 0 and 1, by leg."""
    return [_dots(found) for found in _lines(tables) if _first(found).share]


def relative(tables: Sequence[Results]) -> list[Dots]:
    """Of the others the change, as a share of the base's figure; none without a base."""
    rows = []
    for found in _lines(tables):
        line = _first(found)
        if line.share or line.kind == "kappa" or line.base is None or not line.base.value:
            continue
        scale = abs(line.base.value)
        changes = tuple(None if m is None or m.difference is None else Figure(
            value=_over(m.difference.value, scale), low=_over(m.difference.low, scale),
            high=_over(m.difference.high, scale), n=m.difference.n) for m in found)
        if any(c is not None and c.value is not None for c in changes):
            rows.append(_dots(found)._replace(base=None, models=changes))
    return rows


def legs(tables: Sequence[Results]) -> Drawing:
    """The picture. Above: shares with 95% intervals. Below, where there is a base: changes of other figures."""
    from matplotlib.figure import Figure as Drawing

    above, below = shares(tables), relative(tables)
    heads = columns(tables)
    names = [heads[1]] if len(tables) == 1 and tables[0].base else heads[1:] if tables[0].base else heads
    sizes = [len(rows) + len({r.leg for r in rows}) for rows in (above, below) if rows]
    with plots.style():
        figure = Drawing(figsize=(_WIDE, 1.2 + _ROW * sum(sizes) + 0.5 * len(sizes)), layout="constrained")
        parts = list(figure.subplots(len(sizes), 1, height_ratios=sizes, squeeze=False)[:, 0]) if sizes else []
        if above:
            axes = parts.pop(0)
            _panel(axes, above, names, heads[0] if tables[0].base else None)
            axes.set_xlim(-0.02, 1.02)
            axes.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
            axes.set_xlabel("share of items, with its 95% interval")
        if below:
            axes = parts.pop(0)
            _panel(axes, below, names if not above else (), None)
            axes.axvline(0, color=INK, linewidth=0.9)
            axes.margins(x=0.1)
            axes.xaxis.set_major_formatter(
                lambda x, _: f"{x:+.1%}".replace("-", "−").replace(".0%", "%") if x else "0%")
            axes.set_xlabel(f"change from {heads[0]}, as a share of its figure")
        if len(names) > 1 or tables[0].base:
            figure.legend(loc="outside upper left", ncols=4, handlelength=1.4, columnspacing=1.4, borderpad=0.1)
    return figure


def alt(tables: Sequence[Results]) -> str:
    """The picture in words, for those who can't see it."""
    def share(found: Figure | None) -> str:
        return "not known" if found is None or found.value is None else f"{found.value:.0%}"

    return "Dot chart of shares with 95% intervals. " + "; ".join(
        f"{r.words}: {' and '.join(share(m) for m in r.models)}{f', base {share(r.base)}' if r.base else ''}"
        for r in shares(tables)) + "."


def standalone(svg: str) -> str:
    """A page's <svg> as a file of its own, with the page's colours for light and dark."""
    css = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")
    colours = css[: css.index("* {")]
    rules = f"{colours}svg {{ background: var(--card); font-family: system-ui, sans-serif; }}"
    opening, rest = svg.split(">", 1)
    return f'{opening} xmlns="http://www.w3.org/2000/svg"><style>{rules}</style>{rest}\n'


def _panel(axes: Axes, rows: Sequence[Dots], names: Sequence[str], base: str | None) -> None:
    """Rows from top to bottom, each leg under its name; `names` go into the legend."""
    places: list[tuple[float, str, bool]] = []
    place = 0.0
    for leg in LEGS:
        own = [r for r in rows if r.leg == leg]
        if own:
            places.append((place, leg, True))
            place -= 1
        for row in own:
            places.append((place, textwrap.fill(row.words, _LABEL), False))
            beside = [(row.base, SECOND, "D")] if row.base else []
            drawn = [*((m, *_MODELS[i % len(_MODELS)]) for i, m in enumerate(row.models)), *beside]
            for i, (figure, colour, marker) in enumerate(drawn):
                if figure is not None and figure.value is not None:
                    axes.errorbar([figure.value], [place + 0.4 * ((len(drawn) - 1) / 2 - i) / len(drawn)],
                                  xerr=plots.bars([figure.model_dump()]), fmt=marker, color=colour, markersize=5,
                                  elinewidth=1.5, capsize=0)
            for i, mark in enumerate(row.marks):
                axes.text(1.01 + 0.02 * i, place, mark, transform=axes.get_yaxis_transform(), va="center", fontsize=9,
                          color=_MODELS[i % len(_MODELS)][0])
            place -= 1
    for i, name in enumerate(names):
        colour, marker = _MODELS[i % len(_MODELS)]
        axes.plot([], [], marker, color=colour, label=short(name))
    if base is not None:
        axes.plot([], [], "D", color=SECOND, label=f"{short(base)} (base)")
    axes.set_yticks([p for p, _, _ in places], [w for _, w, _ in places], fontsize=8.5)
    for label, (_, _, head) in zip(axes.get_yticklabels(), places, strict=True):
        label.set_fontweight("bold" if head else "normal")
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(place + 0.4, 0.6)
    axes.grid(visible=False, axis="y")
    for p, _, head in places:
        if not head:
            axes.axhline(p, color=FAINT, linewidth=0.3)


def _lines(tables: Sequence[Results]) -> list[list[Line | None]]:
    """Each measure's line in each table, by leg."""
    keys = dict.fromkeys(m.key for leg in LEGS for t in tables for m in t.leg(leg))
    return [[t.line(k) for t in tables] for k in keys]


def _dots(found: Sequence[Line | None]) -> Dots:
    first = _first(found)
    return Dots(first.leg, f"{first.words}{ {'higher': ' ↑', 'lower': ' ↓', 'neither': ''}[first.better] }", first.base,
                tuple(line.value if line else None for line in found),
                tuple(MARKS[line.verdict] if line else "" for line in found))


def _first(found: Sequence[Line | None]) -> Line:
    return next(line for line in found if line is not None)


def _over(value: float | None, scale: float) -> float | None:
    return None if value is None else value / scale
