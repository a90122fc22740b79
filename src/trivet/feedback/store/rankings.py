"""Judgments as rankings: what aggregation, agreement and export read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, select

from trivet.artifacts import Message, Ranking
from trivet.feedback.store.database import Connected
from trivet.feedback.store.items import read_completions
from trivet.feedback.store.judgments import current_judgments
from trivet.feedback.store.records import Purpose, Ranks
from trivet.feedback.store.tables import AssignmentRow, ItemRow, JudgmentRow, UserRow


def read_rankings(connection: Connection, *conditions: Any) -> list[tuple[Any, Ranking]]:
    """Current judgments that meet the conditions, oldest first: (the row, the ranking).

    A row has assignment_id, item_id, user_id, purpose, gold_ranks, name (of the item).
    """
    query = (current_judgments()
             .join(AssignmentRow, AssignmentRow.id == JudgmentRow.assignment_id)
             .join(ItemRow, ItemRow.id == JudgmentRow.item_id).join(UserRow, UserRow.id == JudgmentRow.user_id)
             .add_columns(AssignmentRow.purpose, UserRow.name.label("labeler"), ItemRow.name.label("item_name"),
                          ItemRow.gold_ranks)
             .where(AssignmentRow.state == "done", *conditions).order_by(JudgmentRow.item_id, JudgmentRow.id))
    rows = connection.execute(query).all()
    ids = sorted({row.item_id for row in rows})
    completions = read_completions(connection, ids)
    items = _items(connection, ids)
    return [(row, Ranking.model_construct(
        id=row.item_name, messages=items[row.item_id][0], reference=items[row.item_id][1], tags=items[row.item_id][2],
        completions=completions[row.item_id], ranks=row.ranks, labeler=row.labeler, seconds=row.seconds,
        note=row.note)) for row in rows]


def _items(connection: Connection, ids: Sequence[int]) -> dict[int, tuple[list[Message], str | None, list[str]]]:
    result = {}
    for start in range(0, len(ids), 500):
        for row in connection.execute(select(ItemRow.id, ItemRow.messages, ItemRow.reference, ItemRow.tags)
                                      .where(ItemRow.id.in_(ids[start:start + 500]))):
            result[row.id] = ([Message.model_construct(**m) for m in row.messages], row.reference, row.tags)
    return result


class Rankings(Connected):
    """Rankings, as a part of Store."""

    def rankings(self, *, include: Iterable[Purpose] = ("label",),
                 rounds: Iterable[int] | None = None) -> list[Ranking]:
        """The current judgments of these purposes (and rounds): one a labeler and prompt, labeler = the user's name.

        A ranking's id is its prompt's id; where a later round asks the same prompt anew, it is `id@ROUND` there.
        """
        conditions = [AssignmentRow.purpose.in_(list(include))]
        if rounds is not None:
            conditions.append(ItemRow.round.in_(list(rounds)))
        return [ranking for _, ranking in self.read(lambda c: read_rankings(c, *conditions))]

    def repeats(self) -> list[tuple[Ranking, Ranking]]:
        """(first, second) judgment of one labeler on one item."""
        again = self.read(lambda c: read_rankings(c, AssignmentRow.purpose == "repeat"))
        wanted = {(row.item_id, row.user_id) for row, _ in again}
        items = {item_id for item_id, _ in wanted}
        first: dict[tuple[int, int], Ranking] = {}
        for start in range(0, len(items), 500):
            some = sorted(items)[start:start + 500]
            for row, ranking in self.read(lambda c, some=some: read_rankings(  # type: ignore[misc]
                    c, AssignmentRow.purpose == "label", JudgmentRow.item_id.in_(some))):
                first[row.item_id, row.user_id] = ranking
        return [(first[row.item_id, row.user_id], ranking) for row, ranking in again
                if (row.item_id, row.user_id) in first]

    def gold(self) -> list[tuple[Ranking, Ranks]]:
        """(a labeler's ranking of a gold item, the known ranks)."""
        return [(ranking, row.gold_ranks) for row, ranking in
                self.read(lambda c: read_rankings(c, AssignmentRow.purpose == "gold")) if row.gold_ranks is not None]

    def adjudications(self) -> list[Ranking]:
        """The admins' decisions: the newest one of each item."""
        newest = {row.item_id: ranking for row, ranking in
                  self.read(lambda c: read_rankings(c, AssignmentRow.purpose == "adjudicate"))}
        return list(newest.values())
