"""How far a smaller model's outputs are from its source's, on held-out text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trivet.intervals import Interval, bootstrap_statistics


@dataclass(frozen=True)
class Comparison:
    """Over all tokens of the windows but each one's first; intervals draw windows."""

    perplexity: float
    source_perplexity: float
    log_ratio: Interval
    """Nats a token by which the text is less likely than by the source: ln(perplexity / source_perplexity)."""
    kl: Interval
    """KL(source ‖ model) of the next-token distributions, in nats a token."""
    agreement: Interval
    """Share of tokens for which both hold the same next token most likely."""


@torch.no_grad()
def compare(source: Any, model: Any, windows: Sequence[Tensor], seed: int = 0) -> Comparison:
    """Both models on the same windows of token ids, [T] each, in float32 after the output layer."""
    rows = []
    for window in windows:
        ids = window[None]
        logps = [torch.log_softmax(m(input_ids=ids.to(m.device), use_cache=False).logits[0, :-1].float(), -1).cpu()
                 for m in (source, model)]
        said = [-p.gather(1, ids[0, 1:, None])[:, 0].double().sum() for p in logps]
        kl = (logps[0].exp() * (logps[0] - logps[1])).sum(-1).double().sum()
        same = (logps[0].argmax(-1) == logps[1].argmax(-1)).sum()
        rows.append([float(said[0]), float(said[1]), float(kl), float(same), len(window) - 1.0])

    def statistics(sums: Any) -> Any:
        return sums[..., [1, 0, 2, 3]] / sums[..., 4:] - sums[..., [0]] / sums[..., 4:] * [1, 0, 0, 0]

    log_ratio, nats, kl_mean, agreement = bootstrap_statistics(rows, list(range(len(rows))), statistics, seed=seed)
    return Comparison(perplexity=math.exp(nats.value + log_ratio.value), source_perplexity=math.exp(nats.value),
                      log_ratio=log_ratio, kl=kl_mean, agreement=agreement)
