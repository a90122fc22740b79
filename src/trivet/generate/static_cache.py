"""Keys and values of the rows at work, in memory that is allocated once and in which a row's place is its number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

BUCKET = 64  # places by which the capacity grows: few shapes, few allocations
WINDOW = 16  # attention looks at a multiple of this many places


@dataclass(frozen=True)
class Prefix:
    """A prompt that was read: keys and values of each layer as views [heads, length, size], and its next logits [V]."""

    keys: list[Tensor]
    values: list[Tensor]
    logits: Tensor

    @property
    def length(self) -> int:
        return int(self.keys[0].shape[1])


class SlotCache(Cache):
    """Keys and values [layers, rows, places, heads, size]. Row k of a decode step is slot k; there are no gaps.

    Every row has a length of its own and stands at the left end of its slot, so that a position is a place. What is
    to the right of a row's length is finite (zeros, or what others left) and masked. transformers' models take it
    for one of theirs: `update` is called by each layer of a decode step, after `begin`.
    """

    def __init__(self, like: Prefix, rows: int, capacity: int) -> None:
        """Raises ValueError where layers differ in shape: such a model is not for this cache."""
        super().__init__(layers=[])
        shapes = {(k.shape[0], k.shape[2], v.shape[0], v.shape[2], k.dtype)
                  for k, v in zip(like.keys, like.values, strict=True)}
        if len(shapes) != 1:
            raise ValueError("its layers keep keys and values of different shapes")
        (heads, key_size, value_heads, value_size, dtype), = shapes
        places = _rounded(capacity, BUCKET)
        # zeros, not empty: a masked NaN is still a NaN once it is multiplied with 0
        new = like.keys[0].new_zeros
        self.keys = new((len(like.keys), rows, places, heads, key_size), dtype=dtype)
        self.values = new((len(like.keys), rows, places, value_heads, value_size), dtype=dtype)
        self.lengths: list[int] = []
        self._places: Tensor | None = None
        self._window = 0

    @property
    def capacity(self) -> int:
        return self.keys.shape[2]

    def require(self, capacity: int, rows: int | None = None) -> None:
        """Make room for rows of `capacity` tokens. rows: how many the cache has then, those at work at least; default:
        as many as before."""
        rows = self.keys.shape[1] if rows is None else max(rows, len(self.lengths))
        if capacity <= self.capacity and rows == self.keys.shape[1]:
            return
        places = max(_rounded(capacity, BUCKET), self.capacity)
        at_work = len(self.lengths)
        for name in ("keys", "values"):
            old: Tensor = getattr(self, name)
            new = old.new_zeros((old.shape[0], rows, places, *old.shape[3:]))
            new[:, :at_work, : old.shape[2]] = old[:, :at_work]
            setattr(self, name, new)

    def enter(self, prefix: Prefix) -> None:
        """A new row, the last, begins with what a prompt left."""
        row, length = len(self.lengths), prefix.length
        for layer, (keys, values) in enumerate(zip(prefix.keys, prefix.values, strict=True)):
            self.keys[layer, row, :length] = keys.transpose(0, 1)
            self.values[layer, row, :length] = values.transpose(0, 1)
        self.lengths.append(length)

    def leave(self, row: int) -> None:
        """A row leaves; the last one takes its place."""
        length = self.lengths.pop()
        last = len(self.lengths)
        if row < last:
            self.lengths[row] = length
            for tensor in (self.keys, self.values):
                tensor[:, row, :length] = tensor[:, last, :length]

    def begin(self) -> tuple[Tensor, Tensor]:
        """Open a place for one more token in each row: (positions [N], additive mask [N, 1, 1, window])."""
        rows = len(self.lengths)
        lengths = torch.tensor(self.lengths, device=self.keys.device)
        self._places = lengths + torch.arange(rows, device=lengths.device) * self.capacity
        self._window = min(_rounded(max(self.lengths) + 1, WINDOW), self.capacity)
        hidden = torch.arange(self._window, device=lengths.device) > lengths.unsqueeze(-1)
        mask = torch.zeros(hidden.shape, dtype=self.keys.dtype, device=lengths.device)
        mask.masked_fill_(hidden, torch.finfo(mask.dtype).min)
        self.lengths = [n + 1 for n in self.lengths]
        return lengths, mask[:, None, None]

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """One new token of each row, [N, heads, size] -> all that rows may look at, views [N, heads, window, size]."""
        assert self._places is not None
        rows, found = keys.shape[0], []
        for tensor, new in ((self.keys, keys), (self.values, values)):
            tensor[layer].view(-1, *new.shape[1:]).index_copy_(0, self._places, new)
            found.append(tensor[layer, :rows, : self._window].transpose(1, 2))
        return found[0], found[1]

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any,
               **kwargs: Any) -> tuple[Tensor, Tensor]:
        """See transformers' Cache: new keys and values [N, heads, 1, size]."""
        return self.write(layer_idx, key_states.squeeze(2), value_states.squeeze(2))

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """The longest row, without the token at work."""
        return max(self.lengths, default=1) - 1


def prefixes(cache: Any, lengths: Sequence[int], logits: Tensor) -> list[Prefix]:
    """What prompts of these lengths, padded on the right, left in a transformers cache."""
    return [Prefix([layer.keys[i, :, :n] for layer in cache.layers],
                   [layer.values[i, :, :n] for layer in cache.layers], logits[i]) for i, n in enumerate(lengths)]


def _rounded(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
