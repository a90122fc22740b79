"""Training through a quantization: a layer computes with rounded weights, the gradient goes to the weights themselves.

The rounding's own gradient is 0 almost everywhere; it is passed through as if nothing had been rounded (the
straight-through estimator: Bengio et al. 2013; for quantization Jacob et al. 2018, section 3). What is saved afterwards
are the weights as trained, unrounded: `trivet quantize --method rtn` on the same grid gives the very numbers that the
layer computed with. (Rounding twice does not: a rounded group has another largest magnitude, so another scale.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from trivet.compress.grid import groups, round_to_nearest
from trivet.compress.layerwise import block_linears
from trivet.compress.quantize_config import Grid
from trivet.errors import TrivetError


class _StraightThrough(torch.autograd.Function):
    """Forward the rounded weights, exactly; backward the gradient, as it is."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, grid: Grid) -> Tensor:
        return round_to_nearest(weight, grid).weight().to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class FakeQuantize(nn.Module):
    """A parametrization: weights [O, I] at the nearest numbers of a grid. Zeros stay zeros."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, weight: Tensor) -> Tensor:
        found: Tensor = _StraightThrough.apply(weight, self.grid)
        return found


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The Linear layers of all blocks, by their names in the model. Raises TrivetError where there are none."""
    return {name: layer for block in block_linears(model) for name, layer in block.items()}


def require_groups(linears: dict[str, nn.Linear], grid: Grid, field: str = "group") -> None:
    """Raise TrivetError where a grid's group does not divide the rows of every layer, with groups that would."""
    for name, layer in linears.items():
        try:
            groups(layer.in_features, grid)
        except ValueError as error:
            fitting = [g for g in (256, 128, 96, 64, 48, 32, 16, 8) if all(m.in_features % g == 0
                                                                           for m in linears.values())]
            good = f"one of {', '.join(map(str, fitting))}, or none (a scale a row)" if fitting \
                else "none (a scale a row)"
            raise TrivetError(f"{name}: {error}", field=field, expected=good,
                              mend="choose a group that divides every row") from None


def attach(model: Any, grid: Grid, field: str = "group") -> list[str]:
    """Let the linear layers of a model's blocks compute with rounded weights; their names.

    The weights that learn are then called `….parametrizations.weight.original`. Attach before an optimizer is made or a
    checkpoint restored. Raises TrivetError for a model without such layers and a group that does not fit.
    """
    linears = linear_layers(model)
    require_groups(linears, grid, field)
    for layer in linears.values():
        # unsafe: torch would otherwise try the parametrization, and find out only what is known
        parametrize.register_parametrization(layer, "weight", FakeQuantize(grid), unsafe=True)
    return list(linears)


def detach(model: nn.Module) -> None:
    """Undo `attach`: the layers hold the weights as trained, unrounded, under their own names again."""
    for module in model.modules():
        if parametrize.is_parametrized(module, "weight") and any(
                isinstance(p, FakeQuantize) for p in module.parametrizations["weight"]):  # type: ignore[index]
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
