"""Losses on pairs of scores, as pure functions on tensors.

Every completion of a batch is scored once: `scores` is flat, [N]. The pairs are index tensors into it,
`chosen` [P] and `rejected` [P], so that one score serves every pair its completion takes part in
(InstructGPT's arrangement, Ouyang et al. 2022, section 3.5). Losses are weighted means over the pairs,
Σ w·l / Σ w, and finite, with finite gradients, for scores of ±1e4.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def _pair_scores(scores: Tensor, chosen: Tensor, rejected: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of both sides, [P] each, in float32 or better; ValueError if the shapes do not fit."""
    if scores.dim() != 1:
        raise ValueError(f"scores must be flat [N], not {list(scores.shape)}")
    if chosen.dim() != 1 or chosen.shape != rejected.shape:
        raise ValueError(f"chosen {list(chosen.shape)} and rejected {list(rejected.shape)} must both be [P]")
    if chosen.numel() == 0:
        raise ValueError("no pairs: the loss of an empty batch is undefined")
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    return scores[chosen], scores[rejected]


def _per_pair(name: str, values: Tensor, like: Tensor) -> Tensor:
    if values.shape != like.shape:
        raise ValueError(f"{name} {list(values.shape)} must have one entry a pair, {list(like.shape)}")
    return values.to(device=like.device, dtype=like.dtype)


def _weighted_mean(losses: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return losses.mean()
    weight = _per_pair("weight", weight, losses)
    total = weight.sum()
    if not total > 0:
        raise ValueError(f"the weights of a batch must sum to more than 0, not {total.item()}")
    return (weight * losses).sum() / total


def bradley_terry_loss(
    scores: Tensor,
    chosen: Tensor,
    rejected: Tensor,
    *,
    label: Tensor | None = None,
    weight: Tensor | None = None,
    margin: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy of P(chosen wins) = σ(s_chosen - s_rejected - margin), a scalar in nats.

    Bradley and Terry 1952; the reward-model loss of Ouyang et al. 2022, eq. 1.

    - `label` [P]: probability that chosen wins; None is 1 for every pair.
    - `weight` [P]: non-negative; a ranking's pairs share its weight.
    - `margin` [P]: subtracted from the score difference (Touvron et al. 2023, Llama 2, section 3.2.2); it
      belongs to the ordered pair, so swapping a pair means label → 1 - label and margin → -margin.
    - `label_smoothing` ε in [0, 0.5): the chance that a label is flipped, so that
      label → (1 - ε)·label + ε·(1 - label) (Mitchell 2023, 'A note on DPO with noisy preferences': cDPO).

    Raises ValueError if the shapes do not fit, there are no pairs, the weights do not sum to more than 0, or
    ε leaves its range.
    """
    if not 0.0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must lie in [0, 0.5), not {label_smoothing}")
    winner, loser = _pair_scores(scores, chosen, rejected)
    difference = winner - loser
    if margin is not None:
        difference = difference - _per_pair("margin", margin, difference)
    target = torch.ones_like(difference) if label is None else _per_pair("label", label, difference)
    target = (1.0 - label_smoothing) * target + label_smoothing * (1.0 - target)
    return _weighted_mean(-target * logsigmoid(difference) - (1.0 - target) * logsigmoid(-difference), weight)


def davidson_loss(
    scores: Tensor,
    chosen: Tensor,
    rejected: Tensor,
    tie: Tensor,
    log_nu: Tensor | float,
    *,
    label: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of a comparison that may end in a tie, a scalar in nats.

    With p = exp(score): P(i > j) = p_i / (p_i + p_j + ν√(p_i p_j)), P(i = j) = ν√(p_i p_j) / (same)
    (Davidson 1970, 'On extending the Bradley–Terry model to accommodate ties').

    `tie` [P] is bool; `log_nu` is log ν, a scalar that may be a learned parameter (ν = 2 makes a tie of
    equals as likely as a decision). Where `tie` is false, `label` [P] is the probability that chosen wins
    (None: 1); where it is true the label is not read. `weight` [P] as in `bradley_terry_loss`, which this
    becomes for ν → 0.

    Raises ValueError if the shapes do not fit, `tie` is not bool, there are no pairs, or the weights do not
    sum to more than 0.
    """
    winner, loser = _pair_scores(scores, chosen, rejected)
    if tie.dtype != torch.bool or tie.shape != winner.shape:
        raise ValueError(f"tie must be bool {list(winner.shape)}, not {tie.dtype} {list(tie.shape)}")
    # Divided through by √(p_i p_j), the three terms are exp(d/2), exp(-d/2) and ν: only the difference of the
    # scores enters, and their common level costs no digits.
    half = 0.5 * (winner - loser)
    tie_logit = torch.as_tensor(log_nu, dtype=half.dtype, device=half.device).expand_as(half)
    log_win, log_loss, log_tie = torch.log_softmax(torch.stack((half, -half, tie_logit)), dim=0).unbind(0)
    target = torch.ones_like(half) if label is None else _per_pair("label", label, half)
    decided = -target * log_win - (1.0 - target) * log_loss
    return _weighted_mean(torch.where(tie, -log_tie, decided), weight)


def centering_loss(scores: Tensor, chosen: Tensor, rejected: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean of (s_chosen + s_rejected)², a scalar in squared score units, to add with a small coefficient.

    A Bradley–Terry loss leaves each prompt's level free; this pins it near 0 (Eisenstein et al. 2023,
    'Helping or Herding? Reward Model Ensembles Mitigate but do not Eliminate Reward Hacking').

    Raises ValueError if the shapes do not fit, there are no pairs, or the weights do not sum to more than 0.
    """
    winner, loser = _pair_scores(scores, chosen, rejected)
    return _weighted_mean((winner + loser).square(), weight)
