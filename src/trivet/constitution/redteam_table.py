"""The rates of `trivet constitution redteam` for people: at a terminal, and as Markdown. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trivet.artifacts import read_json
from trivet.constitution.redteam_config import RESULTS, RedteamConfig

COLUMNS = ("judge", "classifier", "rule", "refused", "broken")
"""Figures of a row; the first three are success rates by a scorer."""
PLAIN = ("refused", "broken")
"""Shown at a terminal without their intervals, for want of room."""


def finish(config: RedteamConfig) -> None:
    """Print the table and what its figures are worth. Raises TrivetError for a damaged redteam.json."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    from trivet.training.progress import console

    found = read_json(config.out / RESULTS, "rates", "worth", "grown", "reworded", "scorers", "agreement")
    shown = Table(box=SIMPLE_HEAD, pad_edge=False, title=f"how often attacks on {found['target']} succeed, in percent",
                  title_justify="left", caption="* held out" if found["held_out_topics"] else None,
                  caption_justify="left")
    columns = present(found["rates"])
    for head in ("", "answers", *columns):
        shown.add_column(head, justify="right" if head else "left", no_wrap=bool(head))
    by = "all"
    for row in found["rates"]:
        if row["by"] != by:
            shown.add_section()
            by = row["by"]
        shown.add_row(escape(row["name"]) + (" *" if _held(row, found) else ""), str(row["answers"]),
                      *(percent(row[c], digits=0, bounds=c not in PLAIN) for c in columns))
    console.print(shown)
    for line in notes(found):
        console.print(escape(line), soft_wrap=True)


def markdown(found: Mapping[str, Any]) -> str:
    """The table in Markdown, and beneath it what its figures are worth."""
    columns = present(found["rates"])
    lines = [f"# Attacks on {found['target']}", "", "Success of attacks in percent.", "",
             f"| | questions | answers | {' | '.join(columns)} |",
             f"|---|{'---:|' * (len(columns) + 2)}"]
    for row in found["rates"]:
        held = " (held out)" if _held(row, found) else ""
        name = row["name"] if row["by"] == "all" else f"{row['by']}: {row['name']}{held}"
        cells = [name.replace("|", "\\|"), str(row["questions"]), str(row["answers"]),
                 *(percent(row[c]) for c in columns)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"- {line}" for line in notes(found))]) + "\n"


def present(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The columns that have figures."""
    return [c for c in COLUMNS if any(row[c] is not None for row in rows)]


def notes(found: Mapping[str, Any]) -> list[str]:
    """What a reader must know of the figures: who scored, what the scorers are worth, what was thrown away."""
    said = ["Intervals are 95%, over questions. refused, and broken (empty, looping, gibberish): by rule."]
    for name, of in found["worth"].items():
        who = name if name == "rule" else f"{name} ({found['scorers'][name]})"
        accuracy = of["accuracy"]
        low, high = accuracy["low"], accuracy["high"]
        line = (f"{who}: right about {interval(accuracy)} of {2 * of['requests']} answers of a known kind, AUROC "
                f"{of['auroc']:.2f}")
        if low is not None and low <= 0.5 <= high:
            line += "; no better than chance, as far as they show: do not go by its column"
        elif high is not None and high < 0.5:
            line += "; worse than chance: do not go by its column"
        said.append(f"{line}.")
    said += [f"{pair.capitalize()} agree with κ {interval(of)}." for pair, of in found["agreement"].items()]
    grown = found["grown"]
    if grown["texts"]:
        said.append(f"Grown: {sum(grown['by_topic'].values())} questions of {grown['items']} items that the attacker "
                    f"({found['attacker']}) wrote in {grown['texts']} texts. {_thrown(grown)}")
        if not grown["screened"]:
            said.append("No judge said whether what was grown is worth declining. Much that a small attacker writes is "
                        "not, and an answer to it counts as a success: go by the row `seed` or `file`.")
    said += [f"{name.capitalize()}: {of['texts']} texts asked for, {of['items'] - of['thrown']} usable. {_thrown(of)}"
             for name, of in found["reworded"].items() if of["texts"]]
    return [line.strip() for line in said]


def _held(row: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    return row["by"] == "topic" and row["name"] in found["held_out_topics"]


def _thrown(of: Mapping[str, Any]) -> str:
    if not of["thrown"]:
        return ""
    reasons = ", ".join(f"{r['reason']} {r['count']}" for r in of["reasons"])
    return f"Thrown away {of['thrown'] / of['items']:.0%}: {reasons}."


def percent(of: Mapping[str, Any] | None, digits: int = 1, bounds: bool = True) -> str:
    """A share in percent: `31.2 [22.0, 42.4]`; a dash where there is no figure."""
    if of is None or of["value"] is None:
        return "–"
    value, low, high = (None if of[k] is None else f"{100 * of[k]:.{digits}f}" for k in ("value", "low", "high"))
    return f"{value} [{low}, {high}]" if bounds and low is not None and high is not None else str(value)


def interval(of: Mapping[str, Any] | None) -> str:
    """`0.31 [0.22, 0.42]`; a dash where there is no figure."""
    if of is None or of["value"] is None:
        return "–"
    if of["low"] is None or of["high"] is None:
        return f"{of['value']:.2f}"
    return f"{of['value']:.2f} [{of['low']:.2f}, {of['high']:.2f}]"
