"""The connection under the store: opening, migrating, transactions. SQLite in WAL mode, or PostgreSQL.

What has been committed survives the death of the process and, as far as the disk keeps its word, of the machine:
SQLite runs with synchronous=FULL. Writers on SQLite take the write lock at once (BEGIN IMMEDIATE) and queue inside
the process on a lock of its own, since SQLite's own waiting sleeps in steps and serves nobody in turn.
"""

from __future__ import annotations

import contextlib
import datetime
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy
from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.engine import URL, make_url

from trivet.errors import TrivetError
from trivet.feedback.store.records import Unavailable

#: the newest migration; a database that stands there needs no Alembic (a test holds this equal to the scripts' head)
HEAD = "0001"
MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_SECONDS = 10.0
ATTEMPTS = 6
#: PostgreSQL: serialization failure, deadlock, lock not available
TRANSIENT = ("40001", "40P01", "55P03")

#: what SQLAlchemy raises when the database does not answer, or says to try again
SILENT = (sqlalchemy.exc.OperationalError, sqlalchemy.exc.InterfaceError, sqlalchemy.exc.TimeoutError)

T = TypeVar("T")


def now() -> datetime.datetime:
    """This moment, UTC."""
    return datetime.datetime.now(datetime.UTC)


def as_url(address: str) -> URL:
    """A plain path is an SQLite file; postgres:// and postgresql:// mean psycopg 3.

    Raises TrivetError for other databases, for SQLite without a file, and for what is no URL.
    """
    if "://" not in address:
        if not address or address == ":memory:":
            raise TrivetError("the label store needs a file", field="db", mend="give a path, such as --db labels.db")
        return URL.create("sqlite", database=address)
    try:
        url = make_url(address)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise TrivetError("this is no database address", field="db",
                          mend="give sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE") from None
    if url.drivername in {"postgres", "postgresql", "postgresql+psycopg"}:
        return url.set(drivername="postgresql+psycopg")
    if url.drivername == "sqlite":
        if url.database in {None, "", ":memory:"}:
            raise TrivetError("the label store needs a file", field="db", mend="give a path, such as sqlite:///labels.db")
        return url
    raise TrivetError(f"the label store knows no {url.drivername}", field="db",
                      mend="give sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE")


class Connected:
    """An open database. `read` and `write` each run a function in one transaction; both are thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.dialect = engine.dialect.name
        self._writing: contextlib.AbstractContextManager[Any] = \
            threading.Lock() if self.dialect == "sqlite" else contextlib.nullcontext()

    @property
    def url(self) -> str:
        """The database's address, without its password."""
        return self._engine.url.render_as_string(hide_password=True)

    def close(self) -> None:
        """Give all connections back. What was acknowledged is in the database already."""
        self._engine.dispose()

    def read(self, work: Callable[[Connection], T]) -> T:
        """What `work` reads. Raises Unavailable when the database does not answer."""
        return self._run(work, writes=False)

    def write(self, work: Callable[[Connection], T]) -> T:
        """What `work` gives, its writes committed when this returns and none of them done when it raises.

        `work` is run again after a deadlock or a busy database: it may have no effects of its own.
        """
        return self._run(work, writes=True)

    def _run(self, work: Callable[[Connection], T], *, writes: bool) -> T:
        for attempt in range(ATTEMPTS):
            try:
                with self._writing if writes else contextlib.nullcontext(), self._begin(writes) as connection:
                    return work(connection)
            except sqlalchemy.exc.IntegrityError as error:
                # two requests raced for one row; the second one sees the first one's row now
                if not writes or attempt == ATTEMPTS - 1:
                    raise Unavailable(f"the database refused a row: {error.orig}", mend="report this fault"
                                      ) from error
            except SILENT as error:
                if attempt == ATTEMPTS - 1 or not _transient(error):
                    raise Unavailable(f"the database does not answer: {_reason(error)}",
                                      mend="try again; if it goes on, see whether the database runs and its disk has "
                                      "space") from error
            time.sleep(random.uniform(0.0, 0.02) * 2**attempt)
        raise AssertionError("unreachable")

    @contextlib.contextmanager
    def _begin(self, writes: bool) -> Iterator[Connection]:
        with self._engine.connect().execution_options(trivet_writes=writes) as connection, connection.begin():
            yield connection


def _reason(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).strip().splitlines()[0]


def _transient(error: Exception) -> bool:
    original = getattr(error, "orig", None)
    return getattr(original, "sqlstate", None) in TRANSIENT or "database is locked" in str(original)


def connect(address: str) -> Engine:
    """An engine on the database with all tables of this version.

    Raises TrivetError when it cannot be reached, is no label store, or was made by a newer Trivet.
    """
    url = as_url(address)
    if url.drivername == "sqlite":
        engine = _sqlite(url)
    else:
        engine = _postgresql(url)
    try:
        migrate(engine)
    except BaseException as error:
        engine.dispose()
        if isinstance(error, sqlalchemy.exc.DBAPIError):
            raise _cannot_open(error, url) from None
        raise
    return engine


def _cannot_open(error: sqlalchemy.exc.DBAPIError, url: URL) -> TrivetError:
    if url.drivername == "sqlite":
        if "not a database" in str(error.orig):
            return TrivetError("this file is no SQLite database", file=url.database,
                               mend="give the label store's file to --db, and the completions as the first argument")
        return TrivetError(f"the label store cannot be opened: {_reason(error)}", file=url.database,
                           mend="check the path, its permissions and the space on its disk")
    return TrivetError(f"the database does not answer: {_reason(error)}", field="db",
                       mend=f"see whether it runs and lets you in: psql '{url.set(drivername='postgresql')}'")


def _sqlite(url: URL) -> Engine:
    engine = sqlalchemy.create_engine(url, pool_size=8, max_overflow=-1, connect_args={
        "timeout": BUSY_SECONDS, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # the driver must not begin transactions of its own
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "cache_size=-16000"):
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("trivet_writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _postgresql(url: URL) -> Engine:
    try:
        return sqlalchemy.create_engine(url, pool_size=16, max_overflow=32, pool_pre_ping=True,
                                        connect_args={"connect_timeout": 10, "application_name": "trivet label"})
    except ModuleNotFoundError:
        raise TrivetError("PostgreSQL needs psycopg", field="db", mend="pip install 'trivet[postgres]'") from None


def migrate(engine: Engine) -> None:
    """Bring the database to HEAD; nothing is done when it stands there. Processes that open it at once take turns."""
    with engine.connect() as connection, connection.begin():
        revision = _revision(connection)
    if revision == HEAD:
        return
    with engine.connect().execution_options(trivet_writes=True) as connection, connection.begin():
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(7361831)"))
        if (revision := _revision(connection)) == HEAD:
            return
        tables = sqlalchemy.inspect(connection).get_table_names()
        if revision is None and tables:
            raise TrivetError(f"this database holds other tables ({', '.join(sorted(tables)[:3])} …)", field="db",
                              mend="give the label store a database of its own")
        import alembic.command
        from alembic.config import Config
        from alembic.script import ScriptDirectory

        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
        if revision is not None and revision not in known:
            raise TrivetError(f"this label store was made by a newer Trivet (its version is {revision})", field="db",
                              mend="update Trivet: pip install -U trivet")
        config.attributes["connection"] = connection
        alembic.command.upgrade(config, "head")


def _revision(connection: Connection) -> str | None:
    if not sqlalchemy.inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
