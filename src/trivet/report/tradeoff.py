"""`trivet tradeoff` for people: the table at a terminal, the picture, what was chosen, and the page's part of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trivet.artifacts import atomic_write, read_json, write_json
from trivet.compress.choosing import Candidate, on_front, pick
from trivet.compress.tradeoff_config import PICK, RESULTS, TradeoffConfig
from trivet.compress.tradeoff_results import PERPLEXITY, Row, Tradeoff, measures_of, read
from trivet.compress.tradeoff_table import QUESTION, footnotes, parts, sentence, terminal
from trivet.evaluate import table
from trivet.evaluate.results import Line
from trivet.report import plots
from trivet.report.evaluation_plots import standalone
from trivet.report.findings import Finding
from trivet.report.plots import FAINT, FIRST, INK, SECOND
from trivet.report.read import StageRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PICTURE = "tradeoff.svg"
_SPREAD = 30.0
"""A measure whose largest figure is so many times its smallest is drawn on a logarithmic scale."""


def finish(config: TradeoffConfig) -> None:
    """What `trivet tradeoff` does when the stage is done: table, picture, choice.

    Exits with code 1 where limits are given and nothing keeps within them. Raises TrivetError for a measure of quality
    that is not in the table.
    """
    from rich.markup import escape

    from trivet.training.progress import console

    found = read(config.out)
    quality = found.quality(config.quality)
    for part in parts(found, quality):
        console.print(terminal(part))
    for note in footnotes(found, quality):
        console.print(escape(note), soft_wrap=True)
    with atomic_write(config.out / PICTURE) as file:
        file.write(standalone(plots.svg(figure(found, quality), "tradeoff", alt(found, quality))))
    print(f"picture: {config.out / PICTURE}", flush=True)
    limits = config.limits
    if not limits.given:
        (config.out / PICK).unlink(missing_ok=True)
        print(f"{QUESTION} Give --max-latency, --max-size or --max-quality-loss, and the same command picks one.")
        return
    chosen = pick(found.candidates(quality), limits)
    said = sentence(found, chosen, limits, quality)
    write_json(config.out / PICK, {
        "schema_version": 1, "pick": chosen.name, "sentence": said, "quality": quality, "wanted": chosen.wanted,
        "fitting": list(chosen.fitting), "limits": {c: limits.of(c) for c in limits.given},
        "path": next((r.path for r in found.rows if r.name == chosen.name), None)})
    console.print(f"\n[bold]{escape(QUESTION)}[/bold] {escape(said)}", soft_wrap=True)
    if chosen.name is None:
        raise SystemExit(1)


# --- the page ------------------------------------------------------------------------------------------


def tradeoff(stage: StageRun) -> Tradeoff | None:
    """The table of a stage; None where it is not written yet. Raises TrivetError for a damaged one."""
    path = stage.artifact("results") or stage.folder / RESULTS
    return read(path) if path.is_file() else None


def finding(stage: StageRun, found: Tradeoff) -> Finding:
    """The line of the headline: what was chosen, or what is on the front."""
    chosen = _picked(stage)
    if chosen is not None:
        return Finding("The variant to serve", str(chosen["pick"] or "none"), str(chosen["sentence"]),
                       "plain" if chosen["pick"] else "caution")
    quality = found.quality(stage.setting("quality"))
    front = [r.name for r in found.rows if r.name in found.front(quality)]
    return Finding("Speed, size, quality", f"{len(front)} of {len(found.rows)} worth having",
                   f"No other is as good in all of latency, size and quality as {_listed(front)}.", "plain")


def section(stage: StageRun, found: Tradeoff) -> dict[str, Any]:
    """What the template shows."""
    quality = found.quality(stage.setting("quality"))
    chosen = _picked(stage)
    return {
        "stage": stage, "question": QUESTION, "said": chosen["sentence"] if chosen else None,
        "parts": parts(found, quality), "notes": footnotes(found, quality),
        "plot": plots.draw(f"{stage.name}-tradeoff", "What each costs, and what it buys", figure(found, quality),
                           alt(found, quality), "Up and to the better side of the front there is nothing. Dots on the "
                           "line are the Pareto front of the two figures; bars are 95% intervals.")}


def _picked(stage: StageRun) -> dict[str, Any] | None:
    path = stage.folder / PICK
    return read_json(path, "pick", "sentence") if path.is_file() else None


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


# --- the picture ---------------------------------------------------------------------------------------


def shown(found: Tradeoff, quality: str | None) -> list[Line]:
    """The measures that are drawn: the one by which quality counts, then the perplexity."""
    keys = dict.fromkeys(k for k in (quality, PERPLEXITY) if k is not None)
    known = measures_of(found.rows)
    return [known[k] for k in keys if k in known]


def figure(found: Tradeoff, quality: str | None) -> Figure:
    """Quality against decoding speed and against size, a row of panels for each measure that is drawn.

    Without a measured quality: speed against size.
    """
    from matplotlib.figure import Figure

    lines, alone = shown(found, quality), found.alone()
    with plots.style():
        drawn = Figure(figsize=(10.4, 0.6 + 3.1 * max(len(lines), 1)), layout="constrained")
        columns = 2 if alone and lines else 1
        panels = drawn.subplots(max(len(lines), 1), columns, squeeze=False)
        for row, line in zip(panels, lines, strict=False):
            if alone:
                _panel(row[0], found, line, "speed")
            _panel(row[-1], found, line, "size")
        if not lines:
            _bare(panels[0][0], found)
    return drawn


def _speed(found: Tradeoff, row: Row) -> float | None:
    alone = found.alone()
    timed = row.workload(*alone) if alone else None
    return None if timed is None else timed.decode.value


def _panel(axes: Axes, found: Tradeoff, line: Line, against: str) -> None:
    """A measure against speed (the more, the better) or size (the less, the better); better is up."""
    places: list[tuple[Row, float, Line]] = []
    for row in found.rows:
        x = _speed(found, row) if against == "speed" else row.variant.bytes / 1e6
        own = row.line(line.key)
        if x is not None and own is not None and own.value.value is not None:
            places.append((row, x, own))
    low = line.better == "lower"
    front = on_front([Candidate(r.name, -x if against == "speed" else x, None, _value(o) if low else -_value(o))
                      for r, x, o in places], ("latency", "quality"))
    edge = sorted((x, _value(o)) for r, x, o in places if r.name in front)
    axes.plot(*zip(*edge, strict=True), color=FIRST, linewidth=1.0, alpha=0.6) if len(edge) > 1 else None
    for row, x, own in places:
        source = row is found.source
        axes.errorbar([x], [_value(own)], yerr=plots.bars([own.value.model_dump()]), fmt="D" if source else "o",
                      color=SECOND if source else FIRST if row.name in front else FAINT, markersize=5.5,
                      elinewidth=1.2, capsize=0)
        axes.annotate(row.name, (x, _value(own)), xytext=(6, 5), textcoords="offset points", fontsize=8, color=INK)
    values = [_value(o) for *_, o in places]
    if min(values, default=0) > 0 and max(values) / min(values) > _SPREAD:
        axes.set_yscale("log")
    if low:
        axes.invert_yaxis()
    if line.share:
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:.0%}")
    axes.margins(x=0.16, y=0.12)
    batch, prompt = found.alone() or (0, 0)
    axes.set_xlabel(f"tokens/s, {batch} × {prompt}" if against == "speed" else "MB on disk")
    axes.set_ylabel(_short(line))


def _bare(axes: Axes, found: Tradeoff) -> None:
    for row in found.rows:
        speed = _speed(found, row)
        if speed is not None:
            axes.plot([row.variant.bytes / 1e6], [speed], "o", color=FIRST)
            axes.annotate(row.name, (row.variant.bytes / 1e6, speed), xytext=(6, 5), textcoords="offset points",
                          fontsize=8)
    axes.set_xlabel("MB on disk")
    axes.set_ylabel("tokens/s")


def _value(line: Line) -> float:
    assert line.value.value is not None
    return line.value.value


def _short(line: Line) -> str:
    name = line.key.partition(".")[2].replace("_", " ")
    return f"{name} ({line.unit})" if line.unit else name


def alt(found: Tradeoff, quality: str | None) -> str:
    """The picture in words, for those who can't see it."""
    rows = []
    for row in found.rows:
        speed = _speed(found, row)
        said = [f"{row.variant.bytes / 1e6:.0f} MB", *([f"{speed:.0f} tokens a second"] if speed is not None else [])]
        said += [f"{_short(own)} {table.figure(own.value, own)}" for line in shown(found, quality)
                 if (own := row.line(line.key)) is not None]
        rows.append(f"{row.name}: {', '.join(said)}")
    return f"Quality against speed and size. {'; '.join(rows)}."
