"""The form of tradeoff.json, how its figures come out of what was measured, and how it is read back. No torch.

A figure over rounds is their median, with the least and the most beside it (no confidence interval: three rounds give
none). How many times as fast a variant is, is taken round by round, so that what slows the machine for a while slows
both. Figures over items (prompts, documents) have 95% intervals, and differences from the source are paired by item
(evaluate/statistics.py).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from trivet.artifacts import read_json
from trivet.compress.choosing import Candidate, on_front
from trivet.compress.tradeoff_config import RESULTS
from trivet.compress.variant import Variant
from trivet.errors import TrivetError
from trivet.evaluate.base import Measure, Score
from trivet.evaluate.results import Figure, Line
from trivet.intervals import bootstrap_statistic

VERSION = 1
PERPLEXITY, REWARD_KEY = "capable.perplexity", "helpful.reward"
REWARD = Measure("reward", "helpful", "reward of answers to held-out prompts", "higher", share=False,
                 unit="as the reward model gives it")
REFUSALS_KEPT = Measure("refusals_kept", "harmless", "of the unsafe requests that the source declined, declined still, "
                        "by rule", "higher", tested=False)
KL = Measure("kl", "capable", "distance of the next token's distribution from the source's (KL)", "lower", share=False,
             unit="nats per token", tested=False)
SAME_TOKEN = Measure("same_token", "capable", "places where the likeliest token is the source's", "higher",
                     tested=False)
OF_THE_SOURCE = (REFUSALS_KEPT, KL, SAME_TOKEN)
"""Measures that are themselves a comparison with the source, which has none of them."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class Spread(_Part):
    """A figure over rounds: the median, the least and the most, and how many."""

    value: float
    low: float
    high: float
    n: int


class Timed(_Part):
    """A workload of one variant. `first`, `whole` in seconds; rates in tokens a second of all answers together."""

    batch: int
    prompt: int
    first: Spread
    """Until each prompt has its first token."""
    whole: Spread
    """Until all answers are there."""
    decode: Spread
    """Tokens a second after the first ones."""
    rate: Spread
    """Tokens a second, reading of the prompts included."""
    faster: Spread | None
    """Times as fast as the source at decoding, round by round."""

    @property
    def key(self) -> str:
        """`b16_p128`."""
        return workload_key(self.batch, self.prompt)


class Row(_Part):
    """A line of the table: the source (the first), or a variant."""

    name: str
    path: str
    variant: Variant
    failed: str | None = None
    """Why nothing but its size is known."""
    absent: dict[str, str] = {}
    """Figures that are n/a, and why."""
    load: Spread | None = None
    """Seconds until the model is ready, in a process that has its libraries."""
    memory: Spread | None = None
    """Bytes that its process held at most, libraries included."""
    gpu_memory: Spread | None = None
    timed: list[Timed] = []
    measures: list[Line] = []
    perplexity_growth: Figure | None = None
    """What the perplexity is more than the source's, as a share of it."""

    def line(self, key: str) -> Line | None:
        """A measure's line."""
        return next((m for m in self.measures if m.key == key), None)

    def workload(self, batch: int, prompt: int) -> Timed | None:
        """A workload's figures."""
        return next((t for t in self.timed if (t.batch, t.prompt) == (batch, prompt)), None)


class Tradeoff(_Part):
    """`tradeoff.json`."""

    schema_version: int = VERSION
    trivet: str
    machine: str
    compute: str
    """Device, precision and threads."""
    new_tokens: int
    rounds: int
    family: int
    """How many tests Holm's rule was told of."""
    reward: str | None
    notes: list[str]
    data: dict[str, str]
    settings: dict[str, Any]
    rows: list[Row]

    @property
    def source(self) -> Row:
        """What all are compared with."""
        return self.rows[0]

    @property
    def workloads(self) -> list[tuple[int, int]]:
        """(batch, prompt) of all that somebody was timed at, in order."""
        return sorted({(t.batch, t.prompt) for row in self.rows for t in row.timed})

    def alone(self) -> tuple[int, int] | None:
        """The workload that latency is read from: the fewest prompts at once, the shortest ones."""
        return min(self.workloads, default=None)

    def quality(self, asked: str | None = None) -> str | None:
        """The measure by which quality counts: the one asked for, else the reward, else the perplexity.

        Raises TrivetError for one that is not in the table.
        """
        keys = measures_of(self.rows)
        if asked is None:
            return next((k for k in (REWARD_KEY, PERPLEXITY) if self.source.line(k) is not None), None)
        if asked not in keys or keys[asked].better == "neither":
            able = [k for k, m in keys.items() if m.better != "neither"]
            raise TrivetError(f"quality can't be told by {asked!r}", field="quality", expected=", ".join(able),
                              mend="name a measure of this table of which one direction is the better one")
        return asked

    def candidates(self, quality: str | None) -> list[Candidate]:
        """All rows as the choice sees them."""
        alone = self.alone()
        return [Candidate(row.name, timed.whole.value if alone and (timed := row.workload(*alone)) else None,
                          row.variant.bytes, _loss_value(row, quality, source=row is self.source))
                for row in self.rows]

    def front(self, quality: str | None) -> set[str]:
        """Names on the Pareto front of latency, size and quality (of latency and size where none is measured)."""
        return on_front(self.candidates(quality), ("quality", "latency", "size") if quality else ("latency", "size"))


# --- figures -------------------------------------------------------------------------------------------


def workload_key(batch: int, prompt: int) -> str:
    """`b16_p128`: 16 prompts of 128 tokens."""
    return f"b{batch}_p{prompt}"


def spread(values: Sequence[float]) -> Spread:
    """Median, least and most of a figure's rounds. Raises ValueError for none."""
    if not values:
        raise ValueError("no round to take a median of")
    return Spread(value=statistics.median(values), low=min(values), high=max(values), n=len(values))


def figures(batch: int, prompt: int, new_tokens: int, rounds: Mapping[int, tuple[float, float]],
          source: Mapping[int, tuple[float, float]] | None) -> Timed:
    """A workload's figures from (seconds to the first token, seconds in all) by round; `source`: the source's.

    A clock too coarse to tell the two apart gives the rate of the whole for that of decoding.
    """
    found = [rounds[r] for r in sorted(rounds)]

    def decoding(first: float, whole: float) -> float:
        return batch * (new_tokens - 1) / (whole - first) if whole > first else batch * new_tokens / whole

    shared = sorted(rounds.keys() & source.keys()) if source is not None else []
    ratios = [decoding(*rounds[r]) / decoding(*source[r]) for r in shared] if source is not None else []
    return Timed(
        batch=batch, prompt=prompt, first=spread([f for f, _ in found]), whole=spread([w for _, w in found]),
        decode=spread([decoding(f, w) for f, w in found]), rate=spread([batch * new_tokens / w for _, w in found]),
        faster=spread(ratios) if ratios else None)


def growth(mine: Sequence[Score], source: Sequence[Score], seed: int = 0) -> Figure | None:
    """What a perplexity is more than the source's, as a share of it, over the documents that both read.

    exp of the difference of nats a token, less 1, with a 95% interval over documents. None where nothing is shared,
    and where the two count other tokens in a document: they cut the same text differently.
    """
    theirs = {s.id: s for s in source}
    both = [(s, theirs[s.id]) for s in mine if s.id in theirs]
    if not both or any(a.weight != b.weight for a, b in both):
        return None
    import numpy as np

    rows = [(a.weight * (a.value - b.value), a.weight) for a, b in both]
    found = bootstrap_statistic(rows, [a.group for a, _ in both], lambda s: np.expm1(s[..., 0] / s[..., 1]), seed=seed,
                                resamples=2000)
    return Figure(**{k: None if isinstance(v, float) and not math.isfinite(v) else v
                     for k, v in found._asdict().items()})


def refusals_kept(mine: Mapping[str, bool], source: Mapping[str, bool]) -> list[Score]:
    """Of the unsafe requests that the source declined, which are declined still; both: declined, by id."""
    return [Score(measure=REFUSALS_KEPT.key, id=name, group=name, value=float(mine[name]))
            for name, declined in source.items() if declined and name in mine]


def loss(row: Row, key: str) -> Figure | None:
    """What a row loses against the source by a measure; below 0: it gains. None where it is not known.

    Of perplexity the share it grows by; of what is itself a comparison with the source its distance from the best
    (a KL as it is, shares from 1); of all else the difference.
    """
    line = row.line(key)
    if line is None or line.better == "neither":
        return None
    if key == PERPLEXITY:
        return row.perplexity_growth
    if any(key == m.key for m in OF_THE_SOURCE):
        return line.value if line.better == "lower" else _turned(line.value, 1.0)
    if line.difference is None:
        return None
    return line.difference if line.better == "lower" else _turned(line.difference, 0.0)


def _turned(of: Figure, from_: float) -> Figure:
    """`from_` less a figure: its bounds change places."""
    value, low, high = (None if v is None else from_ - v for v in (of.value, of.high, of.low))
    return Figure(value=value, low=low, high=high, n=of.n)


def _loss_value(row: Row, quality: str | None, *, source: bool) -> float | None:
    if quality is None:
        return None
    if source:
        return 0.0
    found = loss(row, quality)
    return None if found is None else found.value


def measures_of(rows: Sequence[Row]) -> dict[str, Line]:
    """All measures that some row has, by key, in the order of the table."""
    found: dict[str, Line] = {}
    for row in rows:
        for line in row.measures:
            found.setdefault(line.key, line)
    legs = ("helpful", "honest", "harmless", "capable")
    return dict(sorted(found.items(), key=lambda item: legs.index(item[1].leg)))


# --- the file ------------------------------------------------------------------------------------------


def read(path: str | Path) -> Tradeoff:
    """The table in a file, or in a stage's folder. Raises TrivetError where there is none, or a damaged one."""
    path = Path(path)
    if path.is_dir() or path.name != RESULTS:
        path = path / RESULTS
    value = read_json(path, "schema_version", "rows")
    if value["schema_version"] != VERSION:
        raise TrivetError(f"this Trivet reads schema_version {VERSION}, the file says {value['schema_version']}",
                          file=path, field="schema_version", mend="measure anew with --overwrite")
    try:
        return Tradeoff.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        raise TrivetError(f"this is not what `trivet tradeoff` writes: {first['msg']}", file=path,
                          field=".".join(map(str, first["loc"])), mend="measure anew with --overwrite") from None
