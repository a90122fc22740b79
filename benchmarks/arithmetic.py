"""What a machine can compute, and what a PPO step needs: floating-point operations by formula.

Counted is what the result depends on: matrix products of real tokens (no padding), each query with the keys that it
sees, logits of the tokens that were drawn, nothing twice. A multiplication and an addition are two operations.
Elementwise work (norms, softmax, the optimizer) is left out, as is the field's custom.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

SHAPES = ((1024, 1024, 1024), (2048, 2048, 2048), (2048, 576, 1536), (4096, 1536, 576))
"""Rows, inner length, columns: square ones, and those of a small model's layers."""


def matmul_peak(dtype: torch.dtype, device: str, seconds: float = 1.0) -> float:
    """Operations a second of this machine's best matrix product, x·Wᵀ as in a linear layer: the best of several
    shapes."""
    best = 0.0
    shapes = SHAPES if device == "cpu" else (*SHAPES, (8192, 8192, 8192))  # a GPU is not filled by less
    for rows, inner, columns in shapes:
        x = torch.randn(rows, inner, device=device).to(dtype)
        w = torch.randn(columns, inner, device=device).to(dtype)
        times: list[float] = []
        until = time.perf_counter() + seconds / len(shapes)
        while len(times) < 5 or time.perf_counter() < until:
            began = _now(device)
            torch.nn.functional.linear(x, w)
            times.append(_now(device) - began)
        best = max(best, 2 * rows * inner * columns / sorted(times)[len(times) // 4])  # the lower quartile: undisturbed
    return best


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


@dataclass(frozen=True)
class Decoder:
    """The sizes of a decoder-only model of the Llama kind."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head: int
    intermediate: int
    vocabulary: int

    @classmethod
    def of(cls, config: Any) -> Decoder:
        """From a transformers configuration."""
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(config.num_hidden_layers, config.hidden_size, config.num_attention_heads,
                   config.num_key_value_heads, head, config.intermediate_size, config.vocab_size)

    @property
    def layers_in_out(self) -> list[tuple[int, int]]:
        """(in, out) of each linear layer of a block: q, k, v, o, gate, up, down."""
        h, a, k, i = self.hidden, self.heads * self.head, self.kv_heads * self.head, self.intermediate
        return [(h, a), (h, k), (h, k), (a, h), (h, i), (h, i), (i, h)]

    def linear(self, tokens: int) -> int:
        """All linear layers of the blocks over `tokens` tokens."""
        return 2 * tokens * self.layers * sum(i * o for i, o in self.layers_in_out)

    def adapters(self, tokens: int, rank: int) -> int:
        """LoRA of this rank on all of them."""
        return 2 * tokens * self.layers * rank * sum(i + o for i, o in self.layers_in_out)

    def attention(self, length: int) -> int:
        """Scores and values of one causal sequence: token t sees t keys."""
        return 4 * self.layers * self.heads * self.head * (length * (length + 1) // 2)

    def output(self, tokens: int) -> int:
        """Logits of `tokens` tokens."""
        return 2 * tokens * self.hidden * self.vocabulary


@dataclass(frozen=True)
class Work:
    """One PPO step: (prompt, answer) lengths in tokens, passes over the rollout, and whether old log-probabilities
    come from the update's own first pass (one micro-batch)."""

    lengths: Sequence[tuple[int, int]]
    epochs: int
    live: bool

    @property
    def read(self) -> list[int]:
        """Tokens of each row whose states predict its answer: all but the last."""
        return [p + r - 1 for p, r in self.lengths]

    @property
    def drawn(self) -> int:
        return sum(r for _, r in self.lengths)


def needed(model: Decoder, work: Work, *, tune: str, critic: str, rank: int = 16,
           old_from_rollout: bool = False) -> dict[str, float]:
    """Operations that each phase needs.

    tune full: policy and critic train all weights, so backward is twice forward. tune lora: the trunk is passed through
    (backward once forward), the adapters' products are done three times. critic head: on the policy's states, free.
    old_from_rollout: log-probabilities of the rollout are kept from sampling (TRL), so no pass makes them again.
    """
    states = model.linear(sum(work.read)) + sum(map(model.attention, work.read))
    logits, lora = model.output(work.drawn), model.adapters(sum(work.read), rank)
    whole = [p + r for p, r in work.lengths]
    scoring = model.linear(sum(whole)) + sum(map(model.attention, whole))
    apart = critic == "separate"
    if tune == "full":
        policy, value = states + logits, states * apart
        train = 3 * (policy + value)
    else:
        policy, value = states + logits + lora, (states + lora) * apart
        # attention has no weights: its backward is twice its forward, the trunk's linear layers' once
        attended = sum(map(model.attention, work.read))
        train = 2 * (states + logits) + attended + 3 * lora + (2 * states + attended + 3 * lora) * apart
        scoring += model.adapters(sum(whole), rank)
    evaluate = states + logits + value + (0 if old_from_rollout else policy)
    update = work.epochs * train - (policy if work.live and not old_from_rollout else 0)
    found = {"rollout": states + logits, "evaluate": evaluate, "scoring": scoring, "update": update}
    return {name: float(count) for name, count in found.items()}
