"""The guard inside `ppo`: what it is shown, what a run does on its verdicts, and the way back.

    look        the held-out reward and the ensemble score some of a rollout's answers
    observe     a record goes to the guard, rank 0's; the verdict is the same on every rank, and the state heeds it
    go_back     the weights of the evaluated step that the held-out reward rates best

With `guard.on` false nothing here is computed. docs/guides/guard.md has the signals and the test.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from trivet.errors import TrivetError
from trivet.guard.base import StepRecord, Verdict
from trivet.guard.guard import Guard
from trivet.judge.base import Sample
from trivet.models.roles import Roles
from trivet.policy.config import PPOConfig
from trivet.policy.setup import Setup, member_name
from trivet.policy.state import GuardState, PPOState, RewardScale
from trivet.policy.stop import StopReason
from trivet.runs import Run
from trivet.training import checkpoints, tensors
from trivet.training.ranks import here

_SUBSAMPLE_SEED = 31_007  # apart from the seeds of prompts, layouts and minibatches
_ON_ALARM = {"warn": "warns", "raise-beta": "raises the KL weight", "penalise": "trains on the ensemble's lower bound",
             "return": "ends the run and goes back to the best checkpoint"}


@dataclass(frozen=True)
class Look:
    """What others than the trained reward say of a step's B answers; None for an answer that they were not asked of."""

    held_out: list[float | None]
    spread: list[float | None]
    trained: list[float]
    """What is learned from: the rewards as they are, or the ensemble's lower bounds. In the run's scale."""


def subsample(step: int, prompts: int, share: float, seed: int) -> list[int]:
    """Which of a step's prompts have their answers scored by others: about `share` of them, one at least unless 0.

    A function of the step and the seed alone, so that a resumed run asks of the same. Rising places among `prompts`.
    Of the first rollout, with which later ones are compared, it is all.
    """
    if share == 0:
        return []
    count = prompts if step == 1 else min(prompts, max(1, round(prompts * share)))
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step) * 101 + _SUBSAMPLE_SEED)
    return sorted(torch.randperm(prompts, generator=generator)[:count].tolist())


def lower_bound(scores: Sequence[float], weight: float) -> float:
    """Mean − weight · standard deviation of what several reward models, each in its own scale, say of one answer.

    Coste et al. 2023, 'Reward Model Ensembles Help Mitigate Overoptimization': uncertainty-weighted optimization. They
    take the variance; the deviation (over all members, not n - 1) has the reward's own unit.
    """
    return statistics.fmean(scores) - weight * statistics.pstdev(scores)


def stop_of(verdict: Verdict | None) -> StopReason | None:
    """Whether a verdict ends the run."""
    return "guard" if verdict is not None and verdict.action == "return" else None


class Guarded:
    """What stands between the loop and the guard."""

    def __init__(self, config: PPOConfig, setup: Setup, run: Run) -> None:
        """Raises TrivetError for a calibration that can't be read and signals that can't be imported."""
        self.config, self.setup, self.run = config.guard, setup, run
        self.answers, self.seed = config.answers, config.seed
        self.held_out = setup.second if config.guard.on and not config.second_is_trained_on else None
        self.scales: Sequence[RewardScale] = ()
        self._guard = Guard(config.guard) if config.guard.on and here().main else None
        self._last: Verdict | None = None
        self._seconds = 0.0
        if config.guard.on:
            self._say(config)

    def _say(self, config: PPOConfig) -> None:
        """What it would do, and what it has not got to see it by; what follows from that is in the summary's notes."""
        lacking = []
        if self.held_out is None:
            lacking.append("held-out reward (evaluation.reward is the one trained on)" if config.second_is_trained_on
                           else "held-out reward (evaluation.reward)")
        if not self.setup.ensemble:
            lacking.append("ensemble (guard.ensemble)")
        if self._guard is not None and not self._guard.calibration.calibrated:
            lacking.append("calibration (guard.calibration), so it warns at most")
        print(f"guard: on an alarm it {_ON_ALARM[self.config.action]}"
              + (f"; it has no {', no '.join(lacking)}" if lacking else ""), flush=True)

    # --- what it is shown ------------------------------------------------------------------------------------

    def look(self, samples: Sequence[Sample], scores: Sequence[float], step: int, state: GuardState) -> Look:
        """What the held-out reward and the ensemble say of some of a rollout's answers; where the lower bound is
        trained on, the ensemble is asked of all. scores: the reward's, in the run's scale."""
        found = Look([None] * len(samples), [None] * len(samples), list(scores))
        if not self.config.on:
            return found
        with self._clock():
            chosen: list[int] = []
            if self._due(step):
                groups = subsample(step, len(samples) // self.answers, self.config.share, self.seed)
                chosen = [g * self.answers + j for g in groups for j in range(self.answers)]
            if self.held_out is not None and chosen:
                held_out = self.setup.scores(self.held_out, [samples[i] for i in chosen], "the held-out reward")
                for i, score in zip(chosen, held_out, strict=True):
                    found.held_out[i] = score
            asked = list(range(len(samples))) if state.lower_bound else chosen
            if self.setup.ensemble and asked:
                panels = self._panels([samples[i] for i in asked], [scores[i] for i in asked])
                for i, panel in zip(asked, panels, strict=True):
                    found.spread[i] = statistics.pstdev(panel)
                    if state.lower_bound:
                        found.trained[i] = lower_bound(panel, self.config.ensemble_weight)
        return found

    def spread(self, samples: Sequence[Sample], scores: Sequence[float]) -> list[float | None]:
        """The ensemble's deviation for each answer of an evaluation; None where there is no ensemble."""
        if not self.setup.ensemble:
            return [None] * len(samples)
        with self._clock():
            return [statistics.pstdev(panel) for panel in self._panels(samples, scores)]

    def _panels(self, samples: Sequence[Sample], scores: Sequence[float]) -> list[tuple[float, ...]]:
        """For each answer what the reward and every member of the ensemble say, each in its own scale."""
        others = [scale(self.setup.scores(member.reward, samples, member_name(k)))
                  for k, (member, scale) in enumerate(zip(self.setup.ensemble, self.scales, strict=True), 1)]
        return list(zip(scores, *others, strict=True))

    def _due(self, step: int) -> bool:
        """Whether a step's rollout is looked at: the first, and every `guard.every`th after it."""
        return (step - 1) % self.config.every == 0

    # --- what it says ----------------------------------------------------------------------------------------

    def observe(self, record: StepRecord, state: PPOState) -> tuple[PPOState, Verdict | None]:
        """The state after the guard has seen a record, and its verdict, which is written to guard.jsonl and said.

        None, and the state as it is, where the guard is off or the step is not looked at. Every rank must come by.
        """
        if not self.config.on or (record.source == "rollout" and not self._due(record.step)):
            return state, None
        with self._clock():
            if self.held_out is None:
                record = replace(record, held_out=())
            elif record.source == "evaluation":
                state = state.evaluated(statistics.fmean(s for s in record.held_out if s is not None))
            # the others know the same record, but a user's signal is rank 0's to ask, as a reward function is
            verdict = here().broadcast(self._guard.observe(record) if self._guard is not None else None)
            assert verdict is not None
            self._last = verdict
            self.run.log("guard", {"source": record.source, **verdict.to_dict(),
                                   "ids": [_row_id(record, i) for i in verdict.answers]})
            following = state.heed(verdict, record.source, self.config)
            if verdict.alarm and (state.guard.alarm is None or verdict.action in ("raise-beta", "return")):
                print(f"guard: {verdict.sentence}" + (
                    f" (KL weight {state.kl_coef:g} → {following.kl_coef:g})" if verdict.action == "raise-beta" else ""
                ), flush=True)
        return following, verdict

    def figures(self, look: Look, verdict: Verdict | None) -> dict[str, Any]:
        """What of a step's look and verdict stands in metrics.jsonl."""
        found: dict[str, Any] = {}
        for name, values in (("held_out", look.held_out), ("spread", look.spread)):
            if known := [v for v in values if v is not None]:
                found[name] = statistics.fmean(known)
        if verdict is not None:
            found["guard_level"] = verdict.level
            if verdict.alarm:
                found["guard_signal"] = verdict.signal
        return found

    # --- what it keeps ---------------------------------------------------------------------------------------

    def load(self, state: GuardState) -> None:
        """Go on from a state: a new run's, with the scales of the ensemble, or a checkpoint's."""
        self.scales = state.scales
        if self._guard is not None and state.detector:
            self._guard.load_state(state.detector)

    def remember(self, state: PPOState) -> PPOState:
        """The state with the detector's memory in it, for a checkpoint that rank 0 writes."""
        if self._guard is None:
            return state
        return replace(state, guard=replace(state.guard, detector=self._guard.state_dict()))

    def spent(self) -> dict[str, float]:
        """Seconds since it was asked last, as a phase of a step; an evaluation's are counted with the next step's."""
        if not self.config.on:
            return {}
        found, self._seconds = self._seconds, 0.0
        return {"guard": found}

    @contextmanager
    def _clock(self) -> Iterator[None]:
        started = time.monotonic()
        yield
        self._seconds += time.monotonic() - started

    # --- the way back ----------------------------------------------------------------------------------------

    def needs(self, state: PPOState) -> tuple[int, ...]:
        """Steps whose checkpoints must stay: the one that the run would go back to."""
        if self.config.on and self.config.action == "return" and state.guard.best_step is not None:
            return (state.guard.best_step,)
        return ()

    def go_back(self, state: PPOState, roles: Roles) -> int:
        """Put the weights of the best evaluated step back and say which it was. Every rank must come by.

        Raises TrivetError where its checkpoint is gone or damaged.
        """
        best = state.guard.best_step
        assert best is not None  # the untouched policy was evaluated before the first step
        if best != state.step:
            checkpoint = checkpoints.place(self.run.path("checkpoints"), best)
            if not here().broadcast(checkpoints.is_complete(checkpoint) if here().main else False):
                raise TrivetError("the checkpoint to which the guard goes back is gone or damaged", file=checkpoint,
                                  mend="do the run anew with --overwrite")
            tensors.restore_weights(checkpoint, roles.trainable())
            roles.refresh()
        words = f"step {best}" if best else "step 0, the untouched policy: by the held-out reward nothing was gained"
        print(f"guard: back to {words} (held-out reward model {state.guard.best:+.3f})", flush=True)
        return best

    def summary(self, state: PPOState, returned_to: int | None) -> dict[str, Any] | None:
        """What summary.json says of it; None where it is off."""
        if not self.config.on:
            return None
        alarm = state.guard.alarm or {}
        timing = self.run.rows("timing")
        whole = sum(v for row in timing for k, v in row.items() if k not in {"step", "tokens"})
        return {
            "alarm": bool(alarm), "action": self.config.action, "alarms": state.guard.alarms,
            **{name: alarm.get(name) for name in ("step", "source", "began", "signal")},
            "sentence": alarm.get("sentence") or (self._last.sentence if self._last else ""),
            "returned_to": returned_to, "best_step": state.guard.best_step, "best_held_out": state.guard.best,
            "notes": self._guard.notes() if self._guard else [],
            "share_of_step_time": sum(row.get("guard", 0.0) for row in timing) / whole if whole else None,
        }


def _row_id(record: StepRecord, place: int) -> str:
    """The id of an answer's row in the step's rollout or evaluation file."""
    own = record.samples[place].id
    if record.source == "rollout":
        return f"{own}/{place}"
    return f"{own}/{sum(s.id == own for s in record.samples[:place])}"
