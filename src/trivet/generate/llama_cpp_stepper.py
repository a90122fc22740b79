"""Rows of a GGUF file that come and go in one llama.cpp context."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch

from trivet.generate import llama_cpp
from trivet.generate.llama_cpp_engine import LlamaCppEngine


class LlamaCppStepper:
    """See stepping.Stepper. Rows share the context's places; each takes as many as it has tokens."""

    def __init__(self, engine: LlamaCppEngine, *, width: int, longest: int, room: int) -> None:
        """Raises TrivetError where there is no memory for the room."""
        self.width, self.longest, self.room = min(width, llama_cpp.READ), longest, room
        # a sequence more than rows: a prompt is read in it; and its places, until its rows have taken them over
        self._context = llama_cpp.Context(engine.model, -(-(room + longest) // 256) * 256, self.width + 1,
                                          threads=engine.threads, kept=engine.kept)
        self._free = list(range(self.width))
        self._slots: dict[int, int] = {}
        self._lengths: dict[int, int] = {}
        self._totals: dict[int, int] = {}
        self._next = 0

    def fits(self, totals: Sequence[int]) -> bool:
        """See Stepper."""
        return len(totals) <= len(self._free) and sum(self._totals.values()) + sum(totals) <= self.room

    def enter(self, prompts: Sequence[Sequence[int]], copies: Sequence[int],
              totals: Sequence[int]) -> tuple[list[int], torch.Tensor]:
        """See Stepper."""
        keys, logits = list[int](), list[np.ndarray]()
        for prompt, count, total in zip(prompts, copies, totals, strict=True):
            self._context.remove(self.width)
            (last,) = self._context.read(prompt, self.width, len(prompt) - 1)
            for _ in range(count):
                key, slot = self._next, self._free.pop()
                self._next += 1
                self._context.copy(self.width, slot)
                self._slots[key], self._lengths[key], self._totals[key] = slot, len(prompt), total
                keys.append(key)
                logits.append(last[-1])
        self._context.remove(self.width)
        return keys, torch.from_numpy(np.stack(logits))

    def step(self, tokens: Mapping[int, int]) -> tuple[list[int], torch.Tensor]:
        """See Stepper."""
        keys = list(self._slots)
        logits = self._context.decode([tokens[k] for k in keys], [self._lengths[k] for k in keys],
                                      [self._slots[k] for k in keys], [True] * len(keys))
        for key in keys:
            self._lengths[key] += 1
        return keys, torch.from_numpy(logits)

    def leave(self, keys: Collection[int]) -> None:
        """See Stepper."""
        for key in keys:
            slot = self._slots.pop(key)
            self._context.remove(slot)
            self._free.append(slot)
            del self._lengths[key], self._totals[key]

    def clear(self) -> None:
        """See Stepper."""
        self._context.clear()
        self._free = list(range(self.width))
        for kept in (self._slots, self._lengths, self._totals):
            kept.clear()

    def close(self) -> None:
        """See Stepper."""
        self._context.close()
