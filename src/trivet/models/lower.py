"""Blocks below every adapter: what they make of a batch is the same for policy, reference and critic, in every pass.

Where LoRA adapts the last blocks only, the ones below are most of a forward pass. Here they run once for a
batch; later passes over the same batch take up their result and run the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trivet.models.lora import block_count
from trivet.models.output_layer import backbone


@contextmanager
def forwards_replaced(modules: Sequence[nn.Module], forwards: Sequence[Callable[..., Any]]) -> Iterator[None]:
    """Let the given functions be called in place of the modules' own forward; afterwards all is as it was."""
    own = [vars(module).get("forward") for module in modules]  # None where it is the class's
    for module, forward in zip(modules, forwards, strict=True):
        module.forward = forward
    try:
        yield
    finally:
        for module, before in zip(modules, own, strict=True):
            del module.forward
            if before is not None:
                module.forward = before


def blocks(model: nn.Module) -> nn.ModuleList | None:
    """The transformer blocks of a decoder, in order; None for a model that does not keep them in one list."""
    count = block_count(model)
    lists = [m for m in backbone(model).modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    return lists[0] if lists else None


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

        Raises TypeError for a model whose blocks give more than a hidden state (see `shareable_blocks`), and
        ValueError where what is kept is another batch's.
        """
        chosen = list(blocks(model) or ())[: self.count]
        if not chosen:
            yield
        elif self.hidden is None:
            hook = chosen[-1].register_forward_hook(self._keep)
            try:
                yield
            finally:
                hook.remove()
        else:
            with forwards_replaced(chosen, [self._take] * len(chosen)):
                yield

    def _keep(self, module: nn.Module, args: Any, output: Any) -> None:
        if not isinstance(output, Tensor):
            raise TypeError(f"a block of {type(module).__name__} gives {type(output).__name__}, not a hidden state")
        self.hidden = output.detach()

    def _take(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        assert self.hidden is not None
        if hidden.shape != self.hidden.shape:
            raise ValueError(f"a batch of {list(hidden.shape)} where one of {list(self.hidden.shape)} is kept")
        return self.hidden


@torch.no_grad()
def shareable_blocks(model: Any, learns: Callable[[str, nn.Parameter], bool]) -> int:
    """How many blocks, from the first, hold nothing that learns and may be run once for several passes.

    learns: told a parameter's name and the parameter. Found out by trying two passes, since models differ: 0 where
    blocks give more than a hidden state (GPT-Neo, BLOOM), or hand something on to later blocks (Gemma 3n).
    Sharing is a saving and nothing else, so whatever a model says to it, the answer is 0.
    """
    found = blocks(model)
    if found is None:
        return 0
    count = next((i for i, block in enumerate(found) if any(learns(n, p) for n, p in block.named_parameters())),
                 len(found))
    if count == 0:
        return 0
    lower, ids = LowerBlocks(count), torch.zeros((1, 2), dtype=torch.long, device=model.device)
    states = []
    try:
        for _ in range(2):
            with lower.on(model):
                states.append(backbone(model)(input_ids=ids, use_cache=False).last_hidden_state)
    except Exception:
        return 0
    return count if lower.hidden is not None and torch.equal(*states) else 0
