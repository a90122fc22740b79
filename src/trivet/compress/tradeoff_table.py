"""The table of `trivet tradeoff` in words: at a terminal, as Markdown, and the sentence that says which one and why.

No torch. What is not known is `n/a`, and the notes say why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trivet.compress.choosing import Criterion, Limits, Pick
from trivet.compress.tradeoff_results import PERPLEXITY, Row, Spread, Tradeoff, measures_of
from trivet.evaluate import table
from trivet.evaluate.results import Figure, Line

if TYPE_CHECKING:
    from rich.table import Table

UNKNOWN = "n/a"
QUESTION = "Are you willing to trade quality for speed?"
_WANTED: dict[Criterion, str] = {"quality": "keeps the most quality", "latency": "is the fastest",
                                 "size": "is the smallest"}


@dataclass(frozen=True)
class Part:
    """A part of the table: a row a variant, the source first."""

    title: str
    heads: tuple[str, ...]
    """Of the columns, without the first, which names the variant."""
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    """(name, cells)."""


def parts(found: Tradeoff, quality: str | None) -> list[Part]:
    """Size and memory; speed; quality, in two where there are many measures."""
    front = found.front(quality)
    names = [f"{row.name}{' ●' if row.name in front else ''}" for row in found.rows]
    size = Part("size and memory", ("MB on disk", "bits a weight", "parameters", "zeros", "MB of memory", "load, s"),
                tuple((name, _size(row)) for name, row in zip(names, found.rows, strict=True)))
    all_parts = [size]
    if found.workloads:
        all_parts.append(_speed(found, names))
    lines = list(measures_of(found.rows).values())
    for leg in dict.fromkeys(line.leg for line in lines):
        own = [line for line in lines if line.leg == leg]
        all_parts.append(Part(leg, tuple(map(short, own)), tuple(
            (name, tuple(_measure(row, line) for line in own))
            for name, row in zip(names, found.rows, strict=True))))
    return all_parts


def _name(line: Line) -> str:
    return line.key.partition(".")[2].replace("_", " ")


def short(line: Line) -> str:
    """A measure's name as a head: `perplexity (per token) ↓`."""
    unit = f" ({line.unit})" if line.unit else ""
    return f"{_name(line)}{unit}{ {'higher': ' ↑', 'lower': ' ↓', 'neither': ''}[line.better] }"


def _size(row: Row) -> tuple[str, ...]:
    variant = row.variant
    return (megabytes(variant.bytes), f"{variant.bits_per_weight:.2f}", f"{variant.parameters / 1e6:,.1f}M",
            UNKNOWN if variant.sparsity is None else f"{variant.sparsity:.1%}",
            UNKNOWN if row.memory is None else megabytes(row.memory.value) + (
                f" + {megabytes(row.gpu_memory.value)} GPU" if row.gpu_memory else ""),
            _spread(row.load))


def _speed(found: Tradeoff, names: Sequence[str]) -> Part:
    loads = found.workloads
    least = min(batch for batch, _ in loads)
    firsts = [(b, p) for b, p in loads if b == least]
    heads = [f"first token, ms ({p})" for _, p in firsts]
    for batch, prompt in loads:
        heads += [f"tokens/s ({batch} × {prompt})", "× source"]
    rows = []
    for name, row in zip(names, found.rows, strict=True):
        cells = [_spread(t.first, 1000) if (t := row.workload(*place)) else UNKNOWN for place in firsts]
        for place in loads:
            timed = row.workload(*place)
            cells += [UNKNOWN, UNKNOWN] if timed is None else [
                _spread(timed.decode), "1" if timed.faster is None else _spread(timed.faster)]
        rows.append((name, tuple(cells)))
    return Part("speed", tuple(heads), tuple(rows))


def _measure(row: Row, line: Line) -> str:
    own = row.line(line.key)
    if own is None:
        return UNKNOWN
    said = table.figure(own.value, own)
    if own.key == PERPLEXITY and row.perplexity_growth is not None:
        said = f"{said.split(' [')[0]} ({_share(row.perplexity_growth)})"
    elif own.difference is not None:
        said = f"{said.split(' [')[0]} ({table.figure(own.difference, own)})"
    return f"{said} {table.MARKS[own.verdict]}".strip()


def _share(of: Figure) -> str:
    """A share that something grew by: `+3.1% [2.2, 4.0]`."""
    if of.value is None:
        return UNKNOWN
    bounds = "" if of.low is None or of.high is None else f" [{_percent(of.low)}, {_percent(of.high)}]"
    return f"{_percent(of.value)}%{bounds}"


def _percent(value: float) -> str:
    return (f"{100 * value:+.1f}" if abs(value) >= 0.0005 else "0").replace("-", "−")


def _spread(of: Spread | None, scale: float = 1.0) -> str:
    """`71.9 [70.2, 72.4]`, the least and the most in brackets."""
    if of is None:
        return UNKNOWN
    digits = 0 if scale * of.value >= 100 else 1 if scale * of.value >= 10 else 2
    value, low, high = (f"{scale * x:,.{digits}f}" for x in (of.value, of.low, of.high))
    return value if of.n == 1 else f"{value} [{low}, {high}]"


def megabytes(size: float) -> str:
    """Bytes in MB (10⁶)."""
    return f"{size / 1e6:,.{0 if size >= 1e8 else 1 if size >= 1e6 else 3}f}"


def footnotes(found: Tradeoff, quality: str | None) -> list[str]:
    """What signs and brackets mean, what is n/a and why, what else is to be known."""
    said = []
    if found.front(quality):
        by = "answers alone sooner, is smaller" + (f", and loses less by {quality}" if quality else "")
        said.append(f"● on the Pareto front: no other {by}.")
    if found.workloads:
        said.append(
            f"Speeds are of {found.compute}, {found.new_tokens} new tokens after prompts of so many tokens (batch × "
            f"prompt): the median of {found.rounds} round{'s' if found.rounds > 1 else ''}, in which all variants took "
            "turns, each in a process of its own" + (", with the least and the most" if found.rounds > 1 else "")
            + ". tokens/s: of all answers together after the first tokens. × source: round by round. Memory is the "
            "most that the process held, libraries and all.")
    if lines := measures_of(found.rows):
        said.append("; ".join(f"{_name(line)}: {line.words}" for line in lines.values()))
        said.append("↑ higher is better, ↓ lower is better. In round brackets: the difference from the source, paired "
                    "by item, with its 95% interval (of a perplexity, by how much it grew); of shares in percentage "
                    f"points. ▲ better, ▼ worse, ◆ changed: significant at 5% after Holm's rule over {found.family} "
                    "tests. Without a mark: no difference was shown.")
    said += [f"{row.name}: {row.failed}" for row in found.rows if row.failed]
    absent: dict[str, list[str]] = {}
    for row in found.rows:
        for what, why in row.absent.items():
            absent.setdefault(f"{what} is n/a: {why}", []).append(row.name)
    said += [f"{', '.join(names)}: {why}" for why, names in absent.items()]
    noted: dict[str, list[str]] = {}
    for row in found.rows:
        for note in row.variant.notes:
            noted.setdefault(note, []).append(row.name)
    said += [f"{', '.join(names)}: {note}" for note, names in noted.items()]
    return [f"{line.rstrip('.')}." for line in dict.fromkeys([*said, *found.notes])]


def markdown(found: Tradeoff, quality: str | None) -> str:
    """The whole table as GitHub's Markdown."""
    lines = [f"# {QUESTION}", "", f"{found.source.name} and {len(found.rows) - 1} of its variants on {found.machine}.",
             ""]
    for part in parts(found, quality):
        lines += [f"## {part.title}", "", f"| variant | {' | '.join(map(_escape, part.heads))} |",
                  f"|---|{'---:|' * len(part.heads)}"]
        lines += [f"| {_escape(name)} | {' | '.join(map(_escape, cells))} |" for name, cells in part.rows]
        lines.append("")
    return "\n".join([*lines, *(f"- {_escape(note)}" for note in footnotes(found, quality))]) + "\n"


def terminal(part: Part) -> Table:
    """A part for the terminal; its intervals stand below their figures."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    shown = Table(box=SIMPLE_HEAD, pad_edge=False, title=part.title, title_justify="left")
    shown.add_column("", overflow="fold", min_width=min(10, max(len(name) for name, _ in part.rows)))
    for head in part.heads:
        shown.add_column(escape(head), justify="right", overflow="fold")
    for name, cells in part.rows:
        shown.add_row(escape(name), *(escape(c.replace(" (", "\n(").replace(" [", "\n[", 1)) for c in cells))
    return shown


# --- the choice ----------------------------------------------------------------------------------------


def sentence(found: Tradeoff, chosen: Pick, limits: Limits, quality: str | None) -> str:
    """Which variant and why, or why none, in one sentence."""
    asked = _asked(found, limits, quality)
    count = len(found.rows)
    if chosen.name is None:
        near = [words for criterion, name in chosen.nearest.items()
                if (words := _how_far(found, criterion, name, quality))]
        return f"None of {count} keeps within {asked}" + (f": {'; '.join(near)}." if near else ".")
    row = next(r for r in found.rows if r.name == chosen.name)
    left = len(chosen.fitting)
    why = f"it alone of {count} keeps within {asked}" if left == 1 else \
        f"of the {left} of {count} that keep within {asked} it {_WANTED[chosen.wanted]}"
    if row is found.source:
        return f"Take {row.name}, the source itself: {why}."
    bought = [*_bought(found, row)]
    cost = _cost(found, row, quality)
    return f"Take {row.name}: {why}; it {', '.join(bought)}{', and ' if bought else ''}{cost}."


def _asked(found: Tradeoff, limits: Limits, quality: str | None) -> str:
    said = []
    if limits.latency is not None:
        said.append(f"{limits.latency:g} s for an answer of {found.new_tokens} tokens")
    if limits.size is not None:
        said.append(f"{megabytes(limits.size)} MB")
    if limits.quality is not None:
        said.append(f"a loss of {_loss_words(limits.quality, found, quality)}")
    return " and ".join(said)


def _loss_words(value: float, found: Tradeoff, quality: str | None) -> str:
    """A loss in the unit of its measure: `5.0% more perplexity`, `0.05 in helpful.reward`."""
    line = measures_of(found.rows).get(quality or "")
    if line is None or quality == PERPLEXITY:
        return f"{100 * value:.1f}% more perplexity"
    return f"{100 * value:.1f} points of {line.key}" if line.share else f"{value:.3g} in {line.key}"


def _how_far(found: Tradeoff, criterion: Criterion, name: str, quality: str | None) -> str:
    value = next(c for c in found.candidates(quality) if c.name == name).value(criterion)
    if value is None:
        return ""
    if criterion == "latency":
        return f"{name}, the fastest, takes {value:.2f} s"
    if criterion == "size":
        return f"{name}, the smallest, has {megabytes(value)} MB"
    return f"{name} loses the least, {_loss_words(value, found, quality)}"


def _bought(found: Tradeoff, row: Row) -> list[str]:
    said, alone = [], found.alone()
    mine, source = (r.workload(*alone) if alone else None for r in (row, found.source))
    if mine is not None and source is not None:
        times = source.whole.value / mine.whole.value
        said.append(f"answers in {mine.whole.value:.2f} s instead of {source.whole.value:.2f} ({times:.1f} times as "
                    "fast)")
    said.append(f"takes {megabytes(row.variant.bytes)} MB instead of {megabytes(found.source.variant.bytes)}")
    return said


def _cost(found: Tradeoff, row: Row, quality: str | None) -> str:
    line = row.line(quality) if quality else None
    if line is None:
        return "what it costs in quality was not measured"
    base = found.source.line(line.key)
    if base is None:  # what is itself a comparison with the source
        return f"its {line.words} is {table.figure(line.value, line)}"
    now, before = (table.figure(of.value, of).split(" [")[0] for of in (line, base))
    change = _share(row.perplexity_growth) if line.key == PERPLEXITY and row.perplexity_growth else \
        UNKNOWN if line.difference is None else table.figure(line.difference, line)
    return f"its {line.words} is {now} instead of {before} ({change})"


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
