"""GPTQ (Frantar et al. 2023): weights rounded one column after the other, each column's error made up by the others.

What is minimised is the change of a layer's outputs on calibration text, ‖W X - Ŵ X‖², of which only H = X Xᵀ is
needed. Rounding column q costs, and is best made up by changing the columns that follow (Hassibi and Stork 1993):

    δ = - (w_q - ŵ_q) / [H⁻¹]_qq · [H⁻¹]_q,:        with H⁻¹ of the columns that are left

All those inverses are rows of one Cholesky factor of H⁻¹ (section 3.3, step 3), and updates are held back and applied
a block at a time, which changes nothing but the speed (step 2).
"""

from __future__ import annotations

import torch
from torch import Tensor

from trivet.compress.grid import Quantized, fit, groups, nearest
from trivet.compress.inverse_hessian import damped, inverse_factor
from trivet.compress.quantize_config import Grid

BLOCK = 128
"""Columns whose updates of the columns behind them are held back."""


def gptq(weight: Tensor, hessian: Tensor, grid: Grid, *, damping: float = 0.01, act_order: bool = False) -> Quantized:
    """A matrix [O, I] in integers that change its layer's outputs least.

    hessian: [I, I], Σ x xᵀ over the layer's calibration inputs, times any positive factor. damping: that share of its
    mean diagonal is added to the diagonal. act_order: columns in the order of their inputs' size, largest first; then
    all scales are fitted beforehand, so that groups stay neighbours (what compressed-tensors calls `weight` order).

    Raises ValueError where the grid's group does not divide I, TrivetError where H can't be factored.
    """
    rows, columns = weight.shape
    count = groups(columns, grid)
    size = columns // count
    w = weight.detach().float().clone()
    # an input that was always 0 says nothing about its column: it is rounded to the nearest, and moves no other
    h, _ = damped(hessian, damping)
    # scales fitted beforehand; where columns keep their order each group's are fitted anew when its turn comes
    scales, zeros = fit(w.view(rows, count, size), grid)
    order = torch.argsort(h.diagonal(), descending=True) if act_order else torch.arange(columns, device=w.device)
    factor = inverse_factor(h[order][:, order]).float()
    w = w[:, order]
    codes = torch.empty_like(w)
    # a block holds whole groups, so that a group's scales are fitted to weights that bear all updates so far
    width = size * max(1, BLOCK // size) if not act_order and count > 1 else BLOCK
    for start in range(0, columns, width):
        end = min(start + width, columns)
        block, own = w[:, start:end], factor[start:end, start:end]
        errors = torch.empty_like(block)
        for i in range(end - start):
            place = int(order[start + i])
            group = place // size
            if not act_order and count > 1 and place % size == 0:
                scale, zero = fit(block[:, i : i + size], grid)
                scales[:, group] = scale
                if zeros is not None and zero is not None:
                    zeros[:, group] = zero
            code = nearest(block[:, i], scales[:, group], None if zeros is None else zeros[:, group], grid)
            codes[:, start + i] = code
            whole = code if zeros is None else code - zeros[:, group].float()
            errors[:, i] = (block[:, i] - whole * scales[:, group].float()) / own[i, i]
            block[:, i + 1 :] -= torch.outer(errors[:, i], own[i, i + 1 :])
        w[:, end:] -= errors @ factor[start:end, end:]
    return Quantized(codes[:, torch.argsort(order)].to(torch.int8), scales, zeros)
