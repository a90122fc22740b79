"""What the guard is shown of a step, and what it answers. The interface is `observe(StepRecord) -> Verdict`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, get_args

from trivet.judge.base import Sample

Action = Literal["continue", "warn", "raise-beta", "penalise", "return"]
"""What a run may do on a verdict. Only the policy's loop does it, between steps."""
Source = Literal["rollout", "evaluation"]
SOURCES: tuple[Source, ...] = get_args(Source)


@dataclass(frozen=True)
class StepRecord:
    """One step's answers, B of them, with what is known of each; every field but step and source has length B.

    An empty sequence, and None for one answer, mean that it was not measured: signals that need it are absent, never
    estimated. `samples` and `scores` are always needed.
    """

    step: int
    samples: Sequence[Sample]
    scores: Sequence[float]
    """The reward trained on, in the run's scale, without the missing-end penalty."""
    kl: Sequence[float] = ()
    """Log-ratio of policy to reference, summed over the answer, nats."""
    ref_logp: Sequence[float | None] = ()
    """Log-probability of the answer by the frozen reference, summed, nats."""
    tokens: Sequence[int | None] = ()
    ended: Sequence[bool] = ()
    """Whether the model ended the answer itself; False: it was cut off."""
    held_out: Sequence[float | None] = ()
    """By the held-out reward model, None where it was not asked (a share of each rollout)."""
    spread: Sequence[float | None] = ()
    """Standard deviation over an ensemble of reward models, None without one."""
    source: Source = "rollout"
    """Answers to the step's training prompts, or to the fixed prompts of an evaluation."""

    def __post_init__(self) -> None:
        """Raises ValueError for lengths that differ and scores that are not finite: a fault of the caller's."""
        if not self.samples:
            raise ValueError(f"step {self.step}: a record without answers")
        for name in ("scores", "kl", "ref_logp", "tokens", "ended", "held_out", "spread"):
            values = getattr(self, name)
            if len(values) != len(self.samples) and (len(values) or name == "scores"):
                raise ValueError(f"step {self.step}: {len(values)} {name} for {len(self.samples)} answers")
            if any(v is not None and not math.isfinite(v) for v in values):
                raise ValueError(f"step {self.step}: {name} must be finite")

    def __len__(self) -> int:
        return len(self.samples)


@dataclass(frozen=True)
class Verdict:
    """What the guard makes of the records so far."""

    action: Action
    """What the configuration asks for; `continue` where there is no alarm."""
    step: int
    level: float
    """The statistic over its threshold: 1 or more is an alarm. Without a threshold's calibration, a bare measure."""
    signal: str | None = None
    """The signal with the largest share in the level; None while none has moved."""
    began: int | None = None
    """Estimated first step of the change, of that signal."""
    sentence: str = ""
    """Plain English, for log and report."""
    answers: tuple[int, ...] = ()
    """The most telling answers, at most three: places in the record, the most telling first. Of an alarm only."""
    levels: dict[str, float] = field(default_factory=dict)
    """Each signal's own statistic over the threshold."""

    @property
    def alarm(self) -> bool:
        """Whether this is an alarm."""
        return self.action != "continue"

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it: a line of guard.jsonl."""
        return asdict(self) | {"answers": list(self.answers)}


class Signal(Protocol):
    """A user's own signal: one number an answer, None where it says nothing. Named by `package.module:function`."""

    def __call__(self, record: StepRecord) -> Sequence[float | None]: ...
