"""The report's plots: pure functions from figures to a matplotlib Figure, and `svg`, which makes it inline SVG.

Drawn in stand-in colours that `svg` replaces by the page's CSS variables, so that one plot serves light, dark and
print. Text stays text. The same figures give the same bytes. matplotlib is imported when first used; pyplot never.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Interval = Mapping[str, Any]
Points = Sequence[tuple[float, Interval]]
"""(x, interval)."""

INK, GRID, FAINT, FIRST, SECOND, THIRD, WARN = (
    "#a1b2c0", "#a1b2c1", "#a1b2c2", "#a1b2c3", "#a1b2c4", "#a1b2c5", "#a1b2c6")
_VARIABLES = {INK: "--ink", GRID: "--grid", FAINT: "--faint", FIRST: "--first", SECOND: "--second", THIRD: "--third",
              WARN: "--caution"}
_LINE, _SCATTER = 150, 400  # points of a line, dots of a cloud, at most
WIDE, SMALL = (4.7, 3.0), (2.15, 1.55)


@dataclass(frozen=True)
class Plot:
    """A drawn plot with what is written over and under it."""

    title: str
    svg: Any
    caption: str = ""


@contextlib.contextmanager
def style() -> Iterator[None]:
    """The settings under which figures are made and drawn; those outside are left as they were."""
    import matplotlib

    with matplotlib.rc_context({
        "svg.fonttype": "none", "svg.hashsalt": "trivet", "text.parse_math": False, "font.size": 9,
        "axes.edgecolor": GRID, "axes.labelcolor": INK, "axes.labelsize": 9, "xtick.color": GRID, "ytick.color": GRID,
        "xtick.labelcolor": INK, "ytick.labelcolor": INK, "text.color": INK, "axes.spines.top": False,
        "axes.spines.right": False, "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.6,
        "axes.axisbelow": True, "legend.frameon": False, "legend.fontsize": 8.5, "lines.linewidth": 1.4,
        "axes.facecolor": "none", "figure.facecolor": "none", "axes.unicode_minus": True,
        "axes.formatter.useoffset": False,
    }):
        yield


def draw(name: str, title: str, figure: Figure, alt: str, caption: str = "") -> Plot:
    """A figure, drawn; see `svg`."""
    from markupsafe import Markup

    return Plot(title, Markup(svg(figure, name, alt)), caption)


def svg(figure: Figure, name: str, alt: str) -> str:
    """A figure as an <svg> element for an HTML page: it scales, takes the page's colours, and says `alt`.

    `name` must be the plot's own on the page: it keeps the ids of two plots apart.
    """
    from html import escape

    name = re.sub(r"[^A-Za-z0-9-]", "_", name)
    with style(), io.StringIO() as out, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # glyphs that matplotlib's font lacks: the page's fonts draw the text
        figure.savefig(out, format="svg", transparent=True,
                       metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
        text = out.getvalue()
    box = re.search(r'viewBox="([^"]+)"', text)
    assert box is not None
    body = text[text.index(">", box.end()) + 1 : text.rindex("</svg>")]
    body = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<defs>\s*</defs>", "", body, flags=re.DOTALL)
    body = re.sub(r"<[^>]+>", lambda tag: _tidy(tag[0], name), body)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, f"var({variable})")
    return clean(f'<svg class="plot" viewBox="{box[1]}" role="img" aria-label="{escape(alt)}">'
                 f"<title>{escape(alt)}</title>{body}</svg>")


def clean(text: str) -> str:
    """Text that is safe in HTML: control characters made visible, lone surrogates replaced."""
    text = "".join(c if c >= " " or c in "\n\t" else chr(0x2400 + ord(c)) for c in text)
    return text.replace("\x7f", "␡").encode("utf-8", "replace").decode("utf-8")


def _tidy(tag: str, name: str) -> str:
    """One tag of matplotlib's SVG: hundredths are enough, ids of the page's own, its font, only if referred to."""
    tag = re.sub(r"\d+\.\d{3,}", lambda n: f"{float(n[0]):.2f}".rstrip("0").rstrip("."), tag.replace("\n", " "))
    tag = re.sub(r" font-family: [^;\"]*;", "", tag)
    tag = tag.replace("xlink:href", "href").replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    # what is referred to is a marker, `m…`, or a clip, `p…`, with a hash; other ids only name parts of the drawing
    return re.sub(r' id="([^"]+)"', lambda i: f' id="{name}-{i[1]}"'
                  if re.fullmatch(r"[a-zA-Z]+[0-9a-f]{10}(_\w+)?", i[1]) else "", tag)


def _figure(size: tuple[float, float] = WIDE) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.add_subplot()


def step_axis(axes: Axes, label: str = "step") -> None:
    """Whole steps along the bottom."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    axes.margins(x=0.03)


def _dots(axes: Axes, points: Points, colour: str, label: str, *, line: bool = True, marker: str = "o") -> None:
    """Means with their intervals."""
    points = [(x, i) for x, i in points if i.get("value") is not None]
    if not points:
        return
    xs, ys = [x for x, _ in points], [i["value"] for _, i in points]
    axes.errorbar(xs, ys, yerr=bars([i for _, i in points]), fmt=marker, color=colour, markersize=4.5,
                  elinewidth=1.1, linestyle="-" if line else "none", linewidth=1.2, label=label)


def means(points: Sequence[tuple[float, ...]]) -> tuple[list[tuple[float, ...]], str]:
    """Points of a long run as means of consecutive ones, so that a line stays a line; and words for its label."""
    width = math.ceil(len(points) / _LINE)
    if width < 2:
        return list(points), "rollouts"
    parts = [points[i : i + width] for i in range(0, len(points), width)]
    return [tuple(math.fsum(c) / len(part) for c in zip(*part, strict=True)) for part in parts], \
        f"rollouts, mean of {width}"


def bars(intervals: Sequence[Interval]) -> list[list[float]]:
    """Distances down and up, for error bars; none where an interval is not known."""
    down = [max(0.0, i["value"] - i["low"]) if i.get("low") is not None else 0.0 for i in intervals]
    up = [max(0.0, i["high"] - i["value"]) if i.get("high") is not None else 0.0 for i in intervals]
    return [down, up]


def legend(figure: Figure, columns: int = 3) -> None:
    """Names above the figure, where anything drawn has one."""
    if any(axes.get_legend_handles_labels()[0] for axes in figure.axes):
        figure.legend(loc="outside upper left", ncols=columns, handlelength=1.4, columnspacing=1.4, borderpad=0.1)


def reward_by_step(training: Sequence[tuple[float, float]], heldout: Points, second: Points, unit: str) -> Figure:
    """Mean score of each step's rollouts, and the held-out answers by one and by the other reward."""
    with style():
        figure, axes = _figure()
        axes.axhline(0, color=FAINT, linewidth=0.8)
        if training:
            points, label = means(training)
            axes.plot(*zip(*points, strict=True), color=FAINT, label=label)
        _dots(axes, heldout, FIRST, "held-out prompts")
        # a little aside, so that the bars of the two do not hide each other
        aside = 0.008 * max((x for x, _ in (*training, *second)), default=0.0)
        _dots(axes, [(x + aside, i) for x, i in second], SECOND, "by the second reward", marker="s")
        axes.set_ylabel(f"reward ({unit})")
        step_axis(axes)
        legend(figure)
    return figure


def kl_by_step(training: Sequence[tuple[float, float]], heldout: Sequence[tuple[float, float]],
               budget: float | None, target: float | None) -> Figure:
    """KL to the reference, nats a sequence, with the budget or the controller's target."""
    with style():
        figure, axes = _figure()
        if training:
            points, label = means(training)
            axes.plot(*zip(*points, strict=True), color=FAINT, label=label)
        if heldout:
            axes.plot(*zip(*heldout, strict=True), "o-", color=FIRST, markersize=4.5, label="held-out prompts")
        for level, words in ((budget, "budget"), (target, "controller's target")):
            if level is not None:
                axes.axhline(level, color=WARN, linewidth=1.1, linestyle=(0, (4, 3)), label=words)
        axes.set_ylabel("KL (nats a sequence)")
        axes.margins(y=0.08)
        step_axis(axes)
        legend(figure)
    return figure


def reward_by_distance(rollouts: Sequence[tuple[float, float]], heldout: Sequence[tuple[float, float, Interval]],
                       second: Sequence[tuple[float, float, Interval]], unit: str) -> Figure:
    """Reward against √KL: (kl, score) of each step's rollouts, (kl, step, interval) of the evaluations."""

    def root(kl: float) -> float:
        return math.sqrt(max(kl, 0.0))

    with style():
        figure, axes = _figure()
        axes.axhline(0, color=FAINT, linewidth=0.8)
        cloud = rollouts[:: max(1, math.ceil(len(rollouts) / _SCATTER))]
        if cloud:
            axes.scatter([root(k) for k, _ in cloud], [s for _, s in cloud], s=9, color=FAINT, linewidths=0,
                         label="rollouts")
        _dots(axes, [(root(k), i) for k, _, i in heldout], FIRST, "held-out prompts")
        aside = 0.008 * root(max((k for k, *_ in second), default=0.0))
        _dots(axes, [(root(k) + aside, i) for k, _, i in second], SECOND, "by the second reward", marker="s")
        every = max(1, math.ceil(len(heldout) / 6))
        for place, (kl, step, interval) in enumerate(heldout):
            if (len(heldout) - 1 - place) % every == 0:
                axes.annotate(f"{step:g}", (root(kl), interval["value"]), xytext=(5, 5), textcoords="offset points",
                              fontsize=8)
        axes.set_xlabel("√KL (√nats)")
        axes.set_ylabel(f"reward ({unit})")
        legend(figure)
    return figure


def length_by_step(training: Sequence[tuple[float, float, float]],
                   heldout: Sequence[tuple[float, Interval, float]]) -> Figure:
    """(step, tokens, share ended) of rollouts, (step, tokens, share ended) of held-out answers, one above the other."""
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(WIDE[0], 3.6), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        if training:
            points, label = means(training)
            steps, tokens, ended = zip(*points, strict=True)
            above.plot(steps, tokens, color=FAINT, label=label)
            below.plot(steps, ended, color=FAINT)
        _dots(above, [(s, i) for s, i, _ in heldout], FIRST, "held-out prompts")
        if heldout:
            below.plot([s for s, _, _ in heldout], [e for _, _, e in heldout], "o-", color=FIRST, markersize=4)
        above.set_ylabel("tokens")
        below.set_ylabel("ended itself")
        below.set_ylim(-0.05, 1.05)
        below.set_yticks([0, 0.5, 1], ["0%", "50%", "100%"])
        step_axis(below)
        legend(figure)
    return figure


def small_curve(points: Sequence[tuple[float, float]], colour: str = THIRD) -> Figure:
    """One figure by step, small."""
    from matplotlib.ticker import MaxNLocator

    with style():
        figure, axes = _figure(SMALL)
        axes.plot(*zip(*means(points)[0], strict=True), color=colour)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    return figure


def gains(values: Sequence[float], shown: Sequence[int], unit: str) -> Figure:
    """Gain by prompt in falling order, one bar a prompt; the places in `shown` stand out."""
    with style():
        figure, axes = _figure((10.4, 2.2))
        marked = set(shown)
        axes.bar(range(1, len(values) + 1), values, width=0.8,
                 color=[FIRST if i in marked else FAINT for i in range(len(values))])
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.set_ylabel(f"gain ({unit})")
        step_axis(axes, "held-out prompts")
    return figure


def accuracies(rows: Sequence[tuple[str, Interval, bool]]) -> Figure:
    """(name, share of pairs, is it the model's) as dots with intervals, chance marked."""
    with style():
        rows = [r for r in rows if r[1].get("value") is not None][::-1]
        figure, axes = _figure((WIDE[0], 1.0 + 0.42 * len(rows)))
        axes.axvline(0.5, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
        for place, (_, interval, own) in enumerate(rows):
            axes.errorbar([interval["value"]], [place], xerr=bars([interval]), fmt="o" if own else "D",
                          color=FIRST if own else SECOND, markersize=5.5, elinewidth=1.6, capsize=3)
        axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("held-out pairs decided rightly (dashed: chance)")
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
    return figure


def reliability(bins: Sequence[Mapping[str, Any]]) -> Figure:
    """Accuracy against confidence in each bin, and below how many pairs a bin holds."""
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(WIDE[0], 3.6), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        full = [b for b in bins if b["count"]]
        above.plot([0.5, 1], [0.5, 1], color=INK, linewidth=0.9, linestyle=(0, (4, 3)),
                   label="right as often as it says")
        above.plot([b["confidence"] for b in full], [b["accuracy"] for b in full], "o-", color=FIRST, markersize=4.5,
                   label="this reward model")
        below.bar([(b["low"] + b["high"]) / 2 for b in bins], [b["count"] for b in bins],
                  width=[0.8 * (b["high"] - b["low"]) for b in bins], color=FAINT)
        above.set_ylabel("right")
        above.set_ylim(-0.05, 1.05)
        above.yaxis.set_major_formatter(lambda y, _: f"{y:.0%}")
        below.set_ylabel("pairs")
        below.set_xlabel("probability it gives to the answer it prefers")
        below.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
        legend(figure)
    return figure


def reference_scores(scores: Sequence[float], mean: float, std: float) -> Figure:
    """Histogram of the reference's scores, its mean and one deviation to either side."""
    with style():
        figure, axes = _figure()
        axes.axvspan(mean - std, mean + std, color=GRID, alpha=0.6, linewidth=0, label="mean ± one deviation")
        axes.hist(scores, bins=min(24, max(5, round(math.sqrt(len(scores)) * 1.5))), color=FIRST, rwidth=0.9)
        axes.axvline(mean, color=INK, linewidth=1.1)
        axes.set_xlabel("raw score")
        axes.set_ylabel("reference answers")
        legend(figure)
    return figure


def curve(points: Sequence[tuple[float, float]], label: str) -> Figure:
    """One training figure by step, with its running mean where there are many steps."""
    with style():
        figure, axes = _figure()
        many = len(points) >= 30
        axes.plot(*zip(*points, strict=True), color=FAINT if many else FIRST, label="each step")
        if many:
            width = max(5, len(points) // 20)
            values = [y for _, y in points]
            axes.plot([x for x, _ in points[width - 1 :]],
                      [math.fsum(values[i - width + 1 : i + 1]) / width for i in range(width - 1, len(values))],
                      color=FIRST, label=f"mean of {width} steps")
            legend(figure)
        axes.set_ylabel(label)
        step_axis(axes)
    return figure


def durations(rows: Sequence[tuple[str, float, bool]], label: str = "seconds") -> Figure:
    """(name, seconds, finished) as horizontal bars, the first on top."""
    with style():
        figure, axes = _figure((WIDE[0], 0.75 + 0.34 * len(rows)))
        places = range(len(rows))[::-1]
        bars = axes.barh(list(places), [s for _, s, _ in rows], height=0.62,
                         color=[FIRST if done else FAINT for _, _, done in rows])
        axes.bar_label(bars, ["<0.01" if 0 < s < 0.01 else f"{s:.3g}" if s < 100 else f"{s:,.0f}"
                              for _, s, _ in rows], padding=3, fontsize=8.5)
        axes.set_yticks(list(places), [n for n, _, _ in rows])
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.12)
        axes.set_xlabel(label)
    return figure
