"""The item page: an assignment as cards in the shown order, and its form back as ranks in the file's order."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote_plus

from trivet.artifacts import Message
from trivet.feedback.labelling.markdown import Shown, shown
from trivet.feedback.store import Assignment, Drift, Invalid, Judgment, ProjectSettings

RATED = ("helpful", "honest", "harmless")
SKIP_REASONS = (
    "I cannot judge this (language or field)", "The prompt is broken or empty", "The content upsets me",
    "All answers say the same")
LONGEST_NOTE = 4000


def letter(index: int) -> str:
    """A, B, … Z, AA, AB, …: how answers are called on the page and in the API."""
    text = ""
    index += 1
    while index:
        index, rest = divmod(index - 1, 26)
        text = chr(ord("A") + rest) + text
    return text


@dataclass(frozen=True)
class Given:
    """A judgment as it stands in a form: ranks in the shown order, "" where there is none yet."""

    ranks: list[str]
    ratings: list[dict[str, int]]
    note: str = ""
    seconds: float = 0.0
    request_id: str = ""


@dataclass(frozen=True)
class Card:
    """One answer on the page."""

    index: int
    letter: str
    text: Shown
    rank: str
    ratings: dict[str, int] = field(default_factory=dict)


def given_by(judgment: Judgment | None, order: Sequence[int]) -> Given | None:
    """An earlier judgment as a form shows it."""
    if judgment is None or judgment.ranks is None:
        return None
    ranks, ratings = judgment.ranks, judgment.ratings or {}
    return Given(["F" if ranks[p] is None else str(ranks[p]) for p in order], [ratings.get(p, {}) for p in order],
                 judgment.note or "", judgment.seconds or 0.0)


def cards(assignment: Assignment, given: Given | None) -> list[Card]:
    """The answers in the shown order; nothing of them tells which model, or which place in the file, they come from."""
    order = assignment.shown_order
    given = given or Given([""] * len(order), [{} for _ in order])
    return [Card(i, letter(i), shown(assignment.completions[p].text), given.ranks[i], given.ratings[i])
            for i, p in enumerate(order)]


def read_form(form: Mapping[str, str], count: int) -> Given:
    """What a form holds; checks only that the fields have their form, the store checks the rest.

    Raises Invalid for fields that our page does not send.
    """
    ranks = []
    for i in range(count):
        value = form.get(f"rank-{i}", "").strip().upper()
        if value and value != "F" and not (value.isascii() and value.isdigit() and 1 <= int(value[:4]) <= count):
            raise Invalid(f"{value!r} is no rank for answer {letter(i)}", mend=f"choose 1 to {count}, or F")
        ranks.append(value)
    ratings: list[dict[str, int]] = []
    for i in range(count):
        row = {}
        for name in RATED:
            value = form.get(f"{name}-{i}", "").strip()
            if value:
                if value not in {"1", "2", "3", "4", "5"}:
                    raise Invalid(f"{value!r} is no rating", mend="choose 1 to 5")
                row[name] = int(value)
        ratings.append(row)
    return Given(ranks, ratings, form.get("note", "").strip()[:LONGEST_NOTE], _active_seconds(form),
                 form.get("request_id", "")[:64] or secrets.token_urlsafe(12))


def _active_seconds(form: Mapping[str, str]) -> float:
    """Seconds spent: counted by the page while it was looked at, else since it was made. At most a day."""
    for name, turn in (("seconds", lambda v: v), ("rendered", lambda v: time.time() - v)):
        try:
            value = turn(float(form.get(name, "")))
        except ValueError:
            continue
        if 0 < value < float("inf"):
            return round(min(value, 86_400.0), 1)
    return 0.0


def file_order(given: Given, order: Sequence[int]) -> tuple[list[int | None], dict[int, dict[str, int]] | None]:
    """(ranks by position in the file, ratings by position or None) of a form that is in the shown order.

    Raises Invalid naming the answers that have no rank yet.
    """
    missing = [letter(i) for i, rank in enumerate(given.ranks) if not rank]
    if missing:
        raise Invalid(f"no rank yet for answer{'s' if len(missing) > 1 else ''} {', '.join(missing)}",
                      mend="give every answer a rank, or F")
    ranks: list[int | None] = [None] * len(order)
    for i, position in enumerate(order):
        ranks[position] = None if given.ranks[i] == "F" else int(given.ranks[i])
    ratings = {order[i]: row for i, row in enumerate(given.ratings) if row}
    return ranks, ratings or None


def skip_reason(form: Mapping[str, str]) -> str:
    """The reason of a skip: one of ours, or the labeler's own words."""
    own = form.get("reason_text", "").strip()[:LONGEST_NOTE]
    chosen = form.get("reason", "")
    reason = "; ".join(part for part in (chosen if chosen in SKIP_REASONS else "", own) if part)
    if not reason:
        raise Invalid("a skip needs its reason", mend="choose one, or write it in a few words")
    return reason


def search_link(settings: ProjectSettings, messages: Sequence[Message]) -> str | None:
    """The prompt's last question in the search engine that the admin set."""
    if not settings.search_url:
        return None
    text = next((m.content for m in reversed(messages) if m.role == "user"), "")
    query = quote_plus(" ".join(text.split())[:300].encode("utf-8", "replace"))
    return settings.search_url.replace("{query}", query)


def drift_words(drift: Drift) -> list[str]:
    """What a labeler is told when ties or pace drift: mostly nothing; nothing before 10 judgments."""
    found: list[str] = []
    if drift.n < 10:
        return found
    if drift.tie_rate is not None and drift.tie_rate > min(0.5, max(0.25, 1.5 * (drift.all_tie_rate or 0.0))):
        found.append(f"Use ties sparingly: {drift.tie_rate:.0%} of the pairs in your last {drift.n} items are ties"
                     + (f" (everybody: {drift.all_tie_rate:.0%})." if drift.all_tie_rate is not None else "."))
    usual = drift.all_median_seconds
    if drift.median_seconds is not None and usual and drift.all_n > drift.n and drift.median_seconds < 0.4 * usual:
        found.append(f"You take {drift.median_seconds:.0f} s for an item, others {usual:.0f} s. "
                     "Read every answer to its end before you rank.")
    return found


def item_values(assignment: Assignment, settings: ProjectSettings, given: Given | None, **more: Any) -> dict[str, Any]:
    """What the template of the item page needs."""
    order = assignment.shown_order
    return {
        "assignment": assignment, "cards": cards(assignment, given), "count": len(order),
        "turns": [(m.role, shown(m.content)) for m in assignment.messages],
        "search": search_link(settings, assignment.messages), "note": given.note if given else "",
        "request_id": secrets.token_urlsafe(12), "rendered": int(time.time()), "skip_reasons": SKIP_REASONS,
        "rated": RATED, "error": None, "drift": [], "opinions": [],
    } | more
