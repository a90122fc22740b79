"""Rewards by name: a reward-model folder, `package.module:function`, an HTTP endpoint, or a weighted sum.

    runs/reward/reward                     a folder written by `trivet reward`
    trivet.judge.maths:exact_answer        a function (Sequence[Sample]) -> Sequence[float]
    http://host:8000/score                 POST {"samples": [...]} answers {"scores": [...]}
    0.7*runs/reward/reward  0.3*mine:terse a weighted sum of any of these
"""

from __future__ import annotations

import importlib
import itertools
import math
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trivet.artifacts import read_json
from trivet.errors import TrivetError
from trivet.generate.config import is_endpoint
from trivet.judge.base import Reward, Sample
from trivet.judge.calibration import Calibration

_WEIGHTED = re.compile(r"([^*/:]*)\*(.*)")


@dataclass(frozen=True)
class Term:
    """One part of a reward: its weight and where it comes from."""

    weight: float
    spec: str

    @property
    def kind(self) -> str:
        if is_endpoint(self.spec):
            return "http"
        if re.fullmatch(r"[\w.]+:[\w.]+", self.spec) and not os.path.exists(self.spec):
            return "function"
        return "model"


def parse_terms(specs: Sequence[str]) -> list[Term]:
    """`["0.7*a", "0.3*b"]` as terms. Raises TrivetError for an empty list, an empty reward, a weight that is none."""
    found = []
    for spec in specs:
        match = _WEIGHTED.fullmatch(spec)
        found.append(Term(_weight(match[1], spec), match[2]) if match else Term(1.0, spec))
    if not found or not all(term.spec.strip() for term in found):
        raise TrivetError("no reward is given", field="reward",
                          mend="give a reward-model folder, package.module:function, or a URL")
    return found


def _weight(text: str, spec: str) -> float:
    if not re.fullmatch(r"[0-9]*\.?[0-9]+", text) or not math.isfinite(float(text)):
        raise TrivetError(f"{text!r} is no weight for a reward (in {spec!r})", field="reward",
                          mend="write it as a plain number of 0 or more, such as 0.5*NAME")
    return float(text)


def call(reward: Reward, samples: Sequence[Sample], name: str) -> list[float]:
    """Scores of a reward, checked: one finite number for each sample.

    Raises TrivetError saying what the reward gave instead.
    """
    found = reward(samples)
    try:
        scores = numbers(found)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise TrivetError(f"{name} gave {type(found).__name__}, not a sequence of numbers ({error})", field="reward",
                          mend="return one number for each sample") from error
    if len(scores) != len(samples):
        raise TrivetError(f"{name} gave {len(scores)} scores for {len(samples)} samples", field="reward",
                          mend="return one number for each sample, in the same order")
    for sample, score in zip(samples, scores, strict=True):
        if not math.isfinite(score):
            raise TrivetError(f"{name} gave {score} for sample {sample.id!r}", field="reward",
                              mend="return finite numbers")
    return scores


def numbers(found: Any) -> list[float]:
    """Scores as floats. Raises TypeError, ValueError, OverflowError or torch's RuntimeError for anything else."""
    if isinstance(found, str | bytes | Mapping):
        raise TypeError("one value, not one for each sample")
    scores = list(found)
    if any(isinstance(s, str | bytes) for s in scores):
        raise TypeError("a text in place of a number")
    return [float(s) for s in scores]


@dataclass(frozen=True)
class FunctionReward:
    """A function of the user's, `package.module:function`."""

    spec: str
    function: Callable[..., Any]

    def __call__(self, samples: Sequence[Sample]) -> Any:
        """See Reward. Raises TrivetError where the function raises."""
        try:
            return self.function(samples)
        except TrivetError:
            raise
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            raise TrivetError(f"{self.spec} raised {type(error).__name__}: {error} ({place.filename}:{place.lineno})",
                              field="reward", mend="mend the function (--debug shows the traceback)") from error


def load_function(spec: str, *, field: str = "reward") -> Callable[..., Any]:
    """The object that `package.module:function` names; the current folder is searched, too.

    field: the setting that names it. Raises TrivetError for what can't be imported or called.
    """
    module, _, name = spec.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:  # importing runs the module, which can raise anything
        raise TrivetError(f"{spec!r} can't be imported: {type(error).__name__}: {error}", field=field,
                          mend="give package.module:function, importable from here") from error
    if not callable(found):
        raise TrivetError(f"{spec!r} is no function", field=field, mend="name a function")
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
            except httpx.InvalidURL as error:
                raise TrivetError(f"{self.url!r} is no address: {error}", field="reward",
                                  mend="check the URL, such as http://localhost:8000/score") from None
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
                return numbers(answer.json()["scores"])
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
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
            for i, score in enumerate(_by_ranks(term, reward, samples)):
                total[i] += term.weight * score
        return total


def _by_ranks(term: Term, reward: Reward, samples: Sequence[Sample]) -> list[float]:
    """Scores of one reward, on every rank. A model's are shared out; a function or an endpoint is rank 0's to ask:
    it may look at the whole batch, keep files, or be somebody else's machine."""
    from trivet.training.ranks import here

    ranks = here()
    if ranks.world == 1:
        return call(reward, samples, term.spec)
    if term.kind == "model":
        # answers to one prompt stay together, for they share its pass; unless some ranks would have none
        groups = [list(g) for _, g in itertools.groupby(samples, key=lambda s: s.messages)]
        if len(groups) < ranks.world:
            groups = [[s] for s in samples]
        share = ranks.deal(groups)
        scores = iter(call(reward, [s for g in share for s in g], term.spec) if share else ())
        found = ranks.gather([list(itertools.islice(scores, len(g))) for g in share])
        return [score for group in found for score in group]
    return ranks.broadcast(call(reward, samples, term.spec) if ranks.main else [])


def make_reward(terms: Sequence[Term], model_reward: Callable[[str], Reward]) -> WeightedReward:
    """Rewards from their terms. `model_reward` loads a reward-model folder (the caller knows about devices)."""
    parts: list[tuple[Term, Reward]] = []
    for term in terms:
        if term.kind == "http":
            parts.append((term, HTTPReward(term.spec)))
        elif term.kind == "function":
            parts.append((term, FunctionReward(term.spec, load_function(term.spec))))
        else:
            parts.append((term, model_reward(term.spec)))
    return WeightedReward(parts)
