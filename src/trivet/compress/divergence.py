"""How far a student's next-token distribution is from its teacher's: the losses of distillation, on log-probabilities.

Soft labels and soft predictions are softmaxes at a temperature T; their divergence times T² is the distillation loss,
for the gradients of a softmax at T shrink by 1/T² (Hinton, Vinyals & Dean 2015, section 2.1). The factor is kept for
all three divergences: near equality they are all half a quadratic form in the logits, of order 1/T².
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trivet.compress.distill_config import Divergence

LEAST = -1e4
"""Log-probability in place of minus infinity: its exp is 0 exactly, and no product with it is NaN."""


def soft_logps(logits: Tensor, temperature: float) -> Tensor:
    """Log-softmax [.., V] of logits [.., V] at a temperature, in float32."""
    return torch.log_softmax(logits.float() / temperature, -1)


def divergence(teacher: Tensor, student: Tensor, kind: Divergence, beta: float = 0.5) -> Tensor:
    """The divergence of each pair of distributions, in nats: [..] from log-probabilities [.., C] over the same events.

    forward: KL(teacher ‖ student). The student covers all that the teacher does.
    reverse: KL(student ‖ teacher) (Gu et al. 2023, MiniLLM). The student keeps to where the teacher is likely.
    jsd: beta KL(teacher ‖ m) + (1 - beta) KL(student ‖ m), m = beta teacher + (1 - beta) student (Agarwal et al. 2023,
    On-policy distillation, eq. 1); 0 < beta < 1.

    A log-probability of minus infinity counts as 0 probability on either side; gradients flow into both.
    """
    p, q = teacher.clamp(min=LEAST), student.clamp(min=LEAST)
    if kind == "forward":
        return _kl(p, q)
    if kind == "reverse":
        return _kl(q, p)
    if not 0 < beta < 1:
        raise ValueError(f"beta must lie between 0 and 1, not {beta}")
    mixed = torch.logaddexp(p + math.log(beta), q + math.log1p(-beta))
    return beta * _kl(p, mixed) + (1 - beta) * _kl(q, mixed)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return (p.exp() * (p - q)).sum(-1)


def with_tail(logps: Tensor, ids: Tensor, known: Tensor) -> Tensor:
    """A distribution over the vocabulary as one over k tokens and everything else: [N, k + 1] from [N, V].

    ids, known [N, k]: the tokens, and which of the places hold one; a place without gets minus infinity. The last
    column is the log of what all other tokens have together. By the data-processing inequality no divergence between
    two such distributions is larger than between the whole ones.
    """
    picked = logps.gather(-1, ids).masked_fill(~known, -torch.inf)
    # a place without a token must take nothing out of the rest: it points behind the vocabulary
    beyond = torch.nn.functional.pad(logps, (0, 1), value=-torch.inf)
    rest = beyond.scatter(-1, ids.masked_fill(~known, logps.shape[-1]), -torch.inf)
    return torch.cat([picked, torch.logsumexp(rest, -1, keepdim=True)], -1)


def without_tail(logps: Tensor, ids: Tensor, known: Tensor) -> Tensor:
    """A distribution over the vocabulary, given that it is one of k tokens: [N, k] from [N, V]. See `with_tail`."""
    picked = logps.gather(-1, ids).masked_fill(~known, LEAST)
    return torch.log_softmax(picked, -1).masked_fill(~known, -torch.inf)
