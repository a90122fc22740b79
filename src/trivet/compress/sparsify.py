"""Which weights of a Linear layer become zero, and what the others become: three methods, as functions on tensors.

W is a layer's weight, [out, in]; a mask is True where a weight becomes zero. Each method takes a share of the weights
(`share`), or, by a pattern N:M, N weights out of every M neighbours of a row, which hardware may then skip.

    magnitude   the smallest weights of the layer                    Han et al. 2015, 'Learning both Weights and …'
    wanda       in each row the smallest |W_ij| · ‖x_j‖              Sun et al. 2024, section 3
    sparsegpt   the cheapest by the inverse Hessian, column by column, the error spread over the columns to come
                                                                     Frantar & Alistarh 2023, algorithm 1
"""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor

from trivet.compress.inverse_hessian import damped, inverse_factor

Pattern = tuple[int, int]
"""(N, M): N of every M neighbours become zero."""


def taken(share: float, n: int) -> int:
    """How many of n a share is, rounded down: of the share as it is written, since 0.58 · 100 in floats is 57.99…"""
    return math.floor(Fraction(repr(share)) * n)


def smallest(scores: Tensor, share: float) -> Tensor:
    """The mask of the `taken(share, n)` smallest of `scores`, over the whole tensor. Of equal ones the first."""
    mask = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    order = scores.flatten().argsort(stable=True)
    mask[order[: taken(share, scores.numel())]] = True
    return mask.view_as(scores)


def smallest_in_rows(scores: Tensor, share: float) -> Tensor:
    """The mask of the `taken(share, in)` smallest of each row of `scores` [out, in]."""
    order = scores.argsort(dim=1, stable=True)[:, : taken(share, scores.shape[1])]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order, True)


def smallest_by_pattern(scores: Tensor, pattern: Pattern) -> Tensor:
    """The mask of the N smallest of every M neighbours in each row of `scores` [out, in].

    Raises ValueError where M does not divide the width of a row.
    """
    n, m = pattern
    if scores.shape[1] % m:
        raise ValueError(f"rows of {scores.shape[1]} weights don't fall into groups of {m}")
    groups = scores.reshape(-1, m)
    order = groups.argsort(dim=1, stable=True)[:, :n]
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(1, order, True).view_as(scores)


def magnitude_mask(weight: Tensor, share: float, pattern: Pattern | None = None) -> Tensor:
    """The smallest weights of the whole layer, or of each group of neighbours."""
    scores = weight.abs()
    return smallest(scores, share) if pattern is None else smallest_by_pattern(scores, pattern)


def wanda_mask(weight: Tensor, squares: Tensor, share: float, pattern: Pattern | None = None) -> Tensor:
    """In each row the weights whose product with the norm of their input is smallest.

    squares: [in], the sum over calibration tokens of each input's square.
    """
    scores = weight.abs() * squares.sqrt()
    return smallest_in_rows(scores, share) if pattern is None else smallest_by_pattern(scores, pattern)


def sparsegpt(weight: Tensor, gram: Tensor, share: float, pattern: Pattern | None = None, *, damping: float = 0.01,
              block: int = 128) -> Tensor:
    """The pruned weight [out, in]: cheapest weights to zero, and the others moved so that outputs change least.

    Column by column from the left. To set w_j to zero costs w_j² / [H⁻¹]_jj, where H⁻¹ is the inverse over the columns
    from j on; the error is spread over these by row j of H⁻¹ (optimal brain surgeon). All those inverses are rows of
    one Cholesky factor of H⁻¹, which is why this is fast. Which weights go is decided once a block of columns, over
    all its rows together, or once a group of M for a pattern.

    gram: [in, in], the sum over calibration tokens of x xᵀ. damping: this share of its mean diagonal is added to the
    diagonal. Computed in float32, but for the factor, in float64. Inputs that are always zero lose their weights.
    """
    w, columns = weight.detach().clone().float(), weight.shape[1]
    if pattern is not None:
        smallest_by_pattern(w[:1], pattern)  # refuses a width that doesn't fit
        block = max(1, block // pattern[1]) * pattern[1]  # no group is cut in two
    h, dead = damped(gram, damping)
    upper = inverse_factor(h).to(torch.float32)
    w[:, dead] = 0.0
    for start in range(0, columns, block):
        end = min(start + block, columns)
        part, errors = w[:, start:end].clone(), torch.zeros_like(w[:, start:end])
        factor = upper[start:end, start:end]
        mask = smallest(part.square() / factor.diagonal().square(), share) if pattern is None else \
            torch.zeros_like(part, dtype=torch.bool)
        for j in range(end - start):
            if pattern is not None and j % pattern[1] == 0:
                group = slice(j, j + pattern[1])
                costs = part[:, group].square() / factor.diagonal()[group].square()
                mask[:, group] = smallest_by_pattern(costs, pattern)
            kept = torch.where(mask[:, j], 0.0, part[:, j])
            errors[:, j] = (part[:, j] - kept) / factor[j, j]
            part[:, j:] -= errors[:, j, None] * factor[j, j:]
            part[:, j] = kept  # exactly, whatever the subtraction rounded to
        w[:, start:end] = part
        w[:, end:] -= errors @ upper[start:end, end:]
    return w.to(weight.dtype)
