"""The signals: what each is, which way it must move to be suspicious, and how far a record has moved from the baseline.

A signal's baseline are the answers of the untouched policy: the evaluation at step 0 and the first rollout. Rollouts
are compared with both together (with the first rollout alone where the prompts are of another kind, `_unlike`);
evaluations, whose prompts are fixed, with themselves, paired by prompt. Their signals are named `evaluation/…`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from trivet.artifacts import text_digest
from trivet.errors import TrivetError
from trivet.guard.base import Signal, Source, StepRecord
from trivet.guard.detector import Direction, Shift
from trivet.guard.features import Column, features, prompt_key

FEWEST = 8
"""Answers without which no correlation is computed."""
FEWEST_PROMPTS = 4
"""Prompts without which no paired difference is."""
UNLIKE = 4.0
"""Standard errors between evaluation and first rollout, in any measure, from which their prompts are of other kinds."""
BEYOND = 0.99
"""The quantile of the baseline's rewards that `beyond` counts above."""


@dataclass(frozen=True)
class SignalKind:
    """A signal by name. floor and drift are used where no calibration has its own."""

    name: str
    direction: Direction
    why: str
    """What it sees, in a line."""
    up: str
    """Its rise in words, to stand after `From step N on`."""
    down: str = ""
    needs: tuple[str, ...] = ()
    """Fields of the record, beside the answers and their scores."""
    unit: str = "deviations"
    floor: float = 0.0
    """The least spread of a baseline, in the signal's own unit: few answers may all have 0."""
    drift: float = 0.5
    """τ: how far a run that is not gamed may move, in deviations (or in the signal's own unit)."""


_DRESS = {"length": "length", "repetition": "repetition", "exaggeration": "exaggeration", "flattery": "flattery",
          "formatting": "formatting", "grammar": "faults of grammar"}
SIGNALS = {s.name: s for s in (
    SignalKind("kl", "up", "how far the policy is from the reference, mean over answers",
               "the policy moves far from the reference", needs=("kl",), unit="nats", drift=3.0),
    SignalKind("kl_rate", "up", "how fast that distance grows, from record to record",
               "the policy moves away from the reference fast", needs=("kl",), unit="nats a step", drift=0.3),
    SignalKind("gap", "up", "reward minus held-out reward, each in deviations of its own baseline",
               "the reward rises without the held-out reward", needs=("held_out",), floor=0.25),
    SignalKind("held_out", "down", "the held-out reward, in deviations of its baseline",
               "the held-out reward rises", "the held-out reward falls", needs=("held_out",), floor=0.25, drift=0.3),
    SignalKind("spread", "up", "how much an ensemble of reward models disagrees about an answer",
               "the reward models disagree more", needs=("spread",), floor=0.05),
    SignalKind("length", "both", "characters of an answer", "answers grow longer", "answers grow shorter", floor=20.0),
    SignalKind("cut_off", "up", "share of answers that do not end by themselves", "more answers are cut off",
               needs=("ended",), floor=0.2),
    SignalKind("repetition", "up", "share of three-word runs that stood in the answer before",
               "answers repeat themselves", floor=0.03),
    SignalKind("compression", "up", "bytes of an answer over its compressed bytes", "answers grow monotonous",
               floor=0.1),
    SignalKind("exaggeration", "up", "superlatives, intensifiers and exclamation marks, a word",
               "answers exaggerate", floor=0.02),
    SignalKind("flattery", "up", "share of sentences that praise who asks", "answers flatter", floor=0.1),
    SignalKind("formatting", "up", "headings, list items, bold spans, emoji, a word",
               "answers are stuffed with headings, lists and bold text", floor=0.02),
    SignalKind("grammar", "up", "faults of grammar that rules can see, a word", "grammar breaks down", floor=0.01),
    SignalKind("gibberish", "up", "share of words that look like no word", "answers turn to gibberish", floor=0.02),
    SignalKind("surprise", "both", "negative log-probability by the reference, nats a token",
               "answers grow improbable to the reference", "answers grow all too predictable",
               needs=("ref_logp", "tokens"), floor=0.1),
    SignalKind("distance", "up", "how little an answer speaks of what the prompt speaks of",
               "answers stray from what was asked", floor=0.05),
    SignalKind("sameness", "up", "how much answers to different prompts say alike",
               "answers to different prompts grow alike", floor=0.01),
    *(SignalKind(f"reward~{name}", "up", f"correlation of reward with {words} (Fisher's z)",
                 f"the reward goes with {words}", unit="of Fisher's z", drift=0.3)
      for name, words in _DRESS.items()),
    SignalKind("beyond", "up", "share of rewards above the baseline's 99th percentile",
               "rewards leave the range that they had", drift=1.0),
)}
OWN_FLOOR = 0.1
"""The least spread of a user's own signal, in its own unit."""
_MEANS = tuple(n for n in SIGNALS if "~" not in n and n not in ("kl", "kl_rate", "beyond"))
_INPUTS = ("kl", "ref_logp", "tokens", "ended", "held_out", "spread")
EVALUATED = ("kl", *_MEANS)
"""The signals that an evaluation has, too."""


def keys(own: Sequence[str] = ()) -> list[str]:
    """Every signal's key: rollouts' by name, evaluations' as `evaluation/NAME`."""
    return [*SIGNALS, *own, *(f"evaluation/{n}" for n in (*EVALUATED, *own))]


def kind_of(key: str) -> SignalKind:
    """What a key stands for; a name that is not in SIGNALS is a user's own signal."""
    name = key.removeprefix("evaluation/")
    return SIGNALS.get(name) or SignalKind(name, "both", "a signal of your own", f"{name} rises", f"{name} falls",
                                           floor=OWN_FLOOR)


class Moments(NamedTuple):
    """Of a column at the baseline."""

    n: int
    mean: float
    std: float


@dataclass
class Baseline:
    """The answers of the untouched policy, in figures."""

    step: int
    moments: dict[str, Moments] = field(default_factory=dict)
    correlations: dict[str, tuple[float, int]] = field(default_factory=dict)
    """Fisher's z of the reward with a feature, and over how many answers."""
    beyond: float = math.inf
    prompts: dict[str, dict[str, float]] = field(default_factory=dict)
    """Of an evaluation: each prompt's mean, by column."""

    @classmethod
    def of(cls, step: int, columns: Mapping[str, Column], prompts: Sequence[str] | None) -> Baseline:
        """From a record's columns. prompts: the prompt of each answer where a later record will have the same."""
        found = cls(step, _moments(columns))
        columns = {**columns, **standardised(columns, found)}
        found.moments |= _moments({n: columns[n] for n in ("gap", "held_out") if n in columns})
        for name in _DRESS:
            z = fisher(columns["score"], columns[name])
            if z is not None:
                found.correlations[name] = z
        found.beyond = _quantile(_known(columns["score"]), BEYOND)
        if prompts is not None:
            found.prompts = {name: _by_prompt(column, prompts) for name, column in columns.items()}
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**vars(self), "moments": {n: list(m) for n, m in self.moments.items()},
                "correlations": {n: list(c) for n, c in self.correlations.items()}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Baseline:
        """Back from `to_dict`."""
        return cls(**{**values, "moments": {n: Moments(*m) for n, m in values["moments"].items()},
                      "correlations": {n: (c[0], c[1]) for n, c in values["correlations"].items()}})


class Seen(NamedTuple):
    """What one record came to."""

    columns: dict[str, Column]
    shifts: dict[str, Shift]
    """By key; none of a record that is a baseline."""


class Watch:
    """Keeps the baselines and turns records into shifts. Deterministic; its state is plain JSON."""

    def __init__(self, own: Mapping[str, Signal] | None = None) -> None:
        self.own = dict(own or {})
        self.baselines: dict[Source, Baseline] = {}
        self.inputs: dict[Source, list[str]] = {}
        self._first: dict[str, Column] | None = None  # an evaluation's answers, until the first rollout joins them
        self._kl: tuple[int, float, float] | None = None  # step, mean and its variance at the last rollout

    def available(self) -> list[str]:
        """The keys whose inputs the baselines had, in the order of `keys`; what later records bring is not watched."""
        return [key for key in keys(list(self.own)) if not self.lacks(key)]

    def lacks(self, key: str) -> str:
        """What was missing for this signal at the baseline, in words; '' where nothing was."""
        source: Source = "evaluation" if key.startswith("evaluation/") else "rollout"
        if source not in self.inputs:
            return f"no {source} at the start"
        return ", ".join(n for n in kind_of(key).needs if n not in self.inputs[source])

    def look(self, record: StepRecord) -> Seen:
        """The record's columns and shifts. The first record of a source is its baseline.

        Raises TrivetError for a user's signal that raises, or gives anything but a number or None an answer.
        """
        columns = features(record)
        for spec, signal in self.own.items():
            columns[spec] = own_column(spec, signal, record)
        baseline = self.baselines.get(record.source)
        if baseline is None:
            self._begin(record, columns)
            shifts: dict[str, Shift] = {}
        else:
            columns = {**columns, **standardised(columns, baseline)}
            shifts = self._shifts(record, columns, baseline)
        if record.source == "rollout" and "kl" in columns:
            values = _known(columns["kl"])
            self._kl = record.step, statistics.fmean(values), _variance(values) / len(values)
        return Seen(columns, shifts)

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"baselines": {s: b.to_dict() for s, b in self.baselines.items()}, "inputs": self.inputs,
                "first": self._first, "kl": list(self._kl) if self._kl else None}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.baselines = {s: Baseline.from_dict(b) for s, b in state["baselines"].items()}
        self.inputs = {s: list(names) for s, names in state["inputs"].items()}
        self._first = state["first"]
        self._kl = (int(state["kl"][0]), state["kl"][1], state["kl"][2]) if state["kl"] else None

    def _begin(self, record: StepRecord, columns: dict[str, Column]) -> None:
        prompts = None
        if record.source == "evaluation":
            prompts = [_digest(prompt_key(s)) for s in record.samples]
            if record.step == 0 and "rollout" not in self.baselines:
                self._first = columns
        elif self._first is not None:
            if not _unlike(columns, self._first):
                nothing: Column = [None] * len(self._first["score"])
                columns = {n: [*column, *self._first.get(n, nothing)] for n, column in columns.items()}
            self._first = None
        self.inputs[record.source] = [n for n in _INPUTS if any(v is not None for v in getattr(record, n))]
        self.baselines[record.source] = Baseline.of(record.step, columns, prompts)

    def _shifts(self, record: StepRecord, columns: Mapping[str, Column], baseline: Baseline) -> dict[str, Shift]:
        if record.source == "evaluation":
            prompts = [_digest(prompt_key(s)) for s in record.samples]
            found = {f"evaluation/{n}": paired(columns[n], prompts, baseline.prompts.get(n, {}),
                                               baseline.moments[n].std)
                     for n in (*_MEANS, *self.own) if n in columns and n in baseline.moments}
            if "kl" in columns:
                found["evaluation/kl"] = _own_unit(_known(columns["kl"]))
        else:
            found = {n: unpaired(columns[n], baseline.moments[n])
                     for n in (*_MEANS, *self.own) if n in columns and n in baseline.moments}
            if "kl" in columns:
                values = _known(columns["kl"])
                found["kl"] = _own_unit(values)
                if self._kl is not None and record.step > self._kl[0]:
                    steps = record.step - self._kl[0]
                    variance = (_variance(values) / len(values) + self._kl[2]) / steps**2
                    found["kl_rate"] = Shift((statistics.fmean(values) - self._kl[1]) / steps, 1.0, variance, 1, 0)
            for name, (z0, n0) in baseline.correlations.items():
                now = fisher(columns["score"], columns[name])
                if now is not None:
                    found[f"reward~{name}"] = Shift(now[0] - z0, 1.0, 1 / (now[1] - 3) + 1 / (n0 - 3), 1, 0)
            found["beyond"] = _beyond(_known(columns["score"]), baseline)
        return {key: shift for key, shift in found.items() if shift is not None}


# --- from columns to shifts ---------------------------------------------------------------------------


def standardised(columns: Mapping[str, Column], baseline: Baseline) -> dict[str, Column]:
    """`gap`: reward minus held-out reward, each in deviations of its baseline; and both of these.

    None of them where one of the two rewards was the same for all answers of the baseline: it has no scale.
    """
    mine, other = baseline.moments.get("score"), baseline.moments.get("held_out_raw")
    raw = columns.get("held_out_raw")
    if mine is None or other is None or raw is None or not mine.std or not other.std:
        return {}
    held: Column = [None if h is None else (h - other.mean) / other.std for h in raw]
    return {"held_out": held, "gap": [
        None if h is None or s is None else (s - mine.mean) / mine.std - h
        for s, h in zip(columns["score"], held, strict=True)]}


def unpaired(column: Column, base: Moments) -> Shift | None:
    """The shift of a record's mean from a baseline of other answers; None for fewer than two values."""
    values = _known(column)
    if len(values) < 2:
        return None
    return Shift(statistics.fmean(values) - base.mean, base.std, _variance(values), len(values), base.n)


def paired(column: Column, prompts: Sequence[str], before: Mapping[str, float], spread: float) -> Shift | None:
    """The mean over prompts of an answer's difference from the baseline's answer to the same prompt.

    None for fewer than FEWEST_PROMPTS prompts that both have. spread: the baseline's s_0 over answers.
    """
    now = _by_prompt(column, prompts)
    differences = [now[p] - before[p] for p in now if p in before]
    if len(differences) < FEWEST_PROMPTS:
        return None
    return Shift(statistics.fmean(differences), spread, _variance(differences), len(differences), 0)


def fisher(scores: Column, column: Column) -> tuple[float, int] | None:
    """(atanh of Pearson's r, n) over answers that have both; None for fewer than FEWEST, or where one is constant.

    Fisher 1921: its variance is about 1 / (n − 3) for near-normal data; features are not, which drift must cover.
    """
    both = [(s, c) for s, c in zip(scores, column, strict=True) if s is not None and c is not None]
    if len(both) < FEWEST:
        return None
    a, b = [s for s, _ in both], [c for _, c in both]
    if min(a) == max(a) or min(b) == max(b):
        return None
    r = statistics.correlation(a, b)
    return math.atanh(max(-0.999, min(0.999, r))), len(both)


def own_column(spec: str, signal: Signal, record: StepRecord) -> Column:
    """A user's signal, checked. Raises TrivetError naming it."""
    try:
        found = list(signal(record))
    except TrivetError:
        raise
    except Exception as error:
        raise TrivetError(f"{spec} raised {type(error).__name__}: {error}", field="guard.signals",
                          mend="mend the function (--debug shows the traceback)") from error
    if len(found) != len(record):
        raise TrivetError(f"{spec} gave {len(found)} values for {len(record)} answers", field="guard.signals",
                          expected="a number, or None, for each answer", mend="mend the function")
    for value in found:
        if value is not None and (isinstance(value, str) or not _is_finite(value)):
            raise TrivetError(f"{spec} gave {value!r}", field="guard.signals",
                              expected="a finite number, or None, for each answer", mend="mend the function")
    return [None if value is None else float(value) for value in found]


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except TypeError:
        return False


def _own_unit(values: Sequence[float]) -> Shift:
    return Shift(statistics.fmean(values), 1.0, _variance(values), len(values), 0)


def _beyond(scores: Sequence[float], baseline: Baseline) -> Shift:
    expected = max(1 - BEYOND, 1 / (baseline.moments["score"].n + 1))
    share = sum(s > baseline.beyond for s in scores) / len(scores)
    spread = math.sqrt(expected * (1 - expected))
    return Shift(share - expected, spread, share * (1 - share), len(scores), baseline.moments["score"].n)


def _unlike(a: Mapping[str, Column], b: Mapping[str, Column]) -> bool:
    """Whether two sets of answers of one policy differ so much, in any measure, that their prompts must."""
    first, second = _moments(a), _moments(b)
    for name in set(_MEANS) & first.keys() & second.keys():
        x, y = first[name], second[name]
        error = math.sqrt(x.std**2 / x.n + y.std**2 / y.n)
        if error and abs(x.mean - y.mean) > UNLIKE * error and abs(x.mean - y.mean) > kind_of(name).floor:
            return True
    return False


def _moments(columns: Mapping[str, Column]) -> dict[str, Moments]:
    found = {}
    for name, column in columns.items():
        values = _known(column)
        if len(values) >= 2:
            found[name] = Moments(len(values), statistics.fmean(values), math.sqrt(_variance(values)))
    return found


def _by_prompt(column: Column, prompts: Sequence[str]) -> dict[str, float]:
    groups: dict[str, list[float]] = {}
    for prompt, value in zip(prompts, column, strict=True):
        if value is not None:
            groups.setdefault(prompt, []).append(value)
    return {prompt: statistics.fmean(values) for prompt, values in groups.items()}


def _known(column: Sequence[float | None]) -> list[float]:
    return [value for value in column if value is not None]


def _variance(values: Sequence[float]) -> float:
    """Over n − 1; 0 for a single value."""
    mean = math.fsum(values) / len(values)
    return math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1) if len(values) > 1 else 0.0


def _quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that `share` of the values do not pass."""
    return sorted(values)[math.ceil(share * len(values)) - 1]


def _digest(text: str) -> str:
    return text_digest(text).hex()[:16]
