"""PPO-ptx: every update also learns a little of earlier data, against forgetting.

Ouyang et al. 2022, section 3.5 and eq. 2: the gradient of γ·E[log π(x)] on pretraining data is added to PPO's. Here
the data may as well be answers, as `sft` reads them. Which rows an optimizer step takes is a function of its number,
so a resumed run goes on where it was, with nothing to save.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from trivet.data.supervised import Example, read_examples
from trivet.errors import TrivetError
from trivet.models.output_layer import backbone, plain_output_layer
from trivet.policy.config import PPOConfig
from trivet.policy.rollout import batch_indices
from trivet.policy.vocabulary import linear_logps
from trivet.training.ranks import here
from trivet.training.written import IGNORED, collate, token_losses

_PTX_SEED = 55_001  # apart from the order of the prompts


@dataclass(frozen=True)
class EarlierData:
    """What is not to be forgotten, in token ids, and how an optimizer step takes its rows."""

    examples: list[Example]
    coef: float
    batch: int
    micro_batch: int
    seed: int
    pad: int
    device: str

    def rows(self, number: int) -> list[Example]:
        """The rows of optimizer step `number` (from 0): permutations of all, one after the other."""
        places = batch_indices(number + 1, len(self.examples), self.batch, self.seed + _PTX_SEED)
        return sorted((self.examples[i] for i in places), key=lambda e: (len(e.ids), e.ids))

    def parts(self, number: int, even: bool = False) -> Iterator[tuple[dict[str, torch.Tensor], float]]:
        """(tensors as `written.collate` makes them, learned tokens of the whole step) of each of this rank's passes.

        even: as many passes on each rank; one that is too many counts for nothing: its loss is divided by infinity.
        """
        rows = self.rows(number)
        learned = sum(sum(e.written[1:]) for e in rows)
        chunks = [rows[k : k + self.micro_batch] for k in range(0, len(rows), self.micro_batch)]
        mine: list[tuple[list[Example], float]] = [(chunk, learned) for chunk in here().deal(chunks)]
        if even and len(mine) * here().world < len(chunks):
            mine.append((chunks[0], math.inf))
        for chunk, denominator in mine:
            tensors = collate([[e] for e in chunk], self.pad)
            yield {name: t.to(self.device) for name, t in tensors.items()}, denominator

    def tokens(self, first: int, count: int) -> int:
        """Tokens of `count` optimizer steps from number `first` on."""
        return sum(len(e.ids) for n in range(first, first + count) for e in self.rows(n))


def earlier_data(config: PPOConfig, tokenizer: Any, context: int | None, device: str) -> EarlierData | None:
    """The data that `ptx` names; None where it names none, or gives it no weight.

    Raises TrivetError for data that does not fit, and for a length beyond the model's context.
    """
    settings = config.ptx
    if settings.data is None or settings.coef == 0:
        return None
    length = settings.max_length or min(512, context or 512)
    if context is not None and length > context:
        raise TrivetError(f"ptx.max_length is {length}, the model's context {context}",
                          field="ptx.max_length", mend=f"--ptx.max-length {context} at most")
    examples = read_examples(settings.data, tokenizer, length, setting="ptx.max-length")
    return EarlierData(examples, settings.coef, settings.batch, config.micro_batch, config.seed,
                       tokenizer.pad_token_id, device)


def summed_loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Cross-entropy summed over the learned tokens of a batch of `written.collate`, in nats, at temperature 1.

    A scalar; logits are made in chunks where the model's output layer allows it, else by `written.token_losses`.
    """
    layer = plain_output_layer(model)
    if layer is None:
        return token_losses(model, batch)[0]
    hidden = backbone(model)(input_ids=batch["input_ids"], position_ids=batch["position_ids"],
                             use_cache=False).last_hidden_state
    labels = batch["labels"][:, 1:]
    chosen = labels != IGNORED
    logps, _ = linear_logps(hidden[:, :-1][chosen], layer, labels[chosen], 1.0)
    return -logps.sum()
