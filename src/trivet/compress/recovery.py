"""Zeros that stay zeros while a pruned model learns again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trivet.errors import TrivetError
from trivet.models.lower import blocks


def keep_zeros(model: Any) -> dict[str, Tensor]:
    """Hold the zeros in the matrices of a model's blocks where they are; the masks (true: a zero), by weight.

    Their gradients are set to 0. AdamW then never moves them: its moments of a gradient that was always 0 are 0, and so
    is the decay of a weight that is 0. Nothing has to be saved: a resumed run starts from the same zeros.

    Raises TrivetError for a model without zeros.
    """
    masks: dict[str, Tensor] = {}
    inside = {id(p) for block in blocks(model) or () for p in block.parameters()}
    for name, parameter in model.named_parameters():
        if id(parameter) in inside and parameter.dim() == 2:
            zeros = parameter.detach() == 0
            if zeros.any():
                masks[name] = zeros
                parameter.register_post_accumulate_grad_hook(_clear(zeros))
    if not masks:
        raise TrivetError("the student's blocks hold no zeros to keep", field="keep_zeros",
                          mend="give a pruned model as student.by, or leave keep_zeros out")
    return masks


def _clear(zeros: Tensor) -> Any:
    def clear(parameter: Tensor) -> None:
        assert parameter.grad is not None
        parameter.grad.masked_fill_(zeros, 0.0)

    return clear


@torch.no_grad()
def require_zeros(model: Any, masks: dict[str, Tensor]) -> None:
    """Raise RuntimeError where a zero was moved: what is promised of the result is seen to."""
    parameters = dict(model.named_parameters())
    moved = [name for name, zeros in masks.items() if bool((parameters[name][zeros] != 0).any())]
    if moved:
        raise RuntimeError(f"zeros were not kept in {', '.join(moved)}")
