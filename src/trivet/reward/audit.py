"""The stage `audit`: does a reward prefer worse answers? Asked before anything is trained on it.

    OUT/audit.json      of each contrast set how often the worse text scores higher, with interval and verdict
        pairs.jsonl     every pair that was scored
        worst.jsonl     the pairs in which the worse text wins by most

A set is gamed where the whole interval of that share lies above its threshold. Scores are asked for in chunks that are
kept, so that an interrupted audit of a slow reward goes on where it was.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from trivet import __version__
from trivet.artifacts import (
    Message,
    Row,
    atomic_write,
    first_turn,
    json_lines,
    sha256_file,
    text_id,
    write_json,
    write_rows,
)
from trivet.data.chat import dialogue_ids
from trivet.errors import TrivetError
from trivet.intervals import Interval, bootstrap_mean
from trivet.judge.base import Reward, Sample
from trivet.judge.rewards import Term, call, make_reward, parse_terms
from trivet.judge.scorer import ModelReward, load_model_reward
from trivet.reward.config import AUDIT, AuditConfig
from trivet.reward.contrast import CONTRASTS, Answer, Skip, unfit, worsen
from trivet.reward.contrast_text import count
from trivet.reward.held_out import HeldOut, read_answers
from trivet.runs import Run, Summary
from trivet.training.device import prepare
from trivet.training.progress import bar

CHUNK = 16  # answers, each with its worse texts, between two writes: what an interruption costs at most
TOO_LONG = "longer than the reward model's context"
REFERENCE, OWN_ANSWERS, OWN_UNITS = ("deviations of the reference's answers", "deviations of the held-out answers' "
                                     "scores", "the reward's own units")
Verdict = Literal["gamed", "not shown", "too few"]
Parts = Sequence[tuple[Term, Reward]]


class AuditPair(Row):
    """A held-out answer beside its worse text, with the reward's scores in the audit's unit."""

    id: str
    set: str
    prompt_id: str
    messages: list[Message]
    better: str
    worse: str
    better_score: float
    worse_score: float
    advantage: float
    """Of the worse text: worse_score - better_score."""


class AuditSummary(Summary):
    """What was asked and what came out; the figures are in audit.json."""

    answers: int
    pairs: int
    unit: str
    gamed: list[str]
    too_few: list[str]


@dataclass
class Case:
    """A held-out answer with its worse texts, by the name of the set."""

    held: HeldOut
    worse: dict[str, str] = field(default_factory=dict)

    def samples(self) -> list[Sample]:
        """The answer and its worse texts, as a reward sees them."""
        texts = {"": self.held.text} | self.worse
        return [Sample(f"{self.held.prompt_id}/{name}" if name else self.held.prompt_id, self.held.messages, text,
                       self.held.reference, self.held.tags) for name, text in texts.items()]


@dataclass
class Cases:
    """All cases, and what could not be made into one: of answers, and of each set, by reason."""

    cases: list[Case]
    left_out: Counter[str]
    skipped: dict[str, Counter[str]]

    def keep(self, fits: Callable[[Sample], bool]) -> None:
        """Leave out answers and worse texts whose sample does not fit."""
        kept = []
        for case in self.cases:
            own, *others = case.samples()
            if not fits(own):
                self.left_out[TOO_LONG] += 1
                continue
            for name, sample in zip(list(case.worse), others, strict=True):
                if not fits(sample):
                    del case.worse[name]
                    self.skipped[name][TOO_LONG] += 1
            kept.append(case)
        self.cases = kept


def run(config: AuditConfig, run: Run) -> AuditSummary:
    """Make the contrast sets, score them, say which are gamed. Resumes at the last whole chunk.

    Raises TrivetError for data that holds no answers, for sets that apply to none of them, and for a reward that does
    not load or gives anything but finite numbers.
    """
    terms = parse_terms(config.reward)
    kind, answers, left_out = read_answers(config.data)
    made = make_cases(draw(answers, config.limit, config.seed), config.sets, config.seed)
    made.left_out.update(left_out)
    _require_pairs(made, config)
    for term in terms:
        if term.kind == "function":
            print(f"the reward runs code: {term.spec}")
    compute = prepare(config.device, run.meter)
    # not the WeightedReward itself: it shares its work among processes, of which this stage is rank 0's alone
    parts = make_reward(terms, lambda spec: load_model_reward(spec, compute.trunk, compute.device,
                                                              run.meter.count)).parts
    made.keep(lambda sample: _fits(parts, sample))
    _require_pairs(made, config)
    pairs, unit = score(made.cases, parts, run)
    groups = {c.held.prompt_id: first_turn(c.held.messages) for c in made.cases}
    sets = [figures(name, [p for p in pairs if p.set == name], groups, made.skipped[name], config)
            for name in config.sets]
    found: dict[str, Any] = {
        "schema_version": 1, "trivet": __version__, "reward": [vars(t) | {"kind": t.kind} for t in terms],
        "data": str(config.data), "data_sha256": sha256_file(config.data), "data_kind": kind, "seed": config.seed,
        "level": config.level, "least": config.least, "answers": len(made.cases), "left_out": dict(made.left_out),
        "unit": unit, "gamed": [s["name"] for s in sets if s["verdict"] == "gamed"],
        "too_few": [s["name"] for s in sets if s["verdict"] == "too few"], "sets": sets}
    write_json(run.path(AUDIT), found)
    write_rows(run.path("pairs.jsonl"), pairs)
    with atomic_write(run.path("worst.jsonl")) as file:
        file.writelines(p.model_dump_json() + "\n" for name in config.sets
                        for p in worst([p for p in pairs if p.set == name], config.worst))
    run.path("partial.jsonl").unlink(missing_ok=True)
    for name, path in (("audit", AUDIT), ("pairs", "pairs.jsonl"), ("worst", "worst.jsonl")):
        run.artifact(name, run.path(path))
    return AuditSummary(answers=len(made.cases), pairs=len(pairs), unit=unit, gamed=found["gamed"],
                        too_few=found["too_few"])


# --- the pairs ------------------------------------------------------------------------------------------


def draw(answers: Sequence[HeldOut], limit: int | None, seed: int) -> list[HeldOut]:
    """At most `limit` answers, in the order of the file."""
    if limit is None or len(answers) <= limit:
        return list(answers)
    return [answers[i] for i in sorted(random.Random(seed).sample(range(len(answers)), limit))]


def make_cases(answers: Sequence[HeldOut], sets: Sequence[str], seed: int) -> Cases:
    """The worse texts of each answer. A text depends on the answer's prompt_id and the seed, not on other answers."""
    made = Cases([], Counter(), {name: Counter() for name in sets})
    for held in answers:
        answer = Answer(held.messages, held.text)
        if (reason := unfit(answer)) is not None:
            made.left_out[reason] += 1
            continue
        case = Case(held)
        for name in sets:
            worse = worsen(name, answer, f"{seed}:{held.prompt_id}")
            if isinstance(worse, Skip):
                made.skipped[name][worse.reason] += 1
            else:
                case.worse[name] = worse
        made.cases.append(case)
    return made


def _require_pairs(made: Cases, config: AuditConfig) -> None:
    """Raise TrivetError, with the reasons, where nothing is left to score."""
    if any(case.worse for case in made.cases):
        return
    reasons = made.left_out + sum(made.skipped.values(), Counter[str]())
    said = "; ".join(f"{reason}: {n}" for reason, n in reasons.most_common(4))
    raise TrivetError(f"no contrast set applies to any of these answers ({said})", file=config.data, field="data",
                      mend="give good answers of at least a sentence each")


def _fits(parts: Parts, sample: Sample) -> bool:
    """Whether a sample is within the context of every reward model."""
    models = [reward.model for _, reward in parts if isinstance(reward, ModelReward)]
    return all(m.context is None or
               len(dialogue_ids(m.tokenizer, sample.messages, sample.completion.strip())[0]) <= m.context
               for m in models)


# --- scores ---------------------------------------------------------------------------------------------


def score(cases: Sequence[Case], parts: Parts, run: Run) -> tuple[list[AuditPair], str]:
    """All pairs with their scores, and the unit of these. Chunks that an interrupted run scored are not asked again."""
    known = _kept_chunks(run)
    raw: list[float] = []
    with bar("scoring", sum(1 + len(c.worse) for c in cases)) as progress:
        for start in range(0, len(cases), CHUNK):
            samples = [s for c in cases[start : start + CHUNK] for s in c.samples()]
            mark = text_id([s.to_dict() for s in samples])
            scores = known.get(mark)
            if scores is None:
                scores = [0.0] * len(samples)
                for term, reward in parts:
                    scores = [a + term.weight * b
                              for a, b in zip(scores, call(reward, samples, term.spec), strict=True)]
                run.log("partial", {"chunk": mark, "scores": scores})
            raw += scores
            progress(len(samples))
    left = iter(raw)
    by_case = [(case, next(left), {name: next(left) for name in case.worse}) for case in cases]
    scale, unit = _scale(parts, [own for _, own, _ in by_case])
    return [AuditPair(
        id=f"{case.held.prompt_id}/{name}", set=name, prompt_id=case.held.prompt_id, messages=list(case.held.messages),
        better=case.held.text, worse=case.worse[name], better_score=own / scale, worse_score=value / scale,
        advantage=(value - own) / scale) for case, own, others in by_case for name, value in others.items()], unit


def _kept_chunks(run: Run) -> dict[str, list[float]]:
    """The scores of whole chunks in partial.jsonl, by their mark; a torn last line is cut off."""
    path = run.path("partial.jsonl")
    found: dict[str, list[float]] = {}
    if not path.exists():
        return found
    run.cut("partial", path.read_bytes().rfind(b"\n") + 1)  # a line that was being written when the run was killed
    for _, row in json_lines(path):
        found[row["chunk"]] = row["scores"]
    return found


def _scale(parts: Parts, own: Sequence[float]) -> tuple[float, str]:
    """What scores are divided by, and the unit that they then have.

    One calibrated reward model gives deviations of the reference's answers, times its weight; any other reward is
    measured by the deviation of its scores of the held-out answers, where these vary.
    """
    term, reward = parts[0]
    if len(parts) == 1 and term.weight > 0 and isinstance(reward, ModelReward) and reward.calibration is not None:
        return term.weight, REFERENCE
    deviation = float(np.std(own))
    return (deviation, OWN_ANSWERS) if deviation > 0 else (1.0, OWN_UNITS)


# --- figures --------------------------------------------------------------------------------------------


def figures(name: str, pairs: Sequence[AuditPair], groups: Mapping[str, str], skipped: Mapping[str, int],
            config: AuditConfig) -> dict[str, Any]:
    """What audit.json says of one set. groups: the first turn of each prompt, by its id: what is resampled."""
    threshold = {str(k): v for k, v in config.max_preferred_in.items()}.get(name, config.max_preferred)
    nothing = Interval(np.nan, np.nan, np.nan, 0)
    share, difference = nothing, nothing
    if pairs:
        of = [groups[p.prompt_id] for p in pairs]
        advantages = [p.advantage for p in pairs]
        share = preferred(advantages, of, seed=config.seed, level=config.level)
        difference = bootstrap_mean(advantages, of, seed=config.seed, level=config.level)
    verdict: Verdict = "too few" if share.n < config.least else "gamed" if share.low > threshold else "not shown"
    words = {side: round(float(np.mean([count(getattr(p, side)) for p in pairs])), 1) if pairs else None
             for side in ("better", "worse")}
    return {"name": name, "does": CONTRASTS[name].does, "n": len(pairs), "skipped": dict(skipped),
            "preferred": share.as_dict(), "difference": difference.as_dict(), "words": words, "threshold": threshold,
            "verdict": verdict,
            "worst": [p.model_dump(mode="json", exclude={"schema_version"}) for p in worst(pairs, config.worst)]}


def preferred(advantages: Sequence[float], groups: Sequence[str], *, seed: int = 0, level: float = 0.95,
              resamples: int = 10_000) -> Interval:
    """How often the worse text scores higher, ties one half, with its interval.

    The wider, at each end, of the bootstrap over groups and of the exact interval of as many yes-or-no items as there
    are groups (Clopper & Pearson 1934). The bootstrap alone is too narrow where nearly all pairs agree, and has no
    width where all do; the other alone does not see that some groups have more pairs.
    """
    from scipy.stats import beta

    won = 0.5 * (1.0 + np.sign(np.asarray(advantages, dtype=np.float64)))
    found = bootstrap_mean(won, groups, seed=seed, level=level, resamples=resamples)
    tail, yes, no = (1.0 - level) / 2.0, found.value * found.n, (1.0 - found.value) * found.n
    low = float(beta.ppf(tail, yes, no + 1.0)) if yes > 0 else 0.0
    high = float(beta.ppf(1.0 - tail, yes + 1.0, no)) if no > 0 else 1.0
    # of a single group the bootstrap says nothing (NaN)
    return Interval(found.value, float(np.fmin(low, found.low)), float(np.fmax(high, found.high)), found.n)


def worst(pairs: Sequence[AuditPair], most: int) -> list[AuditPair]:
    """The pairs with the largest advantage of the worse text, largest first; only those where it wins."""
    return sorted((p for p in pairs if p.advantage > 0), key=lambda p: (-p.advantage, p.id))[:most]
