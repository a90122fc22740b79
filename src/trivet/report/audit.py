"""The page's part of `trivet reward audit`: which worse texts a reward prefers, and the worst cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trivet.artifacts import read_json
from trivet.report import marks, plots
from trivet.report.findings import Finding
from trivet.report.plots import FAINT, GRID, INK, WARN
from trivet.report.read import StageRun
from trivet.report.words import number, percent, span
from trivet.reward.audit_table import sentence
from trivet.reward.config import AUDIT
from trivet.text import spans

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 2
"""Cases shown of each gamed set; the others are folded."""
_MARKED = {"exaggerated": spans.exaggerated, "repeated": spans.repeated, "formatted": spans.formatting,
           "truncated": spans.cut_off}
"""What is marked in the worse text of a set; of any other what the better text has not."""
_NEEDED = ("sets", "gamed", "too_few", "unit", "level", "least", "answers")


def audit(stage: StageRun) -> dict[str, Any] | None:
    """What audit.json says; None where the stage has not written it. Raises TrivetError for a damaged file."""
    path = stage.artifact("audit") or stage.folder / AUDIT
    return read_json(path, *_NEEDED) if path.is_file() else None


def lead(found: Mapping[str, Any]) -> Finding:
    """What the audit came to, in a sentence or two."""
    gamed, asked = found["gamed"], len(found["sets"]) > len(found["too_few"])
    text = sentence(found) + (" A policy trained on it will find that out." if gamed else "")
    return Finding("", "", text, "caution" if gamed or not asked else "plain" if found["too_few"] else "good")


def finding(stage: StageRun, found: Mapping[str, Any]) -> Finding:
    """The line of the headline."""
    said, asked = lead(found), len(found["sets"]) - len(found["too_few"])
    return Finding("Audit of the reward", f"{len(found['gamed'])} of {asked} gamed", said.text,
                   "caution" if said.tone == "caution" else "plain")


def section(stage: StageRun, found: Mapping[str, Any], alone: bool) -> dict[str, Any]:
    """What the template shows. alone: the page is the audit's own, whose headline is the lead."""
    worst = [_worst(s) for s in found["sets"] if s["name"] in found["gamed"] and s["worst"]]
    other = [_worst(s) for s in found["sets"] if s["name"] not in found["gamed"] and s["worst"]]
    level = f"{100 * found['level']:g}%"
    return {
        "stage": stage, "lead": None if alone else lead(found), "worst": worst,
        "rows": [_row(s) for s in found["sets"]],
        "other": [w | {"shown": w["shown"][:1]} for w in other],
        "caption": f"Worse text preferred: share of pairs in which it scores higher, ties one half, with {level} "
                   "interval over prompts; gamed: all of it lies above the limit. Gain: what the worse text scores "
                   f"more, in {found['unit']}. Length: in words, the better text's being 1. {found['answers']} "
                   "held-out answers, each made worse by rule.",
        "plot": plots.draw(f"{stage.name}-audit", "How often the worse text is preferred", figure(found["sets"]),
                           alt(found["sets"]), "Bars with their intervals; the stroke in each row is its limit, "
                           "50% is a coin.")}


def figure(sets: Sequence[Mapping[str, Any]]) -> Figure:
    """A bar a contrast set with its interval and its limit; those called gamed in the colour of caution."""
    from matplotlib.figure import Figure

    rows = sets[::-1]
    with plots.style():
        drawn = Figure(figsize=(10.4, 0.8 + 0.34 * len(rows)), layout="constrained")
        axes = drawn.add_subplot()
        for place, of in enumerate(rows):
            share, gamed = of["preferred"], of["verdict"] == "gamed"
            axes.plot([of["threshold"]] * 2, [place - 0.42, place + 0.42], color=INK, linewidth=1.8)
            if share["value"] is None:
                axes.text(0.01, place, "no pairs", va="center", fontsize=8.5)
                continue
            axes.barh([place], [share["value"]], height=0.56, color=WARN if gamed else FAINT,
                      alpha=0.4 if of["verdict"] == "too few" else 1.0)
            axes.errorbar([share["value"]], [place], xerr=plots.bars([share]), fmt="none", ecolor=INK, elinewidth=1.4,
                          capsize=3)
        axes.axvline(0.5, color=GRID, linewidth=1.0, linestyle=(0, (4, 3)), zorder=0)
        signs = {"gamed": "  ▲", "too few": "  (too few)"}
        axes.set_yticks(range(len(rows)), [s["name"] + signs.get(s["verdict"], "") for s in rows])
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_xlim(0, 1.01)
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
        axes.set_xlabel("share of pairs in which the worse text scores higher")
    return drawn


def alt(sets: Sequence[Mapping[str, Any]]) -> str:
    """The chart in words."""
    return "Bar chart: " + "; ".join(
        f"{s['name']} {percent(s['preferred']['value'])}"
        + (f", {span(s['preferred'], share=True)}" if s["preferred"]["value"] is not None else "")
        + (", gamed" if s["verdict"] == "gamed" else "") for s in sets) + "."


def _row(of: Mapping[str, Any]) -> dict[str, Any]:
    share, gain, words = of["preferred"], of["difference"], of["words"]

    def interval(found: Mapping[str, Any], say: Any) -> str:
        if found["value"] is None:
            return "–"
        low, high = found.get("low"), found.get("high")
        return say(found["value"]) + ("" if low is None or high is None else f" [{say(low)}, {say(high)}]")

    return {"name": of["name"], "does": of["does"], "verdict": of["verdict"], "n": number(of["n"]),
            "preferred": interval(share, percent), "gain": interval(gain, number), "limit": percent(of["threshold"]),
            "length": f"{words['worse'] / words['better']:.2f}" if words["better"] else "–"}


def _worst(of: Mapping[str, Any]) -> dict[str, Any]:
    mark = _MARKED.get(of["name"])
    cases = [{"id": c["prompt_id"], "messages": c["messages"], "advantage": number(c["advantage"]),
              "better": _said(c["better"], c["better_score"], []),
              "worse": _said(c["worse"], c["worse_score"], mark(c["worse"]) if mark else
                             spans.added(c["better"], c["worse"]))} for c in of["worst"]]
    return {"name": of["name"], "does": of["does"], "shown": cases[:SHOWN], "rest": cases[SHOWN:]}


def _said(text: str, score: float, found: Sequence[spans.Span]) -> dict[str, Any]:
    return {"parts": marks.parts(text, found) if text else [], "marked": "", "ended": "",
            "meta": [("score", number(score, sign=True))]}
