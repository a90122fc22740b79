"""What a teacher says of the next token, to be compared with a student: whole, or its top k and a tail.

`Whole` is made of the teacher's last hidden states, its logits a chunk at a time: [tokens, vocabulary] in float32 is
the largest thing of a pass. `Top` holds k tokens of each position, what they have at temperature 1, and the log of
what all others add up to at the temperatures that were asked for: exact, since a softmax at T of k logits needs of the
rest nothing but their sum. `tests/compress/test_soft_labels.py` holds both against each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from trivet.compress.divergence import soft_logps, with_tail, without_tail

Tail = Literal["bucket", "drop"]


class SoftLabels(Protocol):
    """The soft labels of N positions."""

    def compared(self, part: slice, student: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """(teacher, student) log-probabilities [n, C] at a temperature over the same C events, of some positions.

        student: its logits [n, V] there.
        """

    def __len__(self) -> int:
        """N."""


@dataclass(frozen=True)
class Whole:
    """All of the vocabulary. states [N, H], with the teacher's output layer; or its logits [N, V] themselves."""

    states: Tensor
    layer: nn.Linear | None

    def __len__(self) -> int:
        return len(self.states)

    def compared(self, part: slice, student: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """See SoftLabels. Where one output layer is padded further than the other, both are cut to the narrower."""
        with torch.no_grad():
            logits = self.states[part] if self.layer is None else self.layer(self.states[part])
        width = min(logits.shape[-1], student.shape[-1])
        return soft_logps(logits[:, :width], temperature), soft_logps(student[:, :width], temperature)


@dataclass(frozen=True)
class Top:
    """The most probable tokens and all others together.

    ids [N, k]: tokens. logps [N, k]: of them at temperature 1; minus infinity where a place holds none. tails [N]: the
    log of the sum of p^(1/T) over all other tokens (p at temperature 1), for the temperature at which it will be
    compared; unused where `tail` is drop. A position without any token has no soft label, and says nothing.
    """

    ids: Tensor
    logps: Tensor
    tails: Tensor
    tail: Tail

    def __len__(self) -> int:
        return len(self.ids)

    def compared(self, part: slice, student: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """See SoftLabels."""
        ids, logps = self.ids[part], self.logps[part].float()
        known = torch.isfinite(logps)
        said = known.any(-1, keepdim=True)
        given = soft_logps(student, temperature)
        scaled = logps / temperature
        if self.tail == "bucket":
            teacher = torch.log_softmax(torch.cat([scaled, self.tails[part, None].float()], -1), -1)
            found = with_tail(given, ids, known)
        else:
            teacher = torch.log_softmax(torch.where(said, scaled, 0.0), -1)
            found = without_tail(given, ids, known | ~said)
        # where nothing is known the student is compared with itself: no loss, no gradient
        return torch.where(said, teacher, found.detach()), torch.where(said, found, found.detach())


def top_of(logits: Tensor, k: int, temperatures: list[float]) -> tuple[Tensor, Tensor, Tensor]:
    """(ids [N, k], log-probabilities [N, k] at temperature 1, tails [N, len(temperatures)]) of logits [N, V].

    See `Top`. With k of V or more all tokens are kept, and tails are minus infinity.
    """
    logps = soft_logps(logits, 1.0)
    k = min(k, logps.shape[-1])
    best, ids = logps.topk(k, -1)
    rest = logps.scatter(-1, ids, -torch.inf)
    tails = torch.stack([torch.logsumexp(rest / t, -1) for t in temperatures], -1)
    return ids, best, tails


def output_states(model: Any, layer: nn.Linear | None, batch: dict[str, Tensor], chosen: Tensor) -> Tensor:
    """Last hidden states [N, H] of a model at the chosen positions [B, T-1]; logits [N, V] where layer is None.

    batch: as `training.written.collate` makes it. chosen: of the positions that have a next token, those whose next
    token is to be told.
    """
    from trivet.models.output_layer import backbone

    inputs = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"], "use_cache": False}
    if layer is None:
        found: Tensor = model(**inputs).logits
    else:
        found = backbone(model)(**inputs).last_hidden_state
    return found[:, :-1][chosen]
