"""Fixed prompts, answered before, during and after: what the run is judged by, never what it is trained on."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from trivet.artifacts import Message, Row, read_rows, write_rows
from trivet.generate.sample import prompt_seed, text_of
from trivet.guard.base import StepRecord
from trivet.intervals import Interval, bootstrap_mean, paired_bootstrap
from trivet.judge.base import Sample
from trivet.policy.config import PPOConfig
from trivet.policy.passes import response_pass
from trivet.policy.rollout import layout, make_rollout, share_out
from trivet.policy.setup import Setup
from trivet.policy.state import RewardScale
from trivet.runs import Run
from trivet.training import shard
from trivet.training.ranks import here

_EVALUATION_SEED = 77_003  # apart from the seeds of training rollouts


class WatchRow(Row):
    """One answer to a fixed prompt."""

    id: str
    step: int
    messages: list[Message]
    completion: str
    score: float
    """In the run's reward scale, without the missing-end penalty."""
    second: float | None = None
    """By the second reward model."""
    kl: float
    """Nats, log-ratio of policy to reference summed over the answer."""
    tokens: int
    ended: bool
    ref_logp: float | None = None
    """Log-probability of the answer by the reference, summed, nats."""
    spread: float | None = None
    """Standard deviation over the reward and an ensemble of others; None without one."""


Spread = Callable[[Sequence[Sample], Sequence[float]], Sequence[float | None]]
"""What an ensemble makes of answers and their rewards (in the run's scale): a deviation each."""


@dataclass(frozen=True)
class Watched:
    """Means over the answers of one evaluation."""

    step: int
    reward: float
    second: float | None
    kl: float
    length: float
    ended: float


def evaluate(setup: Setup, config: PPOConfig, scale: RewardScale, step: int, samples: int, run: Run,
             spread: Spread) -> tuple[Watched, StepRecord]:
    """Answer the fixed prompts with fixed seeds, score them, write evaluations/step-N.jsonl and a line of figures.

    Returns the figures and, answer by answer in the file's order, what the guard is shown.
    """
    prompts = [p for p in setup.heldout for _ in range(samples)]
    with setup.roles.model("policy") as model, shard.whole(model):
        share = here().deal(setup.heldout)
        answers = here().gather(setup.engine(model).generate(
            [setup.tokens[p.id] for p in share], setup.sampling, n=samples,
            seeds=[prompt_seed(config.seed + _EVALUATION_SEED, p.id) for p in share]))
    flat = [g for group in answers for g in group]
    texts = [text_of(setup.tokenizer, g, setup.sampling.stop) for g in flat]
    rollout = make_rollout(prompts, [setup.tokens[p.id] for p in prompts], flat, texts)
    scores = scale(setup.scores(setup.reward, rollout.samples, "the reward"))
    second: Sequence[float | None] = [None] * len(flat)
    if setup.second:
        second = setup.scores(setup.second, rollout.samples, "the second reward")
    spreads = spread(rollout.samples, scores)
    kls, refs = (torch.zeros(len(flat), dtype=torch.float64) for _ in range(2))
    if step == 0:
        # before the first step the policy is the reference: the log-ratio is 0 by definition, and the answers were
        # drawn with the reference's own log-probabilities
        refs += torch.tensor([sum(g.logps) for g in flat], dtype=torch.float64)
    else:
        (micros,) = layout(rollout, 1, config.micro_batch, config.seed, setup.tokenizer.pad_token_id,
                           setup.compute.device)
        with torch.no_grad():
            for micro in share_out(micros, setup.spread):
                below = setup.roles.lower_blocks()
                with setup.roles.model("policy", below) as model:
                    logps = response_pass(model, micro, config.sampling.temperature).logps
                with setup.roles.model("reference", below) as model:
                    reference = response_pass(model, micro, config.sampling.temperature).logps
                if micro.rows:
                    rows = list(micro.rows)
                    kls[rows] = ((logps - reference) * micro.response_mask).sum(-1).double().cpu()
                    refs[rows] = (reference * micro.response_mask).sum(-1).double().cpu()
        here().sum_(kls, refs)
    run.meter.count("prompt", sum(len(setup.tokens[p.id]) for p in setup.heldout))
    run.meter.count("generated", sum(len(g.token_ids) for g in flat))
    answered = [
        WatchRow(id=f"{s.id}/{i % samples}", step=step, messages=list(s.messages), completion=s.completion,
                 score=score, second=other, kl=kl, tokens=len(g.token_ids), ended=g.ended, ref_logp=ref,
                 spread=deviation)
        for i, (s, score, other, kl, ref, deviation, g) in enumerate(
            zip(rollout.samples, scores, second, kls.tolist(), refs.tolist(), spreads, flat, strict=True))
    ]
    if run.writes:
        write_rows(path_of(run, step), answered)
    found = Watched(
        step, statistics.fmean(scores), statistics.fmean(r.second for r in answered if r.second is not None)
        if setup.second else None, statistics.fmean(kls.tolist()), statistics.fmean(r.tokens for r in answered),
        statistics.fmean(r.ended for r in answered))
    run.log("evaluation", vars(found))
    return found, StepRecord(
        step, rollout.samples, scores, kls.tolist(), refs.tolist(), [r.tokens for r in answered],
        [r.ended for r in answered], second, spreads, source="evaluation")


def path_of(run: Run, step: int) -> Any:
    """Where the answers of an evaluation stand."""
    folder = run.path("evaluations")
    if run.writes:
        folder.mkdir(exist_ok=True)
    return folder / f"step-{step:05d}.jsonl"


def compare(run: Run, last: int, seed: int) -> dict[str, Any]:
    """The figures after against before, paired by prompt, with 95% intervals by bootstrap over prompts."""
    before, after = (read_rows(path_of(run, s), WatchRow) for s in (0, last))
    figures: dict[str, Any] = {}

    def add(name: str, values: Any) -> None:
        old, new = by_prompt(before, values), by_prompt(after, values)
        prompts = sorted(old.keys() & new.keys())
        a, b = [new[p] for p in prompts], [old[p] for p in prompts]
        figures[f"{name}_before"] = bootstrap_mean(b, prompts, seed=seed).as_dict()
        figures[f"{name}_after"] = bootstrap_mean(a, prompts, seed=seed).as_dict()
        gain: Interval = paired_bootstrap(a, b, prompts, seed=seed)
        figures[f"{name}_gain"] = gain.as_dict()

    add("reward", lambda r: r.score)
    if before[0].second is not None:
        add("second_reward", lambda r: r.second)
    add("length", lambda r: float(r.tokens))
    figures["kl"] = statistics.fmean(r.kl for r in after)
    return figures


def by_prompt(rows: list[WatchRow], value: Any) -> dict[str, float]:
    """Means by prompt."""
    groups: dict[str, list[float]] = {}
    for row in rows:
        groups.setdefault(row.id.rsplit("/", 1)[0], []).append(value(row))
    return {k: statistics.fmean(v) for k, v in groups.items()}
