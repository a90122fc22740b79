"""The stage `revise`: the target answers, its answers are critiqued and revised by principles, and the revisions become
data to fine-tune on, mixed with plain answers to helpful prompts (Bai et al. 2022, section 3).

Whatever is asked of a model is kept in the run folder as it comes (`target/`, `critic/`, `judge/`), and what is asked
is decided by settings and earlier texts alone: so a run that was killed goes on with the text that was not there yet.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trivet import __version__
from trivet.artifacts import Message, Preference, Prompt, drawn_order, read_rows, write_json, write_rows
from trivet.constitution import gates
from trivet.constitution.critique import Item, Rounds, refused, weigh
from trivet.constitution.principles import Constitution, load_constitution
from trivet.constitution.revise_config import RESULTS, ReviseConfig
from trivet.constitution.revise_rates import require_survivors, results
from trivet.constitution.traces import Revision, Trace, Tuning
from trivet.errors import TrivetError
from trivet.generate.config import Writing
from trivet.generate.endpoint import Endpoints
from trivet.generate.writing import Ask, Writer, check_writer, make_writer
from trivet.judge.ask import check, grades, make_judge, name_of
from trivet.judge.cases import Judge
from trivet.runs import Run, Summary
from trivet.training.device import Compute, prepare


class ReviseSummary(Summary):
    """What came out. Rates by gate, round and principle stand in revise.json."""

    prompts: int
    revised: dict[str, Any]
    """Share of the prompts with a revision that passed, with its interval."""
    revisions: int
    """Written, passed or not."""
    passed: dict[str, Any]
    """Share of these that passed all gates, with its interval over prompts."""
    conversations: int
    """In sft.jsonl."""
    helpful: int
    """Of these: plain answers to helpful prompts."""
    constitution: str
    """sha256 of its content."""


@dataclass(frozen=True)
class Models:
    """Who writes and who judges."""

    target: Writer
    critic: Writer
    judge: Judge | None

    def reviser(self, config: ReviseConfig) -> Writer:
        return self.critic if config.reviser == "critic" else self.target


def run(config: ReviseConfig, run: Run) -> ReviseSummary:
    """Answer, critique, revise; write traces.jsonl, sft.jsonl, preferences.jsonl and revise.json.

    Raises TrivetError for settings and files that do not fit, before anything is asked; where too few prompts come out
    with a revision (traces.jsonl is there then, as evidence); and as writers and judge do.
    """
    check_settings(config)
    constitution = load_constitution(config.constitution)
    prompts = read_rows(config.prompts, Prompt, limit=config.limit)
    helpful = read_rows(config.helpful, Prompt) if config.helpful is not None else []
    models = _models(config, run, prepare(config.device, run.meter))
    items = revised(config, constitution, prompts, models)
    traces = [_trace(item, config, constitution, models) for item in items]
    write_rows(run.path("traces.jsonl"), traces)
    require_survivors(items, config.gates.survive, run.path("traces.jsonl"))
    rows = [row for item in items for row in tuning_rows(item, config.learn, constitution)]
    plain, mixed = mix_in(config, constitution, helpful, models, wanted=helpful_wanted(len(rows), config.helpful_share))
    if helpful and len(plain) < mixed["wanted"]:
        print(f"helpful: {len(plain)} answers that pass, fewer than the {mixed['wanted']} that make up a share of "
              f"{config.helpful_share:g}; more prompts in --helpful mend it", flush=True)
    pairs = [pair for item in items if (pair := preference(item, constitution)) is not None]
    if config.helpful_pairs:
        pairs += helpful_pairs(plain, rows, constitution, config.seed)
    found = {"schema_version": 1, "trivet": __version__, "seed": config.seed,
             "constitution": {"name": constitution.name, "sha256": constitution.sha256},
             "target": models.target.name, "critic": models.critic.name if config.critiques else None,
             "reviser": models.reviser(config).name, "judge": None if models.judge is None else name_of(models.judge),
             **results(items, config.rounds, config.seed), "helpful": mixed | {"taken": len(plain)}}
    write_rows(run.path("sft.jsonl"), [*rows, *plain])
    write_rows(run.path("preferences.jsonl"), pairs)
    write_json(run.path(RESULTS), found)
    for kind, name in (("sft", "sft.jsonl"), ("preferences", "preferences.jsonl"), ("traces", "traces.jsonl"),
                       ("results", RESULTS)):
        run.artifact(kind, run.path(name))
    return ReviseSummary(
        prompts=len(items), revised=found["revised"], revisions=found["revisions"], passed=found["passed"],
        conversations=len(rows) + len(plain), helpful=len(plain), constitution=constitution.sha256)


# --- models -----------------------------------------------------------------------------------------------


def check_settings(config: ReviseConfig) -> None:
    """Raise TrivetError for writers and judges that can't be, without asking any."""
    check_writer(config.target, field="target")
    if config.critic.by is not None:
        check_writer(config.critic, field="critic")
    check(config.judge)


def _models(config: ReviseConfig, run: Run, compute: Compute) -> Models:
    endpoints = Endpoints.of(run)

    def writer(settings: Writing, name: str, loaded: Mapping[str, tuple[Any, Any]]) -> Writer:
        return make_writer(settings, compute, seed=config.seed, folder=run.path(name), count=run.meter.count,
                           endpoints=endpoints, loaded=loaded, field=name)

    target = writer(config.target, "target", {})
    critic = target if config.critic.by is None else writer(config.critic, "critic", target.loaded)
    judge = make_judge(config.judge, compute, folder=run.path("judge"), count=run.meter.count,
                       endpoints=endpoints, loaded={**target.loaded, **critic.loaded})
    if config.gates.refusals == "judge" and not grades(judge):
        raise TrivetError(f"{config.judge.by} compares answers, it can't say of one whether it refuses",
                          field="gates.refusals", mend="take rule or off, or a judge that reads (a model, an endpoint)")
    return Models(target, critic, judge)


# --- rounds -----------------------------------------------------------------------------------------------


def revised(config: ReviseConfig, constitution: Constitution, prompts: Sequence[Prompt], models: Models) -> list[Item]:
    """The prompts with the target's answers and all rounds. An answer without a letter is not revised."""
    answers = models.target([Ask(f"{p.id}/answer", tuple(p.messages)) for p in prompts], config.sampling)
    items = [Item(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    answered = [item for item in items if not gates.empty(item.first.text)]
    rounds = Rounds(config, constitution, critic=models.critic, reviser=models.reviser(config), judge=models.judge)
    for number in range(1, config.rounds + 1 if answered else 1):
        rounds.take(answered, number)
        taken = sum(item.rounds[-1].taken is not None for item in answered)
        print(f"round {number} of {config.rounds}: {taken} of {len(answered)} prompts have a new revision", flush=True)
    return items


def _trace(item: Item, config: ReviseConfig, constitution: Constitution, models: Models) -> Trace:
    return Trace(id=item.prompt.id, messages=item.prompt.messages, tags=item.prompt.tags,
                 constitution=constitution.sha256, target=models.target.name,
                 critic=models.critic.name if config.critiques else None, reviser=models.reviser(config).name,
                 judge=None if models.judge is None else name_of(models.judge), first=item.first.text,
                 first_ended=item.first.ended, rounds=item.rounds, final=item.final)


# --- what is learned from -----------------------------------------------------------------------------------


def tuning_rows(item: Item, learn: str, constitution: Constitution) -> list[Tuning]:
    """The conversations that an item gives: with its last revision, or with those of all rounds."""
    taken = [(r.round, r.revisions[r.taken].text) for r in item.rounds if r.taken is not None]
    return [_conversation(f"{item.prompt.id}/{number}", item.prompt, text, constitution, "revision", number)
            for number, text in (taken if learn == "all" else taken[-1:])]


def preference(item: Item, constitution: Constitution) -> Preference | None:
    """The last revision against the first answer; None where there is none."""
    if item.final is None:
        return None
    return Preference(id=f"{item.prompt.id}/revised", prompt_id=item.prompt.id, prompt=item.prompt.messages,
                      chosen=item.final, rejected=item.first.text, source=f"revise {constitution.sha256[:16]}")


def helpful_pairs(plain: Sequence[Tuning], revised: Sequence[Tuning], constitution: Constitution,
                  seed: int) -> list[Preference]:
    """A plain answer to each helpful prompt against the revision of another prompt, drawn by the seed.

    What declines one request well is no answer to another. A reward model that is shown revisions as the better answers
    alone takes the refusal for the reason.
    """
    ordered = drawn_order(revised, seed, lambda row: row.id)
    return [Preference(id=f"{row.id}/helpful", prompt_id=row.id.rpartition("/")[0], prompt=row.messages[:-1],
                       chosen=row.messages[-1].content, rejected=other.messages[-1].content,
                       source=f"revise helpful {constitution.sha256[:16]}")
            for row, other in zip(plain, itertools.cycle(ordered))
            if row.messages[-1].content != other.messages[-1].content]


def _conversation(id: str, prompt: Prompt, text: str, constitution: Constitution, source: Any,
                  number: int | None = None) -> Tuning:
    return Tuning(id=id, messages=[*prompt.messages, Message(role="assistant", content=text)], tags=prompt.tags,
                  source=source, round=number, constitution=constitution.sha256)


def helpful_wanted(revisions: int, share: float) -> int:
    """How many helpful answers make up `share` of the data set beside so many revisions."""
    return round(revisions * share / (1 - share))


def mix_in(config: ReviseConfig, constitution: Constitution, prompts: Sequence[Prompt], models: Models, *,
           wanted: int) -> tuple[list[Tuning], dict[str, Any]]:
    """(plain answers of the target to helpful prompts, as many as wanted and pass; figures of how they came about).

    No principle is applied to them (Bai et al. 2022, section 3.2), but the gates are: an answer that refuses, loops or
    is cut off teaches nothing. Prompts are taken in an order drawn by the seed, all of them once before one is twice.
    """
    rows: list[Tuning] = []
    told: dict[str, Any] = {"wanted": wanted if prompts else 0, "answers": 0, "stopped_by": {}}
    queue = _in_turn(prompts, config.helpful_answers, config.seed)
    while part := list(itertools.islice(queue, wanted - len(rows))):
        for (prompt, number), answer in zip(part, _plain(config, part, models), strict=True):
            told["answers"] += 1
            for gate in answer.stopped_by:
                told["stopped_by"][gate] = told["stopped_by"].get(gate, 0) + 1
            if not answer.stopped_by:
                rows.append(_conversation(f"helpful/{prompt.id}/{number}", prompt, answer.text, constitution,
                                          "helpful"))
    return rows, told


def _plain(config: ReviseConfig, part: Sequence[tuple[Prompt, int]], models: Models) -> list[Revision]:
    """The target's answers, with what the gates say of them."""
    sampling = config.sampling
    if config.helpful_tokens is not None:
        sampling = sampling.model_copy(update={"max_new_tokens": config.helpful_tokens})
    written = models.target([Ask(f"helpful/{p.id}/{k}", tuple(p.messages), k) for p, k in part], sampling)
    found = [weigh(w, p, config.gates, earlier=(), shown=(), safe=True)
             for (p, _), w in zip(part, written, strict=True)]
    if config.gates.refusals == "judge" and models.judge is not None:
        refused(models.judge, [(f"helpful/{p.id}/{k}", p, f) for (p, k), f in zip(part, found, strict=True)])
    return found


def _in_turn(prompts: Sequence[Prompt], answers: int, seed: int) -> Iterator[tuple[Prompt, int]]:
    ordered = drawn_order(prompts, seed, lambda p: p.id)
    return ((prompt, number) for number in range(answers) for prompt in ordered)
