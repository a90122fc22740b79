"""The threshold, from runs that are not gamed: their largest sums, which signals count, and a file that says of what.

The clean runs are split: with some, floors, drifts and weights are chosen; with the others, which those choices have
not seen, the threshold is set (`detector.conformal_levels`, split and full conformal prediction). The rate it states
is that of runs exchangeable with these: the same model, rewards and settings, other seeds, as many records at most.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from trivet import __version__
from trivet.artifacts import read_json, row_error, write_json
from trivet.errors import TrivetError
from trivet.guard.base import Signal, Source, StepRecord
from trivet.guard.detector import (
    LIMIT,
    SLACK,
    Detector,
    Direction,
    Shift,
    conformal_levels,
    needed_runs,
    rank,
    rate_of_one,
    run_maxima,
)
from trivet.guard.signals import SIGNALS, Watch, keys, kind_of

VERSION = 1
"""Of signals and detector. A change that moves their figures raises it, and older calibrations are refused."""
FEWEST_FITTING = 8
"""Clean runs beyond those that the threshold needs, from which floors, drifts and weights are chosen."""
MOST_SIGNALS = 8
"""Forward selection ends there at the latest."""
DEFAULTS = Path(__file__).parent / "defaults.json"


class Calibration(BaseModel):
    """What a guard tests with. Made by `fit`, kept as JSON."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    schema_version: Literal[1] = 1
    kind: Literal["guard calibration"] = "guard calibration"
    version: int = VERSION
    note: str = ""
    """What it was made from, in a sentence."""
    provisional: bool = False
    made: dict[str, Any] = {}
    """Runs with their hashes, versions, seed, the steps of the selection."""
    false_alarms: float = Field(0.05, gt=0, lt=1)
    horizon: dict[Source, int] = {}
    """Records of each source, the baseline not counted, that the rate holds for at most."""
    floors: dict[str, float] = {}
    drifts: dict[str, float] = {}
    weights: dict[str, float] = {}
    """Of each signal; 0 leaves it out, as does not being named. Empty: 1 each. See `used`."""
    signals: list[str] = []
    """The columns of `maxima`."""
    maxima: list[list[float]] = []
    """The largest sum of each signal in each clean run; empty: there is no calibrated threshold."""
    noise_threshold: float = Field(0.0, ge=0)
    """Where there is none: the largest sum that simulated drift and sampling noise reach (`noise_threshold`)."""

    @model_validator(mode="after")
    def _fits_together(self) -> Calibration:
        if self.version != VERSION:
            raise ValueError(f"version: made by signals of version {self.version}, these are {VERSION}")
        if any(len(row) != len(self.signals) for row in self.maxima):
            raise ValueError("maxima: each row needs a number for each of `signals`")
        if any(value < 0 for row in self.maxima for value in row):
            raise ValueError("maxima: sums are never below 0")
        if any(value <= 0 for value in [*self.floors.values(), *self.drifts.values()]):
            raise ValueError("floors and drifts must be above 0")
        if any(value < 0 for value in self.weights.values()) or (self.weights and not any(self.weights.values())):
            raise ValueError("weights must not be below 0, nor all 0")
        if not self.maxima and not self.noise_threshold:
            raise ValueError("maxima: without clean runs a noise_threshold is needed")
        return self

    @property
    def calibrated(self) -> bool:
        """Whether its threshold comes from runs."""
        return bool(self.maxima)

    def used(self, watched: Sequence[str]) -> dict[str, float]:
        """The signals that enter the statistic, of those a run has, and their weights.

        Where none of those with a weight is there (all of them may need a held-out reward), all others count alike.
        """
        known = [k for k in watched if k in self.signals] if self.calibrated else list(watched)
        weighed = {k: self.weights[k] for k in known if self.weights.get(k, 0.0) > 0}
        return weighed or dict.fromkeys(known, 1.0)

    def detector(self, own: Sequence[str] = ()) -> Detector:
        """A detector with these floors and drifts."""
        return _detector(self.floors, self.drifts, own)

    def levels(self, sums: Mapping[str, float], used: Mapping[str, float], false_alarms: float) -> dict[str, float]:
        """The statistic over the threshold of each signal in `used`."""
        if not used:
            return {}
        current = np.array([sums.get(key, 0.0) for key in used])
        weights = np.array(list(used.values()))
        if self.calibrated:
            places = [self.signals.index(key) for key in used]
            found = conformal_levels(current, np.array(self.maxima)[:, places], weights, false_alarms)
        else:
            found = current * weights / self.noise_threshold
        return dict(zip(used, found.tolist(), strict=True))

    def require(self, false_alarms: float) -> None:
        """Raise TrivetError where it has too few clean runs for this rate."""
        if self.calibrated and rank(len(self.maxima), false_alarms) > len(self.maxima):
            raise TrivetError(
                f"this calibration has {len(self.maxima)} clean runs, and a rate of {false_alarms:g} needs "
                f"{needed_runs(false_alarms)}", field="false_alarms",
                mend=f"ask for {1 / (len(self.maxima) + 1):.3g} or more, or calibrate with more clean runs "
                "(trivet guard calibrate)")

    def statement(self, false_alarms: float) -> str:
        """What the rate of false alarms is, and of what."""
        if not self.calibrated:
            return ("How often it alarms falsely is not known: it has no calibration by runs like this one "
                    "(trivet guard calibrate makes one).")
        steps = self.horizon.get("rollout", 0)
        n = len(self.maxima)
        return (f"By its calibration at most {false_alarms:.1%} of runs that are not gamed raise an alarm, of runs "
                f"like the {n} clean ones it was made from and of at most {steps} steps; that is a mean over "
                f"calibrations, and with {n} runs the rate of this one may be up to {rate_of_one(n, false_alarms):.0%}."
                + (" It is provisional." if self.provisional else ""))


def load(path: Path) -> Calibration:
    """Raises TrivetError naming file and field."""
    values = read_json(path)
    try:
        return Calibration.model_validate(values)
    except ValidationError as error:
        fault = row_error(error, Calibration, path, 1)
        raise TrivetError(fault.what, file=path, field=fault.field, expected="a file of `trivet guard calibrate`",
                          mend="make it anew with `trivet guard calibrate`") from None


def save(calibration: Calibration, path: Path) -> None:
    """As JSON, atomically."""
    write_json(path, calibration.model_dump(mode="json"))


# --- from runs ----------------------------------------------------------------------------------------


@dataclass
class Trace:
    """A run as the detector sees it: the shifts of each record, baselines left out."""

    name: str
    steps: list[tuple[int, Source, dict[str, Shift]]]
    available: list[str]
    """Keys whose inputs it had."""
    deadline: int | None = None
    """Of a hacked run: an alarm after this step came too late. None: any alarm will do."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What the calibration says of it: hashes, model, steps."""

    def count(self, source: Source) -> int:
        """Records of a source."""
        return sum(s == source for _, s, _ in self.steps)

    def until(self, horizon: Mapping[Source, int]) -> list[tuple[int, dict[str, Shift]]]:
        """(step, shifts) of at most so many records of each source."""
        left, found = dict(horizon), []
        for step, source, shifts in self.steps:
            if left.get(source, 0) > 0:
                left[source] -= 1
                found.append((step, shifts))
        return found


def trace(name: str, records: Iterable[StepRecord], own: Mapping[str, Signal] | None = None, *,
          deadline: int | None = None, facts: Mapping[str, Any] | None = None) -> Trace:
    """A run's records, in their order, as a Trace."""
    watch = Watch(own)
    steps = [(r.step, r.source, seen.shifts) for r in records if (seen := watch.look(r)).shifts]
    return Trace(name, steps, watch.available(), deadline, dict(facts or {}))


def require_enough(clean: int, choosing: bool, false_alarms: float) -> None:
    """Raise TrivetError with the number of clean runs that is needed, where there are fewer."""
    need = needed_runs(false_alarms) + (FEWEST_FITTING if choosing else 0)
    if clean < need:
        raise TrivetError(
            f"{clean} clean run{'' if clean == 1 else 's'}; at a rate of {false_alarms:g} a threshold needs "
            f"{needed_runs(false_alarms)}" + (f", and the choice of signals {FEWEST_FITTING} more" if choosing else ""),
            field="clean", mend=f"give {need} clean runs or more (other seeds of one recipe will do), or allow more "
            "with --false-alarms" + ("; or leave the hacked runs out" if choosing else ""))


def fit(clean: Sequence[Trace], hacked: Sequence[Trace] = (), *, false_alarms: float = 0.05, seed: int = 0,
        note: str = "", provisional: bool = False) -> Calibration:
    """A calibration from clean runs; hacked ones choose the weights, by `select`.

    Raises TrivetError with the number of clean runs that is needed, where there are fewer.
    """
    require_enough(len(clean), bool(hacked), false_alarms)
    need = needed_runs(false_alarms)
    short = next((t for t in clean if not t.steps), None)
    if short is not None:
        raise TrivetError(f"the run {short.name} has no record after its first", field="clean",
                          mend="leave it out, or give a longer one")
    runs = sorted(clean, key=lambda t: t.name)
    random.Random(seed).shuffle(runs)
    spare = min(len(runs) // 3, len(runs) - need)
    fitting, rest = (runs[:spare], runs[spare:]) if spare >= FEWEST_FITTING else ([], runs)
    own = [k for k in clean[0].available if "/" not in k and k not in SIGNALS]
    shared = [k for k in keys(own) if all(k in t.available for t in clean)]
    sources: tuple[Source, ...] = ("rollout", "evaluation")
    horizon: dict[Source, int] = {s: min(t.count(s) for t in rest) for s in sources}
    shared = [k for k in shared if not k.startswith("evaluation/") or horizon["evaluation"]]
    floors, drifts = _spreads(fitting, shared)
    weights: dict[str, float] = {}
    chosen: list[dict[str, Any]] = []
    if hacked:
        weights, chosen = select(fitting, hacked, shared, floors, drifts, max(false_alarms, 1 / (len(fitting) + 1)))
    directions = _directions(shared)
    maxima = [run_maxima(t.until(horizon), floors, drifts, directions) for t in rest]
    roles = {id(t): "floors, drifts, weights" for t in fitting} | {id(t): "threshold" for t in rest}
    return Calibration(
        note=note, provisional=provisional, false_alarms=false_alarms, horizon=horizon, floors=floors, drifts=drifts,
        weights=weights, signals=shared, maxima=[[round(row[k], 4) for k in shared] for row in maxima],
        made={"trivet": __version__, "seed": seed, "selection": chosen, "left_out": _left_out(clean, shared, own),
              "runs": [{"name": t.name, "role": roles.get(id(t), "hacked"), **t.facts} for t in (*runs, *hacked)]})


def _left_out(clean: Sequence[Trace], shared: Sequence[str], own: Sequence[str]) -> list[str]:
    """Signals that some of the clean runs had, and others not."""
    return [k for k in keys(own) if k not in shared and any(k in t.available for t in clean)]


def _spreads(runs: Sequence[Trace], names: Sequence[str]) -> tuple[dict[str, float], dict[str, float]]:
    """Floors and drifts from clean runs; the signals' own where there are none.

    A floor is half the median spread of the baselines; a drift the root mean square of what effects move beyond
    sampling noise, not below a fifth of the signal's own.
    """
    floors = {k: kind_of(k).floor for k in names if kind_of(k).floor}
    drifts = {k: kind_of(k).drift for k in names}
    for name in names if runs else ():
        shifts = [s[name] for t in runs for _, _, s in t.steps if name in s]
        if not shifts:
            continue
        if name in floors:
            floors[name] = statistics.median(s.spread for s in shifts) / 2 or floors[name]
        beyond = []
        for shift in shifts:
            s = max(shift.spread, floors.get(name, 0.0))
            noise = max(shift.variance, s * s) / shift.n + s * s / shift.base if shift.base else \
                shift.variance / shift.n
            beyond.append((shift.difference**2 - noise) / s**2)
        drifts[name] = max(math.sqrt(max(statistics.fmean(beyond), 0.0)), kind_of(name).drift / 5)
    return floors, drifts


def _directions(names: Iterable[str]) -> dict[str, Direction]:
    return {k: kind_of(k).direction for k in names}


def _detector(floors: Mapping[str, float], drifts: Mapping[str, float], own: Sequence[str] = ()) -> Detector:
    every = keys(own)
    return Detector({k: floors.get(k, kind_of(k).floor) for k in every},
                    {k: drifts.get(k, kind_of(k).drift) for k in every}, _directions(every))


# --- which signals ------------------------------------------------------------------------------------


def select(clean: Sequence[Trace], hacked: Sequence[Trace], names: Sequence[str], floors: Mapping[str, float],
           drifts: Mapping[str, float], false_alarms: float) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Weights 0 or 1 by forward selection, and its steps: each the signal added, and what was detected with it.

    At each step the signal is added with which most hacked runs are detected by their deadline, at the rate
    false_alarms over the clean runs given; among equals the earliest alarms win. It ends when that gains nothing. The
    first step is the best single signal. Where nothing is ever detected all weights are 1.
    """
    maxima = np.array([[m[k] for k in names] for m in (
        run_maxima([(s, shifts) for s, _, shifts in t.steps], floors, drifts, _directions(names)) for t in clean)])
    runs = [_path(t, names, floors, drifts) for t in hacked]
    chosen: list[int] = []
    best = (0.0, -1.0)
    log: list[dict[str, Any]] = []
    while len(chosen) < min(MOST_SIGNALS, len(names)):
        scores = {k: _detection(runs, maxima, [*chosen, k], false_alarms)
                  for k in range(len(names)) if k not in chosen}
        top = max(scores, key=lambda k: (scores[k], -k))
        if scores[top][0] <= best[0] and scores[top][1] < best[1] + 0.01:
            break
        chosen.append(top)
        best = scores[top]
        log.append({"signal": names[top], "detected": best[0], "alarm_at": -best[1]})
    if not chosen:
        return dict.fromkeys(names, 1.0), log
    return {name: float(k in chosen) for k, name in enumerate(names)}, log


def _path(run: Trace, names: Sequence[str], floors: Mapping[str, float],
          drifts: Mapping[str, float]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """A run's sums [T, K] after each record, and whether an alarm there is in time [T]."""
    detector = Detector(floors, drifts, _directions(names))
    rows, in_time = [], []
    for step, _, shifts in run.steps:
        detector.add(step, {k: v for k, v in shifts.items() if k in drifts})
        values = detector.values()
        rows.append([values.get(k, 0.0) for k in names])
        in_time.append(run.deadline is None or step <= run.deadline)
    return np.array(rows).reshape(-1, len(names)), np.array(in_time, dtype=bool)


def _detection(runs: Sequence[tuple[NDArray[np.float64], NDArray[np.bool_]]], maxima: NDArray[np.float64],
               columns: list[int], false_alarms: float) -> tuple[float, float]:
    """(share of hacked runs detected in time, minus the mean place of the alarm in the run, 1 for none)."""
    detected, places = [], []
    for sums, in_time in runs:
        levels = conformal_levels(sums[:, columns], maxima[:, columns], np.ones(len(columns)), false_alarms).max(-1)
        alarms = np.flatnonzero(levels > 1)
        first = int(alarms[0]) if len(alarms) else None
        detected.append(first is not None and bool(in_time[first]))
        places.append(1.0 if first is None else first / len(sums))
    return statistics.fmean(detected), -statistics.fmean(places)


# --- without runs -------------------------------------------------------------------------------------


def noise_threshold(*, steps: int = 30, answers: int = 32, base: int = 64, false_alarms: float = 0.05,
                    runs: int = 1000, seed: int = 0) -> float:
    """The largest sum that all but `false_alarms` of simulated runs stay below: a fallback without clean runs.

    Each of the signals drifts in a straight line, to an end drawn from N(0, τ²) with its own τ (SignalKind.drift), and
    is seen with the sampling noise of `answers` a step and `base` in the baseline, normal and independent. What a
    real run does is another matter: this is a stated guess, and no rate follows from it.
    """
    rng = np.random.default_rng(seed)
    noise = 1 / answers + 1 / base
    largest = np.zeros(runs)
    for key in keys():
        kind = kind_of(key)
        tau = 0.5 if kind.unit != "deviations" else kind.drift  # in its own unit drift and noise scale alike
        path = np.linspace(1 / steps, 1, steps) * rng.normal(0, tau, (runs, 1))
        path += rng.normal(0, answers**-0.5, (runs, steps)) - rng.normal(0, base**-0.5, (runs, 1))
        z = np.clip(path / math.sqrt(noise + tau**2), -LIMIT, LIMIT)
        for sign in {"up": (1,), "down": (-1,), "both": (1, -1)}[kind.direction]:
            total = np.zeros(runs)
            for t in range(steps):
                total = np.maximum(0, total + sign * z[:, t] - SLACK)
                largest = np.maximum(largest, total)
    return float(np.quantile(largest, 1 - false_alarms))


def uncalibrated(*, steps: int = 30, runs: int = 1000, seed: int = 0) -> Calibration:
    """What is used without clean runs: every signal counts alike, the threshold is `noise_threshold`'s guess."""
    return Calibration(
        note=f"No runs: signals of weight 1, a threshold from {steps} simulated steps of drift and noise. Its rate of "
        "false alarms on real runs is not known.", provisional=True,
        made={"trivet": __version__, "simulation": {"steps": steps, "runs": runs, "seed": seed}},
        noise_threshold=round(noise_threshold(steps=steps, runs=runs, seed=seed), 3))
