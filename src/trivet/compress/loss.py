"""The loss of a distillation step: soft labels at a temperature, hard labels at 1, logits a chunk at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trivet.compress.distill_config import DistillConfig
from trivet.compress.divergence import divergence
from trivet.compress.soft_labels import SoftLabels
from trivet.compress.teachers import CHUNK


def summed_losses(states: Tensor, layer: nn.Linear | None, labels: Tensor, hard: Tensor, soft: SoftLabels | None,
                  config: DistillConfig) -> tuple[Tensor, Tensor]:
    """(distillation loss, student loss), each summed over the positions it is defined for, in nats.

    states [N, H]: the student's last hidden states, layer: its output layer; or its logits [N, V], and None.
    labels [N]: the data's next tokens. hard [N]: which of them count. soft: what the teacher says; None: nothing.

    Distillation loss: T² · divergence at temperature T. Student loss: cross-entropy with the labels at temperature 1.
    Logits are made again in the backward pass, for the memory of all but a chunk of them.
    """
    zero = states.new_zeros((), dtype=torch.float32)
    distilled, student = zero, zero
    # of a model without a plain output layer all logits stand there already
    rows = max(1, CHUNK // (layer.out_features if layer is not None else states.shape[-1]))

    def one(given: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        logits = (given if layer is None else layer(given)).float()
        chosen = hard[part]
        wrong = nn.functional.cross_entropy(logits[chosen], labels[part][chosen], reduction="sum")
        if soft is None:
            return zero, wrong
        teacher, found = soft.compared(part, logits, config.temperature)
        far = divergence(teacher, found, config.kind, config.beta).sum()
        return far * config.temperature**2, wrong

    for start in range(0, len(states), rows):
        part = slice(start, start + rows)
        result: Any = checkpoint(one, states[part], part, use_reentrant=False, preserve_rng_state=False)
        distilled, student = distilled + result[0], student + result[1]
    return distilled, student
