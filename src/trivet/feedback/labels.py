"""What a label database says, for `pairs --from-labels`: everybody's current rankings, and what stands beside them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trivet.artifacts import Ranking
from trivet.errors import TrivetError
from trivet.ledger import Labelling


@dataclass(frozen=True)
class Labels:
    """The judgments of a database, as rankings."""

    rankings: list[Ranking]
    """Current judgments of batch items and live turns, each labeler once a prompt; gold and repeats are not among
    them."""
    adjudications: list[Ranking]
    repeats: list[tuple[Ranking, Ranking]]
    """First and second judgment of an item by one labeler."""
    gold: list[tuple[Ranking, list[int | None]]]
    """Judgments of gold items, with the ranks that they should have."""
    ai: frozenset[str] = frozenset()
    """Which labelers are programs. A file of rankings does not say: there everybody counts as a person."""

    def time(self) -> Labelling:
        """The time that these judgments took, gold items, second judgments and adjudications among them."""
        every = [*self.rankings, *self.adjudications, *(second for _, second in self.repeats),
                 *(ranking for ranking, _ in self.gold)]
        source = hashlib.sha256("\n".join(sorted(
            f"{r.id} {r.labeler} {r.seconds} {r.ranks}" for r in every)).encode()).hexdigest()[:16]
        return _time([(r.labeler in self.ai, r.seconds) for r in every], source)

    def digest(self, adjudications: bool = True) -> str:
        """A sha256 that changes with what the labels say, and with nothing else."""
        beside = [r for pair in self.repeats for r in pair] + [r for r, _ in self.gold]
        lines = sorted(f"{kind} {r.model_dump_json()}" for kind, rows in (
            ("label", self.rankings), ("adjudication", self.adjudications if adjudications else []),
            ("beside", beside)) for r in rows)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _time(judgments: Sequence[tuple[bool, float | None]], source: str) -> Labelling:
    """(is it a program's, seconds) of each judgment, added up. No time, or none at all (0), is not known."""
    seconds = {ai: sum(s or 0.0 for a, s in judgments if a is ai) for ai in (False, True)}
    counts = {ai: sum(a is ai for a, _ in judgments) for ai in (False, True)}
    return Labelling(people_seconds=seconds[False], people_rankings=counts[False], ai_seconds=seconds[True],
                     ai_rankings=counts[True], untimed=sum(not s for _, s in judgments), source=source)


def labelling_time(url: str) -> Labelling:
    """The time in the label database at `url`: of all judgments that were ever given, corrected ones among them.

    Raises TrivetError for a database that is not there or can't be read.
    """
    file = database_file(url)
    if file is not None and not file.is_file():
        raise TrivetError("there is no such label database", file=file, field="labels",
                          mend="give the --db of `trivet label serve`; a path is relative to the current folder")
    from sqlalchemy import select

    from trivet.feedback.store import Store
    from trivet.feedback.store.tables import JudgmentRow, UserRow

    query = select(UserRow.kind, JudgmentRow.seconds).join(UserRow, UserRow.id == JudgmentRow.user_id).where(
        JudgmentRow.kind == "judge")
    store = Store.open(url)
    try:
        rows = store.read(lambda c: c.execute(query).all())
    finally:
        store.close()
    return _time([(row.kind == "ai", row.seconds) for row in rows], "the label database")


def read_labels(url: str, rounds: Sequence[int] | None = None) -> Labels:
    """The labels in the database at `url`, a file or a URL, of all rounds or those given.

    Raises TrivetError for a database that is not there, can't be read, or holds no judgment.
    """
    file = database_file(url)
    if file is not None and not file.is_file():
        raise TrivetError("there is no such label database", file=file, field="from_labels",
                          mend="give the --db of `trivet label serve`; a path is relative to the current folder")
    from trivet.feedback.store import Store

    store = Store.open(url)
    try:
        chosen = None if rounds is None else list(rounds)
        rankings = store.rankings(include=("label", "live"), rounds=chosen)
        # an adjudication has no round of its own, its prompt has
        known = {r.id for r in rankings}
        adjudications = [r for r in store.adjudications() if chosen is None or r.id in known]
        repeats = [pair for pair in store.repeats() if chosen is None or pair[0].id in known]
        gold = store.gold()
        ai = frozenset(user.name for user in store.users() if user.kind == "ai")
    finally:
        store.close()
    if not rankings and not adjudications:
        which = "" if chosen is None else f" of the rounds {', '.join(map(str, chosen))}"
        raise TrivetError(f"this label database holds no judgment{which}", file=file, field="from_labels",
                          mend="rank some items first: trivet label serve")
    return Labels(rankings, adjudications, repeats, gold, ai)


def database_file(url: str) -> Path | None:
    """The file of an SQLite database, None for a server's. A plain path is a file."""
    if "://" not in url:
        return Path(url)
    scheme, _, rest = url.partition("://")
    return Path(rest.removeprefix("/")) if scheme.split("+")[0] == "sqlite" else None
