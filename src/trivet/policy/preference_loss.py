"""Losses of direct preference optimization, as pure functions on tensors.

A pair's `margin` is h = log(π(chosen)/ref(chosen)) - log(π(rejected)/ref(rejected)), in nats: how much more the
policy has moved towards the chosen answer than towards the rejected one. It is 0 before training.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from trivet.policy.dpo_config import PreferenceLoss


def log_ratios(logps: Tensor, reference: Tensor, lengths: Tensor | None = None) -> Tensor:
    """log π - log ref of each answer, [A] float32, in nats; with `lengths` [A] (tokens) the mean a token.

    `logps` and `reference` are [A], summed over the answer's tokens, its end token included; the gradient flows
    through `logps` only. Raises ValueError if the shapes differ.
    """
    if not logps.shape == reference.shape == (logps.shape if lengths is None else lengths.shape):
        raise ValueError(f"one entry an answer: {list(logps.shape)}, reference {list(reference.shape)}"
                         + ("" if lengths is None else f", lengths {list(lengths.shape)}"))
    ratios = logps.float() - reference.detach().float()
    return ratios if lengths is None else ratios / lengths


def preference_losses(
    margins: Tensor, label: Tensor, *, kind: PreferenceLoss, beta: float, label_smoothing: float = 0.0
) -> Tensor:
    """The loss of each pair, [P] float32; margins [P] in nats, label [P]: the probability that chosen wins.

    With ℓ the loss of a sure win, it is p·ℓ(h) + (1 - p)·ℓ(-h), where label smoothing ε makes of a label
    p = (1 - ε)·label + ε·(1 - label). Swapping a pair (h → -h, label → 1 - label) changes nothing.

    - `sigmoid`: ℓ(h) = -log σ(β·h), nats. Rafailov et al. 2023, 'Direct Preference Optimization', eq. 7; with ε > 0
      conservative DPO (Mitchell 2023). Robust DPO (Chowdhury et al. 2024), which subtracts the flipped loss and
      divides by 1 - 2ε so that noise leaves the expectation alone, is another loss and not here.
    - `ipo`: ℓ(h) = (h - 1 / (2β))². Azar et al. 2023, 'A General Theoretical Paradigm', eq. 17 (their τ is β). Its
      log-ratios are sums over the answer; the field's implementations take means a token, after the authors' later
      advice, and so does the stage by default (`per_token`).

    Raises ValueError if the shapes differ, β is not positive, or ε leaves [0, 0.5).
    """
    if margins.dim() != 1 or margins.shape != label.shape:
        raise ValueError(f"margins {list(margins.shape)} and label {list(label.shape)} must both be [P]")
    if not beta > 0:
        raise ValueError(f"beta must be positive, not {beta}")
    if not 0.0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must lie in [0, 0.5), not {label_smoothing}")
    margins, label = margins.float(), label.float()
    wins = (1.0 - label_smoothing) * label + label_smoothing * (1.0 - label)
    if kind == "ipo":
        won, lost = ((sign * margins - 1.0 / (2.0 * beta)).square() for sign in (1.0, -1.0))
    elif kind == "sigmoid":
        won, lost = -logsigmoid(beta * margins), -logsigmoid(-beta * margins)
    else:
        raise ValueError(f"unknown loss {kind!r}: choose sigmoid or ipo")
    return wins * won + (1.0 - wins) * lost


def answer_sums(values: Tensor, owners: Tensor, answers: int) -> Tensor:
    """Sums of token values [N] by the answer that owns them, owners [N], as [answers] float32."""
    return torch.zeros(answers, device=values.device).index_add(0, owners, values.float())
