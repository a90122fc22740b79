"""Activation checkpointing: blocks keep their input alone and compute again in the backward pass.

Chen et al. 2016, 'Training Deep Nets with Sublinear Memory Cost'. One more forward pass through the blocks that learn,
for the memory of all but one of them. Values and gradients keep every bit: dropout is off.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from trivet.errors import TrivetError
from trivet.models.lower import blocks


class _Again:
    """A block's forward that is run again for its backward pass."""

    def __init__(self, forward: Any) -> None:
        self.forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():  # rollouts too: with a cache nothing may run twice
            return self.forward(*args, **kwargs)
        return checkpoint(self.forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


def checkpoint_blocks(model: nn.Module) -> None:
    """Let the transformer blocks of `model` keep no activations, in every pass that makes gradients.

    Raises TrivetError for a model that does not keep its blocks in one list.
    """
    found = blocks(model)
    if found is None:
        raise TrivetError(f"{type(model).__name__} keeps its blocks in no list", field="checkpoint_activations",
                          mend="turn it off, and lower micro_batch if memory is short")
    for block in found:
        if not isinstance(block.forward, _Again):
            block.forward = _Again(block.forward)
