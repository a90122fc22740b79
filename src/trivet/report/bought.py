"""What a stage bought, in words: by the evaluation of what it made, else by its own figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trivet.evaluate import results, table
from trivet.evaluate.results import Line, Results
from trivet.report.read import RunFolder, StageRun
from trivet.report.words import number, percent

NAMED = 3
"""Measures that are named, at most; the others are counted."""


def evaluations(run: RunFolder, more: Sequence[Path]) -> list[tuple[Results, str]]:
    """(evaluation, the stage that made its model; "" for a model from elsewhere), the run's own first.

    Raises TrivetError for a folder of `more` that holds no finished evaluation.
    """
    own = [s.folder for s in run.of("evaluate") if s.summary is not None and (s.folder / results.RESULTS).is_file()]
    folders: dict[Path, Path] = {}
    for folder in [*own, *more]:
        folders.setdefault(folder.resolve(), folder)
    found = [results.read(folder) for folder in folders.values()]
    makers = [run.maker(r.model) for r in found]
    return [(r, stage.name if stage else "") for r, stage in zip(found, makers, strict=True)]


def said(stage: StageRun, found: Sequence[tuple[Results, str]]) -> str:
    """What a stage bought: what evaluations say of what it made; its own figures where none of them has a base."""
    made = [r for r, by in found if by == stage.name]
    words = [evaluated(r) for r in made]
    own = "" if any(r.base for r in made) else own_figures(stage)
    return "; ".join([own, *words] if own else words)


def elsewhere(found: Sequence[tuple[Results, str]]) -> list[str]:
    """What evaluations say of models that no stage of the run made."""
    return [f"no stage here made {_short(r.model)}: {evaluated(r)}" for r, by in found if not by]


def evaluated(found: Results) -> str:
    """An evaluation in a line: what is better and worse than the base, the surest first."""
    if found.base is None:
        return f"{len(found.measures)} measures of {_short(found.model)}, beside no base"
    tested = [m for m in found.measures if m.verdict != "untested"]
    parts = []
    for verdict in ("better", "worse", "changed"):
        lines = sorted((m for m in tested if m.verdict == verdict), key=lambda m: (m.p_holm or 0.0, m.key))
        if lines:
            more = f" and {len(lines) - NAMED} more" if len(lines) > NAMED else ""
            parts.append(f"{len(lines)} {verdict}: {', '.join(map(_change, lines[:NAMED]))}{more}")
    same = sum(m.verdict == "same" for m in tested)
    parts.append(f"{same} of {len(tested)} measures as before" if parts else
                 f"none of {len(tested)} measures differs beyond chance")
    return f"beside {_short(found.base)}, {'; '.join(parts)}"


def _change(line: Line) -> str:
    """`harmless.attack_success 31% → 22%`."""
    now = table.figure(line.value, line).split(" [")[0]
    return f"{line.key} {now}" if line.base is None or line.relative else \
        f"{line.key} {table.figure(line.base, line).split(' [')[0]} → {now}"


def _short(name: str) -> str:
    """A model's name without the folders before it."""
    return "/".join(Path(name).parts[-2:])


def own_figures(stage: StageRun) -> str:
    """What the stage says of itself; "" where it is not finished."""
    found = stage.summary
    if found is None:
        return ""
    if stage.stage == "ppo":
        second = f", by the second reward {_gain(found['second_reward_gain'])}" if found.get("second_reward_gain") \
            else ""
        return f"reward on held-out prompts {_gain(found['reward_gain'])}{second}"
    if stage.stage == "reward":
        if not found.get("accuracy"):
            return "a reward model, not evaluated"
        rules = [v for k in ("longer_wins", "shorter_wins") if found.get(k) and (v := found[k]["value"]) is not None]
        beside = f"; by length alone {percent(max(rules))}" if rules else ""
        return f"unseen pairs right {_interval(found['accuracy'], share=True)}{beside}"
    needed, words = _OWN.get(stage.stage, ((), None))
    return words(found) if words and all(found.get(k) is not None for k in needed) else ""


_OWN: dict[str, tuple[tuple[str, ...], Callable[[Mapping[str, Any]], str]]] = {
    "sample": (("completions", "prompts"), lambda s: f"{s['completions']:,} answers to {s['prompts']:,} prompts"),
    "check": (("capable",), lambda s: f"the model {'can' if s['capable'] else 'can’t'} answer such prompts"),
    "sft": (("first_loss", "last_loss", "conversations"), lambda s: f"loss {number(s['first_loss'])} → "
            f"{number(s['last_loss'])} on {s['conversations']:,} conversations"),
    "pairs": (("pairs", "prompts"), lambda s: f"{s['pairs']:,} pairs of {s['prompts']:,} prompts"),
    "score": (("answers",), lambda s: f"{s['answers']:,} answers scored"),
    "audit": (("pairs", "gamed"), lambda s: f"{s['pairs']:,} worse texts scored; preferred: "
              f"{', '.join(s['gamed']) or 'none shown'}"),
    "tradeoff": (("variants", "front"), lambda s: f"{s['variants']:,} variants measured; worth having: "
                 f"{', '.join(s['front'])}"),
    "evaluate": (("measures", "model"), lambda s: f"{len(s['measures'])} measures of {_short(s['model'])}"),
}
"""By stage: the figures it needs, and its words."""


def _gain(found: Mapping[str, Any]) -> str:
    low, high = found.get("low"), found.get("high")
    bounds = "" if low is None or high is None else f" [{number(low)}, {number(high)}]"
    return f"{number(found['value'], sign=True)}{bounds}"


def _interval(found: Mapping[str, Any], *, share: bool = False) -> str:
    if found.get("value") is None:
        return "not known"
    words = percent if share else number
    low, high = found.get("low"), found.get("high")
    return words(found["value"]) + ("" if low is None or high is None else f" [{words(low)}, {words(high)}]")
