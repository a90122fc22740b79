"""Which blocks of a model are missed least: the loss is measured with each one left out.

A block's neighbours pass on what it was given, unchanged: its residual path stays, what it adds does not. What is
measured is the loss on text, not a distance between hidden states, so that it needs no other argument.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from trivet.compress.perplexity import window_losses
from trivet.models.lower import LowerBlocks, blocks, shareable_blocks
from trivet.models.output_layer import backbone
from trivet.models.surgery import drop_layers, sizes


@dataclass(frozen=True)
class Removal:
    """A block that was taken out. `layer`: its number in the source model."""

    layer: int
    loss: float
    """In nats a token, without it and without those taken out before it (in one pass: without it alone)."""


@torch.no_grad()
def losses_without(model: Any, windows: Sequence[Tensor], progress: Callable[[int], None] | None = None) -> Tensor:
    """The mean loss in nats a token with each block left out, one at a time: [blocks] float64.

    windows: token ids of one length, [T] each. What comes before a block is not computed again: half of the work of
    leaving out each in turn. In memory is one hidden state a token and block, of one window. progress: told of each
    block and window.
    """
    found = blocks(model)
    if found is None or shareable_blocks(model, lambda name, parameter: False) < len(found):
        raise TypeError(f"the blocks of {type(model).__name__} can't be run one by one")  # `sizes` refuses such models
    total = torch.zeros(len(found), dtype=torch.float64)
    for window in windows:
        for index, hidden in enumerate(_given(model, window)):
            with LowerBlocks(index + 1, hidden).on(model):
                total[index] += window_losses(model, [window])[0]
            if progress is not None:
                progress(1)
    return total / len(windows)


def _given(model: Any, window: Tensor) -> list[Tensor]:
    """What each block is given when `window` runs through the model, [1, T, hidden] each."""
    given: list[Tensor] = []
    hooks = [block.register_forward_pre_hook(lambda _, args: given.append(args[0])) for block in blocks(model) or ()]
    try:
        backbone(model)(input_ids=window[None].to(model.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return given


def least_missed(model: Any, windows: Sequence[Tensor], count: int, order: Literal["greedy", "once"],
                 progress: Callable[[int], None] | None = None) -> tuple[Any, list[Removal]]:
    """(the model without the `count` blocks that are missed least, what was removed, in order).

    greedy: after each removal the others are measured again, without it. once: measured once, one at a time, and the
    `count` whose absence costs least go together; neighbours that stand in for one another are misjudged so.

    Raises TrivetError for an architecture that can't be cut, ValueError unless some block is left.
    """
    layers = sizes(model).layers
    if not 0 < count < layers:
        raise ValueError(f"{count} of {layers} blocks to remove")
    keep, removed = list(range(layers)), []
    for _ in range(count if order == "greedy" else 1):
        losses = losses_without(model, windows, progress)
        for place in losses.argsort(stable=True)[: 1 if order == "greedy" else count].tolist():
            removed.append(Removal(keep[place], float(losses[place])))
        gone = {r.layer for r in removed}
        places = [i for i, layer in enumerate(keep) if layer not in gone]
        model = drop_layers(model, places)
        keep = [keep[i] for i in places]
    return model, removed


def measurements(layers: int, count: int, order: Literal["greedy", "once"]) -> int:
    """How many times a block is left out for a window, in `least_missed`."""
    return sum(layers - i for i in range(count)) if order == "greedy" else layers
