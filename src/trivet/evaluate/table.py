"""Results as a table: in the terminal (rich) and in Markdown. Legs are sections, columns are models.

One `Results` beside its base has the columns base, model, change; several that share a base have one column each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trivet.evaluate.base import Leg
from trivet.evaluate.results import LEGS, Change, Figure, Line, Results

if TYPE_CHECKING:
    from rich.table import Table

MARKS = {"better": "▲", "worse": "▼", "changed": "◆", "same": "", "untested": ""}
_STYLES = {"better": "green", "worse": "red", "changed": "yellow"}
UNDEFINED = "not defined"


@dataclass(frozen=True)
class Row:
    """A measure in words, one cell a column."""

    line: Line
    cells: tuple[str, ...]
    verdicts: tuple[str, ...]
    """One a cell; "" where the cell tells of no comparison."""


@dataclass(frozen=True)
class Section:
    """A leg."""

    leg: Leg
    rows: tuple[Row, ...]


def columns(tables: Sequence[Results]) -> list[str]:
    """The heads of the figures' columns."""
    if len(tables) == 1:
        table = tables[0]
        return [table.model] if table.base is None else [table.base, table.model, "change"]
    return [tables[0].base or "", *(t.model for t in tables)]


def sections(tables: Sequence[Results]) -> list[Section]:
    """The table's rows by leg; `tables` share a base."""
    lines: dict[str, list[Line | None]] = {}
    for place, table in enumerate(tables):
        for line in table.measures:
            lines.setdefault(line.key, [None] * len(tables))[place] = line
    rows = [_row(found, tables[0].base is not None) for found in lines.values()]
    return [Section(leg, own) for leg in LEGS if (own := tuple(r for r in rows if r.line.leg == leg))]


def _row(found: Sequence[Line | None], beside: bool) -> Row:
    first = next(line for line in found if line is not None)
    if not beside:
        return Row(first, (figure(first.value, first),), ("",))
    base = figure(first.base, first) if first.base else "–"
    if len(found) == 1:
        # of a win rate the figure is the change
        change = "" if first.relative or first.difference is None else figure(first.difference, first)
        change = f"{change} {MARKS[first.verdict]}".strip() or "–"
        return Row(first, (base, figure(first.value, first), change), ("", "", first.verdict))
    cells = [f"{figure(line.value, line)} {MARKS[line.verdict]}".strip() if line else "–" for line in found]
    return Row(first, (base, *cells), ("", *(line.verdict if line else "" for line in found)))


def figure(found: Figure, line: Line) -> str:
    """`31% [25, 38]`, `12.3 [11.9, 12.8]`; a change has its sign and counts in percentage points."""
    if found.value is None:
        return UNDEFINED
    sign = isinstance(found, Change)
    scale = 100 if line.share else 1
    size = scale * abs(found.value)
    digits = 1 if line.share else 0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 1 else 3
    value, low, high = (None if x is None else _number(scale * x, digits, sign)
                        for x in (found.value, found.low, found.high))
    return f"{value}{'%' if line.share else ''}" + (f" [{low}, {high}]" if low and high else "")


def _number(value: float, digits: int, sign: bool) -> str:
    text = f"{value:+,.{digits}f}" if sign else f"{value:,.{digits}f}"
    return (text if float(text.replace(",", "")) else text.lstrip("+-")).replace("-", "−")


def words(line: Line) -> str:
    """The measure's words, its unit, and which way is better."""
    unit = f" ({line.unit})" if line.unit else ""
    return f"{line.words}{unit}{ {'higher': ' ↑', 'lower': ' ↓', 'neither': ''}[line.better] }"


def counts(row: Row) -> str:
    """How many groups of items the figures rest on."""
    change = row.line.difference
    n = row.line.value.n
    return f"{n:,}" if change is None or change.n == n else f"{n:,}, shared {change.n:,}"


def footnotes(tables: Sequence[Results]) -> list[str]:
    """What the table's signs and brackets mean, what was left out, and what else is to be known."""
    first = tables[0]
    found = ["↑ higher is better, ↓ lower is better. In brackets: 95% intervals over n groups of items (Wilson's for "
             "shares of yes and no, else bootstrap)."]
    if first.base is not None:
        found.append(
            f"▲ better, ▼ worse, ◆ changed: significant at {first.level:.0%} after Holm's rule over {first.family} "
            "paired tests in this table (labels swapped by group; mid-p, two-sided). Without a mark: no difference was "
            "shown, or too few items differ to show one (such a test is not counted). Changes of shares are in "
            "percentage points.")
    untested = list(dict.fromkeys(m.words for t in tables for m in t.measures
                                  if m.verdict == "untested" and t.base is not None))
    if untested:
        found.append(f"Not tested: {', '.join(untested)}.")
    names = {name: why for t in tables for name, why in t.left_out.items()}
    if names:
        found.append("Left out: " + "; ".join(f"{name} ({why})" for name, why in names.items()) + ".")
    found += list(dict.fromkeys(note for t in tables for note in t.notes))
    return found


def markdown(tables: Sequence[Results]) -> str:
    """The table as GitHub's Markdown, legs as sections."""
    heads = columns(tables)
    lines = []
    for section in sections(tables):
        lines += [f"### {section.leg}", "", f"| measure | {' | '.join(map(_escape, heads))} | n |",
                  f"|---|{'---:|' * (len(heads) + 1)}"]
        for row in section.rows:
            cells = [f"**{_escape(c)}**" if MARKS.get(v) else _escape(c)
                     for c, v in zip(row.cells, row.verdicts, strict=True)]
            lines.append(f"| {_escape(words(row.line))} | {' | '.join(cells)} | {counts(row)} |")
        lines.append("")
    lines += [f"- {_escape(note)}" for note in footnotes(tables)]
    commands = list(dict.fromkeys(t.command for t in tables if t.command))
    if commands:
        lines += ["", *(f"    {c}" for c in commands)]
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    """Text that stays in its cell and is no markup."""
    text = " ".join(text.split())
    return "".join(f"\\{c}" if c in "\\|`*_<>#" else c for c in text)


def rich_table(tables: Sequence[Results], width: int = 120) -> Table:
    """The table for a terminal of `width` columns; in a narrow one intervals stand below their figures."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    heads = columns(tables)
    below = width < 34 + 25 * len(heads)
    table = Table(title=escape(" · ".join(heads[:2] if tables[0].base else heads)) if len(tables) == 1 else None,
                  caption="\n".join(map(escape, footnotes(tables))), title_justify="left", caption_justify="left",
                  pad_edge=False, box=SIMPLE_HEAD)
    table.add_column("measure", overflow="fold")
    for head in heads:
        table.add_column(escape(short(head)), justify="right", overflow="fold", min_width=14 if below else 22)
    table.add_column("n", justify="right")
    for section in sections(tables):
        table.add_row(f"[bold]{section.leg}[/bold]", *[""] * (len(heads) + 1))
        for row in section.rows:
            cells = [f"[{_STYLES[v]}]{escape(c)}[/]" if v in _STYLES else escape(c)
                     for c, v in zip((c.replace(" [", "\n[") if below else c for c in row.cells), row.verdicts,
                                     strict=True)]
            table.add_row(f"  {escape(words(row.line))}", *cells, counts(row))
        table.add_section()
    return table


def short(name: str) -> str:
    """A model's name that can head a column: of a long path the last two parts, of a long name its end."""
    name = "/".join(name.rstrip("/").split("/")[-2:]) if len(name) > 24 else name
    return name if len(name) <= 40 else f"…{name[-39:]}"
