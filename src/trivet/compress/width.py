"""Which inputs of a layer are missed least, and how the other inputs stand in for them.

The feed-forward part's last layer sees its channels, attention's last layer the outputs of its heads. A channel or a
group of heads whose loss changes that layer's output least is removed, the layer's other columns are fitted anew by
least squares on calibration text, and so on: optimal brain surgeon for whole groups of columns (Hassibi & Stork 1992;
Kurtic et al. 2023, 'ZipLM', algorithm 1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trivet.compress.layerwise import InputStatistics, change_layerwise
from trivet.models.surgery import keep_channels, keep_groups, sizes

CHANNELS, HEADS = ".mlp.down_proj", ".self_attn.o_proj"


@dataclass(frozen=True)
class Cut:
    """What is left of a layer's inputs."""

    weight: Tensor
    """[out, in], fitted anew; zero in the columns of what was removed."""
    keep: list[int]
    """Indices of the groups of columns that stay, rising."""
    error: float
    """Share of the output's energy on the calibration text that was lost: Σ‖(W − W')x‖² / Σ‖Wx‖²."""


def remove_columns(weight: Tensor, gram: Tensor, count: int, *, size: int = 1, damping: float = 0.01) -> Cut:
    """Remove `count` groups of `size` neighbouring columns, each time the one that is missed least.

    To remove group g costs trace(W_g ([H⁻¹]_gg)⁻¹ W_gᵀ) when all other columns are fitted anew, and the fit is
    W − W_g ([H⁻¹]_gg)⁻¹ [H⁻¹]_g. H⁻¹ over the columns that are left follows by a downdate.

    weight: [out, in]; gram: [in, in], the sum over tokens of x xᵀ; damping: this share of its mean diagonal is added to
    the diagonal, which keeps the fit near the weights as they were. Computed in float64.

    Raises ValueError unless some group is left, and where `size` does not divide the number of columns.
    """
    columns = weight.shape[1]
    groups = columns // size
    if columns % size or not 0 <= count < groups:
        raise ValueError(f"{count} groups of {size} columns of {columns}")
    w, moment = weight.detach().double(), gram.double()
    h = moment.clone()
    h.diagonal().add_(damping * h.diagonal().mean().clamp(min=1e-12))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
    corners = inverse.view(groups, size, groups, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1).clone()
    # H⁻¹ after the removals so far is `inverse` less rowsᵀ @ steps: of it a group's rows alone are worked out
    rows, steps = (torch.zeros(count * size, columns, dtype=w.dtype, device=w.device) for _ in range(2))
    gone = torch.zeros(groups, dtype=torch.bool, device=w.device)
    turned = w.T.contiguous()  # [in, out]
    for done in range(0, count * size, size):
        costs = _costs(turned, corners)
        costs[gone] = torch.inf
        group = int(costs.argmin())
        chosen = slice(group * size, group * size + size)
        now = inverse[chosen] - rows[:done, chosen].T @ steps[:done]
        step = torch.linalg.solve(now[:, chosen], now)  # [size, in]
        turned -= step.T @ turned[chosen].clone()
        corners -= now.view(size, groups, size).permute(1, 2, 0) @ step.view(size, groups, size).permute(1, 0, 2)
        rows[done : done + size], steps[done : done + size] = now, step
        gone[group] = True
        corners[gone] = torch.eye(size, dtype=w.dtype, device=w.device)
    turned[gone.repeat_interleave(size)] = 0.0  # exactly, whatever the subtractions rounded to
    fitted = turned.T.contiguous()
    return Cut(fitted.to(weight.dtype), (~gone).nonzero().flatten().tolist(), _lost(w, fitted, moment))


def _costs(turned: Tensor, corners: Tensor) -> Tensor:
    """trace(W_g C_g⁻¹ W_gᵀ) of each group g: [groups]. turned: [in, out]; corners C: [groups, size, size]."""
    groups, size, _ = corners.shape
    if size == 1:
        return torch.linalg.vector_norm(turned, dim=1).square() / corners.flatten()
    parts = turned.view(groups, size, -1)
    return (parts * torch.linalg.solve(corners, parts)).sum((1, 2))


def _lost(before: Tensor, after: Tensor, gram: Tensor) -> float:
    change, energy = before - after, ((before @ gram) * before).sum()
    return float(((change @ gram) * change).sum() / energy) if energy > 0 else 0.0


@dataclass(frozen=True)
class Narrowed:
    """A narrower model, and for each block the share of its two parts' output energy that was lost."""

    model: Any
    channel_errors: list[float]
    group_errors: list[float]


def narrow(model: Any, windows: Sequence[Tensor], channels: int, groups: int, *, damping: float = 0.01,
           batch_size: int = 8, progress: Callable[[int], None] | None = None) -> Narrowed:
    """A new model without `channels` feed-forward channels and `groups` attention groups of each block.

    Block by block on calibration windows ([T] token ids each); later blocks are fitted to what the narrower earlier
    ones give. `model` itself is changed on the way. progress: told of each block.

    Raises TrivetError for an architecture that can't be cut and a number of heads that no loader takes.
    """
    found, cuts = sizes(model), {}

    def change(name: str, layer: nn.Linear, statistics: InputStatistics) -> None:
        assert statistics.gram is not None
        if name.endswith(CHANNELS):
            cut = remove_columns(layer.weight, statistics.gram, channels, damping=damping)
        else:
            cut = remove_columns(layer.weight, statistics.gram, groups, damping=damping,
                                 size=found.head_dim * (found.heads // found.groups))
        layer.weight.copy_(cut.weight)
        cuts[name] = cut

    ends = ([CHANNELS] if channels else []) + ([HEADS] if groups else [])
    change_layerwise(model, windows, change, gram=True, wanted=lambda name: name.endswith(tuple(ends)),
                     batch_size=batch_size, progress=progress)
    of = {end: [cuts[f"model.layers.{i}{end}"] for i in range(found.layers)] for end in ends}
    if channels:
        model = keep_channels(model, [cut.keep for cut in of[CHANNELS]])
    if groups:
        model = keep_groups(model, [cut.keep for cut in of[HEADS]])
    return Narrowed(model, [c.error for c in of.get(CHANNELS, [])], [c.error for c in of.get(HEADS, [])])
