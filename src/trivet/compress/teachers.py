"""Who teaches, in training: a model in this process, or logits that were stored of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from trivet.compress.soft_labels import SoftLabels, Tail, Whole, output_states, top_of
from trivet.compress.stored import StoredLogits, StoredRow
from trivet.data.supervised import Example
from trivet.models.output_layer import plain_output_layer
from trivet.training.written import IGNORED, collate

PASS = 4096
"""Tokens, padding included, of a pass that stores logits."""
CHUNK = 2**23
"""Logits at once: 33 MB in float32."""


class Teacher(Protocol):
    """Tells the soft labels of a batch."""

    def soft(self, batch: dict[str, Any], chosen: Tensor) -> SoftLabels:
        """Of the chosen positions [B, T-1], row after row. batch: of `written.collate`, with its `rows`."""


class ModelTeacher:
    """A frozen model: one pass without gradients over each batch. Its weights are the caller's."""

    def __init__(self, model: Any) -> None:
        self.model = model.requires_grad_(False).eval()
        self.layer = plain_output_layer(model)

    @torch.no_grad()
    def soft(self, batch: dict[str, Any], chosen: Tensor) -> Whole:
        """See Teacher."""
        return Whole(output_states(self.model, self.layer, batch, chosen), self.layer)


class StoredTeacher:
    """Stored logits; see `stored.StoredLogits.require` for what must be checked first."""

    def __init__(self, logits: StoredLogits, temperature: float, tail: Tail) -> None:
        self.logits, self.temperature, self.tail = logits, temperature, tail

    def soft(self, batch: dict[str, Any], chosen: Tensor) -> SoftLabels:
        """See Teacher."""
        return self.logits.read([e for row in batch["rows"] for e in row.examples], self.temperature, self.tail,
                                chosen.device)


@torch.no_grad()
def soft_rows(model: Any, examples: Sequence[Example], pad: int, k: int, temperatures: Sequence[float],
              *, told: Callable[[int], None] | None = None) -> list[StoredRow]:
    """The top k of a model's distributions at the learned positions of each example. told: how many tokens are read."""
    layer = plain_output_layer(model)
    found: dict[int, StoredRow] = {}
    for part in passes(examples):
        batch = {n: t.to(model.device) for n, t in collate([[examples[i]] for i in part], pad).items()}
        chosen = batch["labels"][:, 1:] != IGNORED
        states = output_states(model, layer, batch, chosen)
        rows = max(1, CHUNK // int(model.config.get_text_config().vocab_size))
        pieces = [top_of(s if layer is None else layer(s), k, list(temperatures)) for s in states.split(rows)]
        ids, logps, tails = (torch.cat(column).cpu() for column in zip(*pieces, strict=True))
        ends = chosen.sum(-1).cumsum(0).tolist()
        for i, start, end in zip(part, [0, *ends], ends, strict=False):
            found[i] = StoredRow(ids[start:end].numpy(), logps[start:end].numpy(), tails[start:end].numpy())
        if told is not None:
            told(sum(len(examples[i].ids) for i in part))
    return [found[i] for i in range(len(examples))]


def passes(examples: Sequence[Example]) -> list[list[int]]:
    """Numbers of examples by passes: those of like length together, at most PASS tokens with their padding."""
    passes: list[list[int]] = []
    for i in sorted(range(len(examples)), key=lambda i: (len(examples[i].ids), i)):
        if passes and (len(passes[-1]) + 1) * len(examples[i].ids) <= PASS:
            passes[-1].append(i)
        else:
            passes.append([i])
    return passes
