"""Passes of the roles over a rollout: log-probabilities, values, entropy of the response tokens.

Logits are made for response tokens only, and the blocks below the adapters run once for all passes of a
step. All log-probabilities use the sampling temperature (detail 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from trivet.models.lower import LowerBlocks
from trivet.models.output_layer import backbone, plain_output_layer
from trivet.models.packed import bears_packing, packed_inputs, packed_states
from trivet.models.roles import Roles
from trivet.policy.loss import entropy_from_logits, logps_from_logits
from trivet.policy.rollout import MicroBatch
from trivet.policy.vocabulary import linear_logps
from trivet.training.ranks import here


@dataclass
class TokenPass:
    """What one pass says of a micro-batch's tokens, each [b, r]."""

    logps: torch.Tensor
    values: torch.Tensor | None
    entropy: torch.Tensor | None


def response_pass(model: Any, micro: MicroBatch, temperature: float, *, value_head: torch.nn.Module | None = None,
                  entropy: bool = False, entropy_gradient: bool = False) -> TokenPass:
    """Log-probabilities of the response tokens, and with a `value_head` the value of each state before them.

    entropy: also the entropy of each distribution; with a gradient only where the loss has a use for it.
    The head reads what the output layer reads: the hidden states of the positions that predict the response.
    Log-probabilities and entropies outside the response mask are 0.
    """
    layer = None if entropy_gradient else plain_output_layer(model)
    if layer is None:
        return _pass_by_logits(model, micro, temperature, value_head, entropy, entropy_gradient)
    hidden, mask = _states(model, micro), micro.response_mask
    values = None if value_head is None else _spread(value_head(hidden.float()).squeeze(-1), mask)
    logps, spread = linear_logps(hidden, layer, micro.tokens[mask], temperature, entropy=entropy)
    return TokenPass(_spread(logps, mask), values, None if spread is None else _spread(spread, mask))


def _states(model: Any, micro: MicroBatch) -> torch.Tensor:
    """Hidden states [M, H] of the positions that predict the response tokens, in the order of the response mask."""
    if bears_packing(model):
        packed = micro.packed
        return packed_states(model, packed.ids, packed.position_ids, packed.lines).index_select(0, packed.predicts)
    hidden: torch.Tensor = backbone(model)(input_ids=micro.ids, attention_mask=micro.mask,
                                           position_ids=micro.position_ids, use_cache=False).last_hidden_state
    return hidden[:, -micro.width - 1 : -1][micro.response_mask]


def _spread(found: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[b, r] of [M] figures of the mask's true entries; 0 elsewhere."""
    return torch.zeros(mask.shape, dtype=found.dtype, device=mask.device).masked_scatter(mask, found)


def _pass_by_logits(model: Any, micro: MicroBatch, temperature: float, value_head: torch.nn.Module | None,
                    entropy: bool, entropy_gradient: bool) -> TokenPass:
    """`response_pass` by the model's own logits: for models that do more than a linear layer at their end, and
    for an entropy that is part of the loss."""
    seen: list[torch.Tensor] = []
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    mask = micro.response_mask
    try:
        if bears_packing(model):
            packed = micro.packed
            logits = model(**packed_inputs(packed.ids, packed.position_ids, packed.lines),
                           logits_to_keep=packed.predicts).logits[0]
            states = seen[0][0]
        else:
            logits = model(input_ids=micro.ids, attention_mask=micro.mask, position_ids=micro.position_ids,
                           use_cache=False, logits_to_keep=micro.width + 1).logits[:, :-1][mask]
            states = seen[0][:, -micro.width - 1 : -1][mask]
    finally:
        hook.remove()
    values = None if value_head is None else _spread(value_head(states.float()).squeeze(-1), mask)
    spread = None
    if entropy:
        with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
            spread = _spread(entropy_from_logits(logits, temperature), mask)
    return TokenPass(_spread(logps_from_logits(logits, micro.tokens[mask], temperature), mask), values, spread)


def value_pass(model: Any, micro: MicroBatch, value_head: torch.nn.Module) -> torch.Tensor:
    """Values [b, r] by a critic with weights of its own: no logits are made. 0 outside the response mask."""
    return _spread(value_head(_states(model, micro).float()).squeeze(-1), micro.response_mask)


@dataclass
class Evaluated:
    """Old log-probabilities, the reference's, and old values of a whole rollout, each [B, R], detached."""

    logps: torch.Tensor
    ref_logps: torch.Tensor
    values: torch.Tensor | None
    """None where the roles have no critic."""
    live: TokenPass | None
    """The policy's pass with its graph, where the step has one micro-batch: the update's first pass is it."""
    lower: dict[tuple[int, ...], LowerBlocks | None]
    """What the blocks below the adapters made of each micro-batch, by its rows: the update takes it up."""


def evaluate_tokens(roles: Roles, micros: Sequence[MicroBatch], temperature: float, shape: tuple[int, int], *,
                    keep_graph: bool, entropy_gradient: bool = False) -> Evaluated:
    """One pass of each role under the update's own micro-batch layout, so that the first ratio is 1 (detail 4).

    micros: this rank's; each rank fills its rows, and all have the whole matrices.
    """
    logps, ref_logps = torch.zeros(shape), torch.zeros(shape)
    values = None if roles.value_head is None else torch.zeros(shape)
    live: TokenPass | None = None
    lower: dict[tuple[int, ...], LowerBlocks | None] = {}
    head = None if roles.has_critic else roles.value_head
    for micro in micros:
        below = lower[micro.rows] = roles.lower_blocks()
        with torch.set_grad_enabled(keep_graph), roles.model("policy", below) as model:
            found = response_pass(model, micro, temperature, value_head=head, entropy=keep_graph,
                                  entropy_gradient=entropy_gradient)
        if keep_graph:
            live = found
        with torch.no_grad():
            with roles.model("reference", below) as model:
                reference = response_pass(model, micro, temperature)
            found_values = found.values
            if roles.has_critic:
                assert roles.value_head is not None
                with roles.model("critic", below) as model:
                    found_values = value_pass(model, micro, roles.value_head)
        if not micro.rows:
            continue
        rows, width = list(micro.rows), micro.width
        logps[rows, :width] = found.logps.detach().cpu()
        ref_logps[rows, :width] = reference.logps.cpu()
        if values is not None:
            assert found_values is not None
            values[rows, :width] = found_values.detach().cpu()
    here().sum_(logps, ref_logps, *([] if values is None else [values]))
    return Evaluated(logps, ref_logps, values, live, lower)
