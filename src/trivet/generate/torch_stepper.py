"""Rows of a transformers model that come and go on the static cache."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import torch

from trivet.generate.decoding import StaticDecoding
from trivet.generate.static_cache import SlotCache

PREFILL = 1024
"""Tokens of prompts that are read side by side."""
SMALLEST = 256
"""Places of a row at least: the cache grows by doubling, since growing copies it."""


class TorchStepper:
    """See stepping.Stepper. The cache has as many rows as its room allows at the length of the longest row."""

    def __init__(self, road: StaticDecoding, *, width: int, longest: int, room: int) -> None:
        self.road, self.width, self.longest, self.room = road, width, longest, room
        self._cache: SlotCache | None = None
        self._keys: list[int] = []
        """The rows at work, in the cache's order."""
        self._next = 0

    def fits(self, totals: Sequence[int]) -> bool:
        """See Stepper."""
        if not totals:
            return True
        return len(self._keys) + len(totals) <= self._rows(self._places(max(totals)))

    def _places(self, total: int) -> int:
        """Places of a row in a cache that holds a row of `total` tokens, and those that it holds already."""
        places = SMALLEST if self._cache is None else self._cache.capacity
        while places < total:
            places *= 2
        return max(min(places, self.longest), total)

    def _rows(self, places: int) -> int:
        return max(1, min(self.width, self.room // places))

    @torch.no_grad()
    def enter(self, prompts: Sequence[Sequence[int]], copies: Sequence[int],
              totals: Sequence[int]) -> tuple[list[int], torch.Tensor]:
        """See Stepper."""
        self.road.share([])
        read = [prefix for part in _parts(prompts) for prefix in self.road.read(part)]
        places = self._places(max(totals))
        if self._cache is None:
            self._cache = SlotCache(read[0], self._rows(places), places)
        self._cache.require(places, self._rows(places))
        keys, logits = list[int](), list[torch.Tensor]()
        for prefix, count in zip(read, copies, strict=True):
            for _ in range(count):
                self._cache.enter(prefix)
                keys.append(self._next)
                logits.append(prefix.logits)
                self._next += 1
        self._keys += keys
        return keys, torch.stack(logits)

    @torch.no_grad()
    def step(self, tokens: Mapping[int, int]) -> tuple[list[int], torch.Tensor]:
        """See Stepper."""
        assert self._cache is not None
        return list(self._keys), self.road.step(self._cache, [tokens[key] for key in self._keys])

    def leave(self, keys: Collection[int]) -> None:
        """See Stepper."""
        assert self._cache is not None or not keys
        for row in reversed([k for k, key in enumerate(self._keys) if key in keys]):
            assert self._cache is not None
            self._cache.leave(row)
            self._keys[row] = self._keys[-1]
            self._keys.pop()
        if not self._keys and self._cache is not None and self._cache.capacity > 4 * SMALLEST:
            self._cache = None  # a long row made it narrow: the next ones begin with a wide one

    def clear(self) -> None:
        """See Stepper."""
        self._cache, self._keys = None, []

    def close(self) -> None:
        """See Stepper."""
        self.clear()


def _parts(prompts: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    """Prompts in their order, as many as make PREFILL tokens with their padding, one in any case."""
    part: list[Sequence[int]] = []
    for prompt in prompts:
        if part and (len(part) + 1) * max(len(prompt), *map(len, part)) > PREFILL:
            yield part
            part = []
        part.append(prompt)
    if part:
        yield part


