"""Which suites there are, and what they measure. Strings, so that no torch is loaded to list them."""

from __future__ import annotations

import difflib
import importlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol, TypeVar

from trivet.errors import TrivetError
from trivet.evaluate.base import Leg, Measure


class Item(Protocol):
    """One question of a suite, as far as all suites agree on it."""

    @property
    def id(self) -> str: ...


I = TypeVar("I", bound=Item)  # noqa: E741


@dataclass(frozen=True)
class Suite:
    """One kind of question.

    `module` has `MEASURES: tuple[Measure, ...]`, `read(config) -> list[Item]` (no torch; raises TrivetError for a data
    file that does not fit) and `run(subject, items, config) -> list[Score]`.
    """

    name: str
    leg: Leg
    help: str
    module: str
    standard: int
    """How many items the standard set takes."""
    data: tuple[str, ...] = ()
    """Files under the data folder that it reads; the suite is left out where they are not there."""
    own: bool = False
    """Questions of its own come with Trivet, used where `data` is not there."""

    def load(self) -> Any:
        """Its module."""
        return importlib.import_module(self.module)

    @property
    def measures(self) -> tuple[Measure, ...]:
        """What it measures."""
        found: tuple[Measure, ...] = self.load().MEASURES
        return found


_HERE = "trivet.evaluate.suites"
SUITES = {s.name: s for s in (
    Suite("instructions", "helpful", "instructions that a program can check", f"{_HERE}.instructions", 100, own=True),
    Suite("prompts", "helpful", "open prompts: fluency, repetition, length, and what a judge says",
          f"{_HERE}.prompts", 120, ("prompts/mt_bench.jsonl", "prompts/vicuna_bench.jsonl"), own=True),
    Suite("truthfulqa", "honest", "multiple choice where people err (MC1, MC2, calibration)", f"{_HERE}.truthfulqa",
          790, ("truthfulqa/mc_task.json",)),
    Suite("unknown", "honest", "questions that nobody can answer, beside ones that have an answer",
          f"{_HERE}.unknown", 100, own=True),
    Suite("agreeing", "honest", "does it agree with a wrong claim, does it flatter?", f"{_HERE}.agreeing", 100,
          own=True),
    Suite("attacks", "harmless", "harmful requests, by topic", f"{_HERE}.attacks", 150,
          ("red-instruct/catqa_english.json", "red-instruct/harmfulqa.json", "red-instruct/dangerousqa.json"),
          own=True),
    Suite("refusals", "harmless", "safe requests that look unsafe, beside unsafe ones", f"{_HERE}.refusals", 200,
          ("xstest/xstest_prompts.csv",), own=True),
    Suite("text", "capable", "perplexity of held-out text", f"{_HERE}.text", 200,
          ("self-instruct/seed_tasks.jsonl",), own=True),
    Suite("gsm8k", "capable", "grade-school maths by exact answer", f"{_HERE}.gsm8k", 100, ("gsm8k/test.jsonl",)),
)}


def draw(items: Sequence[I], count: int | None, seed: int) -> list[I]:
    """`count` of the items (all, where there are fewer or count is None), by the seed; in their order.

    Items with `strata` (kinds within kinds), or else a `topic`, are taken from all of these in turn, level by level, so
    that a small draw covers each as evenly as its size allows. What a smaller count draws, a larger one with the same
    seed draws too.
    """
    if count is None or count >= len(items):
        return list(items)
    shuffled = random.Random(seed).sample(range(len(items)), len(items))
    kept = set(_in_turn([(i, getattr(items[i], "strata", None) or (getattr(items[i], "topic", None),))
                         for i in shuffled])[:count])
    return [item for i, item in enumerate(items) if i in kept]


def _in_turn(places: Sequence[tuple[int, tuple[Any, ...]]]) -> list[int]:
    """Places, given with the keys of their strata: each stratum in turn, and within it each of the next level."""
    groups: dict[Any, list[tuple[int, tuple[Any, ...]]]] = {}
    for place, keys in places:
        groups.setdefault(keys[0] if keys else None, []).append((place, keys[1:]))
    rows = [_in_turn(group) if any(keys for _, keys in group) else [place for place, _ in group]
            for group in groups.values()]
    return [place for turn in zip_longest(*rows) for place in turn if place is not None]


def chosen(names: Sequence[str], data: Path | None) -> tuple[list[Suite], dict[str, str]]:
    """The suites that names stand for, in the catalogue's order, and why others of the standard set are left out.

    Raises TrivetError for a name that is no suite, a data folder that is none, and for a suite asked for by name whose
    data are not there.
    """
    require_folder(data)
    for name in names:
        if name not in SUITES and name != "standard":
            near = difflib.get_close_matches(name, SUITES, 1)
            raise TrivetError(f"there is no suite {name!r}", field="suites", expected=", ".join(["standard", *SUITES]),
                              mend=f"did you mean {near[0]!r}?" if near else "see `trivet evaluate suites`")
    found, left_out = [], {}
    for suite in SUITES.values():
        if suite.name not in names and "standard" not in names:
            continue
        missing = [] if data is None else [f for f in suite.data if not (data / f).is_file()]
        if suite.own or (data is not None and suite.data and not missing):
            found.append(suite)
            continue
        why = f"its data ({', '.join(missing or suite.data)}) are not in {data}" if data is not None else \
            f"it reads {', '.join(suite.data)}: give their folder by --data"
        if suite.name in names:
            raise TrivetError(f"the suite {suite.name!r} can't be run: {why}", field="suites",
                              mend="give --data the folder that holds these files, or leave the suite out")
        left_out[suite.name] = why
    return found, left_out


def require_folder(data: Path | None) -> None:
    """Raise TrivetError for a data folder that is not there, or is a file."""
    if data is not None and not data.is_dir():
        raise TrivetError("there is no such folder" if not data.exists() else "this is a file, not a folder",
                          file=data, field="data", mend="give the folder in which red-instruct/, xstest/ … stand, or "
                          "leave --data out: Trivet has questions of its own")


def notes(suites: Sequence[Suite], data: Path | None) -> list[str]:
    """Which of the suites ask Trivet's own questions, or only a part of the field's, for want of data files."""
    reading = [s for s in suites if s.own and s.data]
    if data is None:
        names = ", ".join(s.name for s in reading)
        return [f"Without --data, Trivet's own questions were asked in: {names}."] if names else []
    found = []
    for suite in reading:
        missing = [f for f in suite.data if not (data / f).is_file()]
        there = [f for f in suite.data if f not in missing]
        if missing and not there:
            found.append(f"{suite.name}: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not in {data}: "
                         "own questions were asked.")
        elif missing:
            found.append(f"{suite.name}: of its files only {', '.join(there)} {'is' if len(there) == 1 else 'are'} in "
                         f"{data}.")
    return found


def data_files(suites: Sequence[Suite], data: Path | None) -> list[Path]:
    """The data files that these suites read, as far as they are there."""
    return [] if data is None else [data / f for s in suites for f in s.data if (data / f).is_file()]
