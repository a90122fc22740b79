"""Drawing tokens: a row's own random numbers, the distribution its tokens come from, and inversion of it."""

from __future__ import annotations

import torch

from trivet.errors import TrivetError
from trivet.generate.config import Sampling

_BLOCK = 256  # tokens whose mass is added up before the search: the vocabulary is gone through once, in float32


def row_uniforms(seed: int, row: int, count: int) -> torch.Tensor:
    """`count` uniform numbers in [0, 1), float64, for one answer."""
    mixed = (seed * 1_000_003 + row * 7_919 + 12_345) % (2**63 - 1)
    return torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(mixed))


def sampling_logps(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Log-probabilities [N, V] that tokens are drawn from: temperature, then top-k, then top-p.

    Temperature 0 puts all mass on the best token.
    """
    logits = logits.float()
    if sampling.temperature == 0:
        best = torch.full_like(logits, -torch.inf)
        return best.scatter_(-1, logits.argmax(-1, keepdim=True), 0.0)
    logps = torch.log_softmax(logits / sampling.temperature, -1)
    if 0 < sampling.top_k < logps.shape[-1]:
        least = logps.topk(sampling.top_k, -1).values[..., -1:]
        logps = torch.log_softmax(logps.masked_fill(logps < least, -torch.inf), -1)
    if sampling.top_p < 1:
        ordered, index = logps.sort(-1, descending=True)
        before = ordered.exp().cumsum(-1) - ordered.exp()  # mass of the tokens ahead of each
        drop = torch.zeros_like(logps, dtype=torch.bool).scatter_(-1, index, before >= sampling.top_p)
        logps = torch.log_softmax(logps.masked_fill(drop, -torch.inf), -1)
    return logps


def sample(logits: torch.Tensor, sampling: Sampling, uniform: torch.Tensor) -> tuple[list[int], list[float]]:
    """One token a row from logits [N, V], and the log-probability of each at the sampling distribution.

    uniform: [N], float64, in [0, 1). The logits are overwritten: [N, V] is the largest thing of a decode step. Without
    top-k and top-p no log-softmax over the vocabulary is made: its normaliser is what inversion adds up anyway.

    Raises TrivetError where logits are no numbers.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1).tolist(), [0.0] * logits.shape[0]
    if sampling.top_k or sampling.top_p < 1:
        weights = sampling_logps(logits, sampling).exp_()
    else:
        scaled = logits.float().div_(sampling.temperature)
        weights = scaled.sub_(scaled.amax(-1, keepdim=True)).exp_()
    token, mass, total = invert(weights, uniform)
    return token.tolist(), (mass.double() / total).log().tolist()


def invert(weights: torch.Tensor, uniform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inversion of the distribution function of `weights` [N, V], which need not add up to 1: (token, weight, sum).

    uniform: [N] in [0, 1). Two levels: blocks of tokens by their sums, then the tokens of one block, both added up
    in float64; only sums inside a block are float32. A token of weight 0 is never drawn. Raises TrivetError where
    weights are no numbers.
    """
    rows, vocabulary = weights.shape
    whole = vocabulary // _BLOCK * _BLOCK
    sums = weights[:, :whole].view(rows, -1, _BLOCK).sum(-1)
    if whole < vocabulary:
        sums = torch.cat([sums, weights[:, whole:].sum(-1, keepdim=True)], -1)
    upper = sums.double().cumsum(-1)
    total = upper[:, -1]
    if not torch.isfinite(total).all():
        raise TrivetError("the model's logits are no numbers (NaN or infinite)", field="model",
                          mend="the weights may be damaged, or training diverged: go back to an earlier checkpoint")
    target = (uniform.to(upper.device) * total).unsqueeze(-1)
    block = _first_above(upper, target)
    base = torch.where(block > 0, upper.gather(-1, (block - 1).clamp(min=0)), 0.0)
    places = block * _BLOCK + torch.arange(_BLOCK, device=weights.device)
    inside = weights.gather(-1, places.clamp(max=vocabulary - 1)).masked_fill(places >= vocabulary, 0.0)
    token = block * _BLOCK + _first_above(inside.double().cumsum(-1), target - base)
    return token.squeeze(-1), weights.gather(-1, token).squeeze(-1), total


def _first_above(mass: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The first place [N, 1] whose running sum [N, K] is above the target; the last that adds anything, where
    rounding put the target at or above the sum."""
    below = torch.nextafter(mass[:, -1:], mass.new_zeros(()))
    return torch.searchsorted(mass, torch.minimum(target, below), right=True)


def draw(logps: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """One token [N] from log-probabilities [N, V], by `invert`."""
    return invert(logps.exp(), uniform)[0]
