"""A reward model as a reward: text in, calibrated scores out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from trivet.judge.base import Sample
from trivet.judge.calibration import Calibration
from trivet.judge.rewards import read_calibration
from trivet.models.reward_model import BATCH_TOKENS, RewardModel, load_reward_model
from trivet.models.source import resolve


@dataclass(frozen=True)
class Scored:
    """What a score is worth: raw logit, deviations from the reference's mean, its place among the reference's."""

    raw: float
    normalised: float
    percentile: float
    win_probability: float


class ModelReward:
    """A reward model with its calibration; calling it gives normalised scores (raw ones without calibration)."""

    def __init__(self, model: RewardModel, calibration: Calibration | None, facts: dict[str, Any],
                 count: Callable[[str, int], None] | None = None, batch_tokens: int = BATCH_TOKENS) -> None:
        """batch_tokens: padded tokens a pass at most."""
        self.model, self.calibration, self.facts, self.count = model, calibration, facts, count
        self.batch_tokens = batch_tokens

    def raw(self, samples: Sequence[Sample]) -> list[float]:
        """Raw scores: logits of the Bradley–Terry model."""
        return self.model.score([(s.messages, s.completion) for s in samples],
                                batch_tokens=self.batch_tokens, count=self.count)

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """See Reward."""
        raw = self.raw(samples)
        return raw if self.calibration is None else [self.calibration.normalise(s) for s in raw]

    def place(self, raw: float) -> Scored | None:
        """A raw score's meaning; None without a calibration."""
        c = self.calibration
        return None if c is None else Scored(raw, c.normalise(raw), c.percentile(raw), c.win_probability(raw))


def load_model_reward(spec: str, dtype: Any, device: str,
                      count: Callable[[str, int], None] | None = None,
                      batch_tokens: int = BATCH_TOKENS) -> ModelReward:
    """A reward model from its folder, with weights of its own. batch_tokens: padded tokens a pass at most."""
    source = resolve(spec)
    model = load_reward_model(source, dtype, device)
    return with_calibration(model, count, batch_tokens)


def with_calibration(model: RewardModel, count: Callable[[str, int], None] | None = None,
                     batch_tokens: int = BATCH_TOKENS) -> ModelReward:
    """A loaded reward model together with the calibration in its folder."""
    calibration, facts = read_calibration(model.source.folder) or (None, {})
    return ModelReward(model, calibration, facts, count, batch_tokens)
