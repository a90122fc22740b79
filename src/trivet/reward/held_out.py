"""Held-out answers to audit a reward with: of each prompt the best one, out of pairs, rankings or completions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from trivet.artifacts import Completions, Message, Preference, Ranking, Row, json_lines, parquet_rows, read_rows
from trivet.errors import TrivetError

T = TypeVar("T")
Kind = Literal["preferences", "rankings", "completions"]


@dataclass(frozen=True)
class HeldOut:
    """The best answer to a prompt."""

    prompt_id: str
    messages: tuple[Message, ...]
    text: str
    reference: str | None = None
    tags: tuple[str, ...] = ()


def read_answers(path: Path) -> tuple[Kind, list[HeldOut], dict[str, int]]:
    """The kind of rows in a file, the best answer to each prompt, and how many prompts have none, by reason.

    Pairs: the answer that wins most often, less the times it loses. Rankings: the one that beats most others, a mean
    over labelers. Completions, of which nobody said which is best: the first that was not cut off, else the first.
    Raises TrivetError as `read_rows` does, and for rows that are none of these.
    """
    kind, row = _kind(path)
    rows: list[Row] = list(read_rows(path, row))
    left_out: Counter[str] = Counter()
    found: list[HeldOut] = []
    if kind == "preferences":
        for pairs in _together((r for r in rows if isinstance(r, Preference)), lambda r: r.prompt_id):
            text = _winner(pairs)
            if text is None:
                left_out["no answer is better than another"] += 1
            else:
                found.append(HeldOut(pairs[0].prompt_id, tuple(pairs[0].prompt), text))
    elif kind == "rankings":
        for ranked in _together((r for r in rows if isinstance(r, Ranking)), lambda r: r.id):
            text = _best_ranked(ranked)
            if text is None:
                left_out["every answer failed"] += 1
            else:
                first = ranked[0]
                found.append(HeldOut(first.id, tuple(first.messages), text, first.reference, tuple(first.tags)))
    else:
        for answered in (r for r in rows if isinstance(r, Completions)):
            best = next((c for c in answered.completions if c.ended), None) or \
                next((c for c in answered.completions if c.ended is None), answered.completions[0])
            found.append(HeldOut(answered.id, tuple(answered.messages), best.text, answered.reference,
                                 tuple(answered.tags)))
    return kind, found, dict(left_out)


def _kind(path: Path) -> tuple[Kind, type[Row]]:
    """What a file holds, by the fields of its first row."""
    rows = parquet_rows(path) if path.suffix == ".parquet" else json_lines(path)
    line, first = next(iter(rows), (0, {"chosen": ""}))  # read_rows says that an empty file is one
    if "ranks" in first:
        return "rankings", Ranking
    if "completions" in first:
        return "completions", Completions
    if "chosen" in first or "rejected" in first:
        return "preferences", Preference
    raise TrivetError("this row is neither a pair nor a ranking nor a prompt with completions", file=path, line=line,
                      expected="the fields `chosen` and `rejected`, `ranks`, or `completions`",
                      mend="give the held-out pairs of `trivet pairs`, rankings, or answers of `trivet sample`")


def _together(rows: Iterable[T], key: Callable[[T], str]) -> list[list[T]]:
    """Rows of one key, in the order in which the keys first appear."""
    found: dict[str, list[T]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return list(found.values())


def _winner(pairs: Sequence[Preference]) -> str | None:
    """The answer with most wins less losses, by the labels; None where no answer wins more than it loses."""
    net: dict[str, float] = {}
    for pair in pairs:
        lead = 0.0 if pair.tie else 2.0 * pair.label - 1.0
        net[pair.chosen] = net.get(pair.chosen, 0.0) + lead
        net[pair.rejected] = net.get(pair.rejected, 0.0) - lead
    best = max(net, key=lambda text: net[text])
    return best if net[best] > 0 else None


def _best_ranked(rankings: Sequence[Ranking]) -> str | None:
    """The answer that beats most of the others, ties half, F below all; None where half of the labelers fail it."""
    beaten: dict[str, list[float]] = {}
    failed: dict[str, list[bool]] = {}
    texts: dict[str, str] = {}
    for ranking in rankings:
        places = [float("inf") if r is None else float(r) for r in ranking.ranks]
        for completion, place in zip(ranking.completions, places, strict=True):
            others = max(1, len(places) - 1)
            wins = sum(place < other for other in places) + 0.5 * (sum(place == other for other in places) - 1)
            beaten.setdefault(completion.id, []).append(wins / others)
            failed.setdefault(completion.id, []).append(place == float("inf"))
            texts.setdefault(completion.id, completion.text)
    best = max(beaten, key=lambda i: sum(beaten[i]) / len(beaten[i]))
    return None if 2 * sum(failed[best]) >= len(failed[best]) else texts[best]
