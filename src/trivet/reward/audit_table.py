"""What `trivet reward audit` prints when it is done, and the exit code it ends with."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from trivet.artifacts import read_json
from trivet.reward.config import AUDIT, AuditConfig

SHOWN = 160  # characters of a worst case in the terminal


def finish(config: AuditConfig) -> None:
    """Print the table, the verdict in a sentence, and the worst case of each gamed set.

    Exits with code 1 where a set is gamed and `fail` is on. Raises TrivetError for a damaged audit.json.
    """
    from rich.markup import escape

    from trivet.training.progress import console

    found = read_json(config.out / AUDIT, "sets", "gamed", "too_few", "unit")
    console.print(table(found))
    print(sentence(found), flush=True)
    for of in (s for s in found["sets"] if s["verdict"] == "gamed" and s["worst"]):
        case = of["worst"][0]
        console.print(f"[bold]{of['name']}[/bold]  {escape(case['prompt_id'])}: the worse text leads by "
                      f"{case['advantage']:.2f}")
        for side in ("better", "worse"):
            console.print(f"  {side}  {escape(_short(case[side]))}", soft_wrap=True)
    print(f"worst cases: {config.out / 'worst.jsonl'}", flush=True)
    if found["gamed"] and config.fail:
        print(f"trivet: gamed: {', '.join(found['gamed'])}", file=sys.stderr)
        raise SystemExit(1)


def sentence(found: Mapping[str, Any]) -> str:
    """What an audit came to, in a sentence or two of plain English."""
    sets = found["sets"]
    asked = len(sets) - len(found["too_few"])
    if not asked:
        said = f"Nothing can be said: no contrast set has {found['least']} prompts."
    elif found["gamed"]:
        named = [f"{s['name']} ({100 * s['preferred']['value']:.0f}% of the time)" for s in sets
                 if s["verdict"] == "gamed"]
        said = f"The reward prefers worse text in {len(named)} of {asked} contrast sets: {', '.join(named)}."
    else:
        said = f"In none of {asked} contrast sets is it shown that the reward prefers the worse text."
    if asked and found["too_few"]:
        said += f" Too few answers to speak of {', '.join(found['too_few'])}."
    return said


def table(found: Mapping[str, Any]) -> Any:
    """The figures of an audit as a rich table."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    shown = Table(box=SIMPLE_HEAD, pad_edge=False, caption_justify="left", caption=(
        f"preferred: how often the worse text scores higher, with {100 * found['level']:g}% interval over prompts; "
        f"gain: what it scores more, in {found['unit']}; length: of the worse text, the answer's being 1"))
    for head in ("contrast set", "n", "preferred", "gain", "length", "limit", "verdict"):
        shown.add_column(head, justify="left" if head in ("contrast set", "verdict") else "right", no_wrap=True)
    styles = {"gamed": "bold red", "too few": "dim"}
    for of in found["sets"]:
        share, gain, words = of["preferred"], of["difference"], of["words"]
        length = f"{words['worse'] / words['better']:.2f}" if words["better"] else "–"
        shown.add_row(of["name"], str(of["n"]), _interval(share), "–" if gain["value"] is None else
                      f"{gain['value']:+.2f}", length, f"{of['threshold']:g}", of["verdict"],
                      style=styles.get(of["verdict"], ""))
    return shown


def _interval(of: Mapping[str, Any]) -> str:
    if of["value"] is None:
        return "–"
    if of["low"] is None:
        return f"{of['value']:.2f}"
    return f"{of['value']:.2f} [{of['low']:.2f}, {of['high']:.2f}]"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else f"{line[:SHOWN]}…"
