"""Items: prompts with their answers, batch or live, gold or not; putting them in and reading them back."""

from __future__ import annotations

import hashlib
import secrets
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, RowMapping, bindparam, insert, select, update

from trivet.artifacts import Completion, Completions, Message, Ranking, text_id
from trivet.errors import TrivetError
from trivet.feedback.store.database import Connected, now
from trivet.feedback.store.people import add_user, clean_name, name_key
from trivet.feedback.store.records import AddResult, ProjectSettings, Ranks
from trivet.feedback.store.settings import log, read_settings
from trivet.feedback.store.tables import AssignmentRow, CompletionRow, ItemRow, JudgmentRow, SettingRow, UserRow

#: rows between two commits of a long import: the others want to write, too
CHUNK = 200


def digest(messages: Sequence[Message], completions: Sequence[Completion]) -> str:
    """What two rows share that show the same conversation and the same texts, in whatever order."""
    return text_id([[m.model_dump() for m in messages], sorted(c.text for c in completions)])


def seeded(*parts: Any) -> int:
    """An integer in [0, 2^62) that depends on `parts` alone."""
    data = hashlib.sha256("\0".join(map(str, parts)).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(data[:8], "big") >> 2


def insert_item(connection: Connection, row: Completions, settings: ProjectSettings, *, kind: str = "batch",
                round: int = 1, gold: Ranks | None = None, name: str | None = None,
                parent_item_id: int | None = None) -> int:
    """Insert an item and its completions; its id."""
    name = row.id if name is None else name
    counts = kind == "batch" and gold is None
    item_id = connection.execute(insert(ItemRow).values(
        prompt_id=row.id, name=name, digest=digest(row.messages, row.completions),
        messages=[m.model_dump() for m in row.messages], reference=row.reference, tags=row.tags, kind=kind, round=round,
        gold_ranks=gold, paused=False, overlap=None, missing=settings.overlap if counts else 0,
        order_key=seeded(settings.seed, "order", name), size=len(row.completions), parent_item_id=parent_item_id,
        chosen_completion=None, created_at=now()).returning(ItemRow.id)).scalar_one()
    connection.execute(insert(CompletionRow), [
        dict(item_id=item_id, position=position, completion_id=c.id, text=c.text, model=c.model, sampling=c.sampling,
             ended=c.ended, tokens=c.tokens) for position, c in enumerate(row.completions)])
    return item_id


def find_item(connection: Connection, row: Completions, round: int) -> tuple[RowMapping | None, str]:
    """(the stored item with this prompt id and these texts or None, the name that a new one would have).

    Raises TrivetError when the round has the prompt id with another conversation or other texts.
    """
    if "\0" in row.id or len(row.id) > 500:
        raise TrivetError(f"the id {row.id[:40]!r} … is no id for a store", field="id",
                          mend="give ids of at most 500 characters, none of them NUL")
    found = connection.execute(select(ItemRow.__table__).where(ItemRow.prompt_id == row.id, ItemRow.kind == "batch")
                               .order_by(ItemRow.id)).mappings().all()
    wanted = digest(row.messages, row.completions)
    for item in found:
        if item["digest"] == wanted:
            return item, item["name"]
        if item["round"] == round:
            raise TrivetError(f"the prompt {row.id!r} is in round {round} already, with other texts", field="id",
                              mend="give the new completions as another round (--round), or give the prompt another id")
    return None, row.id if not found else f"{row.id}@{round}"


_COMPLETIONS = (
    select(CompletionRow.item_id, CompletionRow.completion_id, CompletionRow.text, CompletionRow.model,
           CompletionRow.sampling, CompletionRow.ended, CompletionRow.tokens)
    .where(CompletionRow.item_id.in_(bindparam("items", expanding=True)))
    .order_by(CompletionRow.item_id, CompletionRow.position))


def read_completions(connection: Connection, item_ids: Sequence[int]) -> dict[int, list[Completion]]:
    """The completions of some items, in the order of the file."""
    result: dict[int, list[Completion]] = defaultdict(list)
    for start in range(0, len(item_ids), 500):
        for row in connection.execute(_COMPLETIONS, {"items": item_ids[start:start + 500]}):
            result[row.item_id].append(Completion.model_construct(
                id=row.completion_id, text=row.text, model=row.model, sampling=row.sampling, ended=row.ended,
                tokens=row.tokens))
    return result


def to_file_order(row: Ranking, stored: Sequence[Completion]) -> Ranks:
    """The ranks of `row` by the positions of the stored completions, which are the same texts in some order."""
    places: dict[str, list[int | None]] = defaultdict(list)
    for completion, rank in zip(row.completions, row.ranks, strict=True):
        places[completion.text].append(rank)
    return [places[completion.text].pop(0) for completion in stored]


def _chunks(rows: Iterable[Any]) -> Iterable[list[tuple[int, Any]]]:
    chunk: list[tuple[int, Any]] = []
    for number, row in enumerate(rows, 1):
        chunk.append((number, row))
        if len(chunk) == CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _locked_settings(connection: Connection) -> ProjectSettings:
    # held until the items are in: a change of the overlap between reading it and inserting them would miss them
    connection.execute(select(SettingRow.key).order_by(SettingRow.key).with_for_update()).all()
    return read_settings(connection)


class Items(Connected):
    """Putting items in, as a part of Store."""

    def add_completions(self, rows: Iterable[Completions], *, round: int = 1, by: int | None = None) -> AddResult:
        """Add prompts with their answers, to be ranked. present: the same prompt id with the same texts is there.

        A later round may bring other answers to the same prompt ids. Raises TrivetError when a round has the
        prompt id with other texts, and for a prompt with fewer than two answers; what came before it is in.
        """
        added = present = 0
        for chunk in _chunks(rows):
            def work(connection: Connection, chunk: list[tuple[int, Completions]] = chunk) -> int:
                settings, new = _locked_settings(connection), 0
                for number, row in chunk:
                    if len(row.completions) < 2:
                        raise TrivetError(f"the prompt {row.id!r} (row {number}) has one answer only",
                                          field="completions", mend="give at least two: sample --answers 4")
                    item, name = find_item(connection, row, round)
                    if item is None:
                        insert_item(connection, row, settings, round=round, name=name)
                        new += 1
                return new

            new = self.write(work)
            added, present = added + new, present + len(chunk) - new
        if added:
            self.write(lambda c: log(c, by, "add_completions", added=added, present=present, round=round))
        return AddResult(added, present)

    def add_gold(self, rows: Iterable[Ranking], by: int | None = None) -> AddResult:
        """Add items with a known answer, the row's ranks. An item that is there already becomes gold.

        Gold items go to every labeler at the set rate and enter no rankings. present: gold already.
        """
        added = present = 0
        for chunk in _chunks(rows):
            def work(connection: Connection, chunk: list[tuple[int, Ranking]] = chunk) -> int:
                settings, new = _locked_settings(connection), 0
                for _, row in chunk:
                    item, name = find_item(connection, row, 1)
                    if item is None:
                        insert_item(connection, row, settings, gold=row.ranks, name=name)
                        new += 1
                        continue
                    ranks = to_file_order(row, read_completions(connection, [item["id"]])[item["id"]])
                    if item["gold_ranks"] == ranks:
                        continue
                    connection.execute(update(ItemRow).where(ItemRow.id == item["id"])
                                       .values(gold_ranks=ranks, missing=0))
                    new += 1
                return new

            new = self.write(work)
            added, present = added + new, present + len(chunk) - new
        if added:
            self.write(lambda c: log(c, by, "add_gold", added=added, present=present))
        return AddResult(added, present)

    def add_rankings(self, rows: Iterable[Ranking], by: int | None = None, *, round: int = 1) -> AddResult:
        """Add rankings made elsewhere, with their items and labelers (accounts without a password).

        They take slots of the item's overlap, and more where the file holds more. present: the same labeler has
        ranked the item so already. Raises TrivetError when they have ranked it otherwise.
        """
        added = present = 0
        for chunk in _chunks(rows):
            def work(connection: Connection, chunk: list[tuple[int, Ranking]] = chunk) -> int:
                settings = _locked_settings(connection)
                return sum(_add_ranking(connection, row, settings, round) for _, row in chunk)

            new = self.write(work)
            added, present = added + new, present + len(chunk) - new
        if added:
            self.write(lambda c: log(c, by, "add_rankings", added=added, present=present))
        return AddResult(added, present)


def _add_ranking(connection: Connection, row: Ranking, settings: ProjectSettings, round: int) -> bool:
    """Insert one ranking; False when it is there. The item's row is held, so that its slots stay as they are seen."""
    name = clean_name(row.labeler)
    user_id = connection.execute(select(UserRow.id).where(UserRow.name_key == name_key(name))).scalar()
    if user_id is None:
        user_id = add_user(connection, name, "labeler", "person", None).id
    item, item_name = find_item(connection, row, round)
    item_id = item["id"] if item is not None else insert_item(connection, row, settings, round=round, name=item_name)
    connection.execute(select(ItemRow.id).where(ItemRow.id == item_id).with_for_update())
    ranks = to_file_order(row, read_completions(connection, [item_id])[item_id])
    there = connection.execute(select(AssignmentRow.id, AssignmentRow.state).where(
        AssignmentRow.item_id == item_id, AssignmentRow.user_id == user_id, AssignmentRow.purpose == "label")).first()
    if there is not None:
        current = connection.execute(
            select(JudgmentRow.ranks).where(JudgmentRow.assignment_id == there.id)
            .order_by(JudgmentRow.id.desc()).limit(1)).scalar()
        if current == ranks:
            return False
        raise TrivetError(f"{name!r} has, or was given, the prompt {row.id!r} already, and ranked it otherwise",
                          field="labeler", mend="take this row out, or import into a database of its own")
    taken = set(connection.execute(select(AssignmentRow.slot).where(
        AssignmentRow.item_id == item_id, AssignmentRow.purpose == "label",
        AssignmentRow.state.in_(("leased", "done")))).scalars())
    moment = now()
    given = connection.execute(update(UserRow).where(UserRow.id == user_id).values(given=UserRow.given + 1)
                               .returning(UserRow.given)).scalar_one()
    assignment_id = connection.execute(insert(AssignmentRow).values(
        item_id=item_id, user_id=user_id, purpose="label", state="done",
        slot=next(k for k in range(1, len(taken) + 2) if k not in taken), ordinal=given,
        shown_order=list(range(len(ranks))), leased_at=moment, expires_at=moment, finished_at=moment,
    ).returning(AssignmentRow.id)).scalar_one()
    connection.execute(insert(JudgmentRow).values(
        assignment_id=assignment_id, item_id=item_id, user_id=user_id, kind="judge", ranks=ranks, ratings=None,
        note=row.note, seconds=row.seconds, reason=None, request_id=f"import-{secrets.token_hex(8)}", supersedes=None,
        created_at=moment))
    connection.execute(update(ItemRow).where(ItemRow.id == item_id).values(missing=ItemRow.missing - 1))
    return True
