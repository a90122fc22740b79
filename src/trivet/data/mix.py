"""The stage `mix`: several files of prompts, or of preference pairs, become one, in an order drawn by the seed.

A policy that learns on attacks alone learns to refuse, and a reward model that is shown only what is harmful likes
nothing better; both want prompts and pairs of another kind beside them (Bai et al. 2022, section 4.2). The stages after
take one file.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from trivet.artifacts import Preference, Prompt, drawn_order, json_lines, parquet_rows, read_rows, write_rows
from trivet.data.mix_config import MixConfig
from trivet.errors import TrivetError
from trivet.runs import Run, Summary

Group = list[Prompt] | list[Preference]
"""The rows of one prompt."""


class MixSummary(Summary):
    """Counts of the stage."""

    rows: int
    prompts: int
    taken: dict[str, int]
    """Prompts by file."""


def run(config: MixConfig, run: Run) -> MixSummary:
    """Write mixed.jsonl. Raises TrivetError for files of different kinds, and for an id that stands in two of them."""
    kinds = [_kind(path) for path in config.inputs]
    for path, kind in zip(config.inputs, kinds, strict=True):
        if kind is not kinds[0]:
            raise TrivetError(f"this file holds {_PLURAL[kind]}, and {config.inputs[0]} {_PLURAL[kinds[0]]}", file=path,
                              field="inputs", mend="mix prompts with prompts, and pairs with pairs")
    limits: Sequence[int | None] = config.take or [None] * len(config.inputs)
    parts = [drawn(_groups(read_rows(path, kinds[0])), limit, config.seed)
             for path, limit in zip(config.inputs, limits, strict=True)]
    _refuse_doubled(parts, config.inputs)
    groups = drawn([group for part in parts for group in part], None, config.seed)
    write_rows(run.path("mixed.jsonl"), [row for group in groups for row in group])
    run.artifact("mixed", run.path("mixed.jsonl"))
    return MixSummary(rows=sum(map(len, groups)), prompts=len(groups), taken={
        str(path): len(part) for path, part in zip(config.inputs, parts, strict=True)})


def drawn(groups: Sequence[Group], count: int | None, seed: int) -> list[Group]:
    """At most `count` groups in an order that depends on the seed and on each group's first id alone."""
    return drawn_order(groups, seed, lambda group: group[0].id)[:count]


def _groups(rows: Sequence[Prompt | Preference]) -> list[Group]:
    if isinstance(rows[0], Prompt):
        return [[row] for row in rows if isinstance(row, Prompt)]
    pairs = sorted((row for row in rows if isinstance(row, Preference)), key=lambda pair: pair.prompt_id)
    return [list(group) for _, group in groupby(pairs, key=lambda pair: pair.prompt_id)]


_PLURAL: dict[type, str] = {Prompt: "prompts", Preference: "preference pairs"}


def _kind(path: Path) -> type[Prompt] | type[Preference]:
    first = next(iter(parquet_rows(path) if path.suffix == ".parquet" else json_lines(path)), None)
    return Preference if first is not None and "chosen" in first[1] else Prompt


def _refuse_doubled(parts: Sequence[Sequence[Group]], paths: Sequence[Path]) -> None:
    seen: dict[str, Path] = {}
    prompts: dict[str, tuple[object, Path]] = {}
    for part, path in zip(parts, paths, strict=True):
        for row in (row for group in part for row in group):
            other = seen.setdefault(row.id, path)
            if other != path:
                raise TrivetError(f"the id {row.id!r} stands in {other}, too", file=path, field="id",
                                  mend="give each row an id of its own, or leave one of the files away")
            if isinstance(row, Preference):
                said, where = prompts.setdefault(row.prompt_id, (row.prompt, path))
                if said != row.prompt:
                    raise TrivetError(f"the prompt_id {row.prompt_id!r} stands for another prompt in {where}",
                                      file=path, field="prompt_id", mend="give each prompt an id of its own")
