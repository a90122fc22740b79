"""What the guard makes of finished runs, from their folders alone: as `trivet guard check` does, step by step.

Nothing here knows of gold. The detector, each signal's own statistic and the mean KL of each rollout are read off side
by side, so that all can be given thresholds by one rule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DETECTOR, KL = "detector", "kl_threshold"


@dataclass(frozen=True)
class Trace:
    """A run's statistics by step: an alarm at a step is known when that many updates have been made."""

    steps: tuple[int, ...] = ()
    statistics: dict[str, tuple[float, ...]] | Any = None
    signals: tuple[str | None, ...] = ()
    """The signal that the detector names at each step."""

    def largest(self, name: str) -> float:
        """A statistic's maximum over the run; minus infinity where the run lacks it."""
        return max(self.statistics.get(name, ()), default=-math.inf)

    def alarm(self, name: str, limit: float) -> int | None:
        """The first step at which a statistic is above its threshold (the detector: reaches it), if any."""
        values = self.statistics.get(name, ())
        over = (s for s, v in zip(self.steps, values, strict=False) if v > limit or (name == DETECTOR and v >= limit))
        return next(over, None)

    def named(self, alarm: int | None) -> str | None:
        """The signal that the detector named at its alarm."""
        return None if alarm is None else self.signals[self.steps.index(alarm)]


NOTHING = Trace(statistics={})
