"""RMSNorm with a backward pass of its own: two sweeps over the states where autograd's chain makes ten.

Zhang and Sennrich 2019, 'Root Mean Square Layer Normalization'. Which modules are one is found out by trying.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _Norm(torch.autograd.Function):
    """x [N, H], weight [H] → x / sqrt(mean(x²) + eps) · weight, all of one floating type."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        inverse = torch.linalg.vecdot(x, x).div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse[:, None]).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, weight, inverse = ctx.saved_tensors
        (gradient,) = grads
        want_x, want_weight, _ = ctx.needs_input_grad
        grad_x = grad_weight = None
        if want_weight:
            grad_weight = torch.mv((gradient * x).T, inverse)
        if want_x:
            grad_x = gradient * weight
            pull = torch.linalg.vecdot(grad_x, x).mul_(inverse.pow(3)).div_(-x.shape[-1])
            grad_x.mul_(inverse[:, None]).addcmul_(x, pull[:, None])
        return grad_x, grad_weight, None


class _Forward:
    """What stands in for a module's forward."""

    def __init__(self, module: nn.Module, eps: float) -> None:
        self.module, self.eps, self.own = module, eps, module.forward

    def __call__(self, x: Tensor) -> Tensor:
        weight: Any = self.module.weight
        if x.dtype != weight.dtype or x.dtype not in (torch.float32, torch.float64):
            found: Tensor = self.own(x)  # 16 bits are lifted to 32 in between, as the model's own does
            return found
        return _Norm.apply(x.reshape(-1, x.shape[-1]), weight, self.eps).view(x.shape)


@torch.no_grad()
def quicken_norms(model: nn.Module) -> int:
    """Let `model`'s RMSNorms compute by one function; how many there are. Those that say something else stay."""
    count = 0
    for module in model.modules():
        eps = getattr(module, "variance_epsilon", None)
        weight = getattr(module, "weight", None)
        if not isinstance(eps, float) or not isinstance(weight, Tensor) or weight.dim() != 1 \
                or isinstance(module.forward, _Forward) or weight.device.type != "cpu" \
                or weight.dtype not in (torch.float32, torch.float64):
            continue
        x = torch.linspace(-2, 3, 2 * len(weight), dtype=weight.dtype).view(2, -1)
        if torch.allclose(module(x), _Norm.apply(x, weight, eps), rtol=1e-4, atol=1e-5):
            module.forward = _Forward(module, eps)
            count += 1
    return count
