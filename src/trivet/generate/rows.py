"""The answers that an engine is making: what each has so far, its random numbers, and one token more for several."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from trivet.errors import TrivetError
from trivet.generate.base import Generated
from trivet.generate.config import Sampling
from trivet.generate.sampling import row_uniforms, sample
from trivet.generate.stops import StopStrings


class Row:
    """One answer that is being made."""

    def __init__(self, prompt: int, answer: int, seed: int, limit: int) -> None:
        self.prompt, self.answer = prompt, answer
        self.uniforms: list[float] = row_uniforms(seed, answer, limit).tolist()
        self.tokens: list[int] = []
        self.logps: list[float] = []
        self.ended = False

    @property
    def finished(self) -> bool:
        return self.ended or len(self.tokens) == len(self.uniforms)

    @property
    def generated(self) -> Generated:
        return Generated(tuple(self.tokens), tuple(self.logps), self.ended)


def begin(prompts: Sequence[Sequence[int]], n: int, seeds: Sequence[int], limits: Sequence[int]) -> list[Row]:
    """n rows for each prompt. Prompts of like length stand together: they are read side by side, and rows at work
    differ little.

    Raises TrivetError for an empty prompt.
    """
    if any(len(p) == 0 for p in prompts):
        raise TrivetError("a prompt has no tokens", field="messages", mend="give every prompt some text")
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    return [Row(i, j, seeds[i], limits[i]) for i in order for j in range(n)]


def by_prompt(rows: Sequence[Row], prompts: int) -> list[list[Generated]]:
    """The answers to each of so many prompts, in their order."""
    results: list[list[Generated]] = [[] for _ in range(prompts)]
    for row in rows:
        results[row.prompt].append(row.generated)
    return results


def draw_rows(rows: Sequence[Row], logits: torch.Tensor, sampling: Sampling, stops: Collection[int],
              strings: StopStrings | Sequence[StopStrings]) -> None:
    """A token more for each row, from logits [N, V], which are overwritten. strings: of all rows, or of each."""
    uniform = torch.tensor([r.uniforms[len(r.tokens)] for r in rows], dtype=torch.float64)
    own = [strings] * len(rows) if isinstance(strings, StopStrings) else strings
    for row, ends, token, logp in zip(rows, own, *sample(logits, sampling, uniform), strict=True):
        row.tokens.append(token)
        row.logps.append(logp)
        row.ended = token in stops or ends.complete(row.tokens)
