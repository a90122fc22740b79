"""The state of a PPO run: saved whole, restored whole, so that a resumed run equals an uninterrupted one."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from trivet.artifacts import read_json, write_json
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


def save(run: Run, state: PPOState, roles: Roles, optimizer: torch.optim.Optimizer, keep: int,
         threads: int) -> None:
    """A checkpoint with everything: weights, both optimizers' moments, generators, controller, scale, place."""
    facts = {"metrics_offset": run.offset("metrics"), "evaluation_offset": run.offset("evaluation"),
             "threads": threads}
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
    scale = values.pop("scale")
    return PPOState(**values | {"heldout": tuple(values["heldout"]),
                                "scale": RewardScale(**scale) if scale else None})
