"""Losses of PPO as pure functions on tensors: policy, value, KL, entropy, and importance weights.

Shapes: B sequences, R response tokens, V entries of the vocabulary; a mask is [B, R], true on sampled
tokens. Entries outside the mask may hold anything, NaN included.

Each loss is a sum over tokens divided by a `denominator` that the caller gives: the number of real tokens
of the whole minibatch, over all ranks and micro-batches. Then the losses and gradients of micro-batches add
up to those of the minibatch, however it is split (PPO detail 10). A mean over each micro-batch would weigh
the tokens of short answers more.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trivet.policy.advantage import require_same_shape
from trivet.policy.kl import KLEstimator, kl_estimate, sequence_kl


@dataclass(frozen=True)
class PolicyStats:
    """What the policy update did, as detached float32 scalars.

    The first three are sums over tokens divided by the loss's denominator, so over the micro-batches of a
    minibatch they add up to the mean over its tokens; the last is a maximum.
    """

    clip_fraction: Tensor
    """Share of tokens where the clipped term is the greater one, and the gradient therefore zero."""
    approx_kl: Tensor
    """k3 estimate of KL(old || new) per token, in nats."""
    ratio_mean: Tensor
    """Mean of r = exp(logps - old_logps); its expectation under the old policy is 1."""
    ratio_max_deviation: Tensor
    """Largest |r - 1|: 0 on the first inner step (PPO detail 4)."""

    def merge(self, other: PolicyStats) -> PolicyStats:
        """The figures of two micro-batches of one minibatch together."""
        return PolicyStats(
            clip_fraction=self.clip_fraction + other.clip_fraction,
            approx_kl=self.approx_kl + other.approx_kl,
            ratio_mean=self.ratio_mean + other.ratio_mean,
            ratio_max_deviation=torch.maximum(self.ratio_max_deviation, other.ratio_max_deviation),
        )


def _require_positive(**numbers: float | Tensor) -> None:
    for name, number in numbers.items():
        if not number > 0:
            raise ValueError(f"{name} must be positive, not {number}")


def policy_loss(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip: float,
    denominator: float | Tensor,
) -> tuple[Tensor, PolicyStats]:
    """Clipped surrogate objective, negated: Σ max(-A·r, -A·clip(r, 1±clip)) / denominator.

    Schulman et al. 2017, 'Proximal Policy Optimization Algorithms', eq. 7, with r = exp(logps - old_logps).
    `logps`, `old_logps`, `advantages` and `mask` are [B, R]; the gradient flows through `logps` only. To
    correct for samples of another engine, give advantages multiplied by `importance_weights`. Returns the
    float32 scalar loss and the statistics.

    Raises ValueError if the shapes differ or `clip` or `denominator` is not positive.
    """
    require_same_shape(logps=logps, old_logps=old_logps, advantages=advantages, mask=mask)
    _require_positive(clip=clip, denominator=denominator)
    mask = mask.bool()
    # Masked before exp: the gradient of an overflow outside the mask would be 0 * inf.
    log_ratio = torch.where(mask, logps.float() - old_logps.detach().float(), 0.0)
    advantages = torch.where(mask, advantages.detach().float(), 0.0)
    ratio = log_ratio.exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1.0 - clip, 1.0 + clip)
    loss = torch.maximum(unclipped, clipped).sum() / denominator
    with torch.no_grad():
        stats = PolicyStats(
            clip_fraction=(clipped > unclipped).float().sum() / denominator,
            # The samples are the old policy's, so the old one stands first; k3 is 0 where log_ratio is.
            approx_kl=kl_estimate(-log_ratio, torch.zeros_like(log_ratio), "k3").sum() / denominator,
            ratio_mean=torch.where(mask, ratio, 0.0).sum() / denominator,
            ratio_max_deviation=(ratio - 1.0).abs().amax(),
        )
    return loss, stats


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    clip: float | None,
    denominator: float | Tensor,
) -> tuple[Tensor, Tensor]:
    """Squared error of the critic, Σ ½ max((v - ret)², (v_clipped - ret)²) / denominator.

    v_clipped is v held within old ± clip: the range is around the values at the time of the rollout, not
    around the returns (PPO detail 9; Huang et al. 2022, 'The 37 Implementation Details of PPO', detail 9).
    `clip` is in units of the return; None clips nothing. All tensors are [B, R]; the gradient flows through
    `values` only. Returns the float32 scalar loss and, detached, the share of tokens where the clipped term
    is the greater one (a sum over tokens / denominator).

    Raises ValueError if the shapes differ or `clip` or `denominator` is not positive.
    """
    require_same_shape(values=values, old_values=old_values, returns=returns, mask=mask)
    _require_positive(denominator=denominator)
    mask = mask.bool()
    values = torch.where(mask, values.float(), 0.0)
    old_values = torch.where(mask, old_values.detach().float(), 0.0)
    returns = torch.where(mask, returns.detach().float(), 0.0)
    unclipped = (values - returns).square()
    if clip is None:
        return 0.5 * unclipped.sum() / denominator, values.new_zeros(())
    _require_positive(clip=clip)
    clipped = (values.clamp(old_values - clip, old_values + clip) - returns).square()
    loss = 0.5 * torch.maximum(unclipped, clipped).sum() / denominator
    return loss, (clipped > unclipped).float().sum() / denominator


def kl_loss(
    logps: Tensor, ref_logps: Tensor, mask: Tensor, estimator: KLEstimator, denominator: float | Tensor
) -> Tensor:
    """KL to the reference as a term of the loss: Σ estimate / denominator, a float32 scalar; inputs [B, R].

    `k2` has the gradient of KL(policy || reference), `k3` that of KL(reference || policy), both in
    expectation over tokens sampled from the policy. The gradient flows through `logps` only.

    Raises ValueError for `k1` (PPO detail 11), if the shapes differ or the denominator is not positive.
    """
    if estimator == "k1":
        raise ValueError(
            "k1 cannot stand in the loss: its gradient is that of log p(token), whose expectation under the "
            "policy is zero, so it adds noise and no pull towards the reference. Use k2 or k3, or put the KL "
            "in the reward"
        )
    require_same_shape(logps=logps, ref_logps=ref_logps, mask=mask)
    _require_positive(denominator=denominator)
    mask = mask.bool()
    # Masked before the estimate: the gradient of an overflow outside the mask would be 0 * inf.
    logps = torch.where(mask, logps.float(), 0.0)
    ref_logps = torch.where(mask, ref_logps.detach().float(), 0.0)
    return kl_estimate(logps, ref_logps, estimator).sum() / denominator


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    """logits / temperature in float32."""
    _require_positive(temperature=temperature)
    return logits.float() / temperature


def logps_from_logits(logits: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    """Log-probability of each token in nats, float32 [B, R], from logits [B, R, V] and token ids [B, R].

    `temperature` is the sampling temperature: policy, old policy and reference are all compared as they
    sample (PPO detail 2). Raises ValueError if it is not positive (greedy decoding has no log-probability)
    or the shapes do not fit.
    """
    if logits.shape[:-1] != tokens.shape:
        raise ValueError(f"tokens {list(tokens.shape)} do not fit logits {list(logits.shape)}")
    scaled = _scaled(logits, temperature)
    # not a log-softmax of the whole vocabulary: only the sampled tokens' entries are wanted
    return scaled.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - scaled.logsumexp(dim=-1)


def entropy_from_logits(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy of each next-token distribution in nats, float32 [B, R], from logits [B, R, V].

    Entries of the vocabulary excluded by a logit of -inf add nothing. Raises ValueError if the temperature
    is not positive.
    """
    logps = torch.log_softmax(_scaled(logits, temperature), dim=-1)
    probabilities = logps.exp()
    # p log p tends to 0 with p, but 0 * -inf is nan, in the value and in the gradient.
    return -(probabilities * logps.masked_fill(logps == -torch.inf, 0.0)).sum(dim=-1)


@torch.no_grad()
def importance_weights(logps: Tensor, behaviour_logps: Tensor, mask: Tensor, cap: float) -> Tensor:
    """Truncated importance weight of each token, min(exp(logps - behaviour_logps), cap), float32 [B, R].

    `behaviour_logps` are those the engine reported that sampled the tokens, `logps` those of the training
    pass over the same weights; all [B, R]. Truncation bounds the variance at the price of a bias (Ionides
    2008; Espeholt et al. 2018, section 4.1; PPO detail 13). Detached, zeros outside the mask.

    Raises ValueError if the shapes differ or `cap` is below 1, which would scale down even exact samples.
    """
    require_same_shape(logps=logps, behaviour_logps=behaviour_logps, mask=mask)
    if not cap >= 1.0:
        raise ValueError(f"cap must be at least 1, not {cap}")
    ratio = (logps.float() - behaviour_logps.float()).exp()
    return torch.where(mask.bool(), ratio.clamp(max=cap), 0.0)


@torch.no_grad()
def mismatch_kl(logps: Tensor, behaviour_logps: Tensor, mask: Tensor) -> Tensor:
    """k3 estimate of KL(behaviour || policy) of each sequence, in nats, detached float32 [B]; inputs [B, R].

    How far the engine that sampled is from the pass that trains on the samples: rounding alone should keep
    it near zero (PPO detail 13). Raises ValueError if the shapes differ.
    """
    # The tokens were sampled by the other engine, so its log-probabilities stand first.
    return sequence_kl(behaviour_logps, logps, mask, "k3")
