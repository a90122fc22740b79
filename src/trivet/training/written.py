"""Rows of examples as tensors, and the loss on what is written in them: what `sft`, `ppo`'s earlier data and `distill`
share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from trivet.data.supervised import Example

IGNORED = -100
"""The label of a token that is not to be learned."""


def collate(rows: Sequence[Sequence[Example]], pad: int) -> dict[str, torch.Tensor]:
    """Rows of packed examples as input_ids, position_ids, labels [N, T].

    Positions begin at 0 with every example, padding included; from them transformers builds a mask in which
    no example sees another. The first token of an example has no label: nothing comes before it.
    """
    width = max(sum(len(e.ids) for e in row) for row in rows)
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    place = torch.zeros((len(rows), width), dtype=torch.long)
    labels = torch.full((len(rows), width), IGNORED, dtype=torch.long)
    for i, row in enumerate(rows):
        start = 0
        for example in row:
            end = start + len(example.ids)
            ids[i, start:end] = torch.tensor(example.ids)
            place[i, start:end] = torch.arange(end - start)
            learn = torch.tensor(example.written)
            learn[0] = False
            labels[i, start:end] = torch.where(learn, ids[i, start:end], IGNORED)
            start = end
        place[i, start:] = torch.arange(width - start)
    return {"input_ids": ids, "position_ids": place, "labels": labels}


def token_losses(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, int]:
    """(summed cross-entropy, number of labels). Log-softmax in float32."""
    logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    labels = batch["labels"][:, 1:]
    chosen = labels != IGNORED
    loss = torch.nn.functional.cross_entropy(logits[:, :-1][chosen].float(), labels[chosen], reduction="sum")
    return loss, int(chosen.sum())
