"""The stage `evaluate`: every suite asked of a model, and of the base beside it; one table with intervals and tests.

    OUT/answers/SUITE.jsonl     what the model answered
        scores/SUITE.jsonl      what each item says of each measure; its presence says that the suite is finished
        scores/pairs.jsonl      what the judge says of the model's answers beside the base's
        base/answers, scores    the same of the base, unless it was evaluated before
        judge/, grader/         verdicts, kept so that nothing is asked twice
        results.json, table.md  the table
"""

from __future__ import annotations

import gc
import shlex
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trivet.artifacts import Completions, atomic_write, read_json, read_rows, sha256_file, write_json, write_rows
from trivet.errors import TrivetError
from trivet.evaluate import results, table, thresholds
from trivet.evaluate.base import Measure, Score
from trivet.evaluate.catalogue import Suite, chosen, data_files, draw
from trivet.evaluate.catalogue import notes as data_notes
from trivet.evaluate.config import EvaluateConfig
from trivet.evaluate.subject import Subject, open_tokenizer, speeds
from trivet.evaluate.suites import prompts
from trivet.judge.ask import check, grades, make_judge
from trivet.judge.cases import Judge
from trivet.judge.config import Judging
from trivet.runs import Run, Summary
from trivet.training.device import Compute, prepare

SPEED_MEASURE = Measure("speed", "capable", "speed of answering, on this machine", "neither", share=False,
                        unit="tokens/s", tested=False)
PAIRS, LM_EVAL, TASKS = "pairs", "lm_eval", "lm_eval.json"


class EvaluateSummary(Summary):
    """The figures of the table: by measure the model's, and what is better or worse than the base."""

    model: str
    base: str | None
    measures: dict[str, dict[str, Any]]
    better: list[str]
    worse: list[str]
    left_out: dict[str, str]


@dataclass(frozen=True)
class Plan:
    """What is to be asked: checked before a model is loaded."""

    suites: tuple[Suite, ...]
    items: dict[str, list[Any]]
    left_out: dict[str, str]
    notes: list[str]

    @property
    def measures(self) -> list[Measure]:
        """All measures of these suites."""
        return [m for s in self.suites for m in s.measures] + [SPEED_MEASURE]


def run(config: EvaluateConfig, run: Run) -> EvaluateSummary:
    """Evaluate config.model, beside config.against where it is given. Resumes within a suite.

    Raises TrivetError, before a model is loaded, for suites, data, judges or conditions that do not fit; for a model
    that does not load or has no chat template; for a judge that fails.
    """
    made = plan(config)
    earlier = _earlier(config, made)
    if config.against is not None and earlier is None:
        open_tokenizer(config.against, config.plain_template)  # its faults, before the model is asked for an hour
    compute = prepare(config.device, run.meter)
    seconds: dict[str, float] = {}
    own = _ask(config, config.model, run.folder, made, compute, run, seconds)
    base: list[Score] | None = None
    folder = earlier or run.path("base")
    if config.against is not None:
        base = _scores(folder, made) if earlier else _ask(config, config.against, folder, made, compute, run, {})
        if "prompts" in made.items and config.judge.by is not None:
            own += _pairs(config, run, folder, compute, seconds)
    base_name = None if base is None else results.read(earlier).model if earlier else config.against
    left_out = made.left_out | _unjudged(config, made)
    found = results.build(
        model=config.model, base=base_name, measures=made.measures + _task_measures(config, run.folder),
        scores=own, base_scores=base, seed=config.seed, command=_command(config), left_out=left_out,
        notes=made.notes, seconds=round(sum(seconds.values()), 1), settings=_settings(config),
        suites={n: results.SuiteRun(items=len(i), seconds=seconds.get(n)) for n, i in made.items.items()},
        data={str(f.relative_to(config.data)): sha256_file(f) for f in data_files(made.suites, config.data)}
        if config.data else {})
    run.artifact("results", results.write(run.folder, found))
    with atomic_write(run.path("table.md")) as file:
        file.write(table.markdown([found]))
    run.artifact("table", run.path("table.md"))
    return EvaluateSummary(
        model=config.model, base=base_name, measures={m.key: m.value.model_dump() for m in found.measures},
        better=[m.key for m in found.measures if m.verdict == "better"],
        worse=[m.key for m in found.measures if m.verdict == "worse"], left_out=left_out)


def plan(config: EvaluateConfig) -> Plan:
    """The suites with their items. Raises TrivetError for what does not fit; loads no model."""
    suites, left_out = chosen(config.suites, config.data)
    if not suites and not config.lm_eval:
        raise TrivetError("there is nothing to evaluate", field="suites",
                          mend="give suites (`trivet evaluate suites` lists them), or tasks by --lm-eval")
    items = {}
    for suite in suites:
        count = config.limit if config.limit is not None else None if config.full else suite.standard
        items[suite.name] = draw(suite.load().read(config), count, config.seed)
    check(config.judge)
    check(config.grader, field="grader")
    if config.lm_eval:
        from trivet.evaluate import lm_eval

        lm_eval.check(config.lm_eval)
    made = Plan(tuple(suites), items, left_out, data_notes(suites, config.data))
    thresholds.parse(config.fail_if, made.measures, beside=config.against is not None)
    return made


def _earlier(config: EvaluateConfig, made: Plan) -> Path | None:
    """The folder of a finished evaluation that `against` names; None where it names a model.

    Raises TrivetError for an evaluation that was asked other questions, or answered in another way.
    """
    if config.against is None or not (Path(config.against) / results.RESULTS).is_file():
        return None
    folder = Path(config.against)
    found = results.read(folder)
    for name, items in made.items.items():
        path = folder / "scores" / f"{name}.jsonl"
        if not path.is_file() or found.suites[name].items != len(items):
            raise TrivetError(f"this evaluation has no suite {name!r} of {len(items)} items", file=folder,
                              field="against", mend="evaluate both with the same --suites, --limit, --seed and --data, "
                              "or give the base itself as --against")
    if (theirs := {k: v for k, v in found.settings.items() if k in _settings(config)}) != _settings(config) or \
            found.seed != config.seed:
        raise TrivetError(f"this evaluation was made in another way ({theirs}, seed {found.seed})", file=folder,
                          field="against", expected=f"{_settings(config)}, seed {config.seed}",
                          mend="evaluate both with the same settings, or give the base itself as --against")
    return folder


def _ask(config: EvaluateConfig, name: str, folder: Path, made: Plan, compute: Compute, run: Run,
         seconds: dict[str, float]) -> list[Score]:
    """The scores of one model in all suites; suites that are finished in `folder` are not asked again."""
    for path in (folder / "answers", folder / "scores"):
        path.mkdir(parents=True, exist_ok=True)
    wanted = [*made.items, *([LM_EVAL] if config.lm_eval else [])]
    if any(not (folder / "scores" / f"{n}.jsonl").is_file() for n in wanted):
        subject = Subject(name, folder, compute, seed=config.seed, batch_size=config.batch_size,
                          plain_template=config.plain_template, count=run.meter.count)
        subject.grader = _grader(config, subject, run, compute)
        for suite in wanted:
            path = folder / "scores" / f"{suite}.jsonl"
            if path.is_file():
                continue
            began = time.monotonic()
            if suite == LM_EVAL:
                from trivet.evaluate import lm_eval

                found, scores = lm_eval.tasks(subject, config.lm_eval, limit=config.limit, seed=config.seed)
                write_json(folder / TASKS, {"measures": [asdict(m) for m in found]})
            else:
                scores = next(s for s in made.suites if s.name == suite).load().run(subject, made.items[suite], config)
            run.log("timing", {"model": name, "folder": folder.name, "suite": suite,
                               "seconds": round(time.monotonic() - began, 3)})
            write_rows(path, scores)
        del subject
        gc.collect()
    for row in run.rows("timing"):
        if row["folder"] == folder.name:
            seconds[row["suite"]] = row["seconds"]
    return _scores(folder, made)


def _scores(folder: Path, made: Plan) -> list[Score]:
    """All scores of a model, its speed among them."""
    names = [n for n in [*made.items, LM_EVAL] if (folder / "scores" / f"{n}.jsonl").is_file()]
    found = [s for n in names for s in results.read_score_file(folder / "scores" / f"{n}.jsonl")]
    for i, part in enumerate(p for p in speeds(folder) if p["suite"] in made.items):
        found.append(Score(measure=SPEED_MEASURE.key, id=str(i), group=str(i), weight=part["seconds"],
                           value=part["tokens"] / part["seconds"], topic=part["suite"]))
    return found


def _grader(config: EvaluateConfig, subject: Subject, run: Run, compute: Compute) -> Judge | None:
    """What grades single answers: the grader, or else the judge where it can."""
    settings, field = (config.grader, "grader") if config.grader.by else (config.judge, "judge")
    found = _judge(settings, field, run, compute, {subject.name: (subject.model, subject.tokenizer)})
    if found is not None and not grades(found):
        if field == "grader":
            raise TrivetError(f"{settings.by} compares answers, it can't grade one", field="grader.by",
                              mend="give a model, an endpoint or a function as the grader; a reward model as the judge")
        return None
    return found


def _judge(settings: Judging, field: str, run: Run, compute: Compute,
           loaded: dict[str, tuple[Any, Any]]) -> Judge | None:
    return make_judge(settings, compute, folder=run.path(field), count=run.meter.count, loaded=loaded, field=field,
                      spend=lambda cost: run.meter.endpoint(cost.model, requests=cost.requests,
                                                            input_tokens=cost.input_tokens,
                                                            output_tokens=cost.output_tokens))


def _pairs(config: EvaluateConfig, run: Run, base: Path, compute: Compute, seconds: dict[str, float]) -> list[Score]:
    """What the judge says of the model's answers to open prompts beside the base's."""
    path = run.path("scores", f"{PAIRS}.jsonl")
    if not path.is_file():
        began = time.monotonic()
        judge = _judge(config.judge, "judge", run, compute, {})
        assert judge is not None
        mine, theirs = (read_rows(f / "answers" / "prompts.jsonl", Completions) for f in (run.folder, base))
        write_rows(path, prompts.compare(mine, theirs, judge, swapped=config.judge.both_orders))
        run.log("timing", {"model": config.model, "folder": run.folder.name, "suite": PAIRS,
                           "seconds": round(time.monotonic() - began, 3)})
    for row in run.rows("timing"):
        if row["suite"] == PAIRS:
            seconds[PAIRS] = row["seconds"]
    return results.read_score_file(path)


def _task_measures(config: EvaluateConfig, folder: Path) -> list[Measure]:
    """The measures of lm-eval's tasks, which are known once they were run."""
    return [Measure(**m) for m in read_json(folder / TASKS, "measures")["measures"]] if config.lm_eval else []


def _unjudged(config: EvaluateConfig, made: Plan) -> dict[str, str]:
    """Measures that were asked for and can't be had without a judge, and why."""
    found = {}
    if "prompts" in made.items and (config.judge.by is None or config.against is None):
        found["helpful.win_rate"] = "it takes a judge (--judge.by) and a base (--against)"
    if config.grader.by is None and config.judge.by is None:
        found["judged measures"] = "they take a grader (--grader.by)"
    return found


def _settings(config: EvaluateConfig) -> dict[str, Any]:
    """What else two evaluations must share to be compared."""
    return {"sampling": config.sampling.model_dump(), "grader": config.grader.by or config.judge.by}


def _command(config: EvaluateConfig) -> str:
    """The command that does this again."""
    changed = {k: v for k, v in config.model_dump(mode="json", exclude_defaults=True).items() if k != "model"}
    words = ["trivet", "evaluate", config.model]
    for key, value in changed.items():
        for inner, one in value.items() if isinstance(value, dict) else [("", value)]:
            flag = f"--{key}{'.' if inner else ''}{inner}".replace("_", "-")
            words += [flag if one else f"--no-{flag[2:]}"] if isinstance(one, bool) else \
                [flag, *map(str, one if isinstance(one, list) else [one])]
    return shlex.join(words)
