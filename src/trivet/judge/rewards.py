"""Rewards by name: a reward-model folder, `package.module:function`, an HTTP endpoint, or a weighted sum.

    runs/reward/reward                     a folder written by `trivet reward`
    trivet.judge.maths:exact_answer        a function (Sequence[Sample]) -> Sequence[float]
    http://host:8000/score                 POST {"samples": [...]} answers {"scores": [...]}
    0.7*runs/reward/reward  0.3*mine:terse a weighted sum of any of these
"""

from __future__ import annotations

import importlib
import math
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trivet.artifacts import read_json
from trivet.errors import TrivetError
from trivet.judge.base import Reward, Sample
from trivet.judge.calibration import Calibration

_WEIGHTED = re.compile(r"^([0-9]*\.?[0-9]+)\*(.+)$")


@dataclass(frozen=True)
class Term:
    """One part of a reward: its weight and where it comes from."""

    weight: float
    spec: str

    @property
    def kind(self) -> str:
        if self.spec.startswith(("http://", "https://")):
            return "http"
        if re.fullmatch(r"[\w.]+:[\w.]+", self.spec) and not Path(self.spec).exists():
            return "function"
        return "model"


def parse_terms(specs: Sequence[str]) -> list[Term]:
    """`["0.7*a", "0.3*b"]` as terms. Raises TrivetError for an empty list."""
    if not specs:
        raise TrivetError("no reward is given", field="reward",
                          mend="give a reward-model folder, package.module:function, or a URL")
    found = []
    for spec in specs:
        match = _WEIGHTED.match(spec)
        found.append(Term(float(match[1]), match[2]) if match else Term(1.0, spec))
    return found


def call(reward: Reward, samples: Sequence[Sample], name: str) -> list[float]:
    """Scores of a reward, checked: one finite number for each sample.

    Raises TrivetError saying what the reward gave instead.
    """
    found = reward(samples)
    try:
        scores = [float(s) for s in found]
    except (TypeError, ValueError):
        raise TrivetError(f"{name} gave {type(found).__name__}, not a sequence of numbers", field="reward",
                          mend="return one number for each sample") from None
    if len(scores) != len(samples):
        raise TrivetError(f"{name} gave {len(scores)} scores for {len(samples)} samples", field="reward",
                          mend="return one number for each sample, in the same order")
    for sample, score in zip(samples, scores, strict=True):
        if not math.isfinite(score):
            raise TrivetError(f"{name} gave {score} for sample {sample.id!r}", field="reward",
                              mend="return finite numbers")
    return scores


def load_function(spec: str) -> Callable[..., Any]:
    """The object that `package.module:function` names; the current folder is searched, too."""
    module, _, name = spec.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise TrivetError(f"{spec!r} can't be imported: {error}", field="reward",
                          mend="give package.module:function, importable from here") from None
    if not callable(found):
        raise TrivetError(f"{spec!r} is no function", field="reward", mend="name a function")
    return found


@dataclass
class HTTPReward:
    """Scores from an endpoint: POST {"schema_version", "samples"} gives {"scores"}. Retries with back-off."""

    url: str
    timeout: float = 60.0
    retries: int = 4
    backoff: float = 0.5
    _client: Any = field(default=None, repr=False)

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """See Reward. Raises TrivetError when the endpoint does not answer, or answers something else."""
        import httpx

        self._client = self._client or httpx.Client(timeout=self.timeout)
        body = {"schema_version": 1, "samples": [s.to_dict() for s in samples]}
        reason = ""
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(self.backoff * 2 ** (attempt - 1))
            try:
                answer = self._client.post(self.url, json=body)
            except httpx.HTTPError as error:
                reason = f"{type(error).__name__}: {error}"
                continue
            if answer.status_code == 429 or answer.status_code >= 500:
                reason = f"status {answer.status_code}"
                continue
            if answer.status_code != 200:
                raise TrivetError(f"{self.url} answers status {answer.status_code}: {answer.text[:200]}",
                                  field="reward", mend="check the URL and what the endpoint expects")
            try:
                return [float(s) for s in answer.json()["scores"]]
            except (ValueError, KeyError, TypeError):
                raise TrivetError(f"{self.url} answers {answer.text[:200]!r}", field="reward",
                                  expected='{"scores": [one number for each sample]}',
                                  mend="let the endpoint answer in this form") from None
        raise TrivetError(f"{self.url} does not answer after {self.retries + 1} tries ({reason})",
                          field="reward", mend="start the endpoint, then run the same command again")


def read_calibration(folder: Path) -> tuple[Calibration, dict[str, Any]] | None:
    """The calibration beside a reward model and the facts with it (reference, sampling); None where there is none."""
    path = folder / "calibration.json"
    if not path.is_file():
        return None
    facts = read_json(path)
    try:
        return Calibration.from_dict(facts), facts
    except ValueError as error:
        raise TrivetError(f"the calibration is damaged: {error}", file=path,
                          mend="train the reward model again") from None


@dataclass
class WeightedReward:
    """A weighted sum of rewards. Each is checked on every call."""

    parts: list[tuple[Term, Reward]]

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """See Reward."""
        total = [0.0] * len(samples)
        for term, reward in self.parts:
            for i, score in enumerate(call(reward, samples, term.spec)):
                total[i] += term.weight * score
        return total


def make_reward(terms: Sequence[Term], model_reward: Callable[[str], Reward]) -> WeightedReward:
    """Rewards from their terms. `model_reward` loads a reward-model folder (the caller knows about devices)."""
    parts: list[tuple[Term, Reward]] = []
    for term in terms:
        if term.kind == "http":
            parts.append((term, HTTPReward(term.spec)))
        elif term.kind == "function":
            parts.append((term, load_function(term.spec)))
        else:
            parts.append((term, model_reward(term.spec)))
    return WeightedReward(parts)
