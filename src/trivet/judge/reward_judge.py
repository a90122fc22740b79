"""A reward model as a judge of two answers: σ of the difference of their raw scores (Bradley–Terry)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trivet.errors import TrivetError
from trivet.judge.base import Sample
from trivet.judge.cache import Keep, gather
from trivet.judge.cases import Case
from trivet.judge.scorer import ModelReward, load_model_reward
from trivet.models.source import model_identity

CHUNK = 64  # cases scored together: what an interruption costs at most


class RewardJudge:
    """Compares two answers; the criterion is whatever its labelers ranked by, and not the case's.

    The order of the answers can't matter to it. It can't grade one answer: its scores have no zero.
    """

    grades, symmetric, sees_ids, reads_criterion = False, True, False, False

    def __init__(self, reward: ModelReward, name: str, dtype: str = "") -> None:
        """dtype: what the weights were loaded as, since verdicts depend on it."""
        self.reward, self.name, self.dtype = reward, name, dtype

    @classmethod
    def load(cls, spec: str, compute: Any, count: Callable[[str, int], None] | None = None) -> RewardJudge:
        """A reward model from its folder. Raises TrivetError where the folder is none."""
        return cls(load_model_reward(spec, compute.trunk, compute.device, count), spec, str(compute.trunk))

    @property
    def identity(self) -> Mapping[str, Any]:
        """The weights, what of an answer they read, and the chat template."""
        model = self.reward.model
        return {"kind": "reward", "pool": model.pool, **model_identity(model.source, model.tokenizer),
                "dtype": self.dtype}

    def ask(self, cases: Sequence[Case], keep: Keep) -> None:
        """See Asking. Raises TrivetError for a case without two answers, and for what is longer than the context."""
        for case in cases:
            if len(case.answers) != 2:
                raise TrivetError(
                    f"a reward model ({self.name}) compares two answers, it can't grade one by "
                    f"{case.criterion.name!r}", field="grader",
                    expected="a model asked by log-probability, an endpoint, or package.module:function",
                    mend="name one of these as the grader, or leave the graded measures out")
        for start in range(0, len(cases), CHUNK):
            part = cases[start : start + CHUNK]
            raw = self.reward.raw([Sample(c.id, c.messages, a) for c in part for a in c.answers])
            keep([(start + i, _sigmoid(raw[2 * i] - raw[2 * i + 1])) for i in range(len(part))])

    def __call__(self, cases: Sequence[Case]) -> list[float]:
        """See Judge."""
        return gather(self, cases)


def _sigmoid(z: float) -> float:
    return 0.5 * (1.0 + math.tanh(0.5 * z))
