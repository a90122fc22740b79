"""Integers in place of weights: scales, rounding to the nearest, and back. Pure functions on tensors.

The conventions are those of compressed-tensors (so that what is written is what was computed here): integers from
-2^(b-1) to 2^(b-1) - 1; symmetric, a scale is the group's largest magnitude over (2^b - 1) / 2, so that the largest
negative weight keeps its place and the largest positive one is cut by half a step; asymmetric, zero and the group's
range have a place (Jacob et al. 2018, section 2.1).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trivet.compress.quantize_config import Grid

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class Quantized:
    """A matrix in integers. `weight` gives the numbers they stand for."""

    codes: Tensor
    """int8 [O, I]."""
    scales: Tensor
    """[O, G], in the type they are stored as; a group is I / G neighbours of a row."""
    zeros: Tensor | None
    """int8 [O, G]: the integer that stands for 0. None: symmetric, it is 0."""

    def weight(self) -> Tensor:
        """float32 [O, I]: (code - zero) · scale."""
        rows, groups = self.scales.shape
        codes = self.codes.float().view(rows, groups, -1)
        if self.zeros is not None:
            codes = codes - self.zeros.float()[..., None]
        return (codes * self.scales.float()[..., None]).view(rows, -1)


def limits(grid: Grid) -> tuple[int, int]:
    """The smallest and the largest integer of a grid."""
    half: int = 2 ** (grid.bits - 1)
    return -half, half - 1


def groups(columns: int, grid: Grid) -> int:
    """Groups in a row of so many columns. Raises ValueError where the group does not divide it."""
    if grid.group is None:
        return 1
    if columns % grid.group:
        raise ValueError(f"a row of {columns} is no multiple of the group of {grid.group}")
    return columns // grid.group


def fit(weight: Tensor, grid: Grid) -> tuple[Tensor, Tensor | None]:
    """(scales, zeros) of groups: weight [..., group] -> scales [...], in the grid's type, zeros int8 [...] or None.

    A group of zeros has the smallest scale that its type can hold: its integers are 0.
    """
    dtype, (low, high) = DTYPES[grid.scales], limits(grid)
    if grid.symmetric:
        wanted = weight.abs().amax(-1) / ((high - low) / 2)
    else:
        least, most = weight.amin(-1).clamp(max=0), weight.amax(-1).clamp(min=0)
        wanted = (most - least) / (high - low)
    scales = wanted.to(dtype).clamp(min=torch.finfo(dtype).tiny)
    if grid.symmetric:
        return scales, None
    return scales, (low - least / scales.float()).round().clamp(low, high).to(torch.int8)


def nearest(weight: Tensor, scales: Tensor, zeros: Tensor | None, grid: Grid) -> Tensor:
    """Integers (in float) nearest to weights; all of one shape, or broadcast to it."""
    moved = weight / scales.float()
    if zeros is not None:
        moved = moved + zeros.float()
    return moved.round().clamp(*limits(grid))


def round_to_nearest(weight: Tensor, grid: Grid) -> Quantized:
    """A matrix [O, I], each weight at the nearest integer of its group.

    Raises ValueError where the grid's group does not divide I.
    """
    rows, columns = weight.shape
    split = weight.detach().float().reshape(rows, groups(columns, grid), -1)
    scales, zeros = fit(split, grid)
    codes = nearest(split, scales[..., None], None if zeros is None else zeros[..., None], grid)
    return Quantized(codes.to(torch.int8).view(rows, columns), scales, zeros)
