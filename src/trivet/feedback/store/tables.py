"""The tables of the label store (SQLAlchemy 2, declarative); migrations/ makes them.

Times are UTC, timezone-aware in Python. Rows of `judgments` are only inserted: a trigger refuses anything else.
"""

from __future__ import annotations

import datetime
import json
from typing import Any

from sqlalchemy import JSON, BigInteger, DateTime, Dialect, ForeignKey, Index, String, Text, UniqueConstraint, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

#: states in which an assignment holds one of its item's slots
LIVE = ("leased", "done")


class UtcTime(TypeDecorator[datetime.datetime]):
    """An aware time. SQLite knows no time zones: stored there as UTC without one, and given it back on reading."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime.datetime | None, dialect: Dialect) -> datetime.datetime | None:
        if value is None:
            return None
        value = value.astimezone(datetime.UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime.datetime | None, dialect: Dialect) -> datetime.datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=datetime.UTC) if value.tzinfo is None else value.astimezone(datetime.UTC)


class AnyText(TypeDecorator[str]):
    """Text that a model or a person wrote, kept to the character: as JSON, since PostgreSQL's text holds no NUL."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else json.dumps(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else str(json.loads(value))


class Base(DeclarativeBase):
    type_annotation_map = {
        datetime.datetime: UtcTime,
        dict[str, Any]: JSON(none_as_null=True),
        list[Any]: JSON(none_as_null=True),
    }


class UserRow(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    #: the name case-folded: two names that differ in case only are one
    name_key: Mapped[str] = mapped_column(String(400), unique=True)
    password_hash: Mapped[str | None] = mapped_column(String(300))
    role: Mapped[str] = mapped_column(String(20))
    kind: Mapped[str] = mapped_column(String(20))
    paused: Mapped[bool] = mapped_column(default=False)
    #: assignments given so far; whoever raises it holds the row, so that one labeler is given one thing at a time
    given: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime.datetime]


class InvitationRow(Base):
    __tablename__ = "invitations"
    token_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    role: Mapped[str] = mapped_column(String(20))
    name: Mapped[str | None] = mapped_column(String(200))
    created_by: Mapped[int | None] = mapped_column(ForeignKey("users.id"))
    created_at: Mapped[datetime.datetime]
    expires_at: Mapped[datetime.datetime]
    used_at: Mapped[datetime.datetime | None]
    user_id: Mapped[int | None] = mapped_column(ForeignKey("users.id"))


class SessionRow(Base):
    __tablename__ = "sessions"
    token_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), index=True)
    created_at: Mapped[datetime.datetime]
    expires_at: Mapped[datetime.datetime]
    revoked_at: Mapped[datetime.datetime | None]


class ApiTokenRow(Base):
    __tablename__ = "api_tokens"
    id: Mapped[int] = mapped_column(primary_key=True)
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), index=True)
    label: Mapped[str] = mapped_column(String(200))
    created_at: Mapped[datetime.datetime]
    revoked_at: Mapped[datetime.datetime | None]


class SettingRow(Base):
    __tablename__ = "settings"
    key: Mapped[str] = mapped_column(String(50), primary_key=True)
    value: Mapped[Any] = mapped_column(JSON)


class ItemRow(Base):
    __tablename__ = "items"
    id: Mapped[int] = mapped_column(primary_key=True)
    prompt_id: Mapped[str] = mapped_column(String(500), index=True)
    #: the id under which its rankings go out: prompt_id, or prompt_id@ROUND where an earlier round has it already
    name: Mapped[str] = mapped_column(String(520), unique=True)
    #: sha256 of the conversation and the texts, whatever their order
    digest: Mapped[str] = mapped_column(String(64))
    messages: Mapped[list[Any]]
    reference: Mapped[str | None] = mapped_column(AnyText)
    tags: Mapped[list[Any]]
    kind: Mapped[str] = mapped_column(String(10))
    round: Mapped[int]
    gold_ranks: Mapped[list[Any] | None]
    paused: Mapped[bool] = mapped_column(default=False)
    overlap: Mapped[int | None]
    #: overlap less the label assignments that hold a slot; kept with every change of those, under this row's lock
    missing: Mapped[int]
    #: seeded hash: the order in which items are begun
    order_key: Mapped[int] = mapped_column(BigInteger)
    size: Mapped[int]
    parent_item_id: Mapped[int | None] = mapped_column(ForeignKey("items.id"))
    chosen_completion: Mapped[int | None]
    created_at: Mapped[datetime.datetime]
    __table_args__ = (
        Index("ix_items_open", "missing", "order_key", sqlite_where=text("missing > 0"),
              postgresql_where=text("missing > 0")),
        Index("ix_items_gold", "id", sqlite_where=text("gold_ranks IS NOT NULL"),
              postgresql_where=text("gold_ranks IS NOT NULL")),
    )


class CompletionRow(Base):
    __tablename__ = "completions"
    id: Mapped[int] = mapped_column(primary_key=True)
    item_id: Mapped[int] = mapped_column(ForeignKey("items.id"))
    position: Mapped[int]
    completion_id: Mapped[str] = mapped_column(AnyText)
    text: Mapped[str] = mapped_column(AnyText)
    model: Mapped[str | None] = mapped_column(AnyText)
    sampling: Mapped[dict[str, Any] | None]
    ended: Mapped[bool | None]
    tokens: Mapped[int | None]
    __table_args__ = (UniqueConstraint("item_id", "position"),)


class AssignmentRow(Base):
    __tablename__ = "assignments"
    id: Mapped[int] = mapped_column(primary_key=True)
    item_id: Mapped[int] = mapped_column(ForeignKey("items.id"))
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    purpose: Mapped[str] = mapped_column(String(12))
    state: Mapped[str] = mapped_column(String(10))
    slot: Mapped[int | None]
    #: the how-manieth thing given to this labeler
    ordinal: Mapped[int]
    shown_order: Mapped[list[Any]]
    leased_at: Mapped[datetime.datetime]
    expires_at: Mapped[datetime.datetime]
    finished_at: Mapped[datetime.datetime | None]
    __table_args__ = (
        UniqueConstraint("user_id", "item_id", "purpose"),  # nobody gets an item twice for one purpose
        # What holds the overlap, whatever the program does: one slot, one assignment.
        Index("uq_assignments_slot", "item_id", "slot", unique=True,
              sqlite_where=text("purpose = 'label' AND state IN ('leased', 'done')"),
              postgresql_where=text("purpose = 'label' AND state IN ('leased', 'done')")),
        Index("ix_assignments_leases", "expires_at", sqlite_where=text("state = 'leased'"),
              postgresql_where=text("state = 'leased'")),
        Index("ix_assignments_held", "user_id", sqlite_where=text("state = 'leased'"),
              postgresql_where=text("state = 'leased'")),
        Index("ix_assignments_finished", "finished_at"),
        Index("ix_assignments_user", "user_id", "purpose", "state", "ordinal"),
    )


class JudgmentRow(Base):
    __tablename__ = "judgments"
    id: Mapped[int] = mapped_column(primary_key=True)
    assignment_id: Mapped[int] = mapped_column(ForeignKey("assignments.id"))
    item_id: Mapped[int] = mapped_column(ForeignKey("items.id"), index=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    kind: Mapped[str] = mapped_column(String(10))
    ranks: Mapped[list[Any] | None]
    ratings: Mapped[dict[str, Any] | None]
    note: Mapped[str | None] = mapped_column(AnyText)
    seconds: Mapped[float | None]
    reason: Mapped[str | None] = mapped_column(AnyText)
    request_id: Mapped[str] = mapped_column(String(200))
    supersedes: Mapped[int | None] = mapped_column(ForeignKey("judgments.id"))
    created_at: Mapped[datetime.datetime]
    __table_args__ = (
        UniqueConstraint("user_id", "request_id"),
        Index("ix_judgments_current", "assignment_id", "id"),
        Index("ix_judgments_user", "user_id", "id"),
    )


class EventRow(Base):
    __tablename__ = "events"
    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime.datetime]
    user_id: Mapped[int | None] = mapped_column(ForeignKey("users.id"))
    action: Mapped[str] = mapped_column(String(50))
    detail: Mapped[dict[str, Any]]
