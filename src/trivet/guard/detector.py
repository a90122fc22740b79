"""The sequential test: a shift is standardised, sums of shifts are kept, and the sums are held against clean runs'.

    d   = (m_t − m_0) / s                          effect, in baseline deviations; s = max(s_0, floor)
    z   = d / √(v + τ²)                            v: variance of d by sampling; τ: how far clean runs drift
    C_t = max(0, C_{t−1} ± z_t − κ)                CUSUM, one for each direction (Page 1954)
    G_t = max over signals of w·C_t / q            one statistic a run; q: a signal's unit, from clean runs

and G's threshold is a conformal quantile over clean runs (`conformal_levels`). Pure, numpy and standard library.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Direction = Literal["up", "down", "both"]

SLACK = 0.5
"""κ: half of the standardised shift that is found fastest (Page 1954, 'Continuous Inspection Schemes')."""
LIMIT = 10.0
"""No step counts for more than this many z: one strange rollout is no change."""
COMMON = 0.9
"""The share of runs whose sums stay below a signal's unit q. A mean of squares would let one run set it."""
LEAST_UNIT = 2.0
"""No signal's unit q is smaller: one that never moved in clean runs must move by this much before it counts."""
LEAST_THRESHOLD = 0.25
"""Nor is G's threshold, for clean runs in which nothing moved."""


class Shift(NamedTuple):
    """How far a signal has moved from its baseline in one record, before any calibration."""

    difference: float
    """m_t − m_0, in the signal's unit."""
    spread: float
    """s_0, the baseline's standard deviation over answers; 1 for a signal that has a unit of its own."""
    variance: float
    """Of the record's answers, squared units; of paired differences over prompts; or of the difference itself."""
    n: int
    """What `variance` is divided by: answers, prompts, or 1."""
    base: int
    """Answers of the baseline; 0 where `variance / n` already is the whole variance of the difference."""


def effect(shift: Shift, floor: float) -> float:
    """d: the shift in baseline deviations, none of which is taken for less than `floor`."""
    return shift.difference / max(shift.spread, floor)


def standardise(shift: Shift, floor: float, drift: float) -> float:
    """z of a shift, within ±LIMIT. floor ≥ 0: the least spread; drift > 0: τ, in baseline deviations.

    With a baseline of other answers v = max(s_t², s²)/(n_t s²) + 1/n_0: where the record's answers vary more than the
    baseline's, their own variance counts (Welch), so that one strange answer among many moves z by about 1 at most.
    """
    s = max(shift.spread, floor)
    if shift.base:
        variance = max(shift.variance, s * s) / shift.n + s * s / shift.base
    else:
        variance = shift.variance / shift.n
    z = shift.difference / math.sqrt(variance + (drift * s) ** 2)
    return max(-LIMIT, min(LIMIT, z))


@dataclass
class Sums:
    """The CUSUMs of one signal, and since when each has been above 0."""

    up: float = 0.0
    down: float = 0.0
    up_since: int | None = None
    down_since: int | None = None
    effect: float = 0.0
    """The last effect d."""

    def add(self, z: float, step: int, direction: Direction) -> None:
        """Page's recursion; only the directions asked for are kept."""
        if direction != "down":
            rising = max(0.0, self.up + z - SLACK)
            self.up_since = None if rising == 0 else step if self.up == 0 else self.up_since
            self.up = rising
        if direction != "up":
            falling = max(0.0, self.down - z - SLACK)
            self.down_since = None if falling == 0 else step if self.down == 0 else self.down_since
            self.down = falling

    @property
    def value(self) -> float:
        """The larger of both."""
        return max(self.up, self.down)

    @property
    def sign(self) -> int:
        """1 where that is the upward one."""
        return 1 if self.up >= self.down else -1

    @property
    def since(self) -> int | None:
        """The estimated first step of the change: the one after the sum was last 0 (Page)."""
        return self.up_since if self.sign > 0 else self.down_since


class Detector:
    """The sums of every signal, from shifts that come record by record."""

    def __init__(self, floors: Mapping[str, float], drifts: Mapping[str, float],
                 directions: Mapping[str, Direction]) -> None:
        """Each by signal; a signal without a drift is not tested."""
        self.floors, self.drifts, self.directions = floors, drifts, directions
        self.sums: dict[str, Sums] = {}

    def add(self, step: int, shifts: Mapping[str, Shift]) -> None:
        """Take in one record's shifts; the sums of signals without one stay as they are."""
        for name, shift in shifts.items():
            if name not in self.drifts:
                continue
            sums = self.sums.setdefault(name, Sums())
            sums.effect = effect(shift, self.floors.get(name, 0.0))
            sums.add(standardise(shift, self.floors.get(name, 0.0), self.drifts[name]), step,
                     self.directions.get(name, "both"))

    def restart(self) -> None:
        """Forget the sums; the baseline is kept elsewhere."""
        self.sums = {}

    def values(self) -> dict[str, float]:
        """The sum of each signal."""
        return {name: sums.value for name, sums in self.sums.items()}

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {name: vars(sums).copy() for name, sums in self.sums.items()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.sums = {name: Sums(**values) for name, values in state.items()}


def run_maxima(steps: Sequence[tuple[int, Mapping[str, Shift]]], floors: Mapping[str, float],
               drifts: Mapping[str, float], directions: Mapping[str, Direction]) -> dict[str, float]:
    """Each signal's largest sum over a whole run of (step, shifts)."""
    detector, largest = Detector(floors, drifts, directions), dict.fromkeys(drifts, 0.0)
    for step, shifts in steps:
        detector.add(step, shifts)
        for name, value in detector.values().items():
            largest[name] = max(largest[name], value)
    return largest


# --- the threshold ------------------------------------------------------------------------------------


def needed_runs(false_alarms: float) -> int:
    """Clean runs without which no threshold has this rate: ⌈1/α⌉ − 1; 19 for 5%."""
    return math.ceil(1 / false_alarms - 1e-9) - 1


def rank(runs: int, false_alarms: float) -> int:
    """⌈(n+1)(1−α)⌉: which of n clean runs' statistics, from the smallest, is the threshold. More than n: none is."""
    return runs + 1 - math.floor((runs + 1) * false_alarms + 1e-9)


def rate_of_one(runs: int, false_alarms: float, level: float = 0.95) -> float:
    """The rate of false alarms that a single calibration of n runs does not pass with probability `level`.

    Over calibrations the rate of one is spread as Beta(n + 1 − k, k), k the rank of the threshold, if statistics are
    continuous (Vovk 2012, 'Conditional validity of inductive conformal predictors'): with 19 runs 5% is the mean of
    rates up to 15%.
    """
    from scipy.stats import beta

    k = rank(runs, false_alarms)
    return float(beta.ppf(level, runs + 1 - k, k))


def conformal_levels(current: NDArray[np.float64], maxima: NDArray[np.float64], weights: NDArray[np.float64],
                     false_alarms: float) -> NDArray[np.float64]:
    """Each signal's w·C/q over the threshold of G, [..., K]; their maximum is the run's level, above 1 an alarm.

    current [..., K] are the sums of the run that is watched, maxima [n, K] the largest sums of n clean runs, weights
    [K] are ≥ 0. The unit q of a signal is what COMMON of the runs stay below, the clean ones AND the one that is
    watched; with the same units each clean run has its own G, and the ⌈(n+1)(1−α)⌉-th smallest is the threshold.

    So the watched run is treated as each clean one is. Where all n + 1 are exchangeable, the rank of its G is uniform,
    and its level passes 1 with probability at most α (full conformal prediction: Vovk, Gammerman and Shafer 2005,
    'Algorithmic Learning in a Random World', proposition 2.3). The level never falls where a sum rises, so passing 1
    at any record implies passing it with the largest sums of the run: looking at every record costs nothing. That
    holds for weights, floors and drifts chosen without these n runs, and for a run of as many records as theirs at
    most. It is a mean over calibrations, too: the rate of one is spread about it (`rate_of_one`).

    Raises ValueError for fewer runs than `needed_runs`.
    """
    n = len(maxima)
    place = rank(n, false_alarms)
    if place > n:
        raise ValueError(f"{n} clean runs give no threshold at {false_alarms:g}: {needed_runs(false_alarms)} do")
    # the r-th smallest of n + 1 numbers of which one is c: c itself, kept between its neighbours among the others
    ordered = np.vstack([np.sort(maxima, axis=0), np.full(maxima.shape[1], np.inf)])
    r = math.ceil(COMMON * (n + 1))
    lower = ordered[r - 2] if r > 1 else np.zeros(maxima.shape[1])
    units = np.maximum(np.clip(current, lower, ordered[r - 1]), LEAST_UNIT)  # [..., K]
    scaled = weights / units
    clean = (maxima * scaled[..., None, :]).max(-1)  # [..., n]
    threshold = np.maximum(np.partition(clean, place - 1, axis=-1)[..., place - 1], LEAST_THRESHOLD)
    return np.asarray(current * scaled / np.expand_dims(threshold, -1))
