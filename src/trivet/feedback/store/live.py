"""Live mode: items that labelers make by talking with the model, turn by turn."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from pydantic import ValidationError
from sqlalchemy import Connection, and_, select, update

from trivet.artifacts import Completion, Completions, Message
from trivet.errors import TrivetError
from trivet.feedback.store.assignments import get_assignment, lease, no_such_assignment, read_assignment
from trivet.feedback.store.database import Connected
from trivet.feedback.store.items import insert_item
from trivet.feedback.store.judgments import hold_user
from trivet.feedback.store.records import Assignment, Invalid
from trivet.feedback.store.settings import read_settings
from trivet.feedback.store.tables import AssignmentRow, ItemRow


class Live(Connected):
    """Live mode, as a part of Store."""

    def add_live_item(self, user_id: int, messages: Sequence[Message], completions: Sequence[Completion],
                      parent_item_id: int | None = None) -> Assignment:
        """A turn of a conversation with the model's answers, given to whoever wrote it and to nobody else.

        parent_item_id: the turn before, which must be the same labeler's. Raises TrivetError, NotYours.
        """
        try:
            row = Completions(id=f"live-{secrets.token_hex(8)}", messages=list(messages), completions=list(completions))
        except ValidationError as error:
            raise Invalid(error.errors()[0]["msg"].removeprefix("Value error, "), mend="write the prompt again"
                          ) from None

        def work(connection: Connection) -> Assignment:
            hold_user(connection, user_id)
            if parent_item_id is not None and read_assignment(connection, and_(
                    AssignmentRow.item_id == parent_item_id, AssignmentRow.user_id == user_id,
                    AssignmentRow.purpose == "live")) is None:
                raise no_such_assignment()
            settings = read_settings(connection)
            item_id = insert_item(connection, row, settings, kind="live", parent_item_id=parent_item_id)
            item = connection.execute(select(ItemRow.id, ItemRow.size, ItemRow.name).where(ItemRow.id == item_id)).one()
            return get_assignment(connection, lease(connection, settings, user_id, item, "live", None))

        return self.write(work)

    def choose_live(self, assignment_id: int, user_id: int, position: int) -> None:
        """The answer with which the conversation goes on, by its position. Raises NotYours, TrivetError, Invalid."""

        def work(connection: Connection) -> None:
            row = read_assignment(connection, and_(AssignmentRow.id == assignment_id, AssignmentRow.user_id == user_id,
                                                   AssignmentRow.purpose == "live"))
            if row is None:
                raise no_such_assignment()
            if not 0 <= position < row["size"]:
                raise Invalid(f"there is no answer {position}", field="position", mend="choose one of the answers")
            if row["state"] != "done":
                raise TrivetError("this turn has not been ranked yet", mend="rank the answers first")
            connection.execute(update(ItemRow).where(ItemRow.id == row["item_id"]).values(chosen_completion=position))

        self.write(work)
