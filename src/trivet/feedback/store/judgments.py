"""What labelers say: submit, edit, skip, undo, and the history. Rows of judgments are only inserted.

Every function takes the caller's request_id, unique for the user: a request that comes again (a retry after a lost
answer, a double click) finds its row and gives it back. One user's writes are in turn: each holds the user's row.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, RowMapping, bindparam, func, insert, or_, select, update

from trivet.feedback.store.assignments import (
    GIVEN,
    JUDGMENT_COLUMNS,
    OWN_LOCKED,
    get_assignment,
    give_slot_back,
    newest_judgment,
    no_such_assignment,
    take_slot,
    to_judgment,
)
from trivet.feedback.store.database import Connected, now
from trivet.feedback.store.records import RATED, Assignment, Invalid, Judgment, LeaseLost, Ranks, Ratings
from trivet.feedback.store.settings import read_settings
from trivet.feedback.store.tables import AssignmentRow, JudgmentRow, UserRow

NOTE_LENGTH = 10_000
LONGEST_SECONDS = 86_400.0


def check_ranks(ranks: Sequence[int | None], size: int) -> Ranks:
    """The ranks, one a completion, 1 to `size` or null. Raises Invalid."""
    if len(ranks) != size:
        raise Invalid(f"{size} answers but {len(ranks)} ranks", field="ranks", mend="give each answer a rank or F")
    for rank in ranks:
        if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= size):
            raise Invalid(f"{rank!r} is no rank", field="ranks",
                          mend=f"give ranks from 1 (best) to {size}, or null for F")
    return list(ranks)


def check_ratings(ratings: Any, size: int) -> dict[str, dict[str, int]] | None:
    """The ratings as stored, by position in the file. Raises Invalid."""
    if not ratings:
        return None
    mend = f"give {{position: {{{', '.join(RATED)}: 1 to 5}}}}, positions from 0 to {size - 1}"
    result: dict[str, dict[str, int]] = {}
    for position, rating in ratings.items() if isinstance(ratings, dict) else [(None, None)]:
        if str(position) not in map(str, range(size)) or not isinstance(rating, dict):
            raise Invalid(f"{position!r} is no answer's position with its ratings", field="ratings", mend=mend)
        for name, value in rating.items():
            if name not in RATED or isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 5:
                raise Invalid(f"{name!r}: {value!r} is no rating", field="ratings", mend=mend)
        if rating:
            result[str(position)] = dict(rating)
    return result or None


def check_text(text: str | None, field: str) -> str | None:
    """A note or reason, null for an empty one. Raises Invalid for one that is too long, or no text."""
    text = (text or "").strip()
    if len(text) > NOTE_LENGTH:
        raise Invalid(f"this is longer than {NOTE_LENGTH} characters", field=field, mend="shorten it")
    return text or None


def check_request(request_id: str) -> None:
    """Raise Invalid for an id that no database could keep."""
    if not 0 < len(request_id) <= 200 or not (request_id.isascii() and request_id.isprintable()):
        raise Invalid("a request id is 1 to 200 printable ASCII characters", field="request_id",
                      mend="give every new answer a random one, such as a UUID")


def check_seconds(seconds: float) -> float:
    """The active time. Raises Invalid for what is no time; a day at most counts."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not math.isfinite(seconds) or seconds < 0:
        raise Invalid(f"{seconds!r} is no time in seconds", field="seconds", mend="give the active time in seconds")
    return min(float(seconds), LONGEST_SECONDS)


# built once: every answer runs them
_PAUSED = select(UserRow.paused).where(UserRow.id == bindparam("user")).with_for_update()
_EARLIER = select(*JUDGMENT_COLUMNS).where(JudgmentRow.user_id == bindparam("user"),
                                           JudgmentRow.request_id == bindparam("request"))
_WRITE = insert(JudgmentRow).returning(*JUDGMENT_COLUMNS)
_STATE = update(AssignmentRow).where(AssignmentRow.id == bindparam("assignment"))
_FINISH = _STATE.values(state=bindparam("new_state"), slot=bindparam("new_slot"), finished_at=bindparam("moment"))


def hold_user(connection: Connection, user_id: int) -> None:
    """Take the user's turn. Raises NotYours for an unknown user, LeaseLost for a paused one."""
    paused = connection.execute(_PAUSED, {"user": user_id}).scalar()
    if paused is None:
        raise no_such_assignment()
    if paused:
        raise LeaseLost("an admin has paused your account", mend="ask the admin")


def earlier(connection: Connection, user_id: int, request_id: str, kind: str,
            assignment_id: int | None) -> Judgment | None:
    """The row that this request has written already. Raises Invalid when the id was used for something else."""
    row = connection.execute(_EARLIER, {"user": user_id, "request": request_id}).first()
    if row is None:
        return None
    if row.kind != kind or assignment_id not in {None, row.assignment_id}:
        raise Invalid("this request id was used for another answer", field="request_id",
                      mend="give every new answer a random one, such as a UUID")
    return to_judgment(row)


def _write(connection: Connection, row: RowMapping, kind: str, request_id: str, **values: Any) -> Judgment:
    return to_judgment(connection.execute(_WRITE, {
        "assignment_id": row["id"], "item_id": row["item_id"], "user_id": row["user_id"], "kind": kind,
        "request_id": request_id, "created_at": now(), "ranks": None, "ratings": None, "note": None, "seconds": None,
        "reason": None, "supersedes": None, **values}).one())


def _set_state(connection: Connection, row: RowMapping, state: str, *, slot: int | None,
               expires_at: datetime.datetime | None = None) -> None:
    given = {"assignment": row["id"], "new_state": state, "new_slot": slot}
    if state == "leased":
        connection.execute(_STATE.values(state=state, slot=slot, leased_at=now(), expires_at=expires_at,
                                         finished_at=None), {"assignment": row["id"]})
    else:
        connection.execute(_FINISH, given | {"moment": now()})


def _own(connection: Connection, assignment_id: int, user_id: int) -> RowMapping:
    row = connection.execute(OWN_LOCKED, {"assignment": assignment_id, "user": user_id}).mappings().first()
    if row is None:
        raise no_such_assignment()
    return row


def _regain(connection: Connection, row: RowMapping) -> int | None:
    """The slot for an assignment that lost its own. Raises LeaseLost when it was taken away or there is none left."""
    if row["state"] == "released":
        raise LeaseLost("an admin has taken this item from you", mend="go to the next item")
    if row["purpose"] != "label":
        return None
    slot = take_slot(connection, row["item_id"])
    if slot is None:
        raise LeaseLost("your time for this item ran out, and others have judged it since", mend="go to the next item")
    return slot


class Judgments(Connected):
    """What labelers say, as a part of Store."""

    def submit(self, assignment_id: int, user_id: int, ranks: Sequence[int | None], *, ratings: Ratings | None = None,
               note: str | None = None, seconds: float, request_id: str) -> Judgment:
        """Judge an item that one holds. Committed, and so acknowledged, when this returns.

        ranks: by the completions' positions in the file (not by the order shown), 1 to K, null for F. seconds:
        active time. The same request_id again gives the same Judgment. A lease that ran out still counts as long
        as the overlap is not reached.

        Raises NotYours, LeaseLost, Invalid.
        """
        return self._judge(assignment_id, user_id, ranks, ratings, note, seconds, request_id, editing=False)

    def edit(self, assignment_id: int, user_id: int, ranks: Sequence[int | None], *, ratings: Ratings | None = None,
             note: str | None = None, seconds: float, request_id: str) -> Judgment:
        """Judge a finished assignment of one's own anew: a new row, which supersedes the one before.

        A skipped one may be judged as long as the overlap is not reached. Raises NotYours, LeaseLost, Invalid.
        """
        return self._judge(assignment_id, user_id, ranks, ratings, note, seconds, request_id, editing=True)

    def _judge(self, assignment_id: int, user_id: int, ranks: Sequence[int | None], ratings: Ratings | None,
               note: str | None, seconds: float, request_id: str, *, editing: bool) -> Judgment:
        check_request(request_id)
        seconds, note = check_seconds(seconds), check_text(note, "note")

        def work(connection: Connection) -> Judgment:
            hold_user(connection, user_id)
            before = earlier(connection, user_id, request_id, "judge", assignment_id)
            if before is not None:
                return before
            row = _own(connection, assignment_id, user_id)
            finished = row["state"] in {"done", "skipped"}
            if finished and not editing:
                raise Invalid("you have answered this item already", mend="change the answer from your history")
            if editing and not finished:
                raise Invalid("this item has no answer to change yet", mend="answer it first")
            values = {"ranks": check_ranks(ranks, row["size"]), "ratings": check_ratings(ratings, row["size"]),
                      "note": note, "seconds": seconds}
            if editing:
                newest = newest_judgment(connection, assignment_id)
                values["supersedes"] = None if newest is None else newest.id
            if row["state"] != "done":
                slot = row["slot"] if row["state"] == "leased" else _regain(connection, row)
                _set_state(connection, row, "done", slot=slot)
            return _write(connection, row, "judge", request_id, **values)

        return self.write(work)

    def skip(self, assignment_id: int, user_id: int, reason: str, request_id: str) -> Judgment:
        """Give an item back unjudged, with a reason; it goes to others and never to this labeler again.

        Raises NotYours, LeaseLost, Invalid.
        """
        check_request(request_id)
        stated = check_text(reason, "reason")
        if stated is None:
            raise Invalid("a skipped item wants a reason", field="reason", mend="say in a few words why")

        def work(connection: Connection) -> Judgment:
            hold_user(connection, user_id)
            before = earlier(connection, user_id, request_id, "skip", assignment_id)
            if before is not None:
                return before
            row = _own(connection, assignment_id, user_id)
            if row["state"] in {"done", "skipped"}:
                raise Invalid("you have answered this item already", mend="undo the answer first")
            if row["state"] == "released":
                raise LeaseLost("an admin has taken this item from you", mend="go to the next item")
            _set_state(connection, row, "skipped", slot=None)
            if row["state"] == "leased" and row["purpose"] == "label":
                give_slot_back(connection, row["item_id"])
            return _write(connection, row, "skip", request_id, reason=stated)

        return self.write(work)

    def undo(self, user_id: int, request_id: str) -> Assignment | None:
        """Take back one's newest judgment or skip; its assignment is leased again. None when there is none.

        The same request_id again takes nothing more back. Raises LeaseLost when a skipped item's overlap has been
        reached since, NotYours for an unknown user, Invalid.
        """
        check_request(request_id)

        def work(connection: Connection) -> Assignment | None:
            hold_user(connection, user_id)
            before = earlier(connection, user_id, request_id, "undo", None)
            if before is not None:
                return get_assignment(connection, before.assignment_id)
            found = connection.execute(self._current(user_id).limit(1)).first()
            if found is None:
                return None
            row = _own(connection, found.assignment_id, user_id)
            slot = row["slot"] if row["state"] == "done" else _regain(connection, row)
            expires = now() + datetime.timedelta(seconds=read_settings(connection).lease_seconds)
            _set_state(connection, row, "leased", slot=slot, expires_at=expires)
            _write(connection, row, "undo", request_id, supersedes=found.id)
            return get_assignment(connection, row["id"])

        return self.write(work)

    def history(self, user_id: int, limit: int = 50, before: int | None = None) -> list[Judgment]:
        """One's own current judgments and skips, newest first. before: those older than this judgment's id."""
        query = self._current(user_id).limit(limit)
        if before is not None:
            query = query.where(JudgmentRow.id < before)
        return [to_judgment(row) for row in self.read(lambda c: c.execute(query).all())]

    @staticmethod
    def _current(user_id: int) -> Any:
        """The newest row of each of a labeler's finished assignments, newest first."""
        newer = JudgmentRow.__table__.alias("newer")
        return (select(*JUDGMENT_COLUMNS).join(AssignmentRow, AssignmentRow.id == JudgmentRow.assignment_id)
                .where(JudgmentRow.user_id == user_id, JudgmentRow.kind != "undo",
                       or_(AssignmentRow.purpose.in_(GIVEN), AssignmentRow.purpose == "live"),
                       ~select(newer.c.id).where(newer.c.assignment_id == JudgmentRow.assignment_id,
                                                 newer.c.id > JudgmentRow.id).exists())
                .order_by(JudgmentRow.id.desc()))


def current_judgments() -> Any:
    """A query of (JUDGMENT_COLUMNS) rows of kind judge that are the newest of their assignments."""
    newest = select(func.max(JudgmentRow.id)).group_by(JudgmentRow.assignment_id).scalar_subquery()
    return select(*JUDGMENT_COLUMNS).where(JudgmentRow.id.in_(newest), JudgmentRow.kind == "judge")
