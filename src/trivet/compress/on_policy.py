"""The student's own answers, written anew in each step, for the teacher to say what it would have written instead.

Agarwal et al. 2023, *On-policy distillation of language models* (GKD), section 3: a share of each batch is what the
student says now, so that it learns in the states that it gets itself into. No gradient flows through the sampling.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils import parametrize

from trivet.data.supervised import Example
from trivet.generate.config import Sampling
from trivet.generate.torch_engine import TorchEngine
from trivet.models.reward_model import plain
from trivet.runs import Run
from trivet.training import shard
from trivet.training.written import collate


@dataclass(frozen=True)
class TrainRow:
    """A row of a step: examples side by side. `number` names it among all rows."""

    number: int
    examples: tuple[Example, ...]
    hard: bool = True
    """Its labels are those of the data; False: the student wrote it, and nobody says that it is right."""


def tensors(rows: Sequence[TrainRow], pad: int) -> dict[str, Any]:
    """Rows as a batch: `written.collate` of them, `rows` themselves, and `hard` [N], whether a row has hard labels."""
    return {**collate([r.examples for r in rows], pad), "rows": list(rows),
            "hard": torch.tensor([r.hard for r in rows])}


def prompt_of(example: Example) -> tuple[int, ...]:
    """An example's tokens up to its last answer; empty for plain text."""
    end = len(example.written)
    while end and not example.written[end - 1]:
        end -= 1
    while end and example.written[end - 1]:
        end -= 1
    return example.ids[:end]


def is_drawn(seed: int, step: int, number: int, share: float) -> bool:
    """Whether a row is on policy in a step: a hash decides, so that nothing has to be saved."""
    digest = hashlib.sha256(f"on policy {seed} {step} {number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


class OnPolicy:
    """Replaces a share of a step's answers by the student's. Called by the trainer before each step (`fit`)."""

    def __init__(self, run: Run, *, share: float, sampling: Sampling, stops: frozenset[int], pad: int, tokenizer: Any,
                 seed: int, max_length: int) -> None:
        self.run, self.share, self.sampling, self.stops, self.pad = run, share, sampling, stops, pad
        self.tokenizer, self.seed, self.max_length = tokenizer, seed, max_length

    def __call__(self, model: Any, step: int, batches: list[dict[str, Any]]) -> None:
        """Change batches in place. Every rank must come by: a model that is spread is put together for it."""
        drawn = [(batch, place, row) for batch in batches for place, row in enumerate(batch["rows"])
                 if is_drawn(self.seed, step, row.number, self.share)]
        prompts = [prompt_of(row.examples[0]) for _, _, row in drawn]
        limits = [min(self.sampling.max_new_tokens, self.max_length - len(p)) for p in prompts]
        engine = TorchEngine(plain(model), self.pad, self.stops, tokenizer=self.tokenizer)
        was = model.training
        model.eval()
        with shard.whole(model), parametrize.cached():
            found = engine.generate(prompts, self.sampling, n=1, limits=limits,
                                    seeds=[self._seed(step, row.number) for _, _, row in drawn]) if prompts else []
        model.train(was)
        for (batch, place, row), prompt, (answer,) in zip(drawn, prompts, found, strict=True):
            said = Example((*prompt, *answer.token_ids), (False,) * len(prompt) + (True,) * len(answer.token_ids))
            batch["rows"][place] = TrainRow(row.number, (said,), hard=False)
        for batch in {id(b): b for b, _, _ in drawn}.values():
            batch.update(tensors(batch["rows"], self.pad))
        self.run.meter.count("prompt", sum(map(len, prompts)))
        self.run.meter.count("generated", sum(len(g.token_ids) for (g,) in found))

    def _seed(self, step: int, number: int) -> int:
        return int.from_bytes(hashlib.sha256(f"{self.seed} {step} {number}".encode()).digest()[:6], "big")
