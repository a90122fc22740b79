"""The stage `ppo`: proximal policy optimization of a language model, with KL to the frozen reference.

Schulman et al. 2017; Ziegler et al. 2019; Ouyang et al. 2022, section 3.5. The loop is `_step` below; every
line of it is a function that can be tested alone. docs/papers.md maps each to its source.

Elsewhere: rollouts by a vLLM server (policy/behaviour.py), shares of several processes (training/ranks.py), what is
done where the reward is gamed (policy/guarded.py).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from trivet.artifacts import RolloutRow, atomic_folder, write_rows
from trivet.data.chat import context_length
from trivet.evaluate.capability import assess, refuse
from trivet.evaluate.config import MAX_FAIL
from trivet.generate.sample import text_of
from trivet.generate.vllm_server import RolloutFailed, RolloutInterrupted
from trivet.guard.base import StepRecord, Verdict
from trivet.judge.base import Reward
from trivet.models.merge import merge_policy
from trivet.models.source import ModelSource
from trivet.policy import state as states
from trivet.policy.advantage import estimate, others_mean, token_rewards
from trivet.policy.behaviour import require_server, rollouts_by_server, weigh
from trivet.policy.config import PPOConfig
from trivet.policy.guarded import Guarded, Look, stop_of
from trivet.policy.kl import kl_estimate, sequence_kl
from trivet.policy.passes import Evaluated, evaluate_tokens
from trivet.policy.rollout import Rollout, batch_indices, layout, make_rollout, share_out
from trivet.policy.setup import Setup, member_name, prepare_models
from trivet.policy.state import PPOState, RewardScale, fit_scale
from trivet.policy.stop import StopState, first_met
from trivet.policy.update import UpdateStats, make_optimizer, update
from trivet.policy.watch import Watched, compare, evaluate
from trivet.runs import Run, Summary
from trivet.training import checkpoints, shard
from trivet.training.device import prepare, seed_all
from trivet.training.interrupt import graceful
from trivet.training.progress import bar
from trivet.training.ranks import here
from trivet.training.trackers import Trackers
from trivet.training.trainer import resumed_offset


class PPOSummary(Summary):
    """What came out. Intervals are 95%, by bootstrap over held-out prompts, gains paired by prompt.

    Rewards are in deviations of reference answers; KL in nats a sequence, on the held-out prompts.
    """

    stop: str
    steps: int
    episodes: int
    reward_before: dict[str, Any]
    reward_after: dict[str, Any]
    reward_gain: dict[str, Any]
    second_reward_before: dict[str, Any] | None = None
    second_reward_after: dict[str, Any] | None = None
    second_reward_gain: dict[str, Any] | None = None
    length_before: dict[str, Any]
    length_after: dict[str, Any]
    length_gain: dict[str, Any]
    kl: float
    tokens_per_second: dict[str, float]
    """Response tokens of a rollout by the seconds of each phase: rollout, scoring, update …"""
    guard: dict[str, Any] | None = None
    """Whether it alarmed, when, by which signal, in a sentence; where `returned_to` is a step, the figures above are of
    that step's policy, which was exported. None: it was off."""


class Phases:
    """Seconds of each phase of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started


def run(config: PPOConfig, run: Run) -> PPOSummary:
    """Align the policy. Resumes exactly from the newest whole checkpoint.

    Raises TrivetError for input that does not fit and for a model that can't answer; KeyboardInterrupt after
    Ctrl-C, with the last step saved.
    """
    compute = prepare(config.device, run.meter)
    seed_all(config.seed)
    require_server(config)
    setup = prepare_models(config, compute, partial(run.meter.count, share=True))
    guard = Guarded(config, setup, run)
    optimizer = make_optimizer(setup.roles, config)
    start = checkpoints.begin(run.path("checkpoints"))
    run.cut("metrics", resumed_offset(start, compute.threads))
    for log in ("evaluation", "guard"):
        run.cut(log, checkpoints.facts(start)[f"{log}_offset"] if start else 0)
    if start is not None:
        state = states.restore(start, setup.roles, optimizer)
        guard.load(state.guard)
        print(f"going on from {start}", flush=True)
    else:
        if config.check:
            _check(setup, config)
        state = PPOState(kl_coef=config.kl.coef, scale=setup.scale)
    trackers = Trackers(config.report_to if run.writes else [], run.folder, config.model_dump(mode="json"))
    with (graceful() as interruption, bar("ppo", config.stop.steps or 0) as advance,
          rollouts_by_server(config, setup, run, lambda: interruption.requested)):
        advance(state.step)

        def say(text: str) -> None:
            advance(0, note=text)

        def watch(state: PPOState, samples: int) -> tuple[PPOState, Verdict | None, Watched]:
            assert state.scale is not None
            found, record = evaluate(setup, config, state.scale, state.step, samples, run, guard.spread)
            return *guard.observe(record, state), found

        def save(state: PPOState) -> int:
            states.save(run, guard.remember(state), setup.roles, optimizer, config.checkpoint.keep, compute.threads,
                        guard.needs(state))
            return state.step

        if start is None:
            state = _first_scales(setup, config, state)
            guard.load(state.guard)
            state, _, first = watch(state, config.evaluation.samples)
            say(f"reward on held-out prompts {first.reward:+.3f} before")
            if guard.needs(state):
                save(state)
        saved = state.step
        while True:
            began = time.monotonic()
            reason: str | None = first_met(_after(config), _stop_state(state, None)) if state.step else None
            if reason is None:
                try:
                    state, reason = _step(setup, optimizer, state, config, run, guard, trackers, say)
                except (RolloutFailed, RolloutInterrupted):
                    # on every rank, while the rollout was awaited: nothing has changed since the last step
                    if state.step not in (0, saved):
                        save(state)
                    raise
            if reason is not None:
                break
            advance(1)
            last = first_met(_countable(config), _stop_state(state, None)) is not None
            if state.step % config.evaluation.every == 0 and not last:
                state, verdict, found = watch(state, config.evaluation.during)
                state = replace(state, heldout=(*state.heldout, found.reward))
                print(f"step {state.step}: reward on held-out prompts {found.reward:+.3f}, kl {found.kl:.2f} nats, "
                      f"{found.length:.0f} tokens", flush=True)
                reason = stop_of(verdict)
                if reason is not None:
                    break
            # a budget of seconds is looked at by every rank, and must end them all
            state = replace(state, seconds=here().largest(state.seconds + time.monotonic() - began))
            interrupted = here().any(interruption.requested)
            best = guard.needs(state) == (state.step,)
            if last or interrupted or best or state.step % config.checkpoint.every == 0:
                saved = save(state)
            if interrupted and not last:
                raise KeyboardInterrupt
    measured: int | None = None
    if reason != "guard":
        state, verdict, _ = watch(state, config.evaluation.samples)
        measured = state.step
        reason = stop_of(verdict) or reason
    print(f"stop={reason} after {state.step} steps, {state.episodes} answers", flush=True)
    # what is measured last is what is exported
    final = guard.go_back(state, setup.roles) if reason == "guard" else state.step
    if final != measured:
        assert state.scale is not None
        evaluate(setup, config, state.scale, final, config.evaluation.samples, run, guard.spread)
    trackers.close()
    whole = shard.full_state(setup.roles.models()["policy"]) if config.tune == "full" else None
    if run.writes:
        with atomic_folder(run.path("policy")) as folder:
            setup.roles.save_policy(folder, {"stage": "ppo", "steps": final, "stop": reason}, whole)
            if config.tune == "lora":
                setup.tokenizer.save_pretrained(folder)
    run.artifact("policy", run.path("policy"))
    if config.merge and run.writes:
        with atomic_folder(run.path("model")) as folder:
            merge_policy(ModelSource(config.model, run.path("policy")), folder, "ppo")
        run.artifact("model", run.path("model"))
    here().barrier()  # what follows is read from files that rank 0 has written
    return PPOSummary(stop=reason, steps=state.step, episodes=state.episodes, tokens_per_second=_rates(run),
                      guard=guard.summary(state, final if reason == "guard" else None),
                      **compare(run, final, config.seed))


def _step(
    setup: Setup, optimizer: torch.optim.Optimizer, state: PPOState, config: PPOConfig, run: Run,
    guard: Guarded, trackers: Trackers, say: Callable[[str], None],
) -> tuple[PPOState, str | None]:
    """One step: rollout, scores, old and reference log-probabilities, advantages, update.

    Returns the next state, and where the guard ends the run that; or the state unchanged and the criterion that ends
    the run before the update.
    """
    assert state.scale is not None
    step, phase = state.step + 1, Phases()
    with phase("rollout"):
        rollout = _sample(setup, config, step)
    with phase("scoring"):
        scores = state.scale(setup.scores(setup.reward, rollout.samples, "the reward"))
    look = guard.look(rollout.samples, scores, step, state.guard)
    penalised = torch.tensor([s - config.missing_end_penalty * (not ended)
                              for s, ended in zip(look.trained, rollout.ended, strict=True)])
    minibatches = layout(rollout, config.minibatches, _rows(config), config.seed * 1_000_003 + step,
                         setup.tokenizer.pad_token_id, setup.compute.device)
    whole = sum(map(len, minibatches)) == 1 and here().world == 1
    minibatches = [share_out(minibatch, setup.spread) for minibatch in minibatches]
    micros = [m for minibatch in minibatches for m in minibatch]
    mask = rollout.mask
    with phase("evaluate"):
        old = evaluate_tokens(setup.roles, micros, config.sampling.temperature, (mask.shape[0], mask.shape[1]),
                              keep_graph=whole, entropy_gradient=config.entropy_coef > 0)
    kl = sequence_kl(old.logps, old.ref_logps, mask)
    reason = first_met(_before(config), _stop_state(state, float(kl.mean())))
    if reason is not None:
        return state, reason
    in_reward = config.kl.where == "reward"
    per_token = kl_estimate(old.logps, old.ref_logps, config.kl.chosen) if in_reward else None
    baseline = others_mean(penalised, config.answers) if config.prompt_baseline else torch.zeros(())
    rewards = token_rewards(penalised - baseline, per_token, mask, state.kl_coef if in_reward else 0.0)
    advantages, returns = estimate(config.advantage, rewards, old.values, mask, answers=config.answers,
                                    gamma=config.gamma, lam=config.lam)
    mismatch: dict[str, float] = {}
    if setup.remote is not None and rollout.behaviour_logps is not None:
        advantages, mismatch = weigh(advantages, old.logps, rollout.behaviour_logps, mask, config.vllm.cap)
        mismatch["staleness"] = setup.remote.staleness(state.step)
    with phase("update"):
        stats = update(setup.roles, optimizer, minibatches, old, advantages, returns, config, step,
                       setup.earlier, state.kl_coef)
    following = state.next(kl=float(kl.mean()), episodes=len(rollout), tokens=rollout.tokens, seconds=0.0,
                           config=config.kl)
    row = _metrics(rollout, scores, penalised, kl, old, returns, stats, state, following) | mismatch
    record = _record(rollout, scores, kl, old, look, step)
    following, verdict = guard.observe(record, following)
    row |= guard.figures(look, verdict)
    run.log("metrics", row)
    run.log("timing", {"step": step, "tokens": rollout.tokens, **phase.seconds, **guard.spent()})
    _write_rollout(run, record)
    # a prompt is read once for all of its answers
    run.meter.count("prompt", sum(map(len, rollout.prompts[:: config.answers])))
    run.meter.count("generated", rollout.tokens)
    inner = config.epochs * config.minibatches
    run.meter.count("trained", rollout.tokens * config.epochs
                    + (setup.earlier.tokens(state.step * inner, inner) if setup.earlier else 0))
    trackers.log(row, step)
    example = " ".join(rollout.samples[0].completion.split())[:60]
    say(f"reward {row['score']:+.2f}  kl {row['kl']:.2f}  “{example}”")
    return following, stop_of(verdict)


def _rows(config: PPOConfig) -> int:
    """Answers a micro-batch: what was asked for, or fewer, so that no rank is without work."""
    return min(config.micro_batch, -(-config.rollout // (config.minibatches * here().world)))


def _sample(setup: Setup, config: PPOConfig, step: int) -> Rollout:
    """`config.answers` answers to each prompt of the step, drawn by the policy."""
    count = config.rollout // config.answers
    chosen = [setup.train[i] for i in batch_indices(step, len(setup.train), count, config.seed)]
    tokens = [setup.tokens[p.id] for p in chosen]
    seeds = [(config.seed * 1_000_003 + step) * 100_003 + i for i in range(len(chosen))]
    if setup.remote is not None:
        groups = setup.remote.draw(step - 1, tokens, n=config.answers, seeds=seeds)
    else:
        with setup.roles.model("policy") as model, shard.whole(model):
            groups = here().gather(setup.engine(model).generate(
                here().deal(tokens), setup.sampling, n=config.answers, seeds=here().deal(seeds)))
    return make_rollout([p for p in chosen for _ in range(config.answers)],
                        [t for t in tokens for _ in range(config.answers)],
                        answers := [a for group in groups for a in group],
                        [text_of(setup.tokenizer, a, setup.sampling.stop) for a in answers],
                        behaviour=setup.remote is not None)


def _first_scales(setup: Setup, config: PPOConfig, state: PPOState) -> PPOState:
    """The state with the scales of the reward and of the ensemble's members. Those that are not known beforehand are
    fitted to answers of the untouched policy, which is the reference, to the first prompts."""
    known = [state.scale, *(member.scale for member in setup.ensemble)]
    samples = _sample(setup, config, 1).samples if None in known else []

    def fixed(reward: Reward, scale: RewardScale | None, name: str) -> RewardScale:
        return scale or fit_scale(setup.scores(reward, samples, name))

    members = tuple(fixed(member.reward, member.scale, member_name(k)) for k, member in enumerate(setup.ensemble, 1))
    return replace(state, scale=fixed(setup.reward, state.scale, "the reward"),
                   guard=replace(state.guard, scales=members))


def _check(setup: Setup, config: PPOConfig) -> None:
    with setup.roles.model("reference") as model, shard.whole(model):
        found = assess(setup.engine(model), setup.tokenizer, setup.train[:12], setup.sampling, config.seed, MAX_FAIL,
                       context=context_length(model))
    if not found.verdict and not config.force:
        refuse(found)


def _before(config: PPOConfig) -> Any:
    """What may end a run before an update: the KL budget, looked at on the policy that drew the rollout."""
    return config.stop.model_copy(update={"steps": None, "episodes": None, "seconds": None, "reward": None,
                                          "plateau_patience": None})


def _countable(config: PPOConfig) -> Any:
    """What is known to end the run without another evaluation."""
    return config.stop.model_copy(update={"kl": None, "reward": None, "plateau_patience": None})


def _after(config: PPOConfig) -> Any:
    """What may end a run after a step."""
    return config.stop.model_copy(update={"kl": None})


def _stop_state(state: PPOState, kl: float | None) -> StopState:
    return StopState(step=state.step, episodes=state.episodes, seconds=state.seconds,
                     reward=state.heldout[-1] if state.heldout else None, kl=kl, heldout_rewards=state.heldout)


def _metrics(
    rollout: Rollout, scores: list[float], penalised: torch.Tensor, kl: torch.Tensor, old: Evaluated,
    returns: torch.Tensor | None, stats: UpdateStats, state: PPOState, following: PPOState,
) -> dict[str, Any]:
    """A line of metrics.jsonl: nothing in it depends on the clock."""
    mask = rollout.mask
    critic: dict[str, float] = {}
    if returns is not None and old.values is not None:
        spread = returns[mask].var(correction=0)
        explained = 1 - (returns - old.values)[mask].var(correction=0) / spread if spread > 0 else torch.tensor(0.0)
        critic = {"value_mean": float(old.values[mask].mean()), "value_explained": float(explained)}
    return {
        "step": following.step, "episodes": following.episodes, "tokens": following.tokens,
        "score": statistics.fmean(scores), "score_penalised": float(penalised.mean()),
        "kl": float(kl.mean()), "kl_per_token": float(kl.sum() / mask.sum()), "kl_coef": state.kl_coef,
        "length": rollout.tokens / len(rollout), "ended": statistics.fmean(rollout.ended),
        **critic, **{name: value for name, value in asdict(stats).items() if value is not None},
    }


def _record(rollout: Rollout, scores: list[float], kl: torch.Tensor, old: Evaluated, look: Look,
            step: int) -> StepRecord:
    """The step, answer by answer: what the guard is shown, and the rollout's file holds."""
    return StepRecord(step, rollout.samples, scores, kl.tolist(), (old.ref_logps * rollout.mask).sum(-1).tolist(),
                      [len(a) for a in rollout.answers], rollout.ended, look.held_out, look.spread)


def _write_rollout(run: Run, record: StepRecord) -> None:
    if not run.writes:
        return
    write_rows(Path(run.path("rollouts", f"step-{record.step:05d}.jsonl")), [
        # a prompt may come twice in a step that spans two permutations: the place makes the id its own
        RolloutRow(id=f"{s.id}/{i}", step=record.step, messages=list(s.messages), completion=s.completion,
                   score=record.scores[i], kl=record.kl[i], ended=record.ended[i], ref_logp=record.ref_logp[i],
                   tokens=record.tokens[i], held_out=record.held_out[i], spread=record.spread[i])
        for i, s in enumerate(record.samples)])


def _rates(run: Run) -> dict[str, float]:
    """Response tokens a second, by phase, over the whole run."""
    rows = run.rows("timing")
    tokens = sum(r["tokens"] for r in rows)
    names = [k for k in (rows[0] if rows else {}) if k not in {"step", "tokens", "guard"}]
    return {n: round(tokens / sum(r[n] for r in rows), 1) for n in names}
