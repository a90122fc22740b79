"""What the guard makes of finished runs, from their folders alone: as `trivet guard check` does, record by record.

Nothing here knows of gold but for which tuning runs were hacked, and until when an alarm would have been in time. The
detector, each signal's own sum and the mean KL of each rollout are read off side by side.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trivet.guard.base import StepRecord
from trivet.guard.calibration import FEWEST_FITTING, Calibration, fit, save
from trivet.guard.calibration import trace as shifts_of
from trivet.guard.config import GuardConfig
from trivet.guard.detector import needed_runs, rank
from trivet.guard.guard import Guard
from trivet.guard.read import facts, read_records

DETECTOR, KL = "detector", "kl_threshold"


@dataclass(frozen=True)
class Trace:
    """A run's statistics, record by record: an alarm at a step is known when that many updates have been made."""

    steps: tuple[int, ...] = ()
    statistics: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Each as long as `steps`."""
    signals: tuple[str | None, ...] = ()
    """The signal that the detector names at each record."""

    def largest(self, name: str) -> float:
        """A statistic's maximum over the run; minus infinity where the run lacks it."""
        return max(self.statistics.get(name, ()), default=-math.inf)

    def alarm(self, name: str, limit: float) -> int | None:
        """The first step at which a statistic passes its threshold, if any."""
        values = self.statistics.get(name, ())
        return next((s for s, v in zip(self.steps, values, strict=False) if v > limit), None)

    def named(self, alarm: int | None) -> str | None:
        """The signal that the detector named at its alarm."""
        return None if alarm is None else self.signals[self.steps.index(alarm)]


def calibrated(clean: Sequence[Path], hacked: Mapping[Path, int | None], rate: float, *, note: str = "",
               seed: int = 0) -> Calibration | None:
    """The guard's calibration from tuning runs; None where there are too few clean ones for any threshold.

    hacked: with the last step at which an alarm is in time; they choose the weights, where there are clean runs enough
    for that, too.
    """
    if len(clean) < needed_runs(rate):
        return None
    chooses = len(clean) >= needed_runs(rate) + FEWEST_FITTING
    return fit([shifts_of(f.name, read_records(f), facts=facts(f)) for f in clean],
               [shifts_of(f.name, read_records(f), facts=facts(f), deadline=until) for f, until in hacked.items()]
               if chooses else (), false_alarms=rate, note=note, seed=seed)


def write(calibration: Calibration, file: Path) -> None:
    """The file that `guard.calibration` names."""
    save(calibration, file)


def trace(folder: Path, calibration: Calibration | None, rate: float) -> Trace:
    """A finished run, shown to a guard record by record; without a calibration its KL alone."""
    records = read_records(folder)
    kl = _kl(records)
    if calibration is None:
        return Trace(tuple(r.step for r in records), {KL: kl})
    guard = Guard(GuardConfig(false_alarms=rate), calibration, {})
    levels, names, sums = [], [], []
    for record in records:
        verdict = guard.observe(record)
        levels.append(verdict.level)
        names.append(verdict.signal)
        sums.append({name: s.value for name, s in guard.sums.items()})
    every = sorted({name for row in sums for name in row} & set(calibration.signals))
    return Trace(tuple(r.step for r in records),
                 {DETECTOR: levels, KL: kl} | {n: [row.get(n, 0.0) for row in sums] for n in every}, tuple(names))


def _kl(records: Sequence[StepRecord]) -> list[float]:
    """Mean KL of the latest rollout at each record, nats an answer."""
    found, last = [], 0.0
    for record in records:
        if record.source == "rollout" and record.kl:
            last = statistics.fmean(record.kl)
        found.append(last)
    return found


def thresholds(calibration: Calibration | None, clean: Mapping[str, Trace], rate: float) -> dict[str, float]:
    """One threshold for each statistic, by one rule: of n clean runs' maxima the ⌈(n + 1)(1 − rate)⌉-th smallest.

    The runs are those that set the detector's own threshold, so that all have seen the same. clean: traces by name.
    """
    if calibration is None:
        return {}
    names = [r["name"] for r in calibration.made["runs"] if r["role"] == "threshold"]
    place = rank(len(names), rate) - 1
    limits = {s: sorted(row[k] for row in calibration.maxima)[place] for k, s in enumerate(calibration.signals)}
    return {DETECTOR: 1.0, KL: sorted(clean[n].largest(KL) for n in names)[place]} | limits
