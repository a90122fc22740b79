"""A linear layer with a LoRA adapter as one function with a backward pass of its own.

PEFT's layer computes y + (x·Aᵀ·Bᵀ)·s in four steps, each of which writes as much as the layer's output, and casts the
input to the adapter's float32. Here the low-rank product is added in place by the matrix product that makes it, in the
trunk's own precision, forward and backward; the adapter's weights and their gradients stay float32.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D


class _Product(torch.autograd.Function):
    """x [N, in], frozen weight [out, in] and bias [out], A [r, in], B [out, r] → x·Wᵀ + bias + s·x·Aᵀ·Bᵀ."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        low, high = a.to(x.dtype), b.to(x.dtype)
        found = functional.linear(x, weight, bias)
        inner = functional.linear(x, low)
        torch.addmm(found, inner, high.T, alpha=scale, out=found)
        ctx.save_for_backward(x, weight, low, high, inner)
        ctx.scale, ctx.dtype = scale, a.dtype
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, weight, low, high, inner = ctx.saved_tensors
        gradient = grads[0]
        want_x, _, _, want_a, want_b, _ = ctx.needs_input_grad
        through = torch.mm(gradient, high).mul_(ctx.scale)  # [N, r]
        grad_x = grad_a = grad_b = None
        if want_x:
            grad_x = torch.mm(gradient, weight)
            torch.addmm(grad_x, through, low, out=grad_x)
        if want_a:
            grad_a = torch.mm(through.T, x).to(ctx.dtype)
        if want_b:
            grad_b = torch.mm(gradient.T, inner).mul_(ctx.scale).to(ctx.dtype)
        return grad_x, None, None, grad_a, grad_b, None


class FusedLinear(Linear):
    """PEFT's LoRA layer, computed by one function where it is a plain one; else as PEFT does."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        active = [name for name in self.active_adapters if name in self.lora_A]
        weight = self.base_layer.weight
        if args or kwargs or self.disable_adapters or self.merged or len(active) != 1 or weight.requires_grad:
            return super().forward(x, *args, **kwargs)
        (name,) = active
        if x.dtype != weight.dtype or torch.is_autocast_enabled(x.device.type):
            return super().forward(x)
        if isinstance(self.base_layer, Conv1D):
            weight = weight.T
        found = _Product.apply(x.reshape(-1, x.shape[-1]), weight, self.base_layer.bias, self.lora_A[name].weight,
                               self.lora_B[name].weight, self.scaling[name])
        return found.view(*x.shape[:-1], -1)


def fuse(model: nn.Module) -> None:
    """Let `model`'s plain LoRA layers compute by one function: without dropout, bias or variant, on a linear layer.

    The others (of quantized trunks, for one) stay PEFT's.
    """
    for module in model.modules():
        if type(module) is Linear and type(module.base_layer) in (nn.Linear, Conv1D) and not module.lora_variant \
                and all(isinstance(d, nn.Identity) for d in module.lora_dropout.values()) \
                and not any(module.lora_bias.values()):
            module.__class__ = FusedLinear
