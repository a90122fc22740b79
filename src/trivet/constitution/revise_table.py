"""What `trivet constitution revise` shows at its end: what each gate stopped, round by round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trivet.artifacts import read_json
from trivet.constitution.gates import GATES
from trivet.constitution.revise_config import RESULTS, ReviseConfig

WORDS = {
    "empty": "no letter or digit", "cut_off": "not ended by the model", "broken": "a loop, gibberish, or said twice",
    "copy": "what it revises, said again", "echo": "the requests, the critique or the question, said again",
    "talks_of_itself": "speaks of `the previous answer`, or as another speaker", "refusal": "refuses a safe prompt",
    "worse": "the judge prefers what it revises",
}


def finish(config: ReviseConfig) -> None:
    """Print the table of a finished stage."""
    from trivet.training.progress import console

    found = read_json(config.out / RESULTS, "gates", "passed", "rounds", "revisions")
    console.print(table(found, wide=console.width >= 120))


def table(found: Mapping[str, Any], *, wide: bool = True) -> Any:
    """Gates and rounds of revise.json as a rich table. wide: with what each gate is."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    rounds = found["rounds"]
    shown = Table(box=SIMPLE_HEAD, pad_edge=False, caption_justify="left", caption=(
        f"share of the {found['revisions']:,} revisions, with 95% interval over prompts; by round: revisions. A text "
        "may be stopped by several gates"))
    shown.add_column("gate", no_wrap=True)
    shown.add_column("stopped", justify="right", no_wrap=True)
    for r in rounds:
        shown.add_column(f"round {r['round']}", justify="right", no_wrap=True)
    if wide:
        shown.add_column("what it is")
    for gate in GATES:
        shown.add_row(gate, share(found["gates"][gate]), *(str(r["stopped_by"][gate]) for r in rounds),
                      *([WORDS[gate]] if wide else []))
    shown.add_row("passed", share(found["passed"]), *(share(r["taken"], plain=True) for r in rounds),
                  *(["by round: share of the prompts with a new revision"] if wide else []), style="bold")
    return shown


def share(of: Mapping[str, Any], *, plain: bool = False) -> str:
    """A share with its interval, in per cent."""
    if of["value"] is None:
        return "–"
    if plain or of["low"] is None:
        return f"{of['value']:.0%}"
    return f"{of['value']:.0%} [{of['low']:.0%}, {of['high']:.0%}]"
