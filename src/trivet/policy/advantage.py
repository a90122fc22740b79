"""Rewards per token, advantage estimators and whitening, as pure functions on tensors.

Shapes: B sequences, R response tokens. A response mask is [B, R], true on sampled tokens (the end token
included) and right-padded: in each row the true entries come first. Entries outside the mask may hold
anything, NaN included; nothing of them reaches a result. Every result is float32 and carries no gradient,
except that of `masked_mean`.

Not covered: holes in a response (tool output between sampled tokens), truncated episodes that need a
bootstrapped value, and gathering over ranks: whoever whitens over several ranks gathers first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trivet.policy.config import Estimator


def require_same_shape(**tensors: Tensor) -> None:
    """Raise ValueError unless all tensors have one shape: broadcasting would hide the mistake."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        raise ValueError(f"shapes must be equal: {listed}")


def _response_lengths(mask: Tensor) -> Tensor:
    """Number of real tokens of each row, [B]; ValueError unless the mask is [B, R] and right-padded."""
    if mask.dim() != 2:
        raise ValueError(f"the response mask must be [B, R], not {list(mask.shape)}")
    if (mask[:, 1:] & ~mask[:, :-1]).any():
        raise ValueError("the response mask must be right-padded: a real token follows padding")
    return mask.sum(dim=1)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of `x` over the true entries of `mask` (equal shapes) as a float32 scalar.

    Raises ValueError if the shapes differ or the mask is empty.
    """
    require_same_shape(x=x, mask=mask)
    mask = mask.bool()
    count = mask.sum()
    if count == 0:
        raise ValueError("mean over an empty mask")
    # where, not a product: 0 * nan is nan, and padding may hold nan.
    return torch.where(mask, x.float(), 0.0).sum() / count


@torch.no_grad()
def whiten(x: Tensor, mask: Tensor, eps: float = 1e-8) -> Tensor:
    """Shift and scale to mean 0 and population deviation 1 over all true entries of `mask` together.

    `x` and `mask` have one shape; the result has it too, with zeros outside the mask. `eps` is added to the
    deviation. Where the entries do not vary (a single token, equal values) the result is 0. Whitening is for
    the whole global batch, once: whitening each micro-batch would make the loss depend on the split
    (Huang et al. 2023, 'The N Implementation Details of RLHF with PPO'; PPO detail 10).

    Raises ValueError if the shapes differ or the mask is empty.
    """
    mean = masked_mean(x, mask)
    mask = mask.bool()
    values = torch.where(mask, x.float(), 0.0)
    centred = torch.where(mask, values - mean, 0.0)
    deviation = masked_mean(centred.square(), mask).sqrt()
    # The mean of equal numbers is off by a rounding error, which a division by eps would blow up to order 1.
    rounding = 8 * torch.finfo(torch.float32).eps * values.abs().amax()
    return torch.where(deviation > rounding, centred / (deviation + eps), 0.0)


@torch.no_grad()
def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16) over the tokens of each response.

    `rewards`, `values` and `mask` are [B, R]; `values[:, t]` is the value before token t is sampled. The
    answer ends the episode, so the value after the last real token is 0, whatever the critic says of the
    padding behind it. Returns (advantages, returns), both float32 [B, R] with zeros outside the mask;
    returns = advantages + values. A row without a real token gives zeros.

    Raises ValueError if the shapes differ, the mask is not right-padded, or `gamma` or `lam` leave [0, 1].
    """
    require_same_shape(rewards=rewards, values=values, mask=mask)
    for name, factor in (("gamma", gamma), ("lam", lam)):
        if not 0.0 <= factor <= 1.0:
            raise ValueError(f"{name} must lie in [0, 1], not {factor}")
    mask = mask.bool()
    _response_lengths(mask)
    rewards = torch.where(mask, rewards.float(), 0.0)
    values = torch.where(mask, values.float(), 0.0)
    # With values zeroed behind the last real token, shifting them by one is the episodic next value.
    next_values = torch.nn.functional.pad(values[:, 1:], (0, 1))
    deltas = rewards + gamma * next_values - values
    advantages = torch.zeros_like(deltas)
    running = torch.zeros_like(deltas[:, 0])
    for t in range(deltas.shape[1] - 1, -1, -1):
        running = deltas[:, t] + gamma * lam * running
        advantages[:, t] = running
    return advantages, advantages + values


@torch.no_grad()
def token_rewards(scores: Tensor, kl: Tensor | None, mask: Tensor, kl_coef: float) -> Tensor:
    """Reward of each token: minus `kl_coef` times its KL, plus the score on the last real token of its row.

    `scores` is [B], `kl` is [B, R] in nats per token (None where the KL stands in the loss instead),
    `mask` is [B, R]. Returns float32 [B, R], zeros outside the mask (Ziegler et al. 2019, eq. 2; PPO
    detail 6: at the last real token, not at the last column).

    Raises ValueError if the shapes do not fit, the mask is not right-padded, or a row has no real token.
    """
    mask = mask.bool()
    lengths = _response_lengths(mask)
    if scores.shape != lengths.shape:
        raise ValueError(f"scores must be [{lengths.shape[0]}], not {list(scores.shape)}")
    if (lengths == 0).any():
        rows = torch.nonzero(lengths == 0).flatten().tolist()
        raise ValueError(f"no real token in rows {rows}: there is no place for their score")
    if kl is None:
        rewards = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
    else:
        require_same_shape(kl=kl, mask=mask)
        rewards = torch.where(mask, -kl_coef * kl.float(), 0.0)
    return rewards.scatter_add(1, (lengths - 1).unsqueeze(1), scores.float().unsqueeze(1))


def _groups(scores: Tensor, answers: int) -> Tensor:
    """[N] as [prompts, answers]; ValueError for fewer than two answers a prompt, or where they do not divide N."""
    if answers < 2 or len(scores) % answers:
        raise ValueError(f"{len(scores)} scores are no groups of {answers} answers, two at least")
    return scores.view(-1, answers)


def others_mean(scores: Tensor, answers: int) -> Tensor:
    """For each score the mean score of the other answers to its prompt: a baseline that the answer has no part in.

    `scores` is [N], the `answers` answers to one prompt side by side. Taking such a baseline off leaves the
    gradient's expectation alone and takes out what the prompt itself makes of all its answers. Kool et al. 2019,
    'Buy 4 REINFORCE Samples, Get a Baseline for Free!'; Ahmadian et al. 2024, 'Back to Basics', section 3.3.

    Raises ValueError for fewer than two answers a prompt, or a number of scores that they do not divide.
    """
    groups = _groups(scores, answers)
    return ((groups.sum(-1, keepdim=True) - groups) / (answers - 1)).flatten()


def _answer_rewards(rewards: Tensor, mask: Tensor) -> Tensor:
    """What each answer earned as a whole, float32 [B]: the sum of its tokens' rewards, both [B, R]."""
    require_same_shape(rewards=rewards, mask=mask)
    mask = mask.bool()
    _response_lengths(mask)
    return torch.where(mask, rewards.float(), 0.0).sum(dim=1)


@torch.no_grad()
def rloo(rewards: Tensor, mask: Tensor, answers: int) -> Tensor:
    """REINFORCE, leave one out: an answer's reward minus the mean reward of its prompt's other answers.

    Ahmadian et al. 2024, 'Back to Basics: Revisiting REINFORCE Style Optimization', section 3.3; Kool et al. 2019.
    An answer is one action there, so every token of it has the same advantage; KL in the reward stands in the sum.
    `rewards` and `mask` are [B, R], the `answers` answers to one prompt side by side. Returns float32 [B, R] in the
    rewards' own unit, zeros outside the mask.

    Raises ValueError if the shapes differ, the mask is not right-padded, or rows are no groups of two or more.
    """
    whole = _answer_rewards(rewards, mask)
    return torch.where(mask.bool(), (whole - others_mean(whole, answers)).unsqueeze(1), 0.0)


@torch.no_grad()
def grpo(rewards: Tensor, mask: Tensor, answers: int, eps: float = 1e-6) -> Tensor:
    """Group-relative advantages: (r - mean) / (deviation + eps) among the answers to one prompt.

    Shao et al. 2024, 'DeepSeekMath', section 4.1.2, outcome supervision; the deviation is the sample's (n - 1), as in
    the field's implementations. A group whose rewards are equal, which nothing can be learned from, gives zeros.
    Shapes as in `rloo`, unit: deviations of the group. Left to the caller, as everywhere here: the loss divides by
    the tokens of the whole batch (Yu et al. 2025, 'DAPO', section 3.3), where Shao et al. take the mean over each
    answer first, which makes a token of a long answer count less (Liu et al. 2025, 'Understanding R1-Zero-like
    training'). Their variant without the deviation (Dr. GRPO) is `rloo` times (n - 1) / n.

    Raises ValueError as `rloo`.
    """
    groups = _groups(_answer_rewards(rewards, mask), answers)
    deviation, mean = torch.std_mean(groups, dim=1, keepdim=True)
    # as in `whiten`: a rounding error of the mean must not be blown up to order 1
    rounding = 8 * torch.finfo(torch.float32).eps * groups.abs().amax(dim=1, keepdim=True)
    scaled = torch.where(deviation > rounding, (groups - mean) / (deviation + eps), 0.0)
    return torch.where(mask.bool(), scaled.view(-1, 1), 0.0)


@torch.no_grad()
def reinforce_plus_plus(rewards: Tensor, mask: Tensor, gamma: float = 1.0) -> Tensor:
    """Reward to go of each token, whitened over the whole batch.

    Hu et al. 2025, 'REINFORCE++', with its global normalisation: at gamma 1 a token's return is the score minus the
    KL penalties from it to the end. With scores less their prompt's mean and the KL in the loss (`prompt_baseline`,
    `kl.where: loss`) it is their REINFORCE++-baseline. `rewards` and `mask` are [B, R]; returns float32 [B, R], zeros
    outside the mask.

    Raises ValueError if the shapes differ, the mask is not right-padded or empty, or gamma leaves [0, 1].
    """
    # without values and with λ = 1, equation 16 of GAE is the reward to go
    return whiten(gae(rewards, torch.zeros_like(rewards), mask, gamma, 1.0)[0], mask)


def estimate(
    estimator: Estimator, rewards: Tensor, values: Tensor | None, mask: Tensor, *, answers: int, gamma: float,
    lam: float,
) -> tuple[Tensor, Tensor | None]:
    """(advantages as the update takes them, the critic's targets or None), each [B, R].

    The one place that knows the estimators: `gae` needs `values` [B, R] and is whitened, the others have no critic.
    Raises ValueError as the estimators do, and for `gae` without values.
    """
    if estimator == "rloo":
        return rloo(rewards, mask, answers), None
    if estimator == "grpo":
        return grpo(rewards, mask, answers), None
    if estimator == "reinforce++":
        return reinforce_plus_plus(rewards, mask, gamma), None
    if values is None:
        raise ValueError("gae needs a critic's values")
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    return whiten(advantages, mask), returns
