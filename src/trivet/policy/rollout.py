"""Rollouts: sampled answers, their masks, and the micro-batches in which every pass of a step sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from trivet.artifacts import Prompt
from trivet.generate.base import Generated
from trivet.generate.torch_engine import left_padded, positions
from trivet.judge.base import Sample
from trivet.training.ranks import here


@dataclass(frozen=True)
class Rollout:
    """B answers. `mask` [B, R] is true on sampled tokens, the end token included, and on nothing else: it is
    made from lengths, never from padding ids (detail 1)."""

    samples: list[Sample]
    prompts: list[tuple[int, ...]]
    answers: list[tuple[int, ...]]
    ended: list[bool]
    mask: torch.Tensor

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def tokens(self) -> int:
        return sum(map(len, self.answers))


@dataclass(frozen=True)
class MicroBatch:
    """Rows of a rollout as a model sees them: prompts padded on the left, answers on the right.

    ids, mask, position_ids [b, P + r]; tokens, response_mask [b, r]; rows: their numbers in the rollout.
    """

    rows: tuple[int, ...]
    ids: torch.Tensor
    mask: torch.Tensor
    position_ids: torch.Tensor
    tokens: torch.Tensor
    response_mask: torch.Tensor

    @property
    def width(self) -> int:
        return self.tokens.shape[1]


def length_mask(lengths: Sequence[int]) -> torch.Tensor:
    """[N, max] true on the first `lengths[i]` places of row i."""
    return torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]


def make_rollout(prompts: Sequence[Prompt], prompt_tokens: Sequence[Sequence[int]],
                 answers: Sequence[Generated], texts: Sequence[str]) -> Rollout:
    """A rollout from prompts and one generated answer to each."""
    samples = [Sample(p.id, tuple(p.messages), t, p.reference, tuple(p.tags))
               for p, t in zip(prompts, texts, strict=True)]
    return Rollout(samples, [tuple(t) for t in prompt_tokens], [g.token_ids for g in answers],
                   [g.ended for g in answers], length_mask([len(g.token_ids) for g in answers]))


def micro_batch(rollout: Rollout, rows: Sequence[int], pad: int, device: Any) -> MicroBatch:
    """Some rows of a rollout as one micro-batch."""
    left, left_mask = left_padded([rollout.prompts[i] for i in rows], pad, device)
    lengths = [len(rollout.answers[i]) for i in rows]
    tokens = torch.full((len(rows), max(lengths)), pad, dtype=torch.long)
    for k, i in enumerate(rows):
        tokens[k, : lengths[k]] = torch.tensor(rollout.answers[i])
    response_mask = length_mask(lengths)
    tokens, response_mask = tokens.to(device), response_mask.to(device)
    mask = torch.cat([left_mask, response_mask.long()], -1)
    return MicroBatch(tuple(rows), torch.cat([left, tokens], -1), mask, positions(mask), tokens, response_mask)


def layout(rollout: Rollout, minibatches: int, size: int, seed: int, pad: int,
           device: Any) -> list[list[MicroBatch]]:
    """The step's minibatches, each a list of micro-batches. One layout serves every pass of the step.

    Rows are dealt to minibatches at random; inside one, rows of like length stand together, to pad little.
    """
    order = torch.randperm(len(rollout), generator=torch.Generator().manual_seed(seed)).tolist()
    found = []
    for m in range(minibatches):
        rows = sorted(order[m::minibatches],
                      key=lambda i: (len(rollout.prompts[i]) + len(rollout.answers[i]), i))
        found.append([micro_batch(rollout, rows[k : k + size], pad, device)
                      for k in range(0, len(rows), size)])
    return found


def share_out(micros: list[MicroBatch], even: bool) -> list[MicroBatch]:
    """This rank's micro-batches.

    even: as many on each rank, since passes of models that are spread over the ranks must be; a rank that has one
    less is given one of no `rows`, whose passes count for nothing.
    """
    mine = here().deal(micros)
    if even and len(mine) * here().world < len(micros):
        mine.append(replace(micros[0], rows=()))
    return mine


def batch_indices(step: int, prompts: int, size: int, seed: int) -> list[int]:
    """Which prompts step `step` (from 1) takes: permutations of all prompts, one after the other.

    A function of the step alone, so that the sampler's place needs no saving beyond it.
    """
    found: list[int] = []
    place = (step - 1) * size
    while len(found) < size:
        epoch, offset = divmod(place + len(found), prompts)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        found += torch.randperm(prompts, generator=generator).tolist()[offset : offset + size - len(found)]
    return found
