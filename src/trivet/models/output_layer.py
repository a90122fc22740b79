"""The output layer of a causal model, and whether its logits are that layer and nothing else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def backbone(model: Any) -> Any:
    """The decoder without its output layer."""
    return getattr(model, model.base_model_prefix)


def plain_output_layer(model: Any) -> nn.Linear | None:
    """The output layer, where the model's logits are nothing but that linear layer on its decoder's last state.

    None where a model scales or caps its logits, or changes the state before: then its own forward is needed.
    Found out by trying, once a model: strange logits go in at the layer, and must come out as the model's.
    """
    known = getattr(model, "_trivet_plain_output", None)
    if known is None:
        known = model._trivet_plain_output = _is_plain(model)
    return model.get_output_embeddings() if known else None


@torch.no_grad()
def _is_plain(model: Any) -> bool:
    layer = model.get_output_embeddings()
    if type(layer) is not nn.Linear:
        return False
    seen: list[Tensor] = []

    def swap(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        strange = torch.linspace(-90, 90, output.numel(), device=output.device).view_as(output).to(output.dtype)
        seen.extend((args[0], strange))
        return strange

    ids = torch.zeros((1, 2), dtype=torch.long, device=layer.weight.device)
    hook = layer.register_forward_hook(swap)
    try:
        logits = model(input_ids=ids, use_cache=False).logits
    finally:
        hook.remove()
    states = backbone(model)(input_ids=ids, use_cache=False).last_hidden_state
    return torch.equal(logits, seen[1]) and torch.equal(states, seen[0])
