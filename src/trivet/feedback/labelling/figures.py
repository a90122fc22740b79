"""Agreement as the pages show it, worked out once for a state of the judgments.

The bootstrap takes a second or more on a large project: the overview shows the last figures and has new ones made in
a thread, the agreement page waits for them.
"""

from __future__ import annotations

import hashlib
import math
import threading
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trivet.feedback.store import Store
from trivet.intervals import Interval

if TYPE_CHECKING:
    from trivet.feedback.agreement import AgreementReport, Figure

NAMES = (
    ("alpha", "Krippendorff’s α", "ordinal, over places of answers; F is the lowest"),
    ("alpha_pairs", "Krippendorff’s α on pairs", "nominal: first, tie or second"),
    ("kendall_w", "Kendall’s W", "concordance, corrected for ties; mean over items"),
    ("tau_b", "Kendall’s τ-b", "over all pairs of labelers"),
    ("pair_agreement", "Agreement on pairs", "share of pairs of answers that two labelers decide alike"),
    ("decided_agreement", "Agreement on decided pairs", "the same where neither declared a tie"),
    ("leave_one_out", "Leave-one-out", "each against the majority of the others: the human ceiling of a reward model"),
    ("self_consistency", "Self-consistency", "items shown again to the same labeler"),
    ("gold_accuracy", "Gold accuracy", "pairs that gold ranks decide"),
)


@dataclass(frozen=True)
class FigureRow:
    """One figure in words; `interval` is None where it is undefined, `why` says so."""

    key: str
    name: str
    words: str
    interval: Interval | None
    why: str


@dataclass(frozen=True)
class Figures:
    """What the pages show of an AgreementReport; `report` is None where there is no ranking."""

    report: AgreementReport | None
    rows: list[FigureRow]
    by_labeler: dict[str, Interval]
    """Leave-one-out agreement of each labeler for whom it is defined."""
    pairs: list[tuple[str, str, Interval]]
    """Kendall's τ-b of each two labelers."""

    @property
    def items(self) -> int:
        return self.report.items if self.report else 0

    @property
    def headline(self) -> Interval | None:
        return next((row.interval for row in self.rows if row.key == "alpha"), None)

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return self.report.model_dump(mode="json") if self.report else {"items": 0}


def make(store: Store, seed: int = 0) -> Figures:
    """The figures of the store's current judgments."""
    from trivet.feedback.agreement import report

    rankings = store.rankings(include=("label",))
    if not rankings:
        return Figures(None, [FigureRow(k, n, w, None, "no judgments yet") for k, n, w in NAMES], {}, [])
    found = report(rankings, seed=seed, repeats=store.repeats(), gold=store.gold())

    def row(key: str, name: str, words: str) -> FigureRow:
        figure = getattr(found, key)
        return FigureRow(key, name, words, _interval(figure), figure.why or "")

    return Figures(
        found, [row(*names) for names in NAMES],
        {p.labeler: i for p in found.by_labeler if (i := _interval(p.leave_one_out)) is not None},
        [(p.first, p.second, i) for p in found.by_pair if (i := _interval(p.tau_b)) is not None])


def _interval(figure: Figure) -> Interval | None:
    return None if math.isnan(figure.interval.value) else figure.interval


class _Cache:
    """The last figures of one store, and the state they are of."""

    def __init__(self) -> None:
        self.lock, self.state, self.figures = threading.Lock(), "", None
        self.thread: threading.Thread | None = None

    figures: Figures | None


_caches: weakref.WeakKeyDictionary[Store, _Cache] = weakref.WeakKeyDictionary()
_caches_lock = threading.Lock()


def _state(store: Store) -> str:
    rows = [(r.id, r.labeler, r.ranks) for r in store.rankings(include=("label",))]
    extra = (len(store.repeats()), [(r.id, r.labeler, r.ranks) for r, _ in store.gold()])
    return hashlib.sha256(repr((rows, extra)).encode()).hexdigest()


def figures(store: Store) -> Figures:
    """The figures as of now; made anew only where the judgments have changed."""
    with _caches_lock:
        cache = _caches.setdefault(store, _Cache())
    with cache.lock:
        state = _state(store)
        if cache.figures is None or cache.state != state:
            cache.figures, cache.state = make(store), state
        return cache.figures


def latest(store: Store) -> Figures | None:
    """The figures made last, None at first; new ones are made in a thread meanwhile."""
    with _caches_lock:
        cache = _caches.setdefault(store, _Cache())
        if cache.thread is None or not cache.thread.is_alive():
            cache.thread = threading.Thread(target=_refresh, args=(weakref.ref(store),), name="agreement", daemon=True)
            cache.thread.start()
    cache.thread.join(0.5)  # a small project's figures are there at once
    return cache.figures


def _refresh(reference: weakref.ref[Store]) -> None:
    store = reference()
    if store is not None:
        figures(store)
