"""The stage `tradeoff`: what each variant of a model costs in quality, and buys in speed, size and memory.

    OUT/speed.jsonl             a line for each turn of each variant: seconds, memory
        asked/NAME/             scores.jsonl, reward.jsonl, answers/, absent.json of each
        tradeoff.json, .md      the table; pick.json, tradeoff.svg: what was chosen of it (report/tradeoff.py)

Nothing of a model is loaded here: each turn is a process of its own (tradeoff_worker.py), one at a time, so that none
holds the other's memory or cores. Speed is taken in rounds in which all take turns, there and back (A B C, C B A), so
that a machine that slows down slows all of them. An interrupted run goes on at the turn it was in.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trivet import __version__, ledger
from trivet.artifacts import Completions, atomic_write, read_json, read_rows, sha256_file, write_json
from trivet.compress.isolated import Died, isolated
from trivet.compress.speed import Workload, workloads
from trivet.compress.tradeoff_config import RESULTS, TABLE, TradeoffConfig
from trivet.compress.tradeoff_plan import Plan, described, plan
from trivet.compress.tradeoff_results import (
    KL,
    PERPLEXITY,
    REFUSALS_KEPT,
    REWARD,
    REWARD_KEY,
    SAME_TOKEN,
    Row,
    Tradeoff,
    figures,
    growth,
    refusals_kept,
    spread,
    workload_key,
)
from trivet.compress.tradeoff_table import markdown
from trivet.compress.variant import Variant
from trivet.errors import TrivetError
from trivet.evaluate import results
from trivet.evaluate.base import Measure, Score
from trivet.evaluate.catalogue import SUITES, data_files
from trivet.evaluate.suites import text
from trivet.judge.rewards import read_calibration
from trivet.ledger import Spent
from trivet.models.source import resolve
from trivet.runs import Run, Summary

WORKER = "trivet.compress.tradeoff_worker"
SPEED, ASKED, JOBS, MERGED, DISTRIBUTIONS = "speed", "asked", "jobs", "merged", "distributions.npy"


class TradeoffSummary(Summary):
    """What came out, in short."""

    source: str
    variants: int
    front: list[str]
    """On the Pareto front of latency, size and quality."""
    quality: str | None
    """The measure by which quality counts."""
    fastest: str | None
    smallest: str
    failed: list[str]
    """Variants of which nothing but the size is known."""


@dataclass(frozen=True)
class Contender:
    """The source (number 0), or a variant."""

    number: int
    name: str
    path: str
    variant: Variant
    folder: Path
    """Where it is asked."""

    @property
    def field(self) -> str:
        """The setting that names it."""
        return "variants" if self.number else "model"


def run(config: TradeoffConfig, run: Run) -> TradeoffSummary:
    """Measure the source and all variants. Resumes at the turn that was interrupted.

    A variant that does not load, or fails, stands in the table with the reason and its size. Raises TrivetError,
    before anything is measured, for files, suites and models that do not fit; and where the source itself fails.
    """
    made = plan(config)
    measures = _measures(config, made)
    _check_quality(config, measures)
    if config.reward is not None:
        resolve(config.reward)  # that it is there, before an hour of measuring
    stage = _Stage(config, run, made)
    try:
        stage.take_turns()
        stage.ask()
    finally:
        if stage.spent.seconds:
            run.meter.beside([stage.spent])
    found = _table(stage, measures)
    path = run.path(RESULTS)
    write_json(path, found.model_dump(mode="json"))
    run.artifact("results", path)
    quality = found.quality(config.quality)
    with atomic_write(run.path(TABLE)) as file:
        file.write(markdown(found, quality))
    run.artifact("table", run.path(TABLE))
    shutil.rmtree(run.path(JOBS), ignore_errors=True)
    shutil.rmtree(run.path(MERGED), ignore_errors=True)
    candidates = found.candidates(quality)
    timed = [c for c in candidates if c.latency is not None]
    return TradeoffSummary(
        source=found.source.name, variants=len(found.rows) - 1, quality=quality,
        front=[r.name for r in found.rows if r.name in found.front(quality)],
        fastest=min(timed, key=lambda c: c.latency or 0.0).name if timed else None,
        smallest=min(candidates, key=lambda c: c.size or 0.0).name,
        failed=[r.name for r in found.rows if r.failed])


class _Stage:
    """What was measured so far, and the measuring."""

    def __init__(self, config: TradeoffConfig, run: Run, made: Plan) -> None:
        self.config, self.run, self.plan = config, run, made
        self.failed: dict[int, str] = {}
        self.spent, self.compute = Spent(), ""
        path = config.model
        if (source := resolve(config.model)).is_adapter:
            path = str(run.path(MERGED))
            if not (run.path(MERGED) / "config.json").is_file():
                print(f"merging {config.model} into its base", flush=True)
                self._must({"task": "merge", "path": str(source.folder), "folder": path}, "model",
                           "free memory: both the base and its adapter are held")
        self.contenders = [
            Contender(i, name, where, variant, run.path(ASKED, f"{i:02d}-{re.sub(r'[^A-Za-z0-9.]+', '-', name)}"))
            for i, (name, where, variant) in enumerate(described(config, path))]

    # --- turns ---------------------------------------------------------------------------------------

    def take_turns(self) -> None:
        """Every round that is not done: each loads, and is timed."""
        done = set()
        for row in self.run.rows(SPEED):
            done.add((row["round"], row["number"]))
            self.compute = row.get("compute", self.compute)
            if "failed" in row:
                self.failed[row["number"]] = row["failed"]
        for number in range(self.config.speed.rounds):
            turns = self.contenders if number % 2 == 0 else self.contenders[::-1]
            for one in turns:
                if (number, one.number) in done or one.number in self.failed:
                    continue
                print(f"round {number + 1} of {self.config.speed.rounds}: {one.name}", flush=True)
                row = {"round": number, "number": one.number, "name": one.name}
                said = self._turn(one, {"task": "speed", "round": number})
                self.run.log(SPEED, row | ({"failed": self.failed[one.number]} if said is None else
                                           {k: v for k, v in said.items() if k != "spent"}))

    def ask(self) -> None:
        """Everything that is asked of each, the source first; then the reward of all answers."""
        open_ = [c for c in self.contenders if c.number not in self.failed and not _asked(c)]
        compares = self.config.kl_tokens > 0 and bool(self.plan.documents)
        distributions = self.run.path(DISTRIBUTIONS)
        if open_ and compares and not distributions.is_file() and _asked(self.contenders[0]):
            open_.insert(0, self.contenders[0])  # its distributions went with an earlier attempt
        for one in open_:
            print(f"asking {one.name}", flush=True)
            if self._turn(one, {"task": "quality", "source": one.number == 0,
                                "distributions": str(distributions) if compares else None}) is None:
                self.run.log(SPEED, {"round": -1, "number": one.number, "name": one.name,
                                     "failed": self.failed[one.number]})
        distributions.unlink(missing_ok=True)
        answered = [c for c in self.contenders if _answered(c) and not (c.folder / "reward.jsonl").is_file()]
        if answered and self.config.reward is not None:
            print(f"scoring the answers by {self.config.reward}", flush=True)
            self._must({"task": "reward", "folders": [str(c.folder) for c in answered]}, "reward",
                       "see what it printed; run it again: what was answered is kept")

    def _turn(self, one: Contender, job: dict[str, Any]) -> dict[str, Any] | None:
        """A turn of one; None where it failed. Raises TrivetError where the source did."""
        try:
            return self._do(job | {"name": one.name, "path": one.path, "field": one.field, "folder": str(one.folder)})
        except TrivetError as error:
            if one.number == 0:
                raise
            self.failed[one.number] = f"{error.what} (to mend: {error.mend})"
        except Died as died:
            if one.number == 0:
                raise TrivetError(f"{one.name} can't be measured: {died}", field="model",
                                  mend="see what it printed; smaller --speed.batches and --batch-size take less "
                                  "memory") from died
            self.failed[one.number] = str(died)
        print(f"{one.name} is left out: {self.failed[one.number]}", flush=True)
        return None

    def _must(self, job: dict[str, Any], field: str, mend: str) -> None:
        """A job without which there is no table. Raises TrivetError where it fails."""
        try:
            self._do(job)
        except Died as died:
            raise TrivetError(f"{job['task']}: {died}", field=field, mend=mend) from died

    def _do(self, job: dict[str, Any]) -> dict[str, Any]:
        """A job in a process of its own, and what it spent."""
        found = isolated(WORKER, job | {"config": self.config.model_dump(mode="json")},
                         self.run.path(JOBS, f"{job['task']}.json"))
        spent = Spent.model_validate(found["spent"])
        self.spent = self.spent.plus(spent) if self.spent.seconds else spent
        self.compute = found["compute"]
        self.run.meter.tick()
        return found


def _asked(one: Contender) -> bool:
    return (one.folder / "scores.jsonl").is_file()


def _answered(one: Contender) -> bool:
    return _asked(one) and (one.folder / "answers" / "tradeoff.jsonl").is_file()


# --- the table -----------------------------------------------------------------------------------------


def _measures(config: TradeoffConfig, made: Plan) -> list[Measure]:
    """All that can stand in the table."""
    found = [m for suite in made.suites for m in suite.measures]
    if made.documents:
        found += [*text.MEASURES, *((KL, SAME_TOKEN) if config.kl_tokens else ())]
    if any(suite.name == "refusals" for suite in made.suites):
        found.append(REFUSALS_KEPT)
    if config.reward is not None:
        known = read_calibration(resolve(config.reward).folder) is not None
        found.append(replace(REWARD, unit="deviations") if known else REWARD)
    return found


def _check_quality(config: TradeoffConfig, measures: Sequence[Measure]) -> None:
    """Raise TrivetError for a measure of quality that there will not be."""
    able = [m.key for m in measures if m.better != "neither"]
    if config.quality is not None and config.quality not in able:
        raise TrivetError(f"quality can't be told by {config.quality!r}", field="quality", expected=", ".join(able),
                          mend="name one of these, or give the suite that measures it by --suites")
    if config.max_quality_loss is not None and config.quality is None and not {REWARD_KEY, PERPLEXITY} & set(able):
        raise TrivetError("no quality is measured that could be limited", field="max_quality_loss",
                          mend="give a reward or a text, or name the measure by --quality")


def _table(stage: _Stage, measures: Sequence[Measure]) -> Tradeoff:
    """tradeoff.json of what was measured."""
    config, run = stage.config, stage.run
    rows = [r for r in run.rows(SPEED) if "failed" not in r]
    scores = {c.number: _scores(c, stage) for c in stage.contenders if c.number not in stage.failed}
    source = stage.contenders[0]
    tables = {c.number: results.build(
        model=c.name, measures=measures, scores=scores[c.number], seed=config.seed,
        base=source.name if c.number else None, base_scores=scores[0] if c.number else None)
        for c in stage.contenders if c.number in scores}
    compared = [t for number, t in tables.items() if number]
    results.judge_together(compared)
    times = {c.number: _times(rows, c.number) for c in stage.contenders}
    found = [_row(c, stage, rows, times, tables.get(c.number), scores) for c in stage.contenders]
    notes = list(dict.fromkeys([*stage.plan.notes, *(n for t in tables.values() for n in t.notes)]))
    suites = [*stage.plan.suites, *([SUITES["text"]] if config.text is None else [])]
    return Tradeoff(
        trivet=__version__, machine=ledger.machine(), compute=stage.compute, new_tokens=config.speed.new_tokens,
        rounds=config.speed.rounds, family=compared[0].family if compared else 0, reward=config.reward, notes=notes,
        data={f.name: sha256_file(f) for f in data_files(suites, config.data)},
        settings={"sampling": config.sampling.model_dump(), "kl_tokens": config.kl_tokens, "limit": config.limit,
                  "seed": config.seed, "documents": len(stage.plan.documents), "prompts": len(stage.plan.prompts)},
        rows=found)


def _times(rows: Sequence[dict[str, Any]], number: int) -> dict[Workload, dict[int, tuple[float, float]]]:
    """(seconds to the first token, in all) of one contender, by workload and round."""
    found: dict[Workload, dict[int, tuple[float, float]]] = {}
    for row in rows:
        if row["number"] == number:
            for t in row["times"]:
                found.setdefault(Workload(t["batch"], t["prompt"]), {})[row["round"]] = (t["first"], t["whole"])
    return found


def _row(one: Contender, stage: _Stage, rows: Sequence[dict[str, Any]],
         times: dict[int, dict[Workload, dict[int, tuple[float, float]]]], table: results.Results | None,
         scores: dict[int, list[Score]]) -> Row:
    """A line of the table."""
    if one.number in stage.failed:
        return Row(name=one.name, path=one.path, variant=one.variant, failed=stage.failed[one.number])
    own, tokens = [r for r in rows if r["number"] == one.number], stage.config.speed.new_tokens
    absent = {f"{workload_key(a['batch'], a['prompt'])}": a["why"] for r in own[:1] for a in r["absent"]}
    file = one.folder / "absent.json"
    absent |= read_json(file) if file.is_file() else {}
    gpu = [r["gpu_memory"] for r in own if r["gpu_memory"] is not None]
    perplexity = {number: [s for s in scores[number] if s.measure == PERPLEXITY] for number in {0, one.number}}
    return Row(
        name=one.name, path=stage.config.model if one.number == 0 else one.path, variant=one.variant, absent=absent,
        load=spread([r["load"] for r in own]), memory=spread([r["memory"] for r in own]),
        gpu_memory=spread(gpu) if gpu else None,
        timed=[figures(w.batch, w.prompt, tokens, times[one.number][w], times[0].get(w) if one.number else None)
               for w in workloads(stage.config.speed) if w in times[one.number]],
        measures=table.measures if table is not None else [],
        perplexity_growth=growth(perplexity[one.number], perplexity[0], stage.config.seed) if one.number else None)


def _scores(one: Contender, stage: _Stage) -> list[Score]:
    """All scores of one: those it wrote, its reward, and the refusals of the source that it kept."""
    found = results.read_score_file(one.folder / "scores.jsonl")
    if (one.folder / "reward.jsonl").is_file():
        found += results.read_score_file(one.folder / "reward.jsonl")
    items = next((items for suite, items in stage.plan.suites.items() if suite.name == "refusals"), [])
    unsafe = {item.id for item in items if not item.safe}
    if unsafe and one.number:
        found += refusals_kept(_declined(one, unsafe), _declined(stage.contenders[0], unsafe))
    return found


def _declined(one: Contender, unsafe: set[str]) -> dict[str, bool]:
    """Which unsafe requests were declined, by rule."""
    from trivet.text.manner import refuses

    path = one.folder / "answers" / "refusals.jsonl"
    rows = read_rows(path, Completions) if path.is_file() else []
    return {r.id: refuses(r.completions[0].text) for r in rows if r.id in unsafe}
