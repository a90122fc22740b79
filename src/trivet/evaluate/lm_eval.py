"""Tasks of lm-evaluation-harness (`pip install 'trivet[lm-eval]'`) on a model that is already loaded.

The library reads the task and its data, words the questions and says what each answer is worth; what a model says of
given continuations comes from `generate.choices`, so that prefixes are shared. Each metric that is a mean over items,
or a perplexity, becomes a measure `capable.lm_eval.TASK.METRIC` with one score an item: which of the two it is, is
found by comparing with the library's own figure. Not covered: metrics of whole corpora, such as BLEU; they are left
out, and said.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trivet.artifacts import sha256_file
from trivet.errors import TrivetError
from trivet.evaluate.base import Kind, Measure, Score
from trivet.models.source import require_hub

if TYPE_CHECKING:
    from trivet.evaluate.subject import Subject

_ENDINGS = (".yaml", ".yml")


def check(names: Sequence[str]) -> None:
    """Raise TrivetError, without a model, where lm-eval is not installed or a name is no task of it.

    names: tasks, groups or tags of the library, or YAML files of tasks.
    """
    if find_spec("lm_eval") is None:
        raise TrivetError("lm-evaluation-harness is not installed", field="lm_eval",
                          mend="pip install 'trivet[lm-eval]'")
    files = [name for name in names if name.endswith(_ENDINGS)]
    for name in files:
        if not Path(name).expanduser().is_file():
            raise TrivetError("no such file", file=name, field="lm_eval", mend="check the path")
    if len(files) < len(names):
        known = set(_manager(names).all_tasks)
        for name in names:
            if name not in files and name not in known:
                import difflib

                near = difflib.get_close_matches(name, known, n=3)
                raise TrivetError(f"lm-eval has no task {name!r}", field="lm_eval",
                                  expected="one of " + ", ".join(near) + " …" if near else None,
                                  mend="`lm-eval ls tasks` lists them; or give a task's YAML file")


def named(names: Sequence[str]) -> list[str]:
    """The tasks as they are the same in any folder: a YAML file by its name and the hash of what it holds.

    What such a file includes, and its data, are not covered.
    """
    return [f"{Path(n).name} ({sha256_file(Path(n).expanduser())[:12]})" if n.endswith(_ENDINGS) else n for n in names]


def merged(mine: Sequence[Measure], theirs: Sequence[Measure]) -> list[Measure]:
    """The measures of two runs of the same tasks; a share is one where both say so.

    Raises TrivetError where one metric was read in two ways.
    """
    found = {m.key: m for m in mine}
    for other in theirs:
        one = found.setdefault(other.key, other)
        shared = replace(one, share=one.share and other.share)
        if shared != replace(other, share=shared.share):
            raise TrivetError(f"{one.key} is {one.kind!r}, {one.better} is better, of the model, and {other.kind!r}, "
                              f"{other.better} is better, of the base", field="lm_eval",
                              mend="evaluate both anew with one version of lm-eval and of the task, or leave it out")
        found[other.key] = shared
    return list(found.values())


def _manager(names: Sequence[str]) -> Any:
    """The library's index of tasks: its thousands of files are read only where one of them is asked for."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=any(not name.endswith(_ENDINGS) for name in names))


def tasks(subject: Subject, names: Sequence[str], *, limit: int | None = None, seed: int = 0,
          batch_size: int = 16) -> tuple[list[Measure], list[Score]]:
    """The measures of the named tasks, and each item's scores.

    limit: the first items of each task, as the library draws them. batch_size: for tasks that generate. Raises
    TrivetError for what `check` refuses, for a task whose data can't be had (at once where the hub can't be reached),
    and for one that fails.
    """
    check(names)
    from lm_eval import simple_evaluate

    with _quiet(), _offline_where_unreachable():
        loaded = _load(names)
        try:
            found = simple_evaluate(
                _shared_prefixes(subject, batch_size), tasks=list(loaded.values()), limit=limit, bootstrap_iters=0,
                log_samples=True, random_seed=seed, numpy_random_seed=seed, torch_random_seed=seed,
                fewshot_random_seed=seed)
        except TrivetError:
            raise
        except Exception as error:  # a task's templates and code can raise anything
            raise TrivetError(f"lm-eval fails on {', '.join(loaded)}: {type(error).__name__}: {_short(error)}",
                              field="lm_eval", mend="mend the task, or leave it out (--debug shows where)") from error
    measures: list[Measure] = []
    scores: list[Score] = []
    for task, samples in sorted(found["samples"].items()):
        better, figures = found["higher_is_better"].get(task, {}), found["results"][task]
        for metric, sieve in sorted({(m, s["filter"]) for s in samples for m in s["metrics"]}):
            values = {int(s["doc_id"]): s[metric] for s in samples if s["filter"] == sieve}
            read = read_metric(values, figures.get(f"{metric},{sieve}"))
            name = f"lm_eval.{task}.{metric}" + ("" if sieve == "none" else f".{sieve}")
            if read is None:
                print(f"{name}: not a mean over items, left out", flush=True)
                continue
            kind, rows = read
            measures.append(Measure(
                name, "capable", f"lm-eval: {task}, {metric}" + ("" if sieve == "none" else f" ({sieve})"),
                {True: "higher", False: "lower"}.get(better.get(metric), "neither"),  # type: ignore[arg-type]
                kind=kind, share=kind == "mean" and all(0 <= v <= 1 for v, _ in rows.values())))
            scores += [Score(measure=f"capable.{name}", id=f"{task}:{doc}", group=f"{task}:{doc}", value=v, weight=w)
                       for doc, (v, w) in sorted(rows.items())]
    return measures, scores


def read_metric(values: dict[int, Any], figure: Any) -> tuple[Kind, dict[int, tuple[float, float]]] | None:
    """({item: (value, weight)}, and how a figure comes of them) so that the library's own figure comes out.

    values: what the library says of each item, a number or (log-probability, words or bytes). None where no reading
    gives the figure: then it is no mean over items.
    """
    rows = {}
    for doc, value in values.items():
        pair = value if isinstance(value, tuple | list) else (value, 1.0)
        if len(pair) != 2 or not all(isinstance(p, int | float) and math.isfinite(p) for p in pair) or pair[1] <= 0:
            return None
        rows[doc] = (float(pair[0]) / float(pair[1]), float(pair[1]))
    if not rows or not isinstance(figure, int | float):
        return None
    total = sum(w for _, w in rows.values())
    mean = sum(v * w for v, w in rows.values()) / total

    def same(value: float) -> bool:
        return math.isclose(value, figure, rel_tol=1e-6, abs_tol=1e-9)

    if same(mean):
        return "mean", rows
    if same(-mean / math.log(2)):
        return "mean", {doc: (-v / math.log(2), w) for doc, (v, w) in rows.items()}
    if mean <= 0 and same(math.exp(min(-mean, 700.0))):
        return "exp", {doc: (-v, w) for doc, (v, w) in rows.items()}
    return None


def _load(names: Sequence[str]) -> dict[str, Any]:
    """The tasks with their data. Raises TrivetError where these can't be had."""
    manager = _manager(names)
    loaded: dict[str, Any] = {}
    for name in names:
        try:
            loaded |= manager.load([str(Path(name).expanduser()) if name.endswith(_ENDINGS) else name])["tasks"]
        except Exception as error:  # reading a task runs the code of its folder and fetches its data
            raise TrivetError(f"lm-eval can't load {name!r} or its data: {type(error).__name__}: {_short(error)}",
                              file=name if name.endswith(_ENDINGS) else None, field="lm_eval",
                              mend="check the task; its data must be in the local cache of `datasets`, or the hub in "
                              "reach, or leave the task out") from error
    if not loaded:
        raise TrivetError(f"{', '.join(names)} names no task", file=names[0] if names[0].endswith(_ENDINGS) else None,
                          field="lm_eval", mend="give a YAML file with `task:`")
    return loaded


def _shared_prefixes(subject: Subject, batch_size: int) -> Any:
    """The loaded model as the library's own kind, its log-probabilities by `score_forks`."""
    from lm_eval.models.huggingface import HFLM

    from trivet.generate.choices import Fork, score_forks
    from trivet.training.progress import bar

    class SharedPrefixes(HFLM):
        def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = False,
                                  override_bs: int | None = None) -> list[tuple[float, bool]]:
            by_prompt: dict[tuple[int, ...], list[tuple[int, tuple[int, ...]]]] = {}
            for index, (_, prompt, continuation) in enumerate(requests):
                room = self.max_length + 1 - len(continuation)  # the library's rule: the last token needs no room
                if room < 1:
                    raise TrivetError(f"a continuation of {len(continuation)} tokens does not fit the model's context "
                                      f"of {self.max_length}", field="lm_eval", mend="leave the task out")
                by_prompt.setdefault(tuple(prompt[-room:]), []).append((index, tuple(continuation)))
            forks = [Fork(prompt, tuple(c for _, c in members)) for prompt, members in by_prompt.items()]
            with bar(f"{subject.name}: lm-eval", len(forks)) as progress:
                scored = score_forks(self.model, forks, progress=progress, count=subject.count)
            answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
            for members, found in zip(by_prompt.values(), scored, strict=True):
                for (index, _), one in zip(members, found, strict=True):
                    answers[index] = (one.logp, one.greedy)
            return answers

        def _model_generate(self, context: Any, max_length: int, stop: list[str], **how: Any) -> Any:
            made = super()._model_generate(context, max_length, stop, **how)
            width = context.shape[1]
            subject.count("prompt", int(how["attention_mask"].sum()))
            subject.count("generated", sum(_length(row, ends) for row in made[:, width:].tolist()))
            return made

    ends = _ends(subject.model)
    return SharedPrefixes(pretrained=subject.model, tokenizer=subject.tokenizer, backend="causal",
                          batch_size=batch_size, max_length=subject.context)


def _ends(model: Any) -> frozenset[int]:
    """The tokens at which the model's own `generate` ends an answer; what follows in a row is padding."""
    ids = model.generation_config.eos_token_id
    return frozenset(() if ids is None else [ids] if isinstance(ids, int) else ids)


def _length(row: Sequence[int], ends: frozenset[int]) -> int:
    """How many tokens of a row were generated: up to the one that ends it, that one too."""
    return next((i for i, token in enumerate(row, 1) if token in ends), len(row))


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else "no reason given"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The library's own remarks are for its own users."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _offline_where_unreachable() -> Iterator[None]:
    """Data come from the local cache where the hub can't be reached: its libraries would try for minutes."""
    import datasets.config
    import huggingface_hub.constants

    try:
        require_hub("lm-eval")
        offline = False
    except TrivetError:
        offline = True
    kept = os.environ.get("HF_HUB_OFFLINE"), huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
        huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        if kept[0] is None:
            os.environ.pop("HF_HUB_OFFLINE", None)
        else:
            os.environ["HF_HUB_OFFLINE"] = kept[0]
        huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = kept[1:]
