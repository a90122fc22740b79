"""The stage `prefer`: preferences by AI feedback (RLAIF), and how far people agree with them.

    OUT/answers/              what the target wrote, text by text; completions.jsonl holds them by prompt
        judge/                verdicts, kept so that this folder asks nothing twice; thoughts/ of a model that thinks
        preferences.jsonl     the pairs with soft labels: for `reward`, `dpo`, or `pairs`, which splits them
        comparisons.jsonl     every pair with what each principle said in both orders, those left out too
        people.jsonl          the same of the pairs that people judged
        agreement.json        agreement with people, calibration, position bias on those pairs

Bai et al. 2022, 'Constitutional AI', section 4.1. A run that was interrupted asks for no text and no verdict again.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from trivet import __version__
from trivet.artifacts import (
    Completions,
    Message,
    Prompt,
    Row,
    read_rows,
    sha256_file,
    write_json,
    write_rows,
)
from trivet.constitution.agreement import Agreement, Figure, beside_people, position
from trivet.constitution.comparing import Compared, Opinion, Pair, compare, judged_by_people, pairs_of, preference
from trivet.constitution.prefer_config import PreferConfig
from trivet.constitution.principles import Constitution, load_constitution
from trivet.errors import TrivetError
from trivet.generate.endpoint import Endpoints
from trivet.generate.writing import answers, check_writer, make_writer
from trivet.judge.ask import check, make_judge
from trivet.judge.cache import Kept
from trivet.runs import Run, Summary
from trivet.training.device import Compute, prepare

FEW = 2  # answers that make a pair


class Comparison(Row):
    """A pair as the judge was first shown it, and what it said."""

    id: str
    prompt_id: str
    messages: list[Message]
    first: str
    second: str
    said: list[Opinion]
    probability: float
    """That the first answer is the better: both orders as one, and the mean over principles."""
    people: float | None = None
    """The same by people."""
    kept: bool = True
    """Whether it stands in the preferences (false of people's pairs)."""
    judge: str
    constitution: str
    """The sha256 of its content."""


class PreferSummary(Summary):
    """Counts of the stage, and what the labels are worth."""

    judge: str
    constitution: str
    """The sha256 of its content."""
    prompts: int
    pairs: int
    """Compared; not those that people judged."""
    kept: int
    """Pairs in the preferences."""
    left_out: dict[str, int]
    """What gave no pair, by reason."""
    principles: dict[str, int]
    """How often each was asked by."""
    confidence: float | None
    """Mean probability of the preferred answer, over all pairs."""
    longer_wins: float | None
    """Share of the pairs whose preferred answer is the longer one, in characters; equal lengths count for half."""
    divided: float | None
    """Share of the pairs on which the drawn principles disagree; None with one a pair."""
    prefers_first: Figure | None
    """Position bias: probability that the answer shown first is the better, 0.5 without bias; over all pairs, those
    that people judged too. None of a judge that can't see the order."""
    prefers_first_after: Figure | None
    """The same of the labels: both orders as one, of the answer that a toss put first."""
    flips: Figure | None
    """Share of verdicts that change sides with the order."""
    agreement: Figure | None
    """How often people agree with the judge's preference, where there are pairs that they judged."""
    agreement_in_one_order: Figure | None
    agreement_of_the_longer: Figure | None
    """How often people prefer the longer answer."""
    calibration_error: Figure | None
    """Expected calibration error of the labels beside people's."""


def run(config: PreferConfig, run: Run) -> PreferSummary:
    """Compare pairs of answers by principles into preferences.jsonl; measure the judge on `human`.

    Raises TrivetError, before a model is loaded, for settings, files or a constitution that do not fit; where no pair
    is left; and as writers and judges do.
    """
    constitution = load_constitution(config.constitution)
    _check(config, constitution)
    people: list[Pair] = []
    unjudged: Counter[str] = Counter()
    if config.human is not None:
        people, unjudged = judged_by_people(config.human, config.limit, config.seed)
    prompts = read_rows(config.prompts, Prompt, limit=config.limit) if config.prompts else None
    rows = read_rows(config.completions, Completions, limit=config.limit) if config.completions else []
    if rows and all(len(r.completions) < FEW for r in rows):
        raise TrivetError("one answer a prompt can't be compared: at least two are needed", file=config.completions,
                          field="completions", mend="sample several: `trivet sample --completions 2`")
    compute = prepare(config.device, run.meter)
    loaded: Mapping[str, tuple[Any, Any]] = {}
    if prompts:
        rows, loaded = _answered(config, prompts, compute, run)
    pairs, left_out = pairs_of(rows, config.pairs, config.seed)
    if rows and not pairs:
        raise _none_left("no prompt has two different answers", config, left_out)
    judge = make_judge(config.judge, compute, folder=run.path("judge"), count=run.meter.count, loaded=loaded,
                       endpoints=Endpoints.of(run))
    assert judge is not None, "the configuration asks for one"
    settled: dict[str, Any] = {"principles": config.principles, "seed": config.seed, "combine": config.combine}
    compared = compare(judge, pairs, constitution, **settled)
    beside = compare(judge, people, constitution, **settled)
    kept = _write(config, run, compared, judge.name, constitution, left_out) if pairs else 0
    if prompts:
        write_rows(run.path("completions.jsonl"), rows)
        run.artifact("completions", run.path("completions.jsonl"))
    found = _beside_people(config, run, beside, judge, constitution, unjudged) if beside else None
    place = None if judge.symmetric else position([*compared, *beside], config.seed)
    return PreferSummary(
        judge=judge.name, constitution=constitution.sha256, prompts=len(rows), pairs=len(pairs), kept=kept,
        left_out=dict(left_out),
        principles=dict(Counter(o.principle for c in (*compared, *beside) for o in c.said if o.principle)),
        confidence=_mean([max(c.probability, 1 - c.probability) for c in compared]), longer_wins=_longer_wins(compared),
        divided=_mean([float(c.divided) for c in compared]) if config.principles > 1 else None,
        prefers_first=place.before if place else None, prefers_first_after=place.after if place else None,
        flips=place.flips if place else None, agreement=found.agreement if found else None,
        agreement_in_one_order=found.once if found else None, agreement_of_the_longer=found.longer if found else None,
        calibration_error=found.ece if found else None)


# --- before and between -------------------------------------------------------------------------------------


def _check(config: PreferConfig, constitution: Constitution) -> None:
    """Raise TrivetError for a judge or a target that is none, and for more principles than there are."""
    usable = sum(p.weight > 0 for p in constitution.principles)
    if config.principles > usable:
        raise TrivetError(f"{config.principles} principles a pair are asked for, {constitution.name!r} has {usable} of "
                          "a weight above 0", file=config.constitution, field="principles",
                          mend=f"give --principles {usable} or fewer")
    check(config.judge)
    if config.prompts is not None:
        check_writer(config.target, field="target")


def _answered(config: PreferConfig, prompts: Sequence[Prompt], compute: Compute,
              run: Run) -> tuple[list[Completions], Mapping[str, tuple[Any, Any]]]:
    """The target's answers to the prompts; and its weights, where it is its own judge."""
    writer = make_writer(config.target, compute, seed=config.seed, folder=run.path("answers"), count=run.meter.count,
                         endpoints=Endpoints.of(run), field="target")
    rows = answers(writer, prompts, config.answers, config.sampling)
    loaded = writer.loaded if config.target.by == config.judge.by else {}
    del writer
    gc.collect()  # else the target's weights make room for the judge's
    return rows, loaded


def _none_left(what: str, config: PreferConfig, left_out: Counter[str], mend: str = "") -> TrivetError:
    reasons = ", ".join(f"{reason}: {n}" for reason, n in left_out.most_common())
    return TrivetError(f"{what}{f' ({reasons})' if reasons else ''}", file=config.completions or config.prompts,
                       mend=mend or "sample at a higher temperature, or give a model that answers")


# --- what comes out -----------------------------------------------------------------------------------------


def _write(config: PreferConfig, run: Run, compared: Sequence[Compared], judge: str, constitution: Constitution,
           left_out: Counter[str]) -> int:
    """preferences.jsonl and comparisons.jsonl; the number of preferences. `left_out` is added to.

    A prompt weighs 1, however many of its pairs are kept. Raises TrivetError where none is.
    """
    far = [c for c in compared if abs(c.probability - 0.5) >= config.keep]
    if len(far) < len(compared):
        left_out[f"nearer to 0.5 than {config.keep:g}"] += len(compared) - len(far)
    if not far:
        raise _none_left("no pair is left", config, left_out, "lower --keep: the judge is less sure than that of all")
    of_prompt = Counter(c.pair.prompt_id for c in far)
    source = f"{judge} by {constitution.name} {constitution.sha256}"
    kept = {c.pair.id for c in far}
    _comparisons(run, "comparisons", compared, judge, constitution, kept)
    path = run.path("preferences.jsonl")
    write_rows(path, [preference(c, weight=1.0 / of_prompt[c.pair.prompt_id], source=source) for c in far])
    run.artifact("preferences", path)
    return len(far)


def _comparisons(run: Run, name: str, compared: Sequence[Compared], judge: str, constitution: Constitution,
                 kept: set[str]) -> None:
    path = run.path(f"{name}.jsonl")
    write_rows(path, [Comparison(
        id=c.pair.id, prompt_id=c.pair.prompt_id, messages=list(c.pair.messages), first=c.pair.answers[0],
        second=c.pair.answers[1], said=list(c.said), probability=c.probability, people=c.pair.people,
        kept=c.pair.id in kept, judge=judge, constitution=constitution.sha256) for c in compared])
    run.artifact(name, path)


def _beside_people(config: PreferConfig, run: Run, compared: Sequence[Compared], judge: Kept,
                   constitution: Constitution, left_out: Counter[str]) -> Agreement:
    """agreement.json and people.jsonl."""
    assert config.human is not None
    found = Agreement(
        trivet=__version__, judge=judge.name, constitution=constitution.sha256, principles=config.principles,
        combine=config.combine, think=config.judge.think, human=str(config.human),
        human_sha256=sha256_file(config.human),
        left_out=dict(left_out), position=None if judge.symmetric else position(compared, config.seed),
        **beside_people(compared, config.seed))
    _comparisons(run, "people", compared, judge.name, constitution, set())
    write_json(run.path("agreement.json"), found.model_dump(mode="json"))
    run.artifact("agreement", run.path("agreement.json"))
    return found


def _longer_wins(compared: Sequence[Compared]) -> float | None:
    wins = []
    for c in compared:
        gap = (len(c.pair.answers[0]) - len(c.pair.answers[1])) * (c.probability - 0.5)
        wins.append(0.5 if gap == 0 else float(gap > 0))
    return _mean(wins)


def _mean(values: Sequence[float]) -> float | None:
    return round(sum(values) / len(values), 4) if values else None

