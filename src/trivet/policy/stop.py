"""When a run ends, and by which name the log says so. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

StopReason = Literal["steps", "episodes", "seconds", "reward", "kl", "plateau", "guard"]
"""`guard`: its action was to return; that is no criterion, and `first_met` never says it."""


class StopCriteria(Protocol):
    """The limits of a run; None switches a limit off. A configuration with these fields fits."""

    @property
    def steps(self) -> int | None:
        """Updates of the policy to make."""

    @property
    def episodes(self) -> int | None:
        """Completions to sample."""

    @property
    def seconds(self) -> float | None:
        """Wall time to spend, all sessions of a resumed run together."""

    @property
    def reward(self) -> float | None:
        """Mean reward that is enough."""

    @property
    def kl(self) -> float | None:
        """KL budget: mean summed KL of a sequence to the reference, in nats."""

    @property
    def plateau_patience(self) -> int | None:
        """Held-out evaluations without an improvement after which to end."""

    @property
    def plateau_delta(self) -> float:
        """What an improvement of the reward on held-out prompts must exceed to count."""


@dataclass(frozen=True)
class StopState:
    """Where a run stands: `reward` and `kl` are None, `heldout_rewards` empty, until first measured.

    `heldout_rewards` are the mean rewards on the held-out prompts, oldest first.
    """

    step: int
    episodes: int
    seconds: float
    reward: float | None
    kl: float | None
    heldout_rewards: tuple[float, ...]


def _on_plateau(rewards: tuple[float, ...], patience: int, delta: float) -> bool:
    """Whether the best of the last `patience` rewards is not better by more than `delta` than all before."""
    if patience < 1:
        raise ValueError(f"plateau_patience must be at least 1, not {patience}")
    if len(rewards) <= patience:
        return False
    return max(rewards[-patience:]) <= max(rewards[:-patience]) + delta


def first_met(criteria: StopCriteria, state: StopState) -> StopReason | None:
    """The name of the first criterion that is met, or None to go on.

    They are asked in this order: `steps`, `episodes` and `seconds` are met when reached; `reward` when the
    target is reached; `kl` when the budget is exceeded; `plateau` when the best of the last
    `plateau_patience` evaluations is not better, by more than `plateau_delta`, than the best before
    them. A figure that is None or NaN meets nothing.

    Raises ValueError if `plateau_patience` is below 1.
    """
    if criteria.steps is not None and state.step >= criteria.steps:
        return "steps"
    if criteria.episodes is not None and state.episodes >= criteria.episodes:
        return "episodes"
    if criteria.seconds is not None and state.seconds >= criteria.seconds:
        return "seconds"
    if criteria.reward is not None and state.reward is not None and state.reward >= criteria.reward:
        return "reward"
    if criteria.kl is not None and state.kl is not None and state.kl > criteria.kl:
        return "kl"
    patience = criteria.plateau_patience
    if patience is not None and _on_plateau(state.heldout_rewards, patience, criteria.plateau_delta):
        return "plateau"
    return None
