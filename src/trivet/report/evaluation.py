"""report.html of an evaluation, the picture beside it, and the commands around `trivet evaluate`.

Reads results.json, scores and answers; computes nothing that costs anything.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trivet import __version__
from trivet.artifacts import atomic_write
from trivet.errors import TrivetError
from trivet.evaluate import compare, table, thresholds
from trivet.evaluate.base import Score
from trivet.evaluate.catalogue import SUITES
from trivet.evaluate.config import EvaluateConfig
from trivet.evaluate.results import RESULTS, Line, Results, read, read_score_file
from trivet.report import evaluation_plots, plots
from trivet.report.page import environment
from trivet.report.read import rows, spread
from trivet.report.words import duration, number

PICTURE, PAGE = "evaluation.svg", "report.html"
_EACH = 2
"""Answers of a suite that are shown: so many that the rules tell apart, and so many others; twice as many alone."""
Parse = Callable[[type[Any], list[str], str, str], Any]


# --- pages ----------------------------------------------------------------------------------------------


def write_evaluation(folder: Path) -> Path:
    """Write report.html and evaluation.svg of a finished evaluation's folder; give the page's path.

    Raises TrivetError for a folder without results, and for a damaged file in it.
    """
    results = read(folder)
    base = _base_folder(folder)
    config = folder / "config.yaml"
    _write(folder / PAGE, folder / PICTURE, [results], folders=[folder], answers=_answers(results, folder, base),
           config=config.read_text(encoding="utf-8", errors="replace") if config.is_file() else "")
    return folder / PAGE


def write_comparison(out: Path, tables: Sequence[Results], folders: Sequence[Path]) -> Path:
    """Write compare.json, compare.md, compare.html and compare.svg into a folder; give the page's path."""
    compare.write(out, tables, folders)
    _write(out / "compare.html", out / "compare.svg", tables, folders=folders)
    return out / "compare.html"


def shown_table(tables: Sequence[Results]) -> dict[str, Any]:
    """What the macro `measures` takes: sections, heads and signs."""
    single = len(tables) == 1
    sections = [{"leg": s.leg, "rows": [{
        "name": table.words(r.line), "n": table.counts(r),
        "said": f"p = {r.line.p_holm:.2g}" if single and r.line.p_holm is not None else "",
        "cells": [(c.rstrip(" ▲▼◆"), v) for c, v in zip(r.cells, r.verdicts, strict=True)],
    } for r in s.rows]} for s in table.sections(tables)]
    return {"sections": sections, "heads": [table.short(h) for h in table.columns(tables)],
            "sign": {**table.MARKS, "": ""}}


def _write(page: Path, picture: Path, tables: Sequence[Results], *, folders: Sequence[Path],
           answers: Sequence[Mapping[str, Any]] = (), config: str = "") -> None:
    first = tables[0]
    drawn = plots.draw("legs", "By leg", evaluation_plots.legs(tables), evaluation_plots.alt(tables),
                       "Dots are figures, bars 95% intervals." + (
                           " ▲ better, ▼ worse, ◆ changed: significant after Holm's rule. Two intervals may overlap "
                           "though the paired difference is significant." if first.base is not None else ""))
    html = environment().get_template("evaluation.html").render(
        version=__version__, many=len(tables) > 1, title=first.model if len(tables) == 1 else "Comparison",
        model=first.model, base=first.base, beside=first.base is not None, leads=[_lead(t) for t in tables],
        picture=drawn, footnotes=table.footnotes(tables), topics=_topics(tables), answers=answers,
        commands=list(dict.fromkeys(t.command for t in tables if t.command)), setup=_setup(tables), config=config,
        folders=folders, **shown_table(tables))
    with atomic_write(page) as file:
        file.write(html)
    with atomic_write(picture) as file:
        file.write(evaluation_plots.standalone(str(drawn.svg)))


def _lead(results: Results) -> dict[str, str]:
    """What came out, in a sentence or two."""
    said = {v: [m.words for m in results.measures if m.verdict == v] for v in ("better", "worse", "changed", "same")}
    if results.base is None:
        return {"tone": "", "text": f"{len(results.measures)} measures of {results.model}, beside no other model: give "
                "a base by --against to see what changed."}
    parts = [f"{v} in {len(said[v])} ({'; '.join(said[v])})" for v in ("better", "worse", "changed") if said[v]]
    tested = sum(map(len, said.values()))
    if not parts:
        text = f"No difference between {results.model} and {results.base} was shown in any of {tested} measures."
    else:
        text = f"Of {tested} measures tested against {results.base}, {results.model} is {', '.join(parts)}." + (
            f" In the other {len(said['same'])} no difference was shown." if said["same"] else "")
    return {"tone": "caution" if said["worse"] else "good" if said["better"] else "", "text": text}


def _topics(tables: Sequence[Results]) -> list[dict[str, Any]]:
    """Each measure's table by topic."""
    found = []
    for line in tables[0].measures:
        lines = [other for t in tables if (other := t.line(line.key))]
        names = list(dict.fromkeys(n for m in lines for n in (*m.base_topics, *m.topics)))
        if not names:
            continue
        beside = bool(line.base_topics)
        heads = [table.short(t.model) for t in tables if t.line(line.key)]
        found.append({
            "words": table.words(line), "heads": [table.short(tables[0].base or ""), *heads] if beside else heads,
            "rows": [(n, [table.figure(topics[n], line) if n in topics else "–"
                          for topics in ([line.base_topics] if beside else []) + [m.topics for m in lines]],
                      f"{max(t[n].n for m in lines for t in (m.topics, m.base_topics) if n in t):,}") for n in names]})
    return found


def _setup(tables: Sequence[Results]) -> list[tuple[str, str]]:
    first = tables[0]
    suites = [f"{n} ({s.items:,}{f', {duration(s.seconds)}' if s.seconds is not None else ''})"
              for n, s in first.suites.items()]
    found = [("suites (items, time of the model)", ", ".join(suites)), ("seed", str(first.seed)),
             *((k, ", ".join(f"{a} {b}" for a, b in v.items()) if isinstance(v, Mapping) else str(v))
               for k, v in first.settings.items() if v not in (None, False)),
             ("data", ", ".join(f"{f} ({h[:12]})" for f, h in first.data.items())),
             ("time", duration(first.seconds) if first.seconds is not None else ""), ("machine", first.machine)]
    return [(k, v) for k, v in found if v]


# --- answers --------------------------------------------------------------------------------------------


def _base_folder(folder: Path) -> Path | None:
    """Where the base's answers are: in the folder, or in the evaluation that it was compared with."""
    import yaml

    if (folder / "base" / "answers").is_dir():
        return folder / "base"
    path = folder / "config.yaml"
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (ValueError, yaml.YAMLError) as error:
        raise TrivetError(f"broken YAML: {error}", file=path,
                          mend="this file is the stage's own record: evaluate anew with --overwrite") from None
    against = config.get("against") if isinstance(config, dict) else None
    return Path(against) if against and (Path(against) / RESULTS).is_file() else None


def _answers(results: Results, folder: Path, base: Path | None) -> list[dict[str, Any]]:
    """Some answers of each suite, beside the base's where it answered the same prompts, by leg."""
    found = []
    for suite in SUITES.values():
        mine = _by_id(folder / "answers" / f"{suite.name}.jsonl")
        theirs = _by_id(base / "answers" / f"{suite.name}.jsonl") if base else {}
        scores, others = (_scores(f / "scores" / f"{suite.name}.jsonl") if f else {} for f in (folder, base))
        if results.base is not None and theirs:
            shared = [i for i in mine if i in theirs and mine[i]["messages"] == theirs[i]["messages"]]
            apart = [i for i in shared if i in scores and i in others and
                     _verdicts(scores[i]) != _verdicts(others[i])]
            alike = [i for i in shared if i not in set(apart)]
            chosen = [(i, kind) for ids, kind in ((apart, "told apart"), (alike, "alike"))
                      for i in (ids[k] for k in spread(len(ids), _EACH))]
        else:
            ids = list(mine)
            chosen = [(ids[k], f"{k + 1} of {len(ids)}") for k in spread(len(ids), 2 * _EACH)]
        shown = [{
            "id": i, "kind": kind, "messages": mine[i]["messages"], "topic": _topic(scores.get(i, ())),
            "mine": _said(mine[i], scores.get(i, ()), results),
            "base": _said(theirs[i], others.get(i, ()), results) if i in theirs and results.base else None}
            for i, kind in chosen]
        if shown:
            found.append({"suite": suite.name, "leg": suite.leg, "shown": shown})
    return found


def _by_id(path: Path) -> dict[str, dict[str, Any]]:
    return {str(r["id"]): r for r in rows(path, ("id", "messages", "completions"))}


def _scores(path: Path) -> dict[str, list[Score]]:
    found: dict[str, list[Score]] = {}
    for score in read_score_file(path) if path.is_file() else ():
        found.setdefault(score.id, []).append(score)
    return found


def _verdicts(scores: Sequence[Score]) -> dict[str, float]:
    """What the yes-or-no rules say of an item."""
    return {s.measure: s.value for s in scores if s.value in (0.0, 1.0)}


def _topic(scores: Sequence[Score]) -> str:
    return next((s.topic for s in scores if s.topic), "")


def _said(row: Mapping[str, Any], scores: Sequence[Score], results: Results) -> dict[str, Any]:
    """An answer, and what each measure says of it in words."""
    lines = {s.measure: line for s in scores if (line := results.line(s.measure)) and line.kind in ("mean", "ece")}
    return {"text": row["completions"][0]["text"],
            "rules": [(lines[s.measure].words, _value(s, lines[s.measure])) for s in scores if s.measure in lines]}


def _value(score: Score, line: Line) -> str:
    if line.share and score.value in (0.0, 1.0):
        return "yes" if score.value else "no"
    return number(score.value, 2) if line.share or not score.value.is_integer() else number(int(score.value))


# --- commands -------------------------------------------------------------------------------------------


def finish(config: EvaluateConfig) -> None:
    """What `trivet evaluate` does when the stage is done: table, page, picture, conditions.

    Exits with code 1 where a condition of `fail_if` holds. Raises TrivetError as `read` and `violations` do.
    """
    results = read(config.out)
    page = write_evaluation(config.out)
    _print([results])
    print(f"report: {page}\npicture: {config.out / PICTURE}", flush=True)
    broken = thresholds.violations(results, config.fail_if)  # may refuse one: not before the page
    for line in broken:
        print(f"trivet: failed: {line}", file=sys.stderr)
    if broken:
        raise SystemExit(1)


def evaluate_command(arguments: Sequence[str], parse: Parse) -> None:
    """`trivet evaluate compare RUN RUN… [--out DIR]` and `trivet evaluate suites`."""
    command, rest = arguments[0], list(arguments[1:])
    if command == "suites":
        if rest:
            raise TrivetError(f"`trivet evaluate suites` takes no setting, such as {rest[0]!r}", mend="leave it out")
        _print_suites()
        return
    runs = next((i for i, word in enumerate(rest) if word.startswith("-")), len(rest))
    config = parse(compare.CompareConfig, [*(["--runs"] if runs else []), *rest], "evaluate compare",
                   "finished evaluations side by side; the first is the base")
    if config.out is not None:
        compare.check_out(config.out)
    tables = compare.compare(config.runs, config.seed, shlex.join(["trivet", "evaluate", *arguments]))
    _print(tables)
    if config.out is not None:
        print(f"report: {write_comparison(config.out, tables, config.runs)}", flush=True)


def _print(tables: Sequence[Results]) -> None:
    from trivet.training.progress import console

    console.print(table.rich_table(tables, console.width))


def _print_suites() -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from trivet.training.progress import console

    shown = Table(caption="items: of the standard set; data: files under --data; where they are not there, a suite "
                  "with questions of its own asks those, and the others are left out", caption_justify="left",
                  pad_edge=False, box=SIMPLE_HEAD)
    for head in ("suite", "leg", "what is asked", "items", "data"):
        shown.add_column(head, justify="right" if head == "items" else "left", overflow="fold")
    for suite in SUITES.values():
        data = [*suite.data, *(["own questions"] if suite.own else [])]
        shown.add_row(suite.name, suite.leg, suite.help, str(suite.standard), "\n".join(data))
    console.print(shown)
