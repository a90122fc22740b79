"""How far a smaller model's outputs are from its source's, on held-out text, whatever engine runs either."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from trivet.intervals import Interval, bootstrap_statistics

Distribution = Callable[[Sequence[int]], np.ndarray]
"""Log-probabilities [T, V], float32, of the token that follows each of T tokens (`LocalEngine.distribution`)."""


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


def token_kl(source: np.ndarray, other: np.ndarray) -> np.ndarray:
    """KL(source ‖ other) at each place [N] in nats, of log-probabilities [N, V]; summed in float64.

    A token that the source never says adds nothing. Never below 0 but for rounding, which is cut off.
    """
    p, q = source.astype(np.float64), other.astype(np.float64)
    said = np.isfinite(p)
    gap = np.subtract(p, q, out=np.zeros_like(p), where=said)
    return np.maximum((np.exp(p) * gap).sum(axis=-1), 0.0)


def compare(source: Distribution, model: Distribution, windows: Sequence[Tensor], seed: int = 0) -> Comparison:
    """Both models on the same windows of token ids, [T] each."""
    rows = []
    for window in windows:
        ids = window.tolist()
        one, other = (find(ids)[:-1] for find in (source, model))
        places = np.arange(len(ids) - 1), np.array(ids[1:])
        said = [-float(p[places].sum(dtype=np.float64)) for p in (one, other)]
        same = float((one.argmax(-1) == other.argmax(-1)).sum())
        rows.append([*said, float(token_kl(one, other).sum()), same, len(ids) - 1.0])

    def statistics(sums: Any) -> Any:
        means = sums[..., :4] / sums[..., 4:]
        return np.concatenate([means[..., 1:2] - means[..., :1], means[..., :1], means[..., 2:]], -1)

    log_ratio, nats, kl_mean, agreement = bootstrap_statistics(rows, list(range(len(rows))), statistics, seed=seed)
    return Comparison(perplexity=math.exp(nats.value + log_ratio.value), source_perplexity=math.exp(nats.value),
                      log_ratio=log_ratio, kl=kl_mean, agreement=agreement)
