"""The stage `evaluate`: every suite asked of a model, and of the base beside it; one table with intervals and tests.

    OUT/answers/SUITE.jsonl     what the model answered
        scores/SUITE.jsonl      what each item says of each measure; its presence says that the suite is finished
        scores/pairs.jsonl      what the judge says of the model's answers beside the base's
        base/answers, scores    the same of the base, unless it was evaluated before
        judge/, grader/         verdicts, kept so that this folder asks nothing twice
        results.json, table.md  the table
"""

from __future__ import annotations

import gc
import hashlib
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trivet import __version__
from trivet.artifacts import Completions, atomic_write, read_json, read_rows, sha256_file, write_json, write_rows
from trivet.errors import TrivetError
from trivet.evaluate import results, table, thresholds
from trivet.evaluate.base import Measure, Score
from trivet.evaluate.catalogue import Suite, chosen, data_files, draw
from trivet.evaluate.catalogue import notes as data_notes
from trivet.evaluate.config import EvaluateConfig
from trivet.evaluate.grading import only_compares
from trivet.evaluate.subject import Subject, open_tokenizer, speeds
from trivet.evaluate.suites import attacks, prompts, refusals
from trivet.generate.endpoint import Endpoints
from trivet.judge.ask import check, make_judge
from trivet.judge.cases import Judge
from trivet.judge.config import Judging
from trivet.runs import Run, Summary
from trivet.training.device import Compute, prepare

SPEED_MEASURE = Measure("speed", "capable", "speed of answering, on this machine", "neither", share=False,
                        unit="tokens/s", tested=False, paired=False)
GRADED = (attacks.JUDGED, attacks.AGREEMENT, refusals.OVER_REFUSAL_JUDGED, refusals.AGREEMENT, prompts.QUALITY)
"""What takes a grader."""
WINS, ORDER = (prompts.WIN, prompts.LC_WIN), (prompts.FIRST, prompts.FLIPS)
"""What takes a judge and a base; what takes a judge that is asked in both orders, too."""
PAIRS, LM_EVAL, TASKS = "pairs", "lm_eval", "lm_eval.json"
MODEL, BASE = "model", "base"


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
    """Suites, and measures that take what is not given, with the reason."""
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
    compute = prepare(config.device, run.meter)
    settings = _settings(config, compute)
    earlier = _earlier(config, made, settings)
    if config.against is not None and earlier is None:
        open_tokenizer(config.against, config.plain_template)  # its faults, before the model is asked for an hour
    own = _ask(config, config.model, MODEL, run.folder, made, compute, run)
    measures, notes = made.measures + _task_measures(config, run.folder), list(made.notes)
    base: list[Score] | None = None
    base_name = config.against
    if config.against is not None:
        folder = Path(config.against) if earlier else run.path("base")
        base = _scores(folder, made, config) if earlier else \
            _ask(config, config.against, BASE, folder, made, compute, run)
        if config.lm_eval:
            from trivet.evaluate import lm_eval

            measures = made.measures + lm_eval.merged(measures[len(made.measures):], _task_measures(config, folder))
        known = {m.key for m in measures}
        base = [s for s in base if s.measure in known]  # an evaluation may hold more than is asked now
        if earlier is not None:
            base_name = earlier.model
            if earlier.trivet != __version__:
                notes.append(f"The base was evaluated by Trivet {earlier.trivet}, the model by {__version__}.")
        if "prompts" in made.items and config.judge.by is not None:
            own += _pairs(config, run, folder, compute)
    seconds = _seconds(run)
    found = results.build(
        model=config.model, base=base_name, measures=measures, scores=own, base_scores=base, seed=config.seed,
        command=_command(config), left_out=made.left_out, notes=notes, seconds=round(sum(seconds.values()), 1),
        settings=settings, data=_data(made.suites, config.data), base_machine=earlier.machine if earlier else None,
        suites={n: results.SuiteRun(items=len(i), seconds=seconds.get(n), asked=_asked(i))
                for n, i in made.items.items()})
    run.artifact("results", results.write(run.folder, found))
    with atomic_write(run.path("table.md")) as file:
        file.write(table.markdown([found]))
    run.artifact("table", run.path("table.md"))
    return EvaluateSummary(
        model=config.model, base=base_name, measures={m.key: m.value.model_dump() for m in found.measures},
        better=[m.key for m in found.measures if m.verdict == "better"],
        worse=[m.key for m in found.measures if m.verdict == "worse"], left_out=made.left_out)


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
    absent = {k: why for k, why in _absent(config).items() if any(k == m.key for s in suites for m in s.measures)}
    made = Plan(tuple(suites), items, left_out | _unjudged(absent), data_notes(suites, config.data))
    thresholds.parse(config.fail_if, made.measures, beside=config.against is not None, absent=absent)
    return made


def _earlier(config: EvaluateConfig, made: Plan, settings: dict[str, Any]) -> results.Results | None:
    """The finished evaluation that `against` names; None where it names a model.

    Raises TrivetError for an evaluation that was asked other questions, or answered in another way.
    """
    if config.against is None or not (Path(config.against) / results.RESULTS).is_file():
        return None
    folder = Path(config.against)
    found = results.read(folder)
    for name, items in made.items.items():
        suite = found.suites.get(name)
        if suite is None or suite.items != len(items) or not (folder / "scores" / f"{name}.jsonl").is_file():
            raise _other(folder, f"this evaluation has no suite {name!r} of {len(items)} items")
    differ = [k for k, v in settings.items() if found.settings.get(k) != v and (k != LM_EVAL or config.lm_eval)]
    if differ or found.seed != config.seed:
        theirs, ours = ({k: of.get(k) for k in differ} | {"seed": seed}
                        for of, seed in ((found.settings, found.seed), (settings, config.seed)))
        raise _other(folder, f"this evaluation was made in another way ({_said(theirs)})", _said(ours))
    if config.lm_eval and not all((folder / f).is_file() for f in (TASKS, f"scores/{LM_EVAL}.jsonl")):
        raise _other(folder, "this evaluation has no scores of lm-eval's tasks")
    read = {f for s in made.suites for f in s.data}
    now, then = _data(made.suites, config.data), {f: h for f, h in found.data.items() if f in read}
    if other := sorted(f for f in now.keys() | then.keys() if now.get(f) != then.get(f)):
        raise _other(folder, f"this evaluation read another {other[0]}" if other[0] in then else
                     f"this evaluation did not read {other[0]}", "the same data files, byte for byte")
    for name, items in made.items.items():
        if found.suites[name].asked != _asked(items):
            raise _other(folder, f"this evaluation asked other questions in {name!r}")
    return found


def _other(folder: Path, what: str, expected: str | None = None) -> TrivetError:
    return TrivetError(what, file=folder, field="against", expected=expected,
                       mend="evaluate both with the same settings and version (--suites, --limit, --seed, --data, "
                       "--sampling, --grader, --lm-eval), or give the base itself as --against")


def _said(settings: dict[str, Any]) -> str:
    return ", ".join(f"{k} {v}" for k, v in settings.items())


def _asked(items: Sequence[Any]) -> str:
    """The sha256 over what was asked, in any order: two suites of one hash asked the same questions."""
    return hashlib.sha256("\n".join(sorted(item.id for item in items)).encode()).hexdigest()


def _data(suites: Sequence[Suite], data: Path | None) -> dict[str, str]:
    """The sha256 of each data file that the suites read, by its path in the data folder."""
    return {f.relative_to(data).as_posix(): sha256_file(f) for f in data_files(suites, data)} if data else {}


def _ask(config: EvaluateConfig, name: str, role: str, folder: Path, made: Plan, compute: Compute,
         run: Run) -> list[Score]:
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
            with _timed(run, role, suite):
                if suite == LM_EVAL:
                    from trivet.evaluate import lm_eval

                    found, scores = lm_eval.tasks(subject, config.lm_eval, limit=config.limit, seed=config.seed)
                    write_json(folder / TASKS, {"measures": [asdict(m) for m in found]})
                else:
                    module = next(s for s in made.suites if s.name == suite).load()
                    scores = module.run(subject, made.items[suite], config)
                write_rows(path, scores)
        del subject
        gc.collect()
    return _scores(folder, made, config)


@contextmanager
def _timed(run: Run, role: str, suite: str) -> Iterator[None]:
    """Log how long a suite took, be it finished or interrupted: a row for each attempt."""
    began = time.monotonic()
    try:
        yield
    finally:
        run.log("timing", {"role": role, "suite": suite, "seconds": round(time.monotonic() - began, 3)})


def _seconds(run: Run) -> dict[str, float]:
    """The model's seconds in each suite, over all attempts."""
    found: dict[str, float] = {}
    for row in run.rows("timing"):
        if row.get("role") == MODEL:
            found[row["suite"]] = round(found.get(row["suite"], 0.0) + row["seconds"], 3)
    return found


def _scores(folder: Path, made: Plan, config: EvaluateConfig) -> list[Score]:
    """All scores of a model in what is asked now, its speed among them."""
    names = [*made.items, *([LM_EVAL] if config.lm_eval else [])]
    found = [s for n in names for s in results.read_score_file(folder / "scores" / f"{n}.jsonl")]
    for i, part in enumerate(p for p in speeds(folder) if p["suite"] in made.items):
        found.append(Score(measure=SPEED_MEASURE.key, id=str(i), group=str(i), weight=part["seconds"],
                           value=part["tokens"] / part["seconds"], topic=part["suite"]))
    return found


def _grading(config: EvaluateConfig) -> tuple[Judging, str] | None:
    """What grades single answers, and the setting's name: the grader, or else the judge where it can.

    Raises TrivetError for a grader that can't.
    """
    if config.grader.by is not None:
        if only_compares(config.grader.by):
            raise TrivetError(f"{config.grader.by} compares answers, it can't grade one", field="grader.by",
                              mend="give a model, an endpoint or a function as the grader; a reward model as the judge")
        return config.grader, "grader"
    if config.judge.by is None or only_compares(config.judge.by):
        return None
    return config.judge, "judge"


def _grader(config: EvaluateConfig, subject: Subject, run: Run, compute: Compute) -> Judge | None:
    """What grades single answers, loaded."""
    chosen_one = _grading(config)
    return None if chosen_one is None else \
        _judge(*chosen_one, run, compute, {subject.name: (subject.model, subject.tokenizer)})


def _judge(settings: Judging, field: str, run: Run, compute: Compute,
           loaded: dict[str, tuple[Any, Any]]) -> Judge | None:
    return make_judge(settings, compute, folder=run.path(field), count=run.meter.count, loaded=loaded, field=field,
                      endpoints=Endpoints.of(run))


def _pairs(config: EvaluateConfig, run: Run, base: Path, compute: Compute) -> list[Score]:
    """What the judge says of the model's answers to open prompts beside the base's."""
    path = run.path("scores", f"{PAIRS}.jsonl")
    if not path.is_file():
        with _timed(run, MODEL, PAIRS):
            judge = _judge(config.judge, "judge", run, compute, {})
            assert judge is not None
            mine, theirs = (read_rows(f / "answers" / "prompts.jsonl", Completions) for f in (run.folder, base))
            write_rows(path, prompts.compare(mine, theirs, judge, swapped=config.judge.both_orders))
    return results.read_score_file(path)


def _task_measures(config: EvaluateConfig, folder: Path) -> list[Measure]:
    """The measures of lm-eval's tasks, which are known once they were run."""
    return [Measure(**m) for m in read_json(folder / TASKS, "measures")["measures"]] if config.lm_eval else []


def _absent(config: EvaluateConfig) -> dict[str, str]:
    """Measures that can't be had with these judges and this base, and why."""
    found: dict[str, str] = {}
    if _grading(config) is None:
        why = "it takes a grader (--grader.by)"
        if config.judge.by is not None:
            why = f"the judge is a reward model, which compares answers and can't grade one: {why}"
        found |= {m.key: why for m in GRADED}
    if config.judge.by is None or config.against is None:
        found |= {m.key: "it takes a judge (--judge.by) and a base (--against)" for m in (*WINS, *ORDER)}
    elif not config.judge.both_orders or only_compares(config.judge.by):
        found |= {m.key: "it takes a judge that sees two answers in both orders" for m in ORDER}
    return found


def _unjudged(absent: dict[str, str]) -> dict[str, str]:
    """What of this the table says: judged measures in one line."""
    found = {m.key: absent[m.key] for m in WINS[:1] if m.key in absent}
    graded = next((absent[m.key] for m in GRADED if m.key in absent), None)
    return found if graded is None else found | {"judged measures": graded.replace("it takes", "they take")}


def _settings(config: EvaluateConfig, compute: Compute) -> dict[str, Any]:
    """What else two evaluations must share to be compared."""
    from trivet.evaluate import lm_eval

    graded, _ = _grading(config) or (Judging(), "")
    return {"sampling": config.sampling.model_dump(), "grader": graded.by, "grader_model": graded.model,
            "precision": str(compute.trunk).removeprefix("torch."), "plain_template": config.plain_template,
            LM_EVAL: {"tasks": lm_eval.named(config.lm_eval), "limit": config.limit} if config.lm_eval else None}


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
