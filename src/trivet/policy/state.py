"""The state of a PPO run: saved whole, restored whole, so that a resumed run equals an uninterrupted one."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from trivet.artifacts import read_json, write_json
from trivet.guard.base import Verdict
from trivet.guard.config import GuardConfig
from trivet.models.roles import Roles
from trivet.policy.config import KLConfig
from trivet.policy.kl import AdaptiveKL, FixedKL, KLController
from trivet.runs import Run
from trivet.training import checkpoints, tensors
from trivet.training.device import generator_states, restore_generators
from trivet.training.ranks import here


@dataclass(frozen=True)
class RewardScale:
    """Rewards as deviations from the mean of reference answers; fitted once and then fixed (detail 8)."""

    mean: float = 0.0
    std: float = 1.0
    source: str = "none"
    """none, calibration (of the reward model), or rollout (the first one, which the reference's own policy drew)."""

    def __call__(self, scores: list[float]) -> list[float]:
        return [(s - self.mean) / self.std for s in scores]


def fit_scale(scores: list[float]) -> RewardScale:
    """The scale from reference scores; where they do not vary, only the mean is taken."""
    found = torch.tensor(scores, dtype=torch.float64)
    std = float(found.std(correction=0))
    return RewardScale(float(found.mean()), std if std > 1e-8 else 1.0, "rollout")


@dataclass(frozen=True)
class GuardState:
    """What the guard has done so far, and what its detector remembers."""

    detector: dict[str, Any] = field(default_factory=dict)
    """Its memory, as plain JSON; filled when a checkpoint is written, from rank 0's, which alone observes."""
    scales: tuple[RewardScale, ...] = ()
    """Of the ensemble's members, in their order; fixed like the reward's own."""
    alarm: dict[str, Any] | None = None
    """The first alarm: step, source, began, signal, sentence."""
    alarms: int = 0
    """Records at which the detector was above its threshold."""
    lower_bound: bool = False
    """Whether it is the ensemble's lower bound that is trained on from now on."""
    best_step: int | None = None
    best: float | None = None
    """The evaluation with the best mean held-out reward so far, the earlier one of equals; None without such a reward
    or before the first."""

    def better(self, held_out: float | None) -> bool:
        """Whether an evaluation with this mean held-out reward is better than all before it."""
        return held_out is not None and (self.best is None or held_out > self.best)


@dataclass(frozen=True)
class PPOState:
    """What changes from step to step besides weights, optimizer and random generators."""

    kl_coef: float
    step: int = 0
    episodes: int = 0
    seconds: float = 0.0
    scale: RewardScale | None = None
    heldout: tuple[float, ...] = field(default=())
    """Mean rewards of the evaluations so far."""
    tokens: int = 0
    guard: GuardState = field(default_factory=GuardState)

    def controller(self, config: KLConfig) -> KLController:
        """The KL controller at this state."""
        if config.adaptive:
            return AdaptiveKL(self.kl_coef, config.target, config.horizon)
        return FixedKL(self.kl_coef)

    def next(self, *, kl: float, episodes: int, tokens: int, seconds: float, config: KLConfig) -> PPOState:
        """The state after a step whose rollout had this KL."""
        return replace(
            self, step=self.step + 1, episodes=self.episodes + episodes, tokens=self.tokens + tokens,
            seconds=self.seconds + seconds, kl_coef=self.controller(config).update(kl, episodes).coef)

    def heed(self, verdict: Verdict | None, source: str, config: GuardConfig) -> PPOState:
        """The state after a verdict on a record of this source: what its action changes from the next step on.

        warn changes nothing, return ends the run, which the loop sees to. None: nothing was looked at.
        """
        if verdict is None or not verdict.alarm:
            return self
        first = {"step": verdict.step, "source": source, "began": verdict.began, "signal": verdict.signal,
                 "sentence": verdict.sentence}
        return replace(
            self, kl_coef=self.kl_coef * (config.beta_factor if verdict.action == "raise-beta" else 1.0),
            guard=replace(self.guard, alarm=self.guard.alarm or first, alarms=self.guard.alarms + 1,
                          lower_bound=self.guard.lower_bound or verdict.action == "penalise"))

    def evaluated(self, held_out: float | None) -> PPOState:
        """The state after an evaluation at this step with this mean held-out reward."""
        if not self.guard.better(held_out):
            return self
        return replace(self, guard=replace(self.guard, best_step=self.step, best=held_out))


def save(run: Run, state: PPOState, roles: Roles, optimizer: torch.optim.Optimizer, keep: int,
         threads: int, needs: tuple[int, ...] = ()) -> None:
    """A checkpoint with everything: weights, both optimizers' moments, generators, controller, scale, guard, place.

    needs: steps of checkpoints that the run may go back to; they stay for as long as this one does.
    """
    facts = {"metrics_offset": run.offset("metrics"), "evaluation_offset": run.offset("evaluation"),
             "guard_offset": run.offset("guard"), "threads": threads, "needs": list(needs)}
    with checkpoints.saving(run.path("checkpoints"), state.step, keep=keep, facts=facts) as folder:
        tensors.save(folder, roles.trainable(), optimizer)
        if here().main:
            torch.save({"generators": generator_states()}, folder / "state.pt")
            write_json(folder / "state.json", asdict(state))


def restore(checkpoint: Path, roles: Roles, optimizer: torch.optim.Optimizer) -> PPOState:
    """Put weights, optimizer and generators back; the state. Raises TrivetError for another set of parameters."""
    tensors.restore(checkpoint, roles.trainable(), optimizer)
    roles.refresh()
    kept: dict[str, Any] = torch.load(checkpoint / "state.pt", weights_only=True)
    restore_generators(kept["generators"])
    values = read_json(checkpoint / "state.json")
    scale, guard = values["scale"], values["guard"]
    return PPOState(**values | {
        "heldout": tuple(values["heldout"]), "scale": RewardScale(**scale) if scale else None,
        "guard": GuardState(**guard | {"scales": tuple(RewardScale(**s) for s in guard["scales"])})})
