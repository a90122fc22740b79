"""Who gets what: leases that expire, the overlap, gold items and repeats.

An item's `missing` says how many label assignments it still wants; every change of it stands beside the change of
an assignment's state, under the item's row lock (PostgreSQL) or the write lock (SQLite). That no item gets more
than its overlap, and nobody an item twice, is held by unique indices besides. Rows are locked in the order user,
assignment, item.
"""

from __future__ import annotations

import datetime
import random
from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    Select,
    and_,
    bindparam,
    insert,
    literal_column,
    or_,
    select,
    update,
)

from trivet.artifacts import Completion, Message
from trivet.errors import TrivetError
from trivet.feedback.store.database import Connected, now
from trivet.feedback.store.items import read_completions, seeded
from trivet.feedback.store.records import Assignment, Judgment, LeaseLost, NotYours, ProjectSettings
from trivet.feedback.store.settings import log, read_settings
from trivet.feedback.store.tables import LIVE, AssignmentRow, ItemRow, JudgmentRow, UserRow

#: what a labeler is given by `next_assignment`
GIVEN = ("label", "gold", "repeat")
#: things given between an item and its repeat, so that it is judged anew and not remembered
REPEAT_GAP = 8
#: leases ended at once
SWEEP = 100
#: open items looked at together when one is chosen
WINDOW = 64

JUDGMENT_COLUMNS = (
    JudgmentRow.id, JudgmentRow.assignment_id, JudgmentRow.item_id, JudgmentRow.user_id, JudgmentRow.kind,
    JudgmentRow.ranks, JudgmentRow.ratings, JudgmentRow.note, JudgmentRow.seconds, JudgmentRow.reason,
    JudgmentRow.supersedes, JudgmentRow.created_at, JudgmentRow.request_id)


# Statements that every request runs are built once: building one costs more than SQLite takes to run it.
# Literals, not parameters, where a partial index is meant: the planner must see that its condition holds.
LEASED = AssignmentRow.state == literal_column("'leased'")
_OPEN = ItemRow.missing > literal_column("0")
_HOLDS_SLOT = and_(AssignmentRow.purpose == literal_column("'label'"),
                   AssignmentRow.state.in_([literal_column(f"'{state}'") for state in LIVE]))
_JOINED = select(AssignmentRow.__table__, ItemRow.messages, ItemRow.prompt_id, ItemRow.size).join(
    ItemRow, ItemRow.id == AssignmentRow.item_id)
_BY_ID = _JOINED.where(AssignmentRow.id == bindparam("assignment"))
_OWN = _BY_ID.where(AssignmentRow.user_id == bindparam("user"))
#: a labeler's own assignment, its row held
OWN_LOCKED = _OWN.with_for_update(of=AssignmentRow)
_HELD = _JOINED.where(
    AssignmentRow.user_id == bindparam("user"), LEASED, AssignmentRow.purpose.in_(GIVEN),
    AssignmentRow.expires_at > bindparam("moment"), ItemRow.paused.is_(False),
).order_by(AssignmentRow.leased_at.desc(), AssignmentRow.id.desc()).limit(1)
_NEWEST = select(*JUDGMENT_COLUMNS).where(JudgmentRow.assignment_id == bindparam("assignment")) \
    .order_by(JudgmentRow.id.desc()).limit(1)
_OVERDUE = and_(LEASED, AssignmentRow.purpose.in_(GIVEN),
                AssignmentRow.expires_at <= bindparam("moment"))
_ANY_OVERDUE = select(AssignmentRow.id).where(_OVERDUE).limit(1)
_USER = select(UserRow.paused, UserRow.given).where(UserRow.id == bindparam("user")).with_for_update()
_OWN_OF_ITEM = and_(AssignmentRow.item_id == ItemRow.id, AssignmentRow.user_id == bindparam("user"))


def _window(*where: ColumnElement[bool], limit: int | None = WINDOW) -> Select[Any]:
    """The first open items, nearest to completion before the others, with what of them this labeler was given."""
    some = select(ItemRow.id, ItemRow.missing, ItemRow.order_key).where(
        _OPEN, ItemRow.paused.is_(False), *where,
    ).order_by(ItemRow.missing, ItemRow.order_key).limit(limit).subquery()
    return select(some.c.id, some.c.missing, AssignmentRow.id.label("own_id"), AssignmentRow.state).outerjoin(
        AssignmentRow, and_(AssignmentRow.item_id == some.c.id, AssignmentRow.user_id == bindparam("user"),
                            AssignmentRow.purpose == "label")).order_by(some.c.missing, some.c.order_key)


_FROM_LEVEL = _window(ItemRow.missing > bindparam("level"))
_INSIDE_LEVEL = _window(ItemRow.missing == bindparam("level"), ItemRow.order_key >= bindparam("start"))
_ALL_OPEN = _window(limit=None)
_CHOICE = select(ItemRow.id, ItemRow.size, ItemRow.name).where(
    ItemRow.id.in_(bindparam("items", expanding=True)), _OPEN,
).order_by(ItemRow.missing, ItemRow.order_key).limit(1)
_FREE, _AFTER_WAITING = (_CHOICE.with_for_update(skip_locked=skip) for skip in (True, False))
_TAKE = update(ItemRow).where(ItemRow.id == bindparam("item"), ItemRow.missing > 0) \
    .values(missing=ItemRow.missing - 1).returning(ItemRow.id)
_SLOTS = select(AssignmentRow.slot).where(
    AssignmentRow.item_id == bindparam("item"), _HOLDS_SLOT)
_GIVEN = update(UserRow).where(UserRow.id == bindparam("user")).values(given=UserRow.given + 1).returning(UserRow.given)
_LEASE = insert(AssignmentRow).returning(AssignmentRow.id)


def to_judgment(row: Any) -> Judgment:
    """A row of JUDGMENT_COLUMNS as a record."""
    values = row._asdict()
    if values["ratings"] is not None:
        values["ratings"] = {int(position): rating for position, rating in values["ratings"].items()}
    if values["seconds"] is not None:  # SQLite's RETURNING gives a whole REAL as an integer
        values["seconds"] = float(values["seconds"])
    return Judgment(**values)


def newest_judgment(connection: Connection, assignment_id: int) -> Judgment | None:
    """The newest row of an assignment, whatever its kind."""
    row = connection.execute(_NEWEST, {"assignment": assignment_id}).first()
    return None if row is None else to_judgment(row)


def no_such_assignment() -> NotYours:
    """For another's assignment as for one that does not exist."""
    return NotYours("this is no assignment of yours", mend="go to the next item")


def read_assignment(connection: Connection, where: ColumnElement[bool]) -> RowMapping | None:
    """One assignment joined with what of its item is shown."""
    return connection.execute(_JOINED.where(where).limit(1)).mappings().first()


def to_assignment(connection: Connection, row: RowMapping, current: Judgment | None = None) -> Assignment:
    """A row of `read_assignment` as a record."""
    completions: list[Completion] = read_completions(connection, [row["item_id"]])[row["item_id"]]
    return Assignment(
        id=row["id"], item_id=row["item_id"], user_id=row["user_id"], purpose=row["purpose"], state=row["state"],
        messages=[Message.model_construct(**m) for m in row["messages"]], completions=completions,
        shown_order=row["shown_order"], expires_at=row["expires_at"], prompt_id=row["prompt_id"],
        current=current if current is not None and current.kind != "undo" else None)


def get_assignment(connection: Connection, assignment_id: int) -> Assignment:
    """An assignment that is there, with its current judgment."""
    row = connection.execute(_BY_ID, {"assignment": assignment_id}).mappings().one()
    return to_assignment(connection, row, newest_judgment(connection, assignment_id))


def shuffled(size: int, settings: ProjectSettings, user_id: int, name: str, purpose: str) -> list[int]:
    """The order in which a labeler is shown an item's completions: seeded by both. A repeat's is another one."""
    order = list(range(size))
    random.Random(seeded(settings.seed, "shown", user_id, name)).shuffle(order)
    if purpose == "repeat" and size > 1:
        first = list(order)
        generator = random.Random(seeded(settings.seed, "again", user_id, name))
        while order == first:
            generator.shuffle(order)
    return order


# --- slots -------------------------------------------------------------------------------------------


def take_slot(connection: Connection, item_id: int) -> int | None:
    """The number of a free slot of an item whose row is held from here on, or None when the overlap is reached."""
    if connection.execute(_TAKE, {"item": item_id}).first() is None:
        return None
    taken = set(connection.execute(_SLOTS, {"item": item_id}).scalars())
    return next(k for k in range(1, len(taken) + 2) if k not in taken)


def give_slot_back(connection: Connection, item_id: int) -> None:
    """One more is missing. Gold items count none, whoever labeled them before they became gold."""
    connection.execute(update(ItemRow).where(ItemRow.id == item_id, ItemRow.gold_ranks.is_(None))
                       .values(missing=ItemRow.missing + 1))


def free_leases(connection: Connection, where: ColumnElement[bool], state: str) -> int:
    """End leases: `expired` ones may come back to the labeler, `released` ones were taken away. How many ended."""
    held = connection.execute(
        select(AssignmentRow.id).where(LEASED, AssignmentRow.purpose.in_(GIVEN), where)
        .order_by(AssignmentRow.item_id, AssignmentRow.id).limit(SWEEP).with_for_update(skip_locked=True)
    ).scalars().all()
    if not held:
        return 0
    ended = connection.execute(
        update(AssignmentRow).where(AssignmentRow.id.in_(held), AssignmentRow.state == "leased")
        .values(state=state, slot=None).returning(AssignmentRow.item_id, AssignmentRow.purpose)).all()
    for item_id in sorted(row.item_id for row in ended if row.purpose == "label"):
        give_slot_back(connection, item_id)
    return len(ended)


def lease(connection: Connection, settings: ProjectSettings, user_id: int, item: Any, purpose: str,
          slot: int | None, own_id: int | None = None) -> int:
    """Give an item to a labeler; the assignment's id. own_id: their ended assignment, which is begun anew."""
    moment = now()
    expires = moment + datetime.timedelta(seconds=settings.lease_seconds)
    given = connection.execute(_GIVEN, {"user": user_id}).scalar_one()
    if own_id is not None:
        connection.execute(update(AssignmentRow).where(AssignmentRow.id == own_id).values(
            state="leased", slot=slot, leased_at=moment, expires_at=expires, ordinal=given))
        return own_id
    return int(connection.execute(_LEASE, dict(
        item_id=item.id, user_id=user_id, purpose=purpose, state="leased", slot=slot, ordinal=given,
        shown_order=shuffled(item.size, settings, user_id, item.name, purpose), leased_at=moment, expires_at=expires,
        finished_at=None)).scalar_one())


# --- choosing ----------------------------------------------------------------------------------------


def _candidates(connection: Connection, settings: ProjectSettings, user_id: int, given: int) -> dict[int, int | None]:
    """Some open items that this labeler has not answered, best first: {item: their ended assignment or None}.

    Looks at one window of each level of completion, and at a second one from a seeded place in it, so that it takes
    no longer in a project of many items, all of which one labeler has answered already. Only where that finds
    nothing are all of them looked at.
    """
    def unseen(rows: Sequence[Any]) -> dict[int, int | None]:
        return {row.id: row.own_id for row in rows if row.own_id is None or row.state == "expired"}

    level = 0
    while True:
        rows = connection.execute(_FROM_LEVEL, {"user": user_id, "level": level}).all()
        if (found := unseen(rows)) or (level == 0 and len(rows) < WINDOW):
            return found
        if len(rows) < WINDOW:
            break
        level = rows[-1].missing
        start = seeded(settings.seed, "window", user_id, given)
        if found := unseen(connection.execute(_INSIDE_LEVEL, {"user": user_id, "level": level, "start": start}).all()):
            return found
    return unseen(connection.execute(_ALL_OPEN, {"user": user_id}).all())


def _pick_label(connection: Connection, settings: ProjectSettings, user_id: int, given: int) -> int | None:
    """Lease an open item near to completion that this labeler has not seen; else the next of the seeded order."""
    while candidates := _candidates(connection, settings, user_id, given):
        some = {"items": list(candidates)[:WINDOW]}
        # First whatever nobody else is busy with; only when that is nothing, wait for those who are.
        item = connection.execute(_FREE, some).first() or connection.execute(_AFTER_WAITING, some).first()
        if item is not None and (slot := take_slot(connection, item.id)) is not None:
            return lease(connection, settings, user_id, item, "label", slot, candidates[item.id])
    return None


def _pick_gold(connection: Connection, settings: ProjectSettings, user_id: int) -> int | None:
    """Lease one of the gold items that this labeler has not seen."""
    rows = connection.execute(
        select(ItemRow.id, ItemRow.size, ItemRow.name, AssignmentRow.id.label("own_id"))
        .outerjoin(AssignmentRow, _OWN_OF_ITEM)
        .where(ItemRow.gold_ranks.is_not(None), ItemRow.paused.is_(False),
               or_(AssignmentRow.id.is_(None),
                   and_(AssignmentRow.state == "expired", AssignmentRow.purpose == "gold"))),
        {"user": user_id}).all()
    if not rows:
        return None
    item = min(rows, key=lambda row: seeded(settings.seed, "gold", user_id, row.name))
    return lease(connection, settings, user_id, item, "gold", None, item.own_id)


def _pick_repeat(connection: Connection, settings: ProjectSettings, user_id: int, given: int) -> int | None:
    """Lease an earlier item of this labeler's own, once more."""
    latest = given - REPEAT_GAP
    if latest < 1:
        return None
    start = seeded(settings.seed, "which", user_id, given) % latest + 1
    again = AssignmentRow.__table__.alias("again")
    query = (select(ItemRow.id, ItemRow.size, ItemRow.name).join(AssignmentRow, AssignmentRow.item_id == ItemRow.id)
             .where(AssignmentRow.user_id == user_id, AssignmentRow.purpose == "label", AssignmentRow.state == "done",
                    ItemRow.paused.is_(False),
                    ~select(again.c.id).where(again.c.user_id == user_id, again.c.item_id == ItemRow.id,
                                              again.c.purpose == "repeat").exists())
             .order_by(AssignmentRow.ordinal).limit(1))
    item = connection.execute(query.where(AssignmentRow.ordinal.between(start, latest))).first() \
        or connection.execute(query.where(AssignmentRow.ordinal < start)).first()
    return None if item is None else lease(connection, settings, user_id, item, "repeat", None)


class Assignments(Connected):
    """Giving work out, as a part of Store."""

    def next_assignment(self, user_id: int) -> Assignment | None:
        """What this labeler is to judge now, leased to them; None when there is nothing for them.

        What they hold already comes first, the newest before. Else, at the set rates, a gold item or a repeat,
        and otherwise the open item nearest to its overlap, in seeded order, that they have not been given. None
        too while the project or the labeler is paused. Raises NotYours for an unknown user.
        """

        def work(connection: Connection) -> Assignment | None:
            user = connection.execute(_USER, {"user": user_id}).first()
            if user is None:
                raise no_such_assignment()
            settings = read_settings(connection)
            if user.paused or settings.paused:
                return None
            moment = now()
            row = connection.execute(_HELD, {"user": user_id, "moment": moment}).mappings().first()
            if row is not None:
                half = datetime.timedelta(seconds=settings.lease_seconds / 2)
                if row["expires_at"] - moment < half:  # they are back at it: the lease begins anew
                    connection.execute(
                        update(AssignmentRow).where(AssignmentRow.id == row["id"], AssignmentRow.state == "leased")
                        .values(expires_at=moment + 2 * half))
                return to_assignment(connection, row, newest_judgment(connection, row["id"]))
            draw = seeded(settings.seed, "draw", user_id, user.given) / 2**62
            chosen = None
            if draw < settings.gold_rate:
                chosen = _pick_gold(connection, settings, user_id)
            elif draw < settings.gold_rate + settings.repeat_rate:
                chosen = _pick_repeat(connection, settings, user_id, user.given)
            if chosen is None:
                chosen = _pick_label(connection, settings, user_id, user.given)
            return None if chosen is None else get_assignment(connection, chosen)

        # in a transaction of its own, so that nobody who holds an item waits for another one
        if self.read(lambda c: c.execute(_ANY_OVERDUE, {"moment": now()}).first()) is not None:
            self.release_expired()
        return self.write(work)

    def assignment(self, assignment_id: int, user_id: int) -> Assignment | None:
        """One's own assignment in whatever state; None for another's."""

        def work(connection: Connection) -> Assignment | None:
            row = connection.execute(_OWN, {"assignment": assignment_id, "user": user_id}).mappings().first()
            return None if row is None else to_assignment(connection, row, newest_judgment(connection, assignment_id))

        return self.read(work)

    def release_expired(self) -> int:
        """End the leases whose time is up, and let others have their items. How many ended."""
        total = 0
        while ended := self.write(lambda c: free_leases(c, AssignmentRow.expires_at <= now(), "expired")):
            total += ended
        return total

    def reassign(self, item_id: int, by: int | None, user_id: int | None = None) -> Assignment | None:
        """Take an item from those who hold it; they are not given it again. user_id: lease it to this labeler.

        Raises TrivetError when there is no such item, LeaseLost when its overlap is reached, and TrivetError when
        that labeler has judged or skipped it.
        """

        def work(connection: Connection) -> Assignment | None:
            if user_id is not None:
                user = connection.execute(select(UserRow.paused).where(UserRow.id == user_id).with_for_update()).first()
                if user is None or user.paused:
                    raise TrivetError(f"user {user_id} is paused or not there", mend="choose another labeler")
            item = connection.execute(select(ItemRow.id, ItemRow.size, ItemRow.name, ItemRow.gold_ranks).where(
                ItemRow.id == item_id)).first()
            if item is None:
                raise TrivetError(f"there is no item {item_id}", mend="look at the list of items")
            ended = free_leases(connection, AssignmentRow.item_id == item_id, "released")
            log(connection, by, "reassign", item=item_id, leases=ended, to=user_id)
            if user_id is None:
                return None
            own = connection.execute(select(AssignmentRow.id, AssignmentRow.state).where(
                AssignmentRow.item_id == item_id, AssignmentRow.user_id == user_id, AssignmentRow.purpose == "label",
            ).with_for_update()).first()
            if own is not None and own.state in {"done", "skipped"}:
                raise TrivetError("this labeler has judged or skipped the item already", mend="choose another labeler")
            slot = take_slot(connection, item_id)
            if slot is None:
                raise LeaseLost("this item has reached its overlap", mend="raise the overlap, or adjudicate the item")
            settings = read_settings(connection)
            chosen = lease(connection, settings, user_id, item, "label", slot, own.id if own else None)
            return get_assignment(connection, chosen)

        return self.write(work)
