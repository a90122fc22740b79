"""Opening a store: addresses, migrations from nothing, what is refused."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from trivet.errors import TrivetError
from trivet.feedback.store import Store, Unavailable
from trivet.feedback.store.database import HEAD, MIGRATIONS, as_url
from trivet.feedback.store.tables import Base


def test_migrates_from_nothing_and_again_changes_nothing(url: str, make_rows) -> None:
    with Store.open(url) as store:
        store.add_completions(make_rows(2))
    with Store.open(url) as store:
        assert store.progress().items == 2
        assert store.read(lambda c: c.execute(text("SELECT version_num FROM alembic_version")).scalar()) == HEAD


def test_migrations_make_what_the_models_say(url: str) -> None:
    with Store.open(url) as store:
        found = store.read(lambda c: compare_metadata(
            MigrationContext.configure(c, opts={"compare_type": True}), Base.metadata))
    # how the models' own column types look beside the plain ones of the migrations
    assert [d for d in found if not (isinstance(d, list) and d[0][0] == "modify_type")] == []


def test_head_is_the_newest_script() -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    assert ScriptDirectory.from_config(config).get_current_head() == HEAD


def test_opened_by_many_at_once(url: str) -> None:
    faults: list[BaseException] = []

    def one() -> None:
        try:
            with Store.open(url) as store:
                assert store.progress().items == 0
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=one) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []


def test_a_newer_database_is_refused(url: str) -> None:
    with Store.open(url) as store:
        store.write(lambda c: c.execute(text("UPDATE alembic_version SET version_num = '9999'")))
    with pytest.raises(TrivetError, match="newer Trivet"):
        Store.open(url)


def test_a_database_of_something_else_is_refused_and_left_alone(url: str) -> None:
    engine = sqlalchemy.create_engine(as_url(url))
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE recipes (id integer)"))
    with pytest.raises(TrivetError, match="holds other tables"):
        Store.open(url)
    assert sqlalchemy.inspect(engine).get_table_names() == ["recipes"]
    engine.dispose()


@pytest.mark.parametrize("address, words", [
    ("", "needs a file"), (":memory:", "needs a file"), ("sqlite://", "needs a file"),
    ("mysql://somebody@host/db", "knows no mysql"), ("://", "no database address"),
    ("postgresql://trivet@127.0.0.1:1/none", "does not answer"),
])
def test_addresses_that_are_refused(address: str, words: str) -> None:
    with pytest.raises(TrivetError, match=words):
        Store.open(address)


def test_files_that_are_no_store(tmp_path: Path) -> None:
    (tmp_path / "completions.jsonl").write_text('{"id": "p1"}\n' * 200)
    with pytest.raises(TrivetError, match="no SQLite database"):
        Store.open(tmp_path / "completions.jsonl")
    with pytest.raises(TrivetError, match="cannot be opened"):
        Store.open(tmp_path / "missing" / "labels.db")


def test_sqlite_keeps_what_it_acknowledges(tmp_path: Path) -> None:
    with Store.open(tmp_path / "labels.db") as store:
        pragma = {name: store.read(lambda c, name=name: c.execute(text(f"PRAGMA {name}")).scalar())
                  for name in ("journal_mode", "synchronous", "foreign_keys")}
    assert pragma == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}  # 2: FULL


def test_a_busy_file_is_said_to_be_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trivet.feedback.store.database.BUSY_SECONDS", 0.05)
    monkeypatch.setattr("trivet.feedback.store.database.ATTEMPTS", 2)
    with Store.open(tmp_path / "labels.db") as store:
        other = sqlite3.connect(tmp_path / "labels.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable, match="database is locked"):
            store.change_settings(None, title="Busy")
        other.execute("ROLLBACK")
        other.close()
        assert store.change_settings(None, title="Free").title == "Free"


@pytest.mark.parametrize("change", ["UPDATE judgments SET kind = 'undo'", "DELETE FROM judgments",
                                    "UPDATE events SET action = 'x'", "DELETE FROM events"])
def test_the_trail_is_only_added_to(team, make_rows, change: str) -> None:
    team.store.add_completions(make_rows(1))
    team.submit(team.next(team.person("Ann")))
    with pytest.raises((sqlalchemy.exc.DBAPIError, Unavailable), match="only inserted"):
        team.store.write(lambda c: c.execute(text(change)))
    assert len(team.store.rankings()) == 1
