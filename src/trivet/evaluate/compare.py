"""`trivet evaluate compare RUN RUN…`: finished evaluations side by side, item by item; the first is the base.

Every column rests on the same items, those that all of them answered. All tests are in one family of Holm's.

Not covered: win rates and what else a judge says of pairs of answers; each run has pairs with a base of its own.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from trivet.artifacts import atomic_write, write_json
from trivet.errors import TrivetError
from trivet.evaluate import table
from trivet.evaluate.base import Measure, Score
from trivet.evaluate.results import (
    RESULTS_VERSION,
    Line,
    Results,
    build,
    by_measure,
    judge_together,
    machines_differ,
    read,
    read_scores,
)
from trivet.evaluate.suites import prompts

Scores = dict[str, list[Score]]
"""By the measure's key."""


class CompareConfig(BaseModel):
    """Finished evaluations side by side."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    runs: list[Path] = Field(min_length=2)
    """Folders of finished evaluations; the first is the base."""
    out: Path | None = None
    """A folder for compare.json, compare.md and compare.html. Default: only the table in the terminal."""
    seed: int = 0
    """Of the intervals and tests."""


def compare(folders: Sequence[Path], seed: int = 0, command: str = "") -> list[Results]:
    """A table for each folder after the first, beside the first. `seed` is that of intervals and tests; the tables'
    own seed and machine are the runs'.

    Raises TrivetError for a folder without a finished evaluation, one that is given twice, data files that differ,
    items that were grouped in another way, and where the runs share no item.
    """
    if len(folders) < 2:
        raise TrivetError("one evaluation can't be compared", field="runs", mend="give two folders or more")
    places = [f.resolve() for f in folders]
    for i, folder in enumerate(folders):
        if places[i] in places[:i]:
            raise TrivetError("this folder is given twice", file=folder, field="runs", mend="give each folder once")
    runs = [read(f) for f in folders]
    _same_data(runs, folders)
    scores = [by_measure(read_scores(f)) for f in folders]
    left_out = _meet(runs, scores, folders)
    names = _names(runs, folders)
    notes = _notes(runs, names)
    tables = []
    for place in range(1, len(runs)):
        measures = [_measure(line) for line in runs[0].measures if line.key in scores[0]]
        found = build(
            model=names[place], base=names[0], measures=measures,
            scores=[s for m in measures for s in scores[place][m.key]],
            base_scores=[s for m in measures for s in scores[0][m.key]], seed=seed, command=command,
            suites={k: v for k, v in runs[0].suites.items() if k in runs[place].suites}, left_out=left_out,
            notes=notes, data=runs[0].data, settings=runs[0].settings)
        # the columns are of the runs: `seed` is only that of this table's intervals and tests
        found.seed, found.machine = runs[place].seed, runs[place].machine
        found.measures += _as_they_are(runs[0], runs[place], {m.key for m in measures} | left_out.keys())
        tables.append(found)
    judge_together(tables)
    return tables


def write(out: Path, tables: Sequence[Results], folders: Sequence[Path]) -> None:
    """Write compare.json and compare.md into a folder, atomically."""
    write_json(out / "compare.json", {"schema_version": RESULTS_VERSION, "runs": [str(f) for f in folders],
                                      "tables": [t.model_dump(mode="json") for t in tables]})
    with atomic_write(out / "compare.md") as file:
        file.write(table.markdown(tables))


def _measure(line: Line) -> Measure:
    return Measure(line.key.partition(".")[2], line.leg, line.words, line.better, line.kind, line.share, line.unit,
                   line.tested, line.paired)


def _same_data(runs: Sequence[Results], folders: Sequence[Path]) -> None:
    """Raise TrivetError where two runs read different files of one name."""
    for run, folder in zip(runs[1:], folders[1:], strict=True):
        differ = [f for f, hashed in run.data.items() if runs[0].data.get(f, hashed) != hashed]
        if differ:
            raise TrivetError(f"this evaluation read another {differ[0]} than {folders[0]}", file=folder, field="runs",
                              expected="the same data files, byte for byte", mend="evaluate both on the same --data")


def _meet(runs: Sequence[Results], scores: Sequence[Scores], folders: Sequence[Path]) -> dict[str, str]:
    """Cut `scores` down to the items that all runs share; give the measures that are left out, with the reason.

    A pair of items of different groups can't be the same item: TrivetError. So is no shared item at all.
    """
    left_out: dict[str, str] = {}
    relative = {line.key for run in runs for line in run.measures if _of_pairs(line)}
    for key in dict.fromkeys(k for found in scores for k in found):
        ids = set.intersection(*({s.id for s in found.get(key, ())} for found in scores))
        if key in relative:
            left_out[key] = "of pairs with each run's own base"
        elif not ids:
            lacking = [f.name for f, found in zip(folders, scores, strict=True) if key not in found]
            left_out[key] = f"not in {', '.join(lacking)}" if lacking else "the runs share no item"
        for found in scores:
            if key in left_out:
                found.pop(key, None)
            else:
                found[key] = [s for s in found[key] if s.id in ids]
    if not any(scores):
        seeds = ", ".join(f"{f}: seed {r.seed}, {', '.join(r.suites) or 'no suite'}"
                          for f, r in zip(folders, runs, strict=True))
        raise TrivetError("these evaluations share no item, so nothing can be compared", file=folders[-1], field="runs",
                          expected=f"the same suites, seed, limit and data ({seeds})",
                          mend="evaluate both with the same --suites, --seed, --limit and --data")
    for key, base in scores[0].items():
        groups = {s.id: s.group for s in base}
        for found, folder in zip(scores[1:], folders[1:], strict=True):
            for score in found[key]:
                if score.group != groups[score.id]:
                    raise TrivetError(f"{key}: item {score.id!r} belongs to {score.group!r} here and to "
                                      f"{groups[score.id]!r} in {folders[0]}", file=folder, field="runs",
                                      mend="evaluate both anew with one version of Trivet")
    return left_out


def _of_pairs(line: Line) -> bool:
    """Whether a measure tells of pairs of answers, the run's and its own base's."""
    return line.relative or line.key in {m.key for m in prompts.PAIRS}


def _as_they_are(base: Results, run: Results, known: set[str]) -> list[Line]:
    """Lines of measures that are not scored item by item in both (speed), with the figures that the runs have."""
    found = []
    for line in base.measures:
        other = run.line(line.key)
        if line.key not in known and not _of_pairs(line) and other is not None:
            found.append(other.model_copy(update={
                "base": line.value, "base_topics": line.topics, "difference": None, "p_holm": None,
                "verdict": "untested", "tested": False}))
    return found


def _names(runs: Sequence[Results], folders: Sequence[Path]) -> list[str]:
    """What the columns are called: the models, or the folders where two runs are of one model."""
    models = [r.model for r in runs]
    return models if len(set(models)) == len(models) else [str(f) for f in folders]


def _notes(runs: Sequence[Results], names: Sequence[str]) -> list[str]:
    """What was not the same in all runs."""
    notes: list[str] = []
    said: dict[str, list[Any]] = {"seed": [r.seed for r in runs]}
    said |= {key: [r.settings.get(key) for r in runs] for r in runs for key in r.settings}
    for what, values in said.items():
        if any(value != values[0] for value in values):
            notes.append(f"With care: {what} differs ("
                         + "; ".join(f"{n}: {_short(v)}" for n, v in zip(names, values, strict=True)) + ").")
    machines = list(dict.fromkeys(r.machine for r in runs))
    if len(machines) > 1:
        notes.append(machines_differ(machines))
    return notes


def _short(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


def check_out(out: Path) -> None:
    """Raise TrivetError, before anything is computed, for an `out` that is a file."""
    if os.path.exists(out) and not out.is_dir():
        raise TrivetError("a file stands where the folder should be", file=out, field="out",
                          mend="choose another folder with --out")
