"""What the store hands out and what it raises: plain frozen records, no database in them."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

from trivet.artifacts import Completion, Message, Ranking
from trivet.errors import TrivetError
from trivet.feedback.store.instructions import DEFAULT_INSTRUCTIONS

Role = Literal["admin", "labeler"]
Kind = Literal["person", "ai"]
Purpose = Literal["label", "gold", "repeat", "adjudicate", "live"]
Ranks = list[int | None]
#: by the completion's position in the file: {"helpful" | "honest" | "harmless": 1 to 5}
Ratings = dict[int, dict[str, int]]
RATED = ("helpful", "honest", "harmless")


class NotYours(TrivetError):
    """The assignment is another's, or there is none: the two are not told apart, so that nobody learns of others'."""


class LeaseLost(TrivetError):
    """The lease ended, and others have filled the item's overlap since; or an admin took it away."""


class Invalid(TrivetError):
    """The judgment itself is not sound."""


class Unavailable(TrivetError):
    """The database does not answer; the same request may be tried again."""


class ProjectSettings(BaseModel):
    """The settings of a labelling project."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True,
                              allow_inf_nan=False)
    title: str = Field("Trivet", min_length=1, max_length=200)
    """Shown at the top of every page."""
    instructions: str = Field(DEFAULT_INSTRUCTIONS, max_length=200_000)
    """Markdown, always in the labeler's view."""
    overlap: int = Field(3, ge=1, le=1000)
    """Judgments an item gets, each from another labeler."""
    gold_rate: float = Field(0.05, ge=0, lt=1)
    """Share of a labeler's items that have a known answer, as long as there are such."""
    repeat_rate: float = Field(0.05, ge=0, lt=1)
    """Share of a labeler's items that are earlier ones of their own, shuffled anew."""
    lease_seconds: float = Field(1800, gt=0, le=30 * 86400)
    """After so long without an answer an item is given to somebody else."""
    search_url: str = "https://duckduckgo.com/?q={query}"
    """Where a prompt is searched for; holds {query}. Empty: no link."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Of the order of items, of shuffles, and of when gold items and repeats come."""
    paused: bool = False
    """Nobody is given anything."""
    ask_ratings: bool = False
    """Ask for helpful, honest, harmless from 1 to 5 beside the ranks."""

    @field_validator("search_url")
    @classmethod
    def _a_web_address(cls, value: str) -> str:
        if value and (urlsplit(value).scheme not in {"http", "https"} or "{query}" not in value):
            raise ValueError("the search address begins with http:// or https:// and holds {query}")
        return value


@dataclass(frozen=True)
class User:
    """Somebody who labels or administers. paused: is given nothing and can answer nothing."""

    id: int
    name: str
    role: Role
    kind: Kind
    paused: bool
    created_at: datetime.datetime


@dataclass(frozen=True)
class ApiToken:
    """A program's token, without its secret."""

    id: int
    user_id: int
    label: str
    created_at: datetime.datetime
    revoked_at: datetime.datetime | None


@dataclass(frozen=True)
class Judgment:
    """One row of the trail. kind judge: ranks by position in the file (1 best, null F); skip: a reason; undo."""

    id: int
    assignment_id: int
    item_id: int
    user_id: int
    kind: Literal["judge", "skip", "undo"]
    ranks: Ranks | None
    ratings: Ratings | None
    note: str | None
    seconds: float | None
    reason: str | None
    supersedes: int | None
    created_at: datetime.datetime
    request_id: str


@dataclass(frozen=True)
class Assignment:
    """An item given to a labeler. shown_order: positions in the file, in the order in which they are shown."""

    id: int
    item_id: int
    user_id: int
    purpose: Purpose
    state: Literal["leased", "done", "skipped", "expired", "released"]
    messages: list[Message]
    completions: list[Completion]
    shown_order: list[int]
    expires_at: datetime.datetime | None
    prompt_id: str
    current: Judgment | None


@dataclass(frozen=True)
class AddResult:
    """added: new rows; present: rows that were there already."""

    added: int
    present: int


@dataclass(frozen=True)
class Progress:
    """How far the project is. needed, done, leased count judgments of `label` assignments."""

    items: int
    needed: int
    done: int
    leased: int
    skipped: int
    judgments_per_hour: float
    forecast_hours: float | None
    """Hours until done reaches needed at the present pace; null where nobody has labeled in the last hour."""


@dataclass(frozen=True)
class LabelerStatistics:
    """One labeler's counts. Rates are shares in [0, 1], null where there is nothing to count."""

    user: User
    judgments: int
    median_seconds: float | None
    tie_rate: float | None
    """Of the pairs of answers neither of which is F, the share with equal ranks."""
    f_rate: float | None
    """Of the answers, the share marked F."""
    gold_accuracy: float | None
    """Of the pairs that the gold ranks decide, the share ordered in the same way."""
    gold_n: int
    repeats_agree: float | None
    """Of the pairs of answers of repeated items, the share with the same outcome (better, tie, worse) both times."""
    repeats_n: int
    skips: int


@dataclass(frozen=True)
class Drift:
    """A labeler's last `n` judgments beside everybody's last ones."""

    n: int
    tie_rate: float | None
    median_seconds: float | None
    all_n: int
    all_tie_rate: float | None
    all_median_seconds: float | None


@dataclass(frozen=True)
class DisputedItem:
    """An item and its current rankings. disagreement: share of discordant pairs, over all pairs of labelers."""

    item_id: int
    prompt_id: str
    rankings: list[Ranking]
    disagreement: float
    adjudicated: bool


@dataclass(frozen=True)
class Event:
    """One line of the audit trail."""

    id: int
    at: datetime.datetime
    user_id: int | None
    action: str
    detail: dict[str, Any]
