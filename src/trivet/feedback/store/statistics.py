"""Counts: how far the project is, and how each labeler labels."""

from __future__ import annotations

import datetime
import itertools
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, func, select

from trivet.feedback.store.database import Connected, now
from trivet.feedback.store.judgments import current_judgments
from trivet.feedback.store.people import USER_COLUMNS, to_user
from trivet.feedback.store.records import Drift, LabelerStatistics, Progress, Ranks, User
from trivet.feedback.store.settings import read_settings
from trivet.feedback.store.tables import AssignmentRow, ItemRow, JudgmentRow, UserRow

#: everybody's last judgments that a labeler's are compared with
DRIFT_WINDOW = 500


def outcomes(ranks: Sequence[int | None]) -> list[int]:
    """For each pair (i < j) of answers: 1 when i is better, -1 when j is, 0 for a tie. F is the lowest rank."""
    keys = [float("inf") if rank is None else rank for rank in ranks]
    return [(a < b) - (a > b) for a, b in itertools.combinations(keys, 2)]


def tie_rate(all_ranks: Iterable[Ranks]) -> float | None:
    """Of the pairs of answers neither of which is F, the share with equal ranks."""
    ties = pairs = 0
    for ranks in all_ranks:
        sound = [rank for rank in ranks if rank is not None]
        ties += sum(a == b for a, b in itertools.combinations(sound, 2))
        pairs += len(sound) * (len(sound) - 1) // 2
    return ties / pairs if pairs else None


def f_rate(all_ranks: Iterable[Ranks]) -> float | None:
    """Of the answers, the share marked F."""
    marks = [rank is None for ranks in all_ranks for rank in ranks]
    return sum(marks) / len(marks) if marks else None


def _share(pairs: Iterable[tuple[bool, bool]]) -> float | None:
    """Of what counts (second), the share that is so (first)."""
    counted = [first for first, second in pairs if second]
    return sum(counted) / len(counted) if counted else None


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


class Statistics(Connected):
    """Counts, as a part of Store."""

    def progress(self) -> Progress:
        """How far the project is, and when it is done at the last hour's pace."""

        def work(connection: Connection) -> Progress:
            overlap, moment = read_settings(connection).overlap, now()
            batch = (ItemRow.kind == "batch", ItemRow.gold_ranks.is_(None))
            items, needed = connection.execute(
                select(func.count(), func.coalesce(func.sum(func.coalesce(ItemRow.overlap, overlap)), 0))
                .where(*batch)).one()
            states = dict(connection.execute(
                select(AssignmentRow.state, func.count()).join(ItemRow, ItemRow.id == AssignmentRow.item_id)
                .where(AssignmentRow.purpose == "label", *batch).group_by(AssignmentRow.state)).all())
            hour = datetime.timedelta(hours=1)
            count, first = connection.execute(
                select(func.count(), func.min(AssignmentRow.finished_at))
                .where(AssignmentRow.finished_at > moment - hour, AssignmentRow.state == "done",
                       AssignmentRow.purpose == "label")).one()
            # from the first of the hour on: a team that began ten minutes ago has a pace already
            span = max((moment - first) / hour, 1 / 60) if first is not None else 1.0
            pace, left = count / span, max(0, int(needed) - states.get("done", 0))
            return Progress(items=items, needed=int(needed), done=states.get("done", 0), leased=states.get("leased", 0),
                            skipped=states.get("skipped", 0), judgments_per_hour=pace,
                            forecast_hours=0.0 if left == 0 else left / pace if pace else None)

        return self.read(work)

    def labeler_statistics(self) -> list[LabelerStatistics]:
        """Each user's counts, over current judgments of label, gold, repeat and live, in order of user id."""

        def work(connection: Connection) -> list[LabelerStatistics]:
            users = [to_user(row) for row in connection.execute(select(*USER_COLUMNS).order_by(UserRow.id))]
            by_user: dict[int, list[Any]] = defaultdict(list)
            query = (current_judgments().join(AssignmentRow, AssignmentRow.id == JudgmentRow.assignment_id)
                     .join(ItemRow, ItemRow.id == JudgmentRow.item_id)
                     .add_columns(AssignmentRow.purpose, ItemRow.gold_ranks)
                     .where(AssignmentRow.state == "done", AssignmentRow.purpose != "adjudicate"))
            for row in connection.execute(query):
                by_user[row.user_id].append(row)
            skips = dict(connection.execute(
                select(AssignmentRow.user_id, func.count()).where(AssignmentRow.state == "skipped")
                .group_by(AssignmentRow.user_id)).all())
            return [_one_labeler(user, by_user[user.id], skips.get(user.id, 0)) for user in users]

        return self.read(work)

    def labeler_drift(self, user_id: int, last: int = 20) -> Drift:
        """Tie rate and pace of a labeler's last judgments, beside everybody's last ones."""
        columns = select(JudgmentRow.ranks, JudgmentRow.seconds).where(JudgmentRow.kind == "judge") \
            .order_by(JudgmentRow.id.desc())

        def work(connection: Connection) -> Drift:
            own = connection.execute(columns.where(JudgmentRow.user_id == user_id).limit(last)).all()
            everybody = connection.execute(columns.limit(DRIFT_WINDOW)).all()
            return Drift(
                len(own), tie_rate(row.ranks for row in own), _median(row.seconds for row in own), len(everybody),
                tie_rate(row.ranks for row in everybody), _median(row.seconds for row in everybody))

        return self.read(work)


def _one_labeler(user: User, rows: Sequence[Any], skips: int) -> LabelerStatistics:
    gold = [row for row in rows if row.purpose == "gold" and row.gold_ranks is not None]
    first = {row.item_id: row.ranks for row in rows if row.purpose == "label"}
    again = [(first[row.item_id], row.ranks) for row in rows if row.purpose == "repeat" and row.item_id in first]
    return LabelerStatistics(
        user=user, judgments=len(rows), median_seconds=_median(row.seconds for row in rows),
        tie_rate=tie_rate(row.ranks for row in rows), f_rate=f_rate(row.ranks for row in rows),
        gold_accuracy=_share((a == b, b != 0) for row in gold
                             for a, b in zip(outcomes(row.ranks), outcomes(row.gold_ranks), strict=True)),
        gold_n=len(gold),
        repeats_agree=_share((a == b, True) for one, two in again
                             for a, b in zip(outcomes(one), outcomes(two), strict=True)),
        repeats_n=len(again), skips=skips)
