"""`trivet ledger`: what each stage and each phase of a run's life cost, and what it bought.

The phases are those of InstructGPT's road (Ouyang et al. 2022, figure 2) with what comes before and after: prompt,
fine-tune, rank, reward, PPO, compress, evaluate. What was not measured is not shown; nothing is estimated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trivet.artifacts import atomic_write
from trivet.errors import TrivetError
from trivet.evaluate.results import Results
from trivet.ledger import Calls, Entry, Labelling, Spent
from trivet.report import bought, lifecycle_chart
from trivet.report.config import LedgerConfig
from trivet.report.prices import Prices, read_prices
from trivet.report.read import RunFolder, StageRun, read_run
from trivet.report.words import duration

PHASES = {
    "prompt": ("sample", "check"), "fine-tune": ("sft", "dpo"), "rank": ("pairs", "mix", "label"),
    "constitution": ("redteam", "revise", "prefer"), "reward": ("reward",), "PPO": ("ppo",),
    "compress": ("prune", "quantize", "distill", "tradeoff"),
    "evaluate": ("score", "audit", "evaluate"),
}
OTHER = "other"
_COUNTS = ("seconds", "gpu_seconds", "ai_seconds", "rankings", "tokens_in", "tokens_out")
_MEASURED = ("cpu_seconds", "people_seconds", "flops", "energy_joules", "cost")


@dataclass(frozen=True)
class Item:
    """A row of the table: a stage, a phase, or the whole. None: not measured."""

    name: str
    phase: str
    stage: str = ""
    finished: bool = True
    seconds: float = 0.0
    cpu_seconds: float | None = None
    gpu_seconds: float = 0.0
    people_seconds: float | None = None
    rankings: int = 0
    ai_seconds: float = 0.0
    tokens_in: int = 0
    tokens_out: int = 0
    flops: int | None = None
    peak_memory_bytes: int = 0
    gpu_peak_memory_bytes: int = 0
    energy_joules: float | None = None
    endpoints: tuple[tuple[str, Calls], ...] = ()
    attempts: int = 1
    cost: float | None = None
    bought: str = ""


@dataclass(frozen=True)
class Lifecycle:
    """The ledger of a run, ready to be shown."""

    name: str
    stages: tuple[Item, ...]
    phases: tuple[Item, ...]
    """Those that the run has, in order."""
    total: Item
    prices: Prices | None
    notes: tuple[str, ...]


def phase_of(stage: str) -> str:
    """The phase that a stage belongs to."""
    return next((phase for phase, stages in PHASES.items() if stage in stages), OTHER)


def build(run: RunFolder, *, prices: Prices | None = None, labels: Labelling | None = None,
          more: Sequence[Path] = ()) -> Lifecycle:
    """The ledger of a run. labels: people's time as the label store has it, in place of what the rankings say.

    Raises TrivetError for a folder of `more` that holds no evaluation, and for figures of a stage that are damaged.
    """
    items: list[Item] = []
    notes: list[str] = []
    sources: dict[str, str] = {}
    found = bought.evaluations(run, more)
    if labels is not None:
        items.append(Item("label", "rank", "label", bought=_judgments(labels), **_people(labels)))
        notes += _untimed(labels, "the label store", prices)
    for stage in run.stages:
        item = _item(stage, found)
        time = stage_labelling(stage)
        if time is not None and labels is None:
            if time.source in sources:
                notes.append(f"{stage.name} read the rankings that {sources[time.source]} read: their time is counted "
                             "once")
            else:
                item = replace(item, **_people(time))
                sources[time.source] = stage.name
                notes += _untimed(time, stage.name, prices)
        items.append(item)
    if prices is not None:
        items = [replace(i, cost=prices.cost(
            seconds=i.seconds, gpu_seconds=i.gpu_seconds, people_seconds=i.people_seconds,
            endpoints=dict(i.endpoints))) for i in items]
        unpriced = sorted({m for i in items for m, _ in i.endpoints} - prices.endpoints.keys())
        if unpriced:
            notes.append(f"no price for {', '.join(unpriced)}: what was asked there is not in the cost")
    notes += [f"{m} told no tokens for the {calls.requests:,} requests of {i.name}: what they cost is not known"
              for i in items for m, calls in i.endpoints if not calls.tokens]
    notes += bought.elsewhere(found)
    phases = [_sum(p, p, own) for p in (*PHASES, OTHER) if (own := [i for i in items if i.phase == p])]
    return Lifecycle(run.name, tuple(items), tuple(phases), _sum("in all", "", items), prices, tuple(notes))


def stage_labelling(stage: StageRun) -> Labelling | None:
    """People's time in the rankings that a finished stage read."""
    entry = _entry(stage)
    return entry.labelling if entry else None


def _entry(stage: StageRun) -> Entry | None:
    """A stage's line of the ledger; of an unfinished one what it wrote down so far."""
    if stage.cost is not None:
        return stage.cost
    if stage.summary is not None or "spent" not in stage.state:
        return None
    spent = Spent.model_validate(stage.state["spent"])
    return Entry(name=stage.name, stage=stage.stage, started="", attempts=int(stage.state.get("attempts", 1)),
                 machine="", **spent.model_dump())


def _item(stage: StageRun, found: Sequence[tuple[Results, str]]) -> Item:
    entry = _entry(stage)
    item = Item(stage.name, phase_of(stage.stage), stage.stage, stage.summary is not None, stage.seconds,
                bought=bought.said(stage, found))
    return item if entry is None else replace(
        item, cpu_seconds=entry.cpu_seconds, gpu_seconds=entry.gpu_seconds, tokens_in=entry.tokens_in,
        tokens_out=entry.tokens_out, flops=entry.total_flops, peak_memory_bytes=entry.peak_memory_bytes,
        gpu_peak_memory_bytes=entry.gpu_peak_memory_bytes, energy_joules=entry.energy_joules,
        endpoints=tuple(entry.endpoints.items()), attempts=entry.attempts)


def _people(time: Labelling) -> dict[str, Any]:
    timed = time.people_seconds or time.untimed < time.people_rankings
    return {"people_seconds": time.people_seconds if timed else None, "rankings": time.people_rankings,
            "ai_seconds": time.ai_seconds}


def _untimed(time: Labelling, name: str, prices: Prices | None) -> list[str]:
    """What is said of rankings without a time; of an AI labeler's the cost is not in question."""
    if not time.untimed:
        return []
    priced = prices is not None and prices.person_hour is not None and time.people_rankings
    cost = ": what they cost is not known, and not in the sum" if priced else ""
    return [f"{time.untimed:,} of the {time.people_rankings + time.ai_rankings:,} rankings of {name} say no time{cost}"]


def _judgments(time: Labelling) -> str:
    ai = f", {time.ai_rankings:,} by AI labelers" if time.ai_rankings else ""
    return f"{time.people_rankings:,} rankings by people{ai}"


def _sum(name: str, phase: str, items: Sequence[Item]) -> Item:
    """Items together: sums of what is known, and of peaks the largest."""

    def add(field: str) -> Any:
        known = [v for i in items if (v := getattr(i, field)) is not None]
        return sum(known) if known else None

    calls: dict[str, Calls] = {}
    for item in items:
        for model, asked in item.endpoints:
            calls[model] = calls.get(model, Calls()).plus(asked)
    said = [(i.name, i.bought) for i in items if i.bought]
    words = said[0][1] if len(said) == 1 else "; ".join(f"{n}: {b}" for n, b in said)
    whole: dict[str, Any] = {f: add(f) or 0 for f in _COUNTS} | {f: add(f) for f in _MEASURED}
    return Item(
        name, phase, finished=all(i.finished for i in items), endpoints=tuple(calls.items()),
        peak_memory_bytes=max((i.peak_memory_bytes for i in items), default=0),
        gpu_peak_memory_bytes=max((i.gpu_peak_memory_bytes for i in items), default=0),
        attempts=max((i.attempts for i in items), default=1), bought=words if phase else "", **whole)


# --- in words -------------------------------------------------------------------------------------------


def scaled(value: float, unit: str) -> str:
    """A large number with its prefix: 1.23 T."""
    for prefix, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}".strip()


def columns(items: Sequence[Item], currency: str = "") -> dict[str, list[str]]:
    """The table's columns, in words, those left out in which nothing was measured."""

    def known(field: str) -> bool:
        return any(getattr(i, field) for i in items)

    found = {"time": [duration(i.seconds) + ("" if i.finished else " …") for i in items]}
    if known("cpu_seconds"):
        found["CPU time"] = ["–" if i.cpu_seconds is None else duration(i.cpu_seconds) for i in items]
    if known("gpu_seconds"):
        found["GPU time"] = [duration(i.gpu_seconds) if i.gpu_seconds else "–" for i in items]
    if known("people_seconds"):
        found["people"] = ["–" if i.people_seconds is None else duration(i.people_seconds) for i in items]
    if known("ai_seconds"):
        found["AI labelers"] = [duration(i.ai_seconds) if i.ai_seconds else "–" for i in items]
    if known("tokens_in") or known("tokens_out"):
        found["tokens in / out"] = [f"{scaled(i.tokens_in, '')} / {scaled(i.tokens_out, '')}" if i.tokens_in
                                    or i.tokens_out else "–" for i in items]
    if known("flops"):
        found["FLOPs"] = ["–" if i.flops is None else scaled(i.flops, "") for i in items]
    if known("peak_memory_bytes"):
        found["memory"] = [f"{i.peak_memory_bytes / 2**30:.2f} GiB" if i.peak_memory_bytes else "–" for i in items]
    if known("gpu_peak_memory_bytes"):
        found["GPU memory"] = [f"{i.gpu_peak_memory_bytes / 2**30:.2f} GiB" if i.gpu_peak_memory_bytes else "–"
                               for i in items]
    if known("energy_joules"):
        found["energy"] = ["–" if i.energy_joules is None else scaled(i.energy_joules / 3600, "Wh") for i in items]
    if known("endpoints"):
        found["endpoints"] = [f"{sum(c.requests for _, c in i.endpoints):,} requests" if i.endpoints else "–"
                              for i in items]
    if any(i.cost is not None for i in items):
        found["cost"] = ["–" if i.cost is None else f"{i.cost:,.4g} {currency}".strip() for i in items]
    return found


# --- the command ----------------------------------------------------------------------------------------


def ledger_command(config: LedgerConfig) -> Path:
    """Print the ledger of a run and write its chart; returns the chart's path.

    Raises TrivetError for a folder that holds no run, a damaged ledger, prices, a label database or an evaluation that
    do not fit; nothing is written then.
    """
    prices = read_prices(config.prices) if config.prices else None
    labels = None
    if config.labels is not None:
        from trivet.feedback.labels import labelling_time

        labels = labelling_time(config.labels)
    found = build(read_run(config.run), prices=prices, labels=labels, more=config.evaluations)
    path = config.out or config.run / "lifecycle.svg"
    if path.suffix != ".svg":
        raise TrivetError(f"the chart is an SVG file, not {path.suffix or 'one without an ending'}", file=path,
                          field="out", mend="give a name that ends in .svg")
    with atomic_write(path) as file:
        file.write(lifecycle_chart.alone(lifecycle_chart.figure(found), lifecycle_chart.alt(found)))
    show(found)
    print(f"chart: {path}", flush=True)
    return path


def show(found: Lifecycle) -> None:
    """Print the tables by stage and by phase, and what each stage bought."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    from trivet.training.progress import console

    currency = found.prices.currency if found.prices else ""
    for title, head, items in ((f"what {found.name} cost, by stage", "step", (*found.stages, found.total)),
                               ("by phase of its life", "phase", (*found.phases, found.total))):
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column(head)
        cells = columns(items, currency)
        for name in cells:
            table.add_column(name, justify="right")
        for place, item in enumerate(items):
            table.add_row(escape(item.name), *(c[place] for c in cells.values()), end_section=place == len(items) - 2)
        console.print(table)
    table = Table(title="what it bought", title_justify="left", box=None, padding=(0, 2, 0, 1), show_header=False)
    for item in found.stages:
        if item.bought:
            table.add_row(escape(item.name), escape(item.bought))
    console.print(table)
    for note in found.notes:
        print(f"note: {note}")
