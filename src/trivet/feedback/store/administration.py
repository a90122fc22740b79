"""What admins do with items: pause, look at disputes, adjudicate."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence

from sqlalchemy import Connection, and_, select, update

from trivet.artifacts import Ranking
from trivet.errors import TrivetError
from trivet.feedback.store.assignments import get_assignment, lease, read_assignment
from trivet.feedback.store.database import Connected
from trivet.feedback.store.people import need_user
from trivet.feedback.store.rankings import read_rankings
from trivet.feedback.store.records import Assignment, DisputedItem
from trivet.feedback.store.settings import log, read_settings
from trivet.feedback.store.statistics import outcomes
from trivet.feedback.store.tables import AssignmentRow, ItemRow


def disagreement(rankings: Sequence[Ranking]) -> float:
    """Share of discordant pairs: of all pairs of answers, over all pairs of labelers, those ordered oppositely.

    F is the lowest rank. A tie is not discordant with anything. 0 where there is no pair.
    """
    all_outcomes = [outcomes(r.ranks) for r in rankings]
    opposite = pairs = 0
    for first, second in itertools.combinations(all_outcomes, 2):
        opposite += sum(a * b < 0 for a, b in zip(first, second, strict=True))
        pairs += len(first)
    return opposite / pairs if pairs else 0.0


class Administration(Connected):
    """The admin's part of Store."""

    def pause_item(self, item_id: int, paused: bool, by: int | None) -> None:
        """Give an item to nobody more; who holds it may finish. Raises TrivetError when there is none."""

        def work(connection: Connection) -> None:
            changed = connection.execute(update(ItemRow).where(ItemRow.id == item_id).values(paused=paused)
                                         .returning(ItemRow.id)).first()
            if changed is None:
                raise TrivetError(f"there is no item {item_id}", mend="look at the list of items")
            log(connection, by, "pause_item" if paused else "resume_item", item=item_id)

        self.write(work)

    def disputed(self, limit: int = 50) -> list[DisputedItem]:
        """The items that labelers disagree on most, those with no discordant pair left out."""

        def work(connection: Connection) -> list[DisputedItem]:
            by_item: dict[int, list[Ranking]] = defaultdict(list)
            for row, ranking in read_rankings(connection, AssignmentRow.purpose == "label"):
                by_item[row.item_id].append(ranking)
            decided = set(connection.execute(select(AssignmentRow.item_id).where(
                AssignmentRow.purpose == "adjudicate", AssignmentRow.state == "done")).scalars())
            found = [DisputedItem(item_id, group[0].id, group, share, item_id in decided)
                     for item_id, group in by_item.items() if (share := disagreement(group)) > 0]
            return sorted(found, key=lambda item: (-item.disagreement, item.item_id))[:limit]

        return self.read(work)

    def adjudication_assignment(self, item_id: int, admin_id: int) -> Assignment:
        """The item for an admin to decide, the one begun before where there is one. It counts against no overlap.

        Raises TrivetError when there is no such item, or the user is no admin.
        """

        def work(connection: Connection) -> Assignment:
            if need_user(connection, admin_id).role != "admin":
                raise TrivetError("only an admin adjudicates", mend="sign in as an admin")
            row = read_assignment(connection, and_(
                AssignmentRow.item_id == item_id, AssignmentRow.user_id == admin_id,
                AssignmentRow.purpose == "adjudicate"))
            if row is not None:
                return get_assignment(connection, row["id"])
            item = connection.execute(select(ItemRow.id, ItemRow.size, ItemRow.name)
                                      .where(ItemRow.id == item_id)).first()
            if item is None:
                raise TrivetError(f"there is no item {item_id}", mend="look at the list of items")
            log(connection, admin_id, "adjudicate", item=item_id)
            chosen = lease(connection, read_settings(connection), admin_id, item, "adjudicate", None)
            return get_assignment(connection, chosen)

        return self.write(work)
