"""The form of `results.json`, how it is made from scores, and how it is read back.

table.py shows it; thresholds.py reads conditions on it; compare.py puts several side by side.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from trivet import __version__, ledger
from trivet.artifacts import json_lines, read_json, row_error, write_json
from trivet.errors import TrivetError
from trivet.evaluate.base import Kind, Leg, Measure, Score
from trivet.evaluate.statistics import LEVEL, difference, estimate, holm_family, in_family
from trivet.intervals import Interval

RESULTS = "results.json"
RESULTS_VERSION = 1
LEGS: tuple[Leg, ...] = ("helpful", "honest", "harmless", "capable")
Verdict = Literal["better", "worse", "changed", "same", "untested"]
"""`changed`: significantly, in a measure of which neither direction is the better one. `same`: no difference was shown,
also where so few items differ that none could have been."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class Figure(_Part):
    """A figure with its 95% interval over `n` groups. None: it could not be computed."""

    value: float | None
    low: float | None
    high: float | None
    n: int


class Change(Figure):
    """The model's figure less the base's over what both answered; p before Holm's rule."""

    p: float | None
    least: float | None
    """The smallest p that this test could have given; a measure where that is above the level is outside the family."""


class Line(_Part):
    """One measure."""

    key: str
    leg: Leg
    words: str
    better: Literal["higher", "lower", "neither"]
    kind: Kind
    share: bool
    unit: str
    tested: bool
    paired: bool = True
    """As Measure.paired."""
    value: Figure
    base: Figure | None
    difference: Change | None
    p_holm: float | None
    """p after Holm's rule; None outside the family: not tested, or by a test that could not have reached the level
    (the verdict is then `same`)."""
    verdict: Verdict
    topics: dict[str, Figure]
    base_topics: dict[str, Figure]

    @property
    def relative(self) -> bool:
        """Whether the figure is itself a comparison with the base (a win rate)."""
        return self.kind in ("win", "lc_win")


class SuiteRun(_Part):
    """A suite that was run."""

    items: int
    seconds: float | None = None
    """Of the model, without the base; in all attempts, except what went by before a kill -9 within the suite."""
    asked: str | None = None
    """sha256 over the ids of the items: two evaluations asked the same where it is the same."""


class Results(_Part):
    """`results.json`: one model, perhaps beside a base."""

    schema_version: int = RESULTS_VERSION
    trivet: str
    machine: str
    model: str
    base: str | None
    command: str
    seed: int
    level: float
    family: int
    """How many tests Holm's rule was told of."""
    suites: dict[str, SuiteRun]
    left_out: dict[str, str]
    """Suites, tasks and measures that are not in the table, and why."""
    notes: list[str]
    data: dict[str, str]
    """sha256 of each data file that was read, by its path in the data folder."""
    settings: dict[str, Any]
    """What else two evaluations must share to be compared: sampling, what graded, precision, tasks of lm-eval."""
    seconds: float | None
    measures: list[Line]

    def line(self, key: str) -> Line | None:
        """A measure's line."""
        return next((m for m in self.measures if m.key == key), None)

    def leg(self, leg: Leg) -> list[Line]:
        """The lines of a leg."""
        return [m for m in self.measures if m.leg == leg]


def build(
    *, model: str, measures: Sequence[Measure], scores: Iterable[Score], base: str | None = None,
    base_scores: Iterable[Score] | None = None, seed: int = 0, command: str = "",
    suites: Mapping[str, SuiteRun] | None = None, left_out: Mapping[str, str] | None = None,
    notes: Sequence[str] = (), data: Mapping[str, str] | None = None, settings: Mapping[str, Any] | None = None,
    seconds: float | None = None, base_machine: str | None = None,
) -> Results:
    """Figures, tests and verdicts of one evaluation.

    `scores` are the model's, those of win rates among them; `base_scores` the base's. Measures without a score are not
    in the table. Lines are in the order of the legs, then of `measures`. base_machine: where the base was evaluated,
    None for here; another one than this is noted where speeds stand in the table. Raises ValueError for scores of a
    measure that is not among `measures`, for two measures of one key, for `base` without `base_scores` or the other way
    round, and as statistics.estimate does.
    """
    if (base is None) != (base_scores is None):
        raise ValueError("base and base_scores go together")
    known = {m.key: m for m in measures}
    if len(known) < len(measures):
        raise ValueError("two measures of one key")
    ours, theirs = by_measure(scores), by_measure(base_scores or ())
    unknown = sorted((ours.keys() | theirs.keys()) - known.keys())
    if unknown:
        raise ValueError(f"scores of measures that are not given: {', '.join(unknown)}")
    lines = [_line(m, ours[m.key], theirs.get(m.key, []), seed, beside=base is not None)
             for leg in LEGS for m in measures if m.leg == leg and m.key in ours]
    machine = ledger.machine()
    if base_machine not in (None, machine) and any(not line.paired for line in lines):
        notes = [*notes, machines_differ([base_machine or "", machine])]
    notes = [*notes, *(f"{m.words}: not compared between {model} and {base}, whose tokenizers cut the same text into "
                       "other tokens; bits per byte can be." for m in measures if m.paired and
                       _other_units(m, ours.get(m.key, []), theirs.get(m.key, [])))]
    results = Results(
        trivet=__version__, machine=machine, model=model, base=base, command=command, seed=seed, level=LEVEL,
        family=0, suites=dict(suites or {}), left_out=dict(left_out or {}), notes=list(notes), data=dict(data or {}),
        settings=dict(settings or {}), seconds=seconds, measures=lines)
    judge_together([results])
    return results


def machines_differ(machines: Sequence[str]) -> str:
    """The note of a table whose columns come from several machines."""
    return f"Speeds are of different machines ({'; '.join(machines)})."


def judge_together(tables: Sequence[Results]) -> None:
    """Set p_holm, verdict and family in all lines, with all tests of all tables in one family."""
    lines = [line for table in tables for line in table.measures]
    found = [_p_of(line) for line in lines]
    for line, p in zip(lines, holm_family(found), strict=True):
        line.p_holm = p
        line.verdict = _verdict(line)
    for table in tables:
        table.family = sum(in_family(*pair) for pair in found)


def by_measure(scores: Iterable[Score]) -> dict[str, list[Score]]:
    """Scores by the measure's key."""
    found: dict[str, list[Score]] = {}
    for score in scores:
        found.setdefault(score.measure, []).append(score)
    return found


def _line(measure: Measure, mine: list[Score], base: list[Score], seed: int, *, beside: bool) -> Line:
    relative = measure.kind in ("win", "lc_win")
    shared = relative or (measure.paired and not {s.id for s in mine}.isdisjoint(s.id for s in base))
    alike = not _other_units(measure, mine, base)
    change = difference(measure, mine, base, seed) if beside and shared and alike else None
    return Line(
        key=measure.key, leg=measure.leg, words=measure.words, better=measure.better, kind=measure.kind,
        share=measure.share, unit=measure.unit, tested=measure.tested,
        paired=measure.paired, value=_figure(estimate(measure, mine, seed)),
        base=_figure(estimate(measure, base, seed)) if base and not relative else None,
        difference=None if change is None else Change(**_numbers(change._asdict())), p_holm=None, verdict="untested",
        topics=_topics(measure, mine, seed), base_topics={} if relative else _topics(measure, base, seed))


def _other_units(measure: Measure, mine: Sequence[Score], base: Sequence[Score]) -> bool:
    """Whether a perplexity is per another unit here than there: two tokenizers cut a text into other tokens, and a
    figure per token then says as much of the tokenizer as of the model."""
    counted = {s.id: s.weight for s in base}
    return measure.kind == "exp" and any(counted.get(s.id, s.weight) != s.weight for s in mine)


def _topics(measure: Measure, scores: Sequence[Score], seed: int) -> dict[str, Figure]:
    """The figure by topic; none where all are of one topic."""
    topics: dict[str, list[Score]] = {}
    for score in scores:
        if score.topic is not None:
            topics.setdefault(score.topic, []).append(score)
    if len(topics) < 2 or measure.kind == "lc_win":
        return {}
    return {t: _figure(estimate(measure, topics[t], seed)) for t in sorted(topics)}


def _figure(found: Interval) -> Figure:
    return Figure(**_numbers(found._asdict()))


def _numbers(found: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: what could not be computed is None."""
    return {k: v if math.isfinite(v) else None for k, v in found.items()}


def _p_of(line: Line) -> tuple[float | None, float | None]:
    """p and the least that p could have been; None, None for what is not tested."""
    return (line.difference.p, line.difference.least) if line.tested and line.difference else (None, None)


def _verdict(line: Line) -> Verdict:
    change = line.difference
    if _p_of(line)[0] is None or change is None or change.value is None:
        return "untested"
    if line.p_holm is None or line.p_holm > LEVEL or change.value == 0:
        return "same"
    if line.better == "neither":
        return "changed"
    return "better" if (change.value > 0) == (line.better == "higher") else "worse"


# --- files ----------------------------------------------------------------------------------------------


def write(folder: Path, results: Results) -> Path:
    """Write results.json, atomically, and give its path."""
    path = folder / RESULTS
    write_json(path, results.model_dump(mode="json"))
    return path


def read(path: str | Path) -> Results:
    """The results in a file, or in an evaluation's folder.

    Raises TrivetError for a folder without results, a damaged file, and one that another version wrote.
    """
    path = Path(path)
    if not path.exists():
        raise TrivetError("there is no such folder", file=path,
                          mend="give a folder that `trivet evaluate` has written, such as runs/evaluate")
    if path.is_dir():
        if not (path / RESULTS).is_file():
            raise TrivetError("this folder holds no finished evaluation", file=path, expected=f"a file {RESULTS} in it",
                              mend="finish it by the same `trivet evaluate` command, or give another folder")
        path = path / RESULTS
    value = read_json(path, "schema_version", "measures")
    if value["schema_version"] != RESULTS_VERSION:
        raise TrivetError(f"this Trivet reads schema_version {RESULTS_VERSION}, the file says "
                          f"{value['schema_version']}", file=path, field="schema_version",
                          mend="evaluate anew, or use the Trivet that wrote it")
    try:
        return Results.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        raise TrivetError(f"this is not what `trivet evaluate` writes: {first['msg']}", file=path,
                          field=".".join(map(str, first["loc"])), mend="evaluate anew with --overwrite") from None


def read_scores(folder: str | Path) -> list[Score]:
    """All scores of an evaluation's folder, from scores/*.jsonl. Raises TrivetError where there are none."""
    files = sorted((Path(folder) / "scores").glob("*.jsonl"))
    if not files:
        raise TrivetError("this folder holds no scores of an evaluation", file=folder,
                          expected="files scores/SUITE.jsonl in it",
                          mend="give a folder that `trivet evaluate` has written, such as runs/evaluate")
    return [score for file in files for score in read_score_file(file)]


def read_score_file(path: str | Path) -> list[Score]:
    """The scores of one file, perhaps none. An item has a score of each measure, so ids repeat (not in one measure).

    Raises TrivetError for a damaged line, and for two scores of one item and measure.
    """
    path, found, seen = Path(path), [], set()
    for number, value in json_lines(path):
        try:
            score = Score.model_validate(value)
        except ValidationError as error:
            raise row_error(error, Score, path, number) from None
        if (score.measure, score.id) in seen:
            raise TrivetError(f"{score.measure} of item {score.id!r} stands twice", file=path, line=number, field="id",
                              mend="delete this file, and evaluate again: the suite is run anew")
        seen.add((score.measure, score.id))
        found.append(score)
    return found
