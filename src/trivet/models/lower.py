"""Blocks below every adapter: what they make of a batch is the same for policy, reference and critic, in every pass.

Where LoRA adapts the last blocks only, the ones below are most of a forward pass. Here they run once for a
batch; later passes over the same batch take up their result and run the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from trivet.models.lora import block_count


def blocks(model: nn.Module) -> nn.ModuleList:
    """The transformer blocks of a decoder, in order.

    Raises LookupError for a model that does not keep them in one list.
    """
    count = block_count(model)
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise LookupError(f"no list of {count} blocks in {type(model).__name__}")


class LowerBlocks:
    """The first `count` blocks over one batch: computed by the first pass inside `on`, taken up by later ones.

    Valid for one batch only (the same ids, mask and positions): make a new one for another. The blocks must be
    frozen; no gradient flows into them. What is kept is one hidden state a token.
    """

    def __init__(self, count: int, hidden: Tensor | None = None) -> None:
        """hidden: [N, T, H] states that are already known; then no pass computes them."""
        self.count, self.hidden = count, hidden

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """Passes of `model` inside the block share the lower blocks' result.

        Raises TypeError for a model whose blocks give more than a hidden state.
        """
        chosen = list(blocks(model))[: self.count]
        if not chosen:
            yield
        elif self.hidden is None:
            hook = chosen[-1].register_forward_hook(self._keep)
            try:
                yield
            finally:
                hook.remove()
        else:
            for block in chosen:
                block.forward = self._take
            try:
                yield
            finally:
                for block in chosen:
                    del block.forward  # the class's own is there again

    def _keep(self, module: nn.Module, args: Any, output: Any) -> None:
        if not isinstance(output, Tensor):
            raise TypeError(f"a block of {type(module).__name__} gives {type(output).__name__}, not a hidden state")
        self.hidden = output.detach()

    def _take(self, *args: Any, **kwargs: Any) -> Tensor:
        assert self.hidden is not None
        return self.hidden


def frozen_blocks(model: nn.Module) -> int:
    """How many blocks, from the first, hold nothing that is trained."""
    for i, block in enumerate(blocks(model)):
        if any(p.requires_grad for p in block.parameters()):
            return i
    return len(blocks(model))
