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
from trivet.models.packed import Lines
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
    behaviour_logps: torch.Tensor | None = None
    """Log-probabilities [B, R] that another engine gave for what it drew, 0 outside the mask; None where the policy
    that is trained drew it."""

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def tokens(self) -> int:
        return sum(map(len, self.answers))


@dataclass(frozen=True)
class Packed:
    """The N tokens of a micro-batch in one row, a prompt that stands before several answers only once.

    ids, position_ids [1, N]; lines: how they belong together; predicts [M]: the places in the row whose states
    predict the response tokens, in the order of response_mask's true entries.
    """

    ids: torch.Tensor
    position_ids: torch.Tensor
    lines: Lines
    predicts: torch.Tensor


@dataclass(frozen=True)
class MicroBatch:
    """Rows of a rollout as a model sees them: prompts padded on the left, answers on the right.

    ids, mask, position_ids [b, P + r]; tokens, response_mask [b, r]; rows: their numbers in the rollout; packed: the
    same without padding.
    """

    rows: tuple[int, ...]
    ids: torch.Tensor
    mask: torch.Tensor
    position_ids: torch.Tensor
    tokens: torch.Tensor
    response_mask: torch.Tensor
    packed: Packed

    @property
    def width(self) -> int:
        return self.tokens.shape[1]


def length_mask(lengths: Sequence[int]) -> torch.Tensor:
    """[N, max] true on the first `lengths[i]` places of row i."""
    return torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]


def make_rollout(prompts: Sequence[Prompt], prompt_tokens: Sequence[Sequence[int]],
                 answers: Sequence[Generated], texts: Sequence[str], *, behaviour: bool = False) -> Rollout:
    """A rollout from prompts and one generated answer to each. behaviour: another engine drew them."""
    samples = [Sample(p.id, tuple(p.messages), t, p.reference, tuple(p.tags))
               for p, t in zip(prompts, texts, strict=True)]
    mask = length_mask([len(g.token_ids) for g in answers])
    logps = None
    if behaviour:
        logps = torch.zeros(mask.shape)
        logps[mask] = torch.tensor([p for g in answers for p in g.logps])
    return Rollout(samples, [tuple(t) for t in prompt_tokens], [g.token_ids for g in answers],
                   [g.ended for g in answers], mask, logps)


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
    packed = _packed([rollout.prompts[i] for i in rows], [rollout.answers[i] for i in rows], device)
    return MicroBatch(tuple(rows), torch.cat([left, tokens], -1), mask, positions(mask), tokens, response_mask, packed)


def _packed(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], device: Any) -> Packed:
    width = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    ids: list[int] = []
    position_ids: list[int] = []
    home: list[int] = []
    again: list[int] = []
    to: list[int] = []
    predicts: list[int] = []
    places = torch.zeros((len(prompts), width), dtype=torch.long)
    begins: dict[tuple[int, ...], int] = {}  # where a prompt stands that has been seen before
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        count, first = len(prompt), begins.get(tuple(prompt))
        if first is None:
            first = begins[tuple(prompt)] = len(ids)
            ids += prompt
            position_ids += range(count)
            home += range(i * width, i * width + count)
        else:
            again += range(i * width, i * width + count)
            to += range(first, first + count)
        start = len(ids)
        ids += answer
        position_ids += range(count, count + len(answer))
        home += range(i * width + count, i * width + count + len(answer))
        predicts += [first + count - 1, *range(start, start + len(answer) - 1)]
        places[i, :count] = torch.arange(first, first + count)
        places[i, count : count + len(answer)] = torch.arange(start, start + len(answer))

    def there(numbers: list[int]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.long, device=device)

    return Packed(there(ids)[None], there(position_ids)[None],
                  Lines(places.to(device), there(home), there(again), there(to)), there(predicts))


def layout(rollout: Rollout, minibatches: int, size: int, seed: int, pad: int,
           device: Any) -> list[list[MicroBatch]]:
    """The step's minibatches, each a list of micro-batches. One layout serves every pass of the step.

    Rows are dealt to minibatches at random; inside one, answers to one prompt stand together, so that a pass runs
    it once for them, and rows of like length, to pad little.
    """
    order = torch.randperm(len(rollout), generator=torch.Generator().manual_seed(seed)).tolist()
    found = []

    def length(i: int) -> int:
        return len(rollout.prompts[i]) + len(rollout.answers[i])

    for m in range(minibatches):
        rows = order[m::minibatches]
        longest: dict[tuple[int, ...], tuple[int, int]] = {}
        for i in rows:
            found_length = (length(i), i)
            longest[rollout.prompts[i]] = max(longest.get(rollout.prompts[i], found_length), found_length)
        rows.sort(key=lambda i: (longest[rollout.prompts[i]], length(i), i))
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
