"""The guard: records in, verdicts out. `observe` is all that a training loop needs.

    guard = Guard(config)
    verdict = guard.observe(record)       # the answers of a step; the first ones are the baseline

Its state is plain JSON (`state_dict`, `load_state`): a guard that goes on from it says the same, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trivet.errors import TrivetError
from trivet.guard import calibration as calibrations
from trivet.guard.base import Action, Signal, Source, StepRecord, Verdict
from trivet.guard.calibration import Calibration
from trivet.guard.config import GuardConfig
from trivet.guard.detector import Sums
from trivet.guard.features import Column
from trivet.guard.signals import Watch, keys, kind_of
from trivet.judge.rewards import load_function

TELLING = 3
"""Answers that an alarm shows."""


def load_signals(specs: Sequence[str]) -> dict[str, Signal]:
    """A user's signals by their `package.module:function`. Raises TrivetError for what can't be imported."""
    return {spec: load_function(spec, field="guard.signals") for spec in specs}


class Guard:
    """Watches a run's answers for signs that its reward is gamed."""

    def __init__(self, config: GuardConfig, calibration: Calibration | None = None,
                 signals: Mapping[str, Signal] | None = None) -> None:
        """calibration: in place of the file that config names; signals: in place of importing those it names.

        Raises TrivetError for a calibration that can't be read or has too few runs for the rate asked for, and for
        signals that can't be imported.
        """
        self.config = config
        self.shipped = calibration is None and config.calibration is None
        self.calibration = calibration or calibrations.load(config.calibration or calibrations.DEFAULTS)
        self.calibration.require(config.false_alarms)
        own = load_signals(config.signals) if signals is None else dict(signals)
        self._watch = Watch(own)
        self._detector = self.calibration.detector(list(own))
        self._used: dict[str, float] | None = None  # fixed by what the baselines had
        self._counts: dict[Source, int] = {}

    def observe(self, record: StepRecord) -> Verdict:
        """The verdict after this record. The first record of each source is a baseline: nothing is said of it.

        Records must come in the order of the run. Raises TrivetError for a user's signal that fails.
        """
        seen = self._watch.look(record)
        if not seen.shifts:
            return Verdict("continue", record.step, 0.0,
                           sentence="The first answers: later ones are compared with them.")
        if self._used is None:
            self._used = self.calibration.used(self._watch.available())
        self._counts[record.source] = self._counts.get(record.source, 0) + 1
        self._detector.add(record.step, seen.shifts)
        levels = self.calibration.levels(self._detector.values(), self._used, self.config.false_alarms)
        top = max(levels, key=lambda k: levels[k]) if levels else None
        if top is None or levels[top] == 0:
            return Verdict("continue", record.step, 0.0, levels=levels,
                           sentence=f"Nothing has moved by step {record.step}." if levels else
                           "None of the signals that the calibration knows can be seen.")
        sums, alarm = self._detector.sums[top], levels[top] > 1
        verdict = Verdict(
            self._action() if alarm else "continue", record.step, levels[top], top, sums.since,
            self._alarm_sentence(levels) if alarm else
            f"No sign by step {record.step} that the reward is gamed; nearest is `{top}`, at {levels[top]:.2f} of the "
            "level of an alarm.",
            telling(seen.columns, top, sums.sign) if alarm else (), levels)
        if verdict.action == "raise-beta":
            self._detector.restart()
        return verdict

    @property
    def effects(self) -> dict[str, float]:
        """Each signal's last shift, in deviations of the baseline or in its own unit."""
        return {key: sums.effect for key, sums in self._detector.sums.items()}

    @property
    def sums(self) -> Mapping[str, Sums]:
        """Each signal's sums, for whoever wants to look closer."""
        return self._detector.sums

    def notes(self) -> list[str]:
        """What must be known to read its verdicts, in sentences: its rate, what it can't see, where it is not valid.

        Complete from the second record of each source on.
        """
        found = [self.calibration.statement(self.config.false_alarms)]
        if self.calibration.calibrated and self.shipped:
            found.append("That calibration came along and is not of your runs: of them its rate is not known "
                         "(trivet guard calibrate makes one of yours).")
        if not self.calibration.calibrated and self.config.action != "warn":
            found.append(f"Without a calibration it only warns, and does not {self.config.action}.")
        lacking = self.unavailable()
        if lacking:
            groups: dict[str, list[str]] = {}
            for key, why in lacking.items():
                groups.setdefault(why, []).append(key)
            found.append("Not seen: " + "; ".join(f"{', '.join(names)} ({why})" for why, names in groups.items()) + ".")
        if self._used is not None and not self._used:
            found.append("None of the signals of the calibration can be seen in this run: it can't alarm.")
        elif self._used and self.calibration.weights and not any(self.calibration.weights.get(k) for k in self._used):
            found.append("None of the signals that the calibration chose can be seen in this run: all others count "
                         "alike.")
        over = [f"{n} {source}s, calibrated for {self.calibration.horizon.get(source, 0)}"
                for source, n in self._counts.items()
                if self.calibration.calibrated and n > self.calibration.horizon.get(source, 0)
                and any(k.startswith("evaluation/") == (source == "evaluation") for k in self._used or ())]
        if over:
            found.append(f"The run is longer than its calibration ({'; '.join(over)}): the rate is not for its later "
                         "part.")
        return found

    def unavailable(self) -> dict[str, str]:
        """Signals that can't be seen in this run, and why."""
        found = {}
        for key in keys(list(self._watch.own)):
            why = self._watch.lacks(key)
            if not why and self.calibration.calibrated and key not in self.calibration.signals:
                why = "not in the calibration"
            if why:
                found[key] = why
        return found

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON, for a checkpoint."""
        return {"watch": self._watch.state_dict(), "detector": self._detector.state_dict(), "used": self._used,
                "counts": dict(self._counts)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`, with the same settings and calibration. Raises TrivetError for another's state."""
        try:
            self._watch.load_state(state["watch"])
            self._detector.load_state(state["detector"])
            self._used = None if state["used"] is None else {k: float(w) for k, w in state["used"].items()}
            self._counts = dict(state["counts"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise TrivetError(f"the guard's state in this checkpoint can't be read ({type(error).__name__}: {error})",
                              field="guard", mend="it is another version's: begin the run anew with --overwrite"
                              ) from error

    def _action(self) -> Action:
        return self.config.action if self.calibration.calibrated else "warn"

    def _alarm_sentence(self, levels: Mapping[str, float]) -> str:
        """The alarm in plain English: since when, what, how much, what else."""
        order = sorted(levels, key=lambda k: -levels[k])
        first = order[0]
        since = self._detector.sums[first].since
        named = {first.removeprefix("evaluation/")}
        others: list[str] = []
        for key in order[1:]:
            name = key.removeprefix("evaluation/")
            if levels[key] >= max(0.5, levels[first] / 2) and name not in named and len(others) < 2:
                named.add(name)
                others.append(self._moved(key))
        text = f"From about step {since} on {self._moved(first)}: answers are probably gaming the reward"
        text += f" (also: {'; '.join(others)})." if others else "."
        if not self.calibration.calibrated:
            text += " This guard has no calibration: how often it is wrong is not known."
        return text

    def _moved(self, key: str) -> str:
        """`answers exaggerate (exaggeration +2.3 deviations)`"""
        kind, sums = kind_of(key), self._detector.sums[key]
        words = kind.up if sums.sign > 0 or not kind.down else kind.down
        prefix = "evaluation/" if key.startswith("evaluation/") else ""
        if kind.name == "gap" and f"{prefix}held_out" in self._detector.sums \
                and self._detector.sums[f"{prefix}held_out"].effect < 0:
            words = "the reward rises, or holds, while the held-out reward falls"
        return f"{words} ({kind.name} {sums.effect:+.1f} {kind.unit}{', fixed prompts' if prefix else ''})"


def telling(columns: Mapping[str, Column], key: str, sign: int) -> tuple[int, ...]:
    """The answers that show best what a signal sees, at most TELLING places: of the better-rewarded half those with
    the largest value (the smallest for sign < 0) of what the signal is made of."""
    name = key.removeprefix("evaluation/")
    name = {"kl_rate": "kl", "beyond": "score"}.get(name, name).removeprefix("reward~")
    scores = columns["score"]
    known = [(v, s, i) for i, (v, s) in enumerate(zip(columns.get(name, scores), scores, strict=True))
             if v is not None and s is not None]
    median = sorted(s for _, s, _ in known)[len(known) // 2] if known else 0.0
    best = sorted((row for row in known if row[1] >= median), key=lambda row: (-sign * row[0], -row[1], row[2]))
    return tuple(i for _, _, i in best[:TELLING])
