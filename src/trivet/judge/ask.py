"""Asking judges: which one a setting names, both orders of a pair, and checks of what came back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trivet.errors import TrivetError
from trivet.generate.endpoint import Endpoints, check_endpoint
from trivet.judge.cache import Asking, Kept, Verdicts
from trivet.judge.cases import Case, Judge
from trivet.judge.config import Judging
from trivet.judge.rewards import Term, load_function, numbers

Kind = Literal["endpoint", "function", "model"]


def call(judge: Judge, cases: Sequence[Case], name: str, *, field: str = "judge") -> list[float]:
    """Verdicts of a judge, checked: one probability for each case.

    field: the setting that named it. Raises TrivetError saying what the judge gave instead.
    """
    found = judge(cases)
    try:
        verdicts = numbers(found)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise TrivetError(f"{name} gave {type(found).__name__}, not a sequence of numbers ({error})", field=field,
                          mend="return one probability for each case") from error
    if len(verdicts) != len(cases):
        raise TrivetError(f"{name} gave {len(verdicts)} verdicts for {len(cases)} cases", field=field,
                          mend="return one probability for each case, in the same order")
    for case, verdict in zip(cases, verdicts, strict=True):
        if not (math.isfinite(verdict) and 0.0 <= verdict <= 1.0):
            raise TrivetError(f"{name} gave {verdict} for case {case.id!r}", field=field,
                              expected="a probability: a number from 0 to 1", mend="return probabilities")
    return verdicts


# --- both orders -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Both:
    """What a judge said of a pair: the probability that its first answer is the better, asked in both orders."""

    id: str
    probability: float
    """The mean of the two."""
    given: float
    """Asked with the answers as they stand in the case."""
    swapped: float
    """Asked with them swapped, and turned back: still the probability of the case's first answer."""


def swap(case: Case) -> Case:
    """The case with its two answers in the other order. Raises TrivetError for a case without two."""
    if len(case.answers) != 2:
        raise TrivetError(f"case {case.id!r} holds {len(case.answers)} answers, not two", field="answers",
                          mend="give two answers to compare")
    return dataclasses.replace(case, answers=(case.answers[1], case.answers[0]))


def both_orders(judge: Judge, cases: Sequence[Case], *, name: str | None = None, swapped: bool = True) -> list[Both]:
    """What the judge says of pairs, each asked in both orders, so that a preference for the first answer cancels out.

    swapped=False asks once, as the pairs stand (`Judging.both_orders` off). A judge that can't see the order (its
    attribute `symmetric` is true, as a reward model's) is asked once, too. Raises TrivetError for a case without two
    answers, and as `call` does.
    """
    turned = [swap(case) for case in cases]
    name = name or name_of(judge)
    if not swapped or getattr(judge, "symmetric", False):
        return [Both(c.id, p, p, p) for c, p in zip(cases, call(judge, cases, name), strict=True)]
    found = call(judge, [*cases, *turned], name)
    rows = []
    for case, given, other in zip(cases, found[: len(cases)], found[len(cases) :], strict=True):
        rows.append(Both(case.id, (given + 1.0 - other) / 2, given, 1.0 - other))
    return rows


# --- which judge -----------------------------------------------------------------------------------------


def grades(judge: Any) -> bool:
    """Whether a judge can say something of a single answer. A reward model can't; of a function nobody knows before."""
    return bool(getattr(judge, "grades", True))


def name_of(judge: Any) -> str:
    """What a judge is called in messages and results."""
    return str(getattr(judge, "name", None) or getattr(judge, "__name__", None) or type(judge).__name__)


def kind_of(by: str) -> Kind:
    """What a judge's setting names: a URL, package.module:function, or else a model (of either kind)."""
    kind = Term(1.0, by).kind
    return "endpoint" if kind == "http" else "function" if kind == "function" else "model"


def check(settings: Judging, *, field: str = "judge") -> None:
    """Find out, without torch and without asking anything, whether the settings name a judge.

    field: what the settings are called in messages, `judge` or `grader`. Raises TrivetError for a function that can't
    be imported, an endpoint without a model's name, a folder that is none; for votes of what does not vary.
    """
    if settings.by is None:
        return
    kind = kind_of(settings.by)
    if settings.votes > 1 and kind != "endpoint" and not settings.think:
        raise TrivetError(f"{settings.by} would say the same each time: there is nothing to vote on",
                          field=f"{field}.votes", mend=f"leave --{field}.votes out, or have a model reason first: "
                          f"--{field}.think")
    if kind == "function":
        load_function(settings.by, field=f"{field}.by")
        if settings.think:
            raise TrivetError(f"{settings.by} is a function: it gives its verdicts as it likes", field=f"{field}.think",
                              mend=f"leave --{field}.think out, or name a model")
    elif kind == "endpoint":
        check_endpoint(settings.by, settings.model, field=field)
    else:
        from trivet.models.source import resolve

        if not settings.by.strip():
            raise TrivetError("no judge is given", field=f"{field}.by",
                              mend="give a reward-model folder, a model, package.module:function, or a URL")
        try:
            resolve(settings.by)
        except TrivetError as error:
            raise TrivetError(f"{error.what} (as a judge)", file=error.file, field=f"{field}.by",
                              expected="a reward-model folder, a model, package.module:function, or a URL",
                              mend=error.mend) from None


def make_judge(settings: Judging, compute: Any, *, folder: Path, count: Callable[[str, int], None] | None = None,
               loaded: Mapping[str, tuple[Any, Any]] | None = None, field: str = "judge",
               endpoints: Endpoints | None = None) -> Kept | None:
    """The judge that the settings name, its verdicts kept in `folder`; None where they name none.

    compute: where local models run (training.device.Compute). folder: verdicts are appended to verdicts.jsonl in it,
    and read from there by the next run. count: told how many tokens local models read (`judged`). loaded: (model,
    tokenizer) by name, to be shared instead of loaded anew. endpoints: what the judges and writers of a stage share,
    `Endpoints.of(run)`, which tells the ledger; without it the account stands in `folder`, and no ledger is told.
    What comes back is a Judge with `name`, `grades`, `symmetric` and `spent` (judge/cache.py: Kept).

    Raises TrivetError as `check` does, and for a model that does not load.
    """
    if settings.by is None:
        return None
    check(settings, field=field)
    verdicts = Verdicts(folder / "verdicts.jsonl")
    kind, clamp = kind_of(settings.by), settings.clamp if settings.think else 0.0
    if kind == "endpoint":
        from trivet.judge.endpoint import EndpointJudge

        endpoints = endpoints or Endpoints(folder / "requests.jsonl")
        return Kept(EndpointJudge(settings, field=field, endpoints=endpoints, verdicts=verdicts), verdicts, clamp=clamp)
    if kind == "function":
        from trivet.judge.function import FunctionJudge

        return Kept(FunctionJudge(settings.by, load_function(settings.by, field=f"{field}.by"), field), verdicts)
    return Kept(_local(settings, compute, count, loaded or {}, folder, field), verdicts, clamp=clamp)


def _local(settings: Judging, compute: Any, count: Callable[[str, int], None] | None,
           loaded: Mapping[str, tuple[Any, Any]], folder: Path, field: str) -> Asking:
    from trivet.judge.local import LogProbJudge
    from trivet.judge.reward_judge import RewardJudge
    from trivet.models.reward_model import is_reward_folder
    from trivet.models.source import model_identity, resolve

    assert settings.by is not None
    source = resolve(settings.by)
    if settings.by in loaded:
        model, tokenizer = loaded[settings.by]
        judge = LogProbJudge(model, tokenizer, name=settings.by, identity=model_identity(source, tokenizer),
                             longest=settings.longest, count=count)
    elif not is_reward_folder(source):
        judge = LogProbJudge.load(settings.by, compute, count, longest=settings.longest)
    elif settings.think:
        raise TrivetError(f"{settings.by} is a reward model: it scores, and has no reasons", field=f"{field}.think",
                          mend=f"leave --{field}.think out, or name a model that writes")
    else:
        return RewardJudge.load(settings.by, compute, count)
    if not settings.think:
        return judge
    from trivet.generate.config import Writing
    from trivet.generate.writing import make_writer
    from trivet.judge.thinking import ThinkingJudge

    writer = make_writer(Writing(by=settings.by), compute, seed=0, folder=folder / "thoughts", count=count,
                         loaded={settings.by: (judge.model, judge.tokenizer)}, field=field)
    return ThinkingJudge(judge, writer, tokens=settings.think_tokens, votes=settings.votes)
