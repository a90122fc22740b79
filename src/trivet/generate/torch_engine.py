"""The in-process engine: any decoder-only transformers model.

The completions of one prompt share its prefill, finished rows leave the batch, and every row draws from a
random generator of its own, so that an answer depends on its seed and not on its neighbours (up to the
arithmetic of another batch width). Weights are the caller's: nothing is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from trivet.errors import TrivetError
from trivet.generate.base import Capabilities, Generated
from trivet.generate.config import Sampling


def row_uniforms(seed: int, row: int, count: int) -> torch.Tensor:
    """`count` uniform numbers in [0, 1), float64, for one answer."""
    mixed = (seed * 1_000_003 + row * 7_919 + 12_345) % (2**63 - 1)
    return torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(mixed))


def sampling_logps(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Log-probabilities [N, V] that tokens are drawn from: temperature, then top-k, then top-p.

    Temperature 0 puts all mass on the best token.
    """
    logits = logits.float()
    if sampling.temperature == 0:
        best = torch.full_like(logits, -torch.inf)
        return best.scatter_(-1, logits.argmax(-1, keepdim=True), 0.0)
    logps = torch.log_softmax(logits / sampling.temperature, -1)
    if 0 < sampling.top_k < logps.shape[-1]:
        least = logps.topk(sampling.top_k, -1).values[..., -1:]
        logps = torch.log_softmax(logps.masked_fill(logps < least, -torch.inf), -1)
    if sampling.top_p < 1:
        ordered, index = logps.sort(-1, descending=True)
        before = ordered.exp().cumsum(-1) - ordered.exp()  # mass of the tokens ahead of each
        drop = torch.zeros_like(logps, dtype=torch.bool).scatter_(-1, index, before >= sampling.top_p)
        logps = torch.log_softmax(logps.masked_fill(drop, -torch.inf), -1)
    return logps


def draw(logps: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """One token [N] from log-probabilities [N, V] by inversion of the distribution function.

    uniform: [N] in [0, 1). Tokens of probability 0 are never drawn.
    """
    mass = logps.exp().double().cumsum(-1)
    target = (uniform.to(mass.device) * mass[:, -1]).unsqueeze(-1)
    return torch.searchsorted(mass, target, right=True).squeeze(-1).clamp_(max=logps.shape[-1] - 1)


def left_padded(rows: Sequence[Sequence[int]], pad: int, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """ids [N, T] and mask [N, T] (1 = real) of token rows, padded on the left."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, width - len(row):] = torch.tensor(row, dtype=torch.long)
        mask[i, width - len(row):] = 1
    return ids.to(device), mask.to(device)


def positions(mask: torch.Tensor) -> torch.Tensor:
    """Position ids from a mask (detail 3): the first real token stands at 0 however much padding is left of it."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


class TorchEngine:
    """Generates with a transformers causal model in this process."""

    capabilities = Capabilities(logps=True, score=True)

    def __init__(self, model: Any, pad: int, stops: frozenset[int], *, batch_size: int = 32,
                 progress: Callable[[int], None] | None = None) -> None:
        """pad: a padding id (never used to find masks). stops: tokens that end an answer."""
        self.model, self.pad, self.stops = model, pad, stops
        self.batch_size, self.progress = batch_size, progress

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, *, n: int, seeds: Sequence[int]
    ) -> list[list[Generated]]:
        """See Engine.generate. Prompts of like length are generated side by side.

        Raises TrivetError for an empty prompt.
        """
        if any(len(p) == 0 for p in prompts):
            raise TrivetError("a prompt has no tokens", field="messages", mend="give every prompt some text")
        results: list[list[Generated]] = [[] for _ in prompts]
        group = max(1, self.batch_size // n)
        order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
        for start in range(0, len(order), group):
            chosen = order[start : start + group]
            answers = self._batch([prompts[i] for i in chosen], sampling, n, [seeds[i] for i in chosen])
            for k, i in enumerate(chosen):
                results[i] = answers[k * n : (k + 1) * n]
            if self.progress is not None:
                self.progress(len(chosen) * n)
        return results

    def _batch(self, prompts: list[Sequence[int]], sampling: Sampling, n: int,
               seeds: list[int]) -> list[Generated]:
        device = self.model.device
        ids, mask = left_padded(prompts, self.pad, device)
        out = self.model(input_ids=ids, attention_mask=mask, position_ids=positions(mask), use_cache=True,
                         logits_to_keep=1)
        cache, logits = out.past_key_values, out.logits[:, -1]
        if n > 1:
            cache.batch_repeat_interleave(n)
            logits, mask = logits.repeat_interleave(n, 0), mask.repeat_interleave(n, 0)
        rows = len(prompts) * n
        uniforms = torch.stack([row_uniforms(s, j, sampling.max_new_tokens) for s in seeds for j in range(n)])
        next_position = mask.sum(-1, keepdim=True)
        stops = torch.tensor(sorted(self.stops), device=device)
        alive = torch.arange(rows)  # rows still in the batch, by their number
        running = torch.ones(rows, dtype=torch.bool)
        tokens: list[list[int]] = [[] for _ in range(rows)]
        logps: list[list[float]] = [[] for _ in range(rows)]
        for step in range(sampling.max_new_tokens):
            distribution = sampling_logps(logits, sampling)
            token = draw(distribution, uniforms[alive, step])
            chosen = distribution.gather(-1, token.unsqueeze(-1)).squeeze(-1)
            ended = torch.isin(token, stops).cpu()
            for k, (i, t, p) in enumerate(zip(alive.tolist(), token.tolist(), chosen.tolist(), strict=True)):
                if running[i]:
                    tokens[i].append(t)
                    logps[i].append(p)
                    running[i] = not ended[k]
            still = running[alive]
            if not still.any() or step + 1 == sampling.max_new_tokens:
                break
            if still.sum() <= 0.75 * len(alive):  # dropping copies the cache: only when it pays
                keep = still.nonzero().squeeze(-1)
                alive, keep = alive[keep], keep.to(device)
                cache.batch_select_indices(keep)
                token, mask, next_position = token[keep], mask[keep], next_position[keep]
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], -1)
            out = self.model(input_ids=token.unsqueeze(-1), attention_mask=mask, position_ids=next_position,
                             past_key_values=cache, use_cache=True, logits_to_keep=1)
            logits, next_position = out.logits[:, -1], next_position + 1
        return [Generated(tuple(t), tuple(p), bool(t and t[-1] in self.stops))
                for t, p in zip(tokens, logps, strict=True)]

    @torch.no_grad()
    def score(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]],
              temperature: float = 1.0) -> list[list[float]]:
        """See Engine.score. Answers are padded on the right, prompts on the left."""
        results: list[list[float]] = [[] for _ in prompts]
        order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]) + len(answers[i]), i))
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            width = max(len(answers[i]) for i in chosen)
            left, left_mask = left_padded([prompts[i] for i in chosen], self.pad, self.model.device)
            right = torch.full((len(chosen), width), self.pad, device=self.model.device)
            right_mask = torch.zeros_like(right)
            for k, i in enumerate(chosen):
                right[k, : len(answers[i])] = torch.tensor(list(answers[i]), device=right.device)
                right_mask[k, : len(answers[i])] = 1
            mask = torch.cat([left_mask, right_mask], -1)
            logits = self.model(input_ids=torch.cat([left, right], -1), attention_mask=mask,
                                position_ids=positions(mask), use_cache=False,
                                logits_to_keep=width + 1).logits[:, :-1]
            logps = torch.log_softmax(logits.float() / temperature, -1)
            chosen_logps = logps.gather(-1, right.unsqueeze(-1)).squeeze(-1)
            for k, i in enumerate(chosen):
                results[i] = chosen_logps[k, : len(answers[i])].tolist()
        return results
