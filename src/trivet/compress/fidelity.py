"""How much of its teacher a student keeps, on text that neither was changed on.

Stated as DistilBERT's authors do (Sanh et al. 2019, section 4: '97% of its language understanding'): the student's
score over the teacher's. The score is how often the most probable next token is the text's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from trivet.compress.divergence import divergence, soft_logps
from trivet.compress.soft_labels import output_states
from trivet.compress.teachers import CHUNK, passes
from trivet.data.supervised import Example
from trivet.intervals import Interval, bootstrap_statistics
from trivet.models.output_layer import plain_output_layer
from trivet.training.written import IGNORED, collate


class Compared(NamedTuple):
    """Sums over the learned positions of one example; those of the teacher are 0 where there is none."""

    tokens: float
    loss: float
    """Cross-entropy of the student, nats."""
    hits: float
    """Positions where its most probable token is the text's."""
    teacher_loss: float
    teacher_hits: float
    kl: float
    """KL(teacher ‖ student) at temperature 1, nats."""
    agreed: float
    """Positions where both find the same token most probable."""


@torch.no_grad()
def compare(student: Any, teacher: Any | None, examples: Sequence[Example], pad: int) -> list[Compared]:
    """Student beside teacher on each example. Both are causal models on their own devices; no weight is changed."""
    layers = [None if m is None else plain_output_layer(m) for m in (student, teacher)]
    found: dict[int, Compared] = {}
    for part in passes(examples):
        batch = {n: t.to(student.device) for n, t in collate([[examples[i]] for i in part], pad).items()}
        chosen = batch["labels"][:, 1:] != IGNORED
        labels = batch["labels"][:, 1:][chosen]
        states = [None if m is None else output_states(m, layer, batch, chosen)
                  for m, layer in zip((student, teacher), layers, strict=True)]
        rows = max(1, CHUNK // int(student.config.get_text_config().vocab_size))
        sums = []
        for start in range(0, len(labels), rows):
            piece = slice(start, start + rows)
            logits = [None if s is None else (s[piece] if layer is None else layer(s[piece]))
                      for s, layer in zip(states, layers, strict=True)]
            sums.append(_position_figures(logits[0], logits[1], labels[piece]))
        figures = torch.cat(sums).double().cpu()
        for i, each in zip(part, figures.split(chosen.sum(-1).tolist()), strict=True):
            found[i] = Compared(*each.sum(0).tolist())
    return [found[i] for i in range(len(examples))]


def _position_figures(student: Any, teacher: Any | None, labels: torch.Tensor) -> torch.Tensor:
    """[n, 7] in the order of `Compared`."""
    ours = soft_logps(student, 1.0)
    best = ours.argmax(-1)
    one = torch.ones(len(labels), device=labels.device)
    columns = [one, -ours.gather(-1, labels[:, None])[:, 0], (best == labels).float()]
    if teacher is None:
        columns += [one * 0] * 4
    else:
        width = min(student.shape[-1], teacher.shape[-1])
        theirs = soft_logps(teacher[:, :width], 1.0)
        if width < student.shape[-1]:
            ours = soft_logps(student[:, :width], 1.0)
        liked = theirs.argmax(-1)
        columns += [-theirs.gather(-1, labels[:, None])[:, 0], (liked == labels).float(),
                    divergence(theirs, ours, "forward"), (liked == best).float()]
    return torch.stack(columns, -1)


def figures(rows: Sequence[Compared], *, with_teacher: bool, seed: int,
            groups: Sequence[int] | None = None) -> dict[str, Interval]:
    """What `compare` found, with intervals over examples, or over `groups` of them: loss (nats a token), accuracy, and
    beside a teacher its own, KL (nats a token), agreement, and `kept`, accuracy over the teacher's."""
    names = ["loss", "accuracy"]
    if with_teacher:
        names += ["teacher_loss", "teacher_accuracy", "kl", "agreement", "kept"]

    def statistics(sums: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        shares = sums[..., 1:] / sums[..., :1]
        if not with_teacher:
            return shares[..., :2]
        # where the teacher is never right no share of it can be said
        kept = np.divide(sums[..., 2], sums[..., 4], out=np.full(sums.shape[:-1], np.nan), where=sums[..., 4] > 0)
        return np.concatenate([shares, kept[..., None]], -1)

    found = bootstrap_statistics(np.array(rows), np.arange(len(rows)) if groups is None else np.asarray(groups),
                                 statistics, seed=seed)
    return dict(zip(names, found, strict=True))
