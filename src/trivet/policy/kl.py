"""KL divergence from samples, and the controllers of its coefficient.

All divergences are in nats and are estimated from the sampled tokens alone: with d = logps - ref_logps and
tokens sampled from the distribution behind `logps`, each estimator's expectation is, or is close to,
KL(policy || reference).

Not covered: the exact KL over the vocabulary, which needs the logits of both models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from trivet.policy.advantage import require_same_shape

KLEstimator = Literal["k1", "k2", "k3"]

ERROR_CLIP = 0.2
"""Bound of the proportional error of the adaptive controller (Ziegler et al. 2019, section 2.2)."""


def kl_estimate(logps: Tensor, ref_logps: Tensor, estimator: KLEstimator) -> Tensor:
    """KL of each token in nats, float32, in the shape of the inputs (Schulman 2020, 'Approximating KL').

    - `k1` = d: unbiased, of high variance, negative on single tokens;
    - `k2` = d² / 2: biased, never negative, and its gradient is that of KL(policy || reference);
    - `k3` = exp(-d) - 1 + d: unbiased and never negative; its gradient is that of KL(reference || policy).

    Raises ValueError if the shapes differ or the estimator is unknown.
    """
    require_same_shape(logps=logps, ref_logps=ref_logps)
    d = logps.float() - ref_logps.float()
    if estimator == "k1":
        return d
    if estimator == "k2":
        return 0.5 * d.square()
    if estimator == "k3":
        return torch.expm1(-d) + d  # expm1: exp(-d) - 1 loses every digit of a small d
    raise ValueError(f"unknown KL estimator {estimator!r}: choose k1, k2 or k3")


def sequence_kl(logps: Tensor, ref_logps: Tensor, mask: Tensor, estimator: KLEstimator = "k1") -> Tensor:
    """KL of each sequence in nats, float32 [B]: the sum over its masked tokens; inputs are [B, R].

    The reported KL is the mean of this over sequences (PPO detail 11). Entries outside the mask may hold
    anything. Raises ValueError if the shapes differ or the estimator is unknown.
    """
    require_same_shape(logps=logps, ref_logps=ref_logps, mask=mask)
    return torch.where(mask.bool(), kl_estimate(logps, ref_logps, estimator), 0.0).sum(dim=1)


class KLController(Protocol):
    """What sets the KL coefficient: a value now, and the controller for the next step."""

    @property
    def coef(self) -> float:
        """Weight of the KL in the reward, or in the loss."""

    def update(self, kl: float, episodes: int) -> KLController:
        """The controller after `episodes` sequences whose mean KL was `kl` nats."""


@dataclass(frozen=True)
class FixedKL:
    """A coefficient that never changes. Raises ValueError if it is negative or not finite."""

    coef: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.coef < math.inf:
            raise ValueError(f"coef must be finite and not negative, not {self.coef}")

    def update(self, kl: float, episodes: int) -> FixedKL:
        """Itself."""
        return self


@dataclass(frozen=True)
class AdaptiveKL:
    """Log-space proportional control of the coefficient (Ziegler et al. 2019, section 2.2).

    `target` is the wanted mean KL of a sequence in nats, `horizon` a number of episodes: one horizon with
    the error at its bound changes the coefficient by about a fifth. Raises ValueError unless all three are
    positive and finite.
    """

    coef: float
    target: float
    horizon: float

    def __post_init__(self) -> None:
        for name in ("coef", "target", "horizon"):
            value = getattr(self, name)
            if not 0.0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, not {value}")

    def update(self, kl: float, episodes: int) -> AdaptiveKL:
        """The controller after `episodes` sequences with a mean KL of `kl` nats.

        coef ← coef · (1 + clip((kl - target) / target, ±0.2) · episodes / horizon).

        Raises ValueError if `kl` is not finite, or `episodes` is negative or so large beside the horizon
        (five times) that the coefficient could reach zero, whatever the KL of this step.
        """
        if not math.isfinite(kl):
            raise ValueError(f"kl must be finite, not {kl}")
        if episodes < 0 or ERROR_CLIP * episodes >= self.horizon:
            limit = self.horizon / ERROR_CLIP
            raise ValueError(
                f"{episodes} episodes a step for a horizon of {self.horizon}: stay at 0 or more and below "
                f"{limit:g}, or raise the horizon"
            )
        error = min(max((kl - self.target) / self.target, -ERROR_CLIP), ERROR_CLIP)
        return replace(self, coef=self.coef * (1.0 + error * episodes / self.horizon))
