"""The project's settings and the audit trail."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError
from sqlalchemy import Connection, insert, select, update

from trivet.config import config_error
from trivet.feedback.store.database import Connected, now
from trivet.feedback.store.records import Event, ProjectSettings
from trivet.feedback.store.tables import EventRow, ItemRow, SettingRow

# Statements that every request runs are built once: building one costs more than SQLite takes to run it.
_SETTINGS = select(SettingRow.key, SettingRow.value)


def read_settings(connection: Connection) -> ProjectSettings:
    """The stored settings over the defaults."""
    rows = connection.execute(_SETTINGS).all()
    return ProjectSettings.model_validate({row.key: row.value for row in rows})


def log(connection: Connection, user_id: int | None, action: str, **detail: Any) -> None:
    """Write a line of the audit trail, in the transaction of what it tells of."""
    connection.execute(insert(EventRow).values(at=now(), user_id=user_id, action=action, detail=detail))


class Settings(Connected):
    """Settings and audit, as a part of Store."""

    def settings(self) -> ProjectSettings:
        """The settings as they stand."""
        return self.read(read_settings)

    def change_settings(self, by: int | None, **changes: Any) -> ProjectSettings:
        """Change some settings. A new overlap holds for every item that has none of its own, begun or not.

        Raises TrivetError for a name that is not known and a value that does not fit.
        """

        def work(connection: Connection) -> ProjectSettings:
            # the row `overlap` is there from the first change on; whoever holds it changes settings alone
            connection.execute(select(SettingRow.key).order_by(SettingRow.key).with_for_update()).all()
            before = read_settings(connection)
            try:
                after = ProjectSettings.model_validate({**before.model_dump(), **changes})
            except ValidationError as error:
                fault = config_error(error)
                assert fault is not None
                raise fault from None
            new = {key: value for key, value in after.model_dump(mode="json").items()
                   if value != getattr(before, key)}
            stored = set(connection.execute(select(SettingRow.key)).scalars())
            for key, value in new.items():
                if key in stored:
                    connection.execute(update(SettingRow).where(SettingRow.key == key).values(value=value))
                else:
                    connection.execute(insert(SettingRow).values(key=key, value=value))
            if after.overlap != before.overlap:
                connection.execute(
                    update(ItemRow).where(ItemRow.overlap.is_(None), ItemRow.kind == "batch",
                                          ItemRow.gold_ranks.is_(None))
                    .values(missing=ItemRow.missing + (after.overlap - before.overlap)))
            if new:
                shown = {key: value for key, value in new.items() if key != "instructions"}
                log(connection, by, "settings", changed=sorted(new), **shown)
            return after

        return self.write(work)

    def record(self, by: int | None, action: str, **detail: Any) -> None:
        """Write a line of the audit trail for what happens outside the store, such as an export."""
        self.write(lambda connection: log(connection, by, action, **detail))

    def audit(self, limit: int = 200) -> list[Event]:
        """The newest lines of the audit trail, newest first."""
        query = select(EventRow.id, EventRow.at, EventRow.user_id, EventRow.action, EventRow.detail)
        rows = self.read(lambda c: c.execute(query.order_by(EventRow.id.desc()).limit(limit)).all())
        return [Event(*row) for row in rows]
