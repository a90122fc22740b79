"""Rows of engines whose cache holds rows of one length: a wave enters together, and the next when all of it has left.

A row that leaves early makes the others faster where that pays, but none takes its place: prompts that come meanwhile
wait. The engines that let rows in at any time are torch on the static cache and llama.cpp.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

if TYPE_CHECKING:
    from trivet.generate.openvino_engine import OpenVINOEngine

LEAVE = 0.75
"""Rows leave the cache when no more than this share of it is at work: leaving copies it."""


class Passes(Protocol):
    """A model with a cache of rows of one length, padded on the left."""

    def read(self, ids: np.ndarray, mask: np.ndarray, places: np.ndarray) -> torch.Tensor:
        """Empty the cache, then read prompts [N, T]; the last logits [N, V]."""

    def step(self, ids: np.ndarray, mask: np.ndarray, places: np.ndarray, rows: np.ndarray) -> torch.Tensor:
        """A token [N, 1] for the rows of the cache that `rows` [N] names; they are the cache then. Logits [N, V]."""


class Waves:
    """See stepping.Stepper."""

    def __init__(self, passes: Passes, *, width: int, longest: int, room: int) -> None:
        self.passes, self.width, self.longest, self.room = passes, width, longest, room
        self._keys: list[int | None] = []
        """Rows of the cache; None: it has left, and draws on into nothing."""
        self._mask = np.zeros((0, 0), np.int64)
        self._from = np.zeros(0, np.int64)
        """Which row of the cache each row goes on from."""
        self._next = 0

    def fits(self, totals: Sequence[int]) -> bool:
        """See Stepper."""
        return not self._keys and len(totals) <= max(1, min(self.width, self.room // max(totals, default=1)))

    def enter(self, prompts: Sequence[Sequence[int]], copies: Sequence[int],
              totals: Sequence[int]) -> tuple[list[int], torch.Tensor]:
        """See Stepper."""
        assert not self._keys
        width = max(map(len, prompts))
        ids = np.zeros((len(prompts), width), np.int64)
        mask = np.zeros_like(ids)
        for k, prompt in enumerate(prompts):
            ids[k, width - len(prompt):], mask[k, width - len(prompt):] = list(prompt), 1
        logits = self.passes.read(ids, mask, np.maximum(mask.cumsum(-1) - 1, 0))
        self._from = np.repeat(np.arange(len(prompts)), copies)
        self._mask = mask[self._from]
        keys = list(range(self._next, self._next + len(self._from)))
        self._next += len(keys)
        self._keys = list(keys)
        return keys, logits[torch.from_numpy(self._from).to(logits.device)]

    def step(self, tokens: Mapping[int, int]) -> tuple[list[int], torch.Tensor]:
        """See Stepper."""
        still = [k for k, key in enumerate(self._keys) if key is not None]
        if len(still) <= LEAVE * len(self._keys):
            self._keys = [self._keys[k] for k in still]
            self._mask, self._from = self._mask[still], self._from[still]
        ids = np.array([[0 if key is None else tokens[key]] for key in self._keys], np.int64)
        places = self._mask.sum(-1, keepdims=True)
        self._mask = np.concatenate([self._mask, np.ones((len(self._keys), 1), np.int64)], -1)
        logits = self.passes.step(ids, self._mask, places, self._from)
        self._from = np.arange(len(self._keys))
        at_work = [k for k, key in enumerate(self._keys) if key is not None]
        return [key for key in self._keys if key is not None], logits[torch.tensor(at_work, device=logits.device)]

    def leave(self, keys: Collection[int]) -> None:
        """See Stepper."""
        self._keys = [None if key in keys else key for key in self._keys]
        if all(key is None for key in self._keys):
            self._keys = []

    def clear(self) -> None:
        """See Stepper."""
        self._keys = []

    def close(self) -> None:
        """See Stepper."""
        self.clear()


class TorchPasses:
    """A transformers model on its own cache."""

    def __init__(self, model: Any, pad: int) -> None:
        self.model, self.pad = model, pad
        self._cache: Any = None

    @torch.no_grad()
    def read(self, ids: np.ndarray, mask: np.ndarray, places: np.ndarray) -> torch.Tensor:
        """See Passes."""
        device = self.model.device
        padded = np.where(mask == 1, ids, self.pad)
        out = self.model(input_ids=torch.from_numpy(padded).to(device), use_cache=True, logits_to_keep=1,
                         attention_mask=torch.from_numpy(mask).to(device),
                         position_ids=torch.from_numpy(places).to(device))
        self._cache = out.past_key_values
        return out.logits[:, -1]

    @torch.no_grad()
    def step(self, ids: np.ndarray, mask: np.ndarray, places: np.ndarray, rows: np.ndarray) -> torch.Tensor:
        """See Passes."""
        device = self.model.device
        if len(rows) != self._rows or (rows != np.arange(len(rows))).any():
            self._cache.batch_select_indices(torch.from_numpy(rows).to(device))
        out = self.model(input_ids=torch.from_numpy(ids).to(device), past_key_values=self._cache, use_cache=True,
                         attention_mask=torch.from_numpy(mask).to(device), logits_to_keep=1,
                         position_ids=torch.from_numpy(places).to(device))
        return out.logits[:, -1]

    @property
    def _rows(self) -> int:
        return int(self._cache.layers[0].keys.shape[0]) if hasattr(self._cache, "layers") else -1


class OpenVINOPasses:
    """A graph that was exported by compress/openvino_graph.py."""

    def __init__(self, engine: OpenVINOEngine) -> None:
        self.engine = engine

    def read(self, ids: np.ndarray, mask: np.ndarray, places: np.ndarray) -> torch.Tensor:
        """See Passes."""
        self.engine.request.reset_state()
        return self._pass(ids, mask, places, np.arange(len(ids)), ids.shape[1] - 1)

    def step(self, ids: np.ndarray, mask: np.ndarray, places: np.ndarray, rows: np.ndarray) -> torch.Tensor:
        """See Passes."""
        return self._pass(ids, mask, places, rows, 0)

    def _pass(self, ids: np.ndarray, mask: np.ndarray, places: np.ndarray, rows: np.ndarray,
              logits_from: int) -> torch.Tensor:
        return torch.from_numpy(self.engine.logits(ids, mask, places, rows, logits_from)[:, -1].copy())
