"""Float32 weights that learn, beside the copies of them in bfloat16 that compute.

bfloat16 keeps eight bits of a number: it would round an update of a millionth away. So the optimizer sees float32
weights and float32 gradients, summed over micro-batches in float32, and the model computes with rounded copies, in
passes and rollouts alike. Micikevicius et al. 2018, 'Mixed Precision Training', section 3.1.

Autocast would make the copies anew in each pass, and in a rollout for each token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Masters:
    """The float32 weights of a model whose own parameters become their copies in another precision."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        """model: with float32 weights; those that need no gradient are only rounded."""
        self.weights: dict[str, nn.Parameter] = {}
        """What an optimizer is to see, by the parameters' names; their gradients come about in `backward`."""
        self._copies: dict[str, nn.Parameter] = {}
        for name, parameter in model.named_parameters():
            whole, parameter.data = parameter.data, parameter.data.to(dtype)
            if parameter.requires_grad:
                master = self.weights[name] = nn.Parameter(whole)
                self._copies[name] = parameter
                parameter.register_post_accumulate_grad_hook(_hand_on(master))
        self._dtype = dtype

    @torch.no_grad()
    def refresh(self) -> None:
        """Round the weights anew: after an optimizer's step, and after they were loaded."""
        for name, copy in self._copies.items():
            copy.copy_(self.weights[name])

    @contextmanager
    def exact(self) -> Iterator[None]:
        """Inside, the model's own parameters are the float32 weights, for saving."""
        for name, copy in self._copies.items():
            copy.data = self.weights[name].data
        try:
            yield
        finally:
            for name, copy in self._copies.items():
                copy.data = self.weights[name].data.to(self._dtype)

    @property
    def words(self) -> str:
        """What stands in memory beside the model itself."""
        size = sum(p.numel() * p.element_size() for p in self.weights.values()) / 1e6
        return f"{str(self._dtype).removeprefix('torch.')}, {size:.0f} MB of float32 weights beside it"


def _hand_on(master: nn.Parameter) -> Callable[[Tensor], None]:
    """Add a copy's gradient to the master's, in float32, as soon as it is whole."""

    def hook(copy: Tensor) -> None:
        assert copy.grad is not None
        if master.grad is None:
            master.grad = copy.grad.to(master.dtype)
        else:
            master.grad += copy.grad
        copy.grad = None

    return hook
