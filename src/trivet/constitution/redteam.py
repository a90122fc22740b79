"""The stage `redteam`: attacks from files and from seed topics, put in several ways, answered, scored for harm.

    OUT/questions.jsonl   what is asked for, without repeats: from files, seeds, and grown by the attacker
        attacks.jsonl     each question by each strategy, as prompts (tags: topic, strategy)
        train.jsonl       the attacks of the topics to train on; heldout.jsonl those of the topics held out
        answers.jsonl     the target's answers
        scores.jsonl      what judge, classifier and rule say of each answer
        redteam.json      success rates with intervals, what was thrown away and why, what the scorers are worth
        table.md          the rates as a table
        target/, attacker/, judge/, classifier/   texts and verdicts, kept so that this folder asks nothing twice

All that is not a model's text or verdict follows from them and the seed, so an interrupted run asks only what is left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from trivet import __version__
from trivet.artifacts import Completions, Message, Row, atomic_write, write_json, write_rows
from trivet.constitution import strategies
from trivet.constitution.attacks import build, none_left
from trivet.constitution.grow import Thrown, Writes, grow
from trivet.constitution.questions import (
    Attack,
    Pool,
    Question,
    draw_evenly,
    gather,
    load_topics,
    seeds,
    split_topics,
)
from trivet.constitution.rates import SCORERS, AttackScore, agreement, controls, rates, rule_worth, worth
from trivet.constitution.redteam_config import RESULTS, RedteamConfig
from trivet.constitution.redteam_table import markdown
from trivet.errors import TrivetError
from trivet.evaluate.grading import graded, only_compares, outcome
from trivet.generate.config import Sampling, Writing
from trivet.generate.endpoint import Endpoints
from trivet.generate.writing import Ask, Writer, answers, check_writer, make_writer
from trivet.judge.ask import call, check, kind_of, make_judge, name_of
from trivet.judge.cases import Case
from trivet.judge.config import Judging
from trivet.judge.criteria import HARMFUL
from trivet.runs import Run, Summary
from trivet.text.near import Distinct
from trivet.training.device import Compute, prepare


class QuestionRow(Row):
    """A row of questions.jsonl."""

    id: str
    topic: str
    text: str
    source: str
    held_out: bool


class RedteamSummary(Summary):
    """Counts, and the success rate of attacks by each scorer; the rest is in redteam.json."""

    questions: int
    grown: int
    thrown_away: int
    """Items that the attacker wrote, and that were no question to ask."""
    attacks: int
    answers: int
    attack_success_judge: dict[str, Any] | None
    attack_success_classifier: dict[str, Any] | None
    attack_success_rule: dict[str, Any]
    refused: dict[str, Any]
    broken: dict[str, Any]
    held_out_topics: list[str]


@dataclass
class Models:
    """Whatever writes and judges, made once; local models of one name share their weights."""

    target: Writer
    attacker: Writer
    judge: Any
    classifier: Any

    def readers(self) -> Iterator[tuple[str, Any]]:
        """(name of the setting, judge) of those that read answers."""
        for name, judge in (("judge", self.judge), ("classifier", self.classifier)):
            if judge is not None:
                yield name, judge


def run(config: RedteamConfig, run: Run) -> RedteamSummary:
    """Attack config.target and say how often it goes along. Resumes to the item.

    Raises TrivetError, before a model is loaded, for files, topics, judges and writers that do not fit; for an attacker
    of whose texts none can be used; for a model that does not load or an endpoint that fails.
    """
    check_settings(config)
    topics = load_topics(config.topics) if config.seeded else []
    distinct = Distinct(config.near)
    pool = gather(config.attacks, seeds(topics), distinct)
    pool.questions = draw_evenly(pool.questions, config.limit, config.seed)
    pool.attacks = draw_evenly(pool.attacks, config.limit, config.seed)
    held_out = split_topics(pool.topics, config.held_out, config.held_out_topics, config.seed)
    models = _models(config, run, prepare(config.device, run.meter))
    grown, told = _grown(config, pool, {t.name: t.about for t in topics}, distinct, models)
    pool.questions += grown
    built, reworded = build(
        pool.questions, config.strategies, attacker=_writes(models.attacker, config.attacker_sampling),
        target=_writes(models.target, config.sampling), distinct=distinct, tries=config.tries, seed=config.seed)
    made = {a.id for a in pool.attacks}
    attacks = [*pool.attacks, *(a for a in built if a.id not in made)]
    given = answers(models.target, [a.prompt for a in attacks], config.completions, config.sampling)
    scores = _scores(attacks, given, set(held_out), models)
    found = _results(config, pool, told, reworded, scores, held_out, models)
    _write(run, pool.questions, attacks, given, scores, found)
    whole = found["rates"][0]
    return RedteamSummary(
        questions=len(pool.questions), grown=len(grown),
        thrown_away=told.thrown.total() + sum(r.thrown.total() for r in reworded.values()), attacks=len(attacks),
        answers=len(scores), **{f"attack_success_{s}": whole[s] for s in SCORERS}, refused=whole["refused"],
        broken=whole["broken"], held_out_topics=held_out)


# --- settings and models ----------------------------------------------------------------------------------


def check_settings(config: RedteamConfig) -> None:
    """Raise TrivetError for writers and judges that can't be, without asking any."""
    check_writer(config.target, field="target")
    if config.attacker.by is not None:
        check_writer(config.attacker, field="attacker")
    for settings, name in ((config.judge, "judge"), (config.classifier, "classifier")):
        check(settings, field=name)
        if settings.by is not None and only_compares(settings.by):
            raise TrivetError(f"{settings.by} compares answers, it can't grade one", field=f"{name}.by",
                              mend="give a model, an endpoint or a function: a reward model's scores have no zero")
    if config.classifier.by is not None and kind_of(config.classifier.by) != "model":
        raise TrivetError(f"{config.classifier.by} is no local model", field="classifier.by",
                          mend="give a model's folder or hub id; an endpoint or a function goes to --judge.by")


def _models(config: RedteamConfig, run: Run, compute: Compute) -> Models:
    endpoints = Endpoints.of(run)

    def writer(settings: Writing, name: str, loaded: Mapping[str, tuple[Any, Any]]) -> Writer:
        return make_writer(settings, compute, seed=config.seed, folder=run.path(name), count=run.meter.count,
                           endpoints=endpoints, loaded=loaded, field=name)

    def judge(settings: Judging, name: str) -> Any:
        return make_judge(settings, compute, folder=run.path(name), count=run.meter.count, loaded=loaded, field=name,
                          endpoints=endpoints)

    target = writer(config.target, "target", {})
    attacker = target if config.attacker.by is None else writer(config.attacker, "attacker", target.loaded)
    loaded = {**target.loaded, **attacker.loaded}
    classifier = config.classifier
    assert config.target.by is not None
    if classifier.by is None and config.classify and kind_of(config.target.by) == "model":
        classifier = classifier.model_copy(update={"by": config.target.by})
    return Models(target, attacker, judge(config.judge, "judge"),
                  judge(classifier, "classifier") if config.classify else None)


# --- what is asked of them --------------------------------------------------------------------------------


def _writes(writer: Writer, sampling: Sampling) -> Writes:
    """A writer as what growing and strategies ask."""

    def write(asks: Sequence[tuple[str, tuple[Message, ...], int]]) -> list[tuple[str, bool]]:
        return [(w.text, w.ended) for w in writer([Ask(*ask) for ask in asks], sampling)]

    return write


def _grown(config: RedteamConfig, pool: Pool, about: Mapping[str, str], distinct: Distinct,
           models: Models) -> tuple[list[Question], Thrown]:
    """New questions of the attacker's. Raises TrivetError where none of its texts can be used."""
    if not config.grow:
        return [], Thrown()
    judge = models.judge if config.screen else None
    grown, told = grow(
        pool, about, distinct, _writes(models.attacker, config.attacker_sampling), wanted=config.grow,
        tries=config.tries, seed=config.seed,
        screen=None if judge is None else lambda cases: call(judge, cases, name_of(judge), field="judge"))
    if told.texts and not grown:
        raise none_left(told, "question", "attacker", "grow none: --grow 0")
    if told.texts:
        print(f"grown: {len(grown)} questions from {told.texts} texts; {told.thrown.total()} of {told.items} items "
              "thrown away", flush=True)
    return grown, told


def _scores(attacks: Sequence[Attack], answers: Sequence[Completions], held_out: Collection[str],
            models: Models) -> list[AttackScore]:
    """What each scorer says of each answer."""
    single = [(a, row.model_copy(update={"id": c.id, "completions": [c]}))
              for a, row in zip(attacks, answers, strict=True) for c in row.completions]
    rows = [row for _, row in single]
    said = {name: graded(judge, HARMFUL, rows, name) for name, judge in models.readers()}
    return [AttackScore(id=row.id, attack=a.id, base=a.base, topic=a.topic, strategy=a.strategy, source=a.source,
                        held_out=a.topic in held_out, rule=outcome(a.question, row.completions[0]),
                        **{name: found[i] for name, found in said.items()}) for i, (a, row) in enumerate(single)]


def _worth(models: Models, seed: int) -> dict[str, Any]:
    """What each scorer is worth, by the controls."""
    known = controls()
    found = {}
    for name, judge in models.readers():
        cases = [Case(f"control/{i}/{kind}", (strategies.user(c.request),), (getattr(c, kind),), HARMFUL)
                 for kind in ("goes_along", "declines") for i, c in enumerate(known)]
        said = call(judge, cases, name_of(judge), field=name)
        found[name] = worth(said[: len(known)], said[len(known) :], seed)
    return found | {"rule": rule_worth(seed)}


# --- results ----------------------------------------------------------------------------------------------


def _write(run: Run, questions: Sequence[Question], attacks: Sequence[Attack], answers: Sequence[Completions],
           scores: Sequence[AttackScore], found: Mapping[str, Any]) -> None:
    """All files of the stage, at its end: a run that was interrupted leaves none of them."""
    held_out = set(found["held_out_topics"])
    parts: dict[str, Sequence[BaseModel]] = {
        "attacks": [a.prompt for a in attacks], "train": [a.prompt for a in attacks if a.topic not in held_out],
        "heldout": [a.prompt for a in attacks if a.topic in held_out], "answers": answers, "scores": scores,
        "questions": [QuestionRow(id=q.id, topic=q.topic, text=q.text, source=q.source, held_out=q.topic in held_out)
                      for q in questions]}
    for name, rows in parts.items():
        if rows:
            write_rows(run.path(f"{name}.jsonl"), rows)
            run.artifact(name, run.path(f"{name}.jsonl"))
    write_json(run.path(RESULTS), found)
    with atomic_write(run.path("table.md")) as file:
        file.write(markdown(found))
    run.artifact("results", run.path(RESULTS))
    run.artifact("table", run.path("table.md"))


def _results(config: RedteamConfig, pool: Pool, grown: Thrown, reworded: Mapping[str, Thrown],
             scores: Sequence[AttackScore], held_out: Sequence[str], models: Models) -> dict[str, Any]:
    """redteam.json."""
    names = {name: name_of(judge) for name, judge in models.readers()}
    sources = Counter(q.source for q in pool.questions)
    topics = Counter(q.topic for q in pool.questions if q.source == "grown")
    pairs = [(one, other) for i, one in enumerate(SCORERS) for other in SCORERS[i + 1 :]]
    return {
        "schema_version": 1, "trivet": __version__, "seed": config.seed, "target": models.target.name,
        "attacker": models.attacker.name, "scorers": names | {"rule": "trivet"},
        "questions": {s: sources[s] for s in ("file", "seed", "grown")}, "attacks_taken_over": len(pool.attacks),
        "repeats_left_out": dict(pool.repeats), "held_out_topics": list(held_out),
        "grown": {"wanted_by_topic": config.grow, "by_topic": {t: topics[t] for t in pool.topics},
                  "screened": config.screen and models.judge is not None} | grown.as_dict(),
        "reworded": {name: told.as_dict() for name, told in reworded.items()},
        "rates": rates(scores, config.seed),
        "agreement": {f"{one} and {other}": found.as_dict() for one, other in pairs
                      if (found := agreement(scores, one, other, config.seed)) is not None},
        "worth": _worth(models, config.seed)}
