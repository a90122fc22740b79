"""Log-probabilities and entropies straight from hidden states, without holding a batch's logits.

The output layer of a small model is a fifth of its arithmetic, and its logits ([tokens, vocabulary], float32)
most of its memory. They are made a chunk of tokens at a time, on a CPU for chunks that stay in the cache. Where the
layer is frozen, the gradient by the hidden state is made beside the log-probability, from the same chunk: a token's
share of the loss only scales it. Where it is trained, the weights' gradient needs those scales first, and the
chunk is made again in the backward pass: one more matrix product for the memory of all logits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

CHUNK_LOGITS = 2**23
"""Logits of a chunk: 33 MB in float32, held twice for a moment."""


class _LinearLogps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor, temperature: float,
                entropy: bool, slope: bool) -> tuple[Tensor, Tensor]:
        slopes = torch.empty_like(hidden) if slope else None
        rows = max(1, CHUNK_LOGITS // weight.shape[0])
        logps, spreads = [], []
        for start in range(0, len(tokens), rows):
            part = slice(start, start + rows)
            t = tokens[part]
            z = _scaled_logits(hidden[part], weight, bias, temperature)
            mass = z.exp()
            total = mass.sum(-1)
            logps.append(z.gather(-1, t[:, None]).squeeze(-1) - total.log())
            if entropy:
                spreads.append(total.log() - torch.linalg.vecdot(mass, z) / total)
            if slopes is not None:
                torch.mm(_pull(mass, total, t, mass.new_full((len(t),), 1 / temperature)).to(weight.dtype), weight,
                         out=slopes[part])
        ctx.save_for_backward(*((slopes,) if slopes is not None else (hidden, weight, bias, tokens)))
        ctx.temperature, ctx.rows = temperature, rows
        none = hidden.new_zeros(0, dtype=torch.float32)
        found = torch.cat(logps) if logps else none
        spread = torch.cat(spreads) if spreads else none
        ctx.mark_non_differentiable(spread)
        return found, spread

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        gradient = grads[0]
        if len(ctx.saved_tensors) == 1:
            (slopes,) = ctx.saved_tensors
            return (slopes * gradient[:, None].to(slopes.dtype)), None, None, None, None, None, None
        hidden, weight, bias, tokens = ctx.saved_tensors
        want_hidden, want_weight, want_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if want_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if want_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if want_bias else None
        for start in range(0, len(tokens), ctx.rows):
            part = slice(start, start + ctx.rows)
            mass = _scaled_logits(hidden[part], weight, bias, ctx.temperature).exp_()
            scale = gradient[part].float() / ctx.temperature
            z = _pull(mass, mass.sum(-1), tokens[part], scale.to(mass.dtype)).to(weight.dtype)
            if grad_hidden is not None:
                grad_hidden[part] = z @ weight
            if grad_weight is not None:
                grad_weight += z.T @ hidden[part]
            if grad_bias is not None:
                grad_bias += z.sum(0)
        return (grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype),
                None if grad_bias is None else grad_bias.to(bias.dtype), None, None, None, None)


def _pull(mass: Tensor, total: Tensor, tokens: Tensor, scale: Tensor) -> Tensor:
    """scale · (onehot(token) - softmax), the gradient of a token's log-probability by the logits; in `mass`'s place."""
    return mass.mul_((-scale / total)[:, None]).scatter_add_(-1, tokens[:, None], scale[:, None])


def _scaled_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    """logits / temperature, float32, shifted so that the largest of each row is 0."""
    z = nn.functional.linear(hidden, weight, bias).float()
    z = z.sub_(z.amax(-1, keepdim=True)).div_(temperature)
    return z.clamp_(min=torch.finfo(z.dtype).min)  # a word that can't be: 0 * -inf would be NaN in the entropy


def linear_logps(hidden: Tensor, layer: nn.Linear, tokens: Tensor, temperature: float, *,
                 entropy: bool = False) -> tuple[Tensor, Tensor | None]:
    """(log-probability of each token, entropy of its distribution), [N] float32, from hidden states [N, H].

    tokens: [N]. The gradient flows through the log-probabilities into `hidden` and, where they are trained, into
    the layer's weights; the entropy has none. Raises ValueError if the temperature is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, not {temperature}")
    trained = any(p.requires_grad for p in layer.parameters())
    slope = torch.is_grad_enabled() and hidden.requires_grad and not trained
    logps, spread = _LinearLogps.apply(hidden, layer.weight, layer.bias, tokens, temperature, entropy, slope)
    return logps, spread if entropy else None
