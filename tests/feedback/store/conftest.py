"""Every test of the store runs on SQLite and on PostgreSQL: fixtures `url` (an empty database) and `store`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from postgres import Cluster
from trivet.artifacts import Completion, Completions, Message, Ranking
from trivet.feedback.store import Assignment, Judgment, Store, User

_numbers = itertools.count()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    with Cluster() as running:
        yield running


@pytest.fixture(scope="session")
def empty_copies(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A migrated database of each kind, to copy: (name on the cluster, SQLite file)."""
    import psycopg

    with psycopg.connect(cluster.url("postgres"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE migrated")
    Store.open(cluster.url("migrated")).close()
    file = tmp_path_factory.mktemp("store") / "migrated.db"
    Store.open(file).close()
    return "migrated", file


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a database without any table."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/labels.db"
    return request.getfixturevalue("cluster").new_database()


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path, empty_copies: tuple[str, Path]) -> str:
    """The address of a store with nothing in it."""
    name, file = empty_copies
    if request.param == "sqlite":
        (tmp_path / "labels.db").write_bytes(file.read_bytes())
        return f"sqlite:///{tmp_path}/labels.db"
    return request.getfixturevalue("cluster").new_database(name)


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    """A store with nothing in it, in which chance gives neither gold items nor repeats."""
    with Store.open(store_url) as opened:
        opened.change_settings(None, gold_rate=0.0, repeat_rate=0.0)
        yield opened


def rows(n: int, k: int = 3, prefix: str = "p") -> list[Completions]:
    """n prompts with k answers each."""
    return [Completions(id=f"{prefix}{i}", messages=[Message(role="user", content=f"Question {prefix}{i}?")],
                        completions=[Completion(id=f"c{j}", text=f"Answer {j} to {prefix}{i}") for j in range(k)])
            for i in range(n)]


def ranking(row: Completions, ranks: list[int | None], labeler: str, **more: object) -> Ranking:
    """A labeler's ranks of a row."""
    return Ranking.model_validate({**row.model_dump(), "ranks": ranks, "labeler": labeler, **more})


class Team:
    """A store with labelers, and short words for what they do."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def person(self, name: str) -> User:
        return self.store.create_user(name, "labeler")

    def next(self, user: User) -> Assignment:
        given = self.store.next_assignment(user.id)
        assert given is not None
        return given

    def submit(self, given: Assignment, ranks: list[int | None] | None = None, **more: object) -> Judgment:
        ranks = ranks if ranks is not None else list(range(1, len(given.completions) + 1))
        values = {"seconds": 5.0, "request_id": f"request-{next(_numbers)}", **more}
        return self.store.submit(given.id, given.user_id, ranks, **values)  # type: ignore[arg-type]

    def next_state(self, given: Assignment) -> str:
        after = self.store.assignment(given.id, given.user_id)
        assert after is not None
        return after.state

    def label_all(self, user: User, ranks: list[int | None] | None = None) -> list[Assignment]:
        """Label until nothing is left; what was given."""
        done = []
        while (given := self.store.next_assignment(user.id)) is not None:
            self.submit(given, ranks)
            done.append(given)
        return done

    def expire(self) -> None:
        """Let every lease's time run out."""
        from sqlalchemy import text

        past = "'2000-01-01 00:00:00.000000'" if self.store.dialect == "sqlite" else "'2000-01-01'::timestamptz"
        self.store.write(lambda c: c.execute(text(f"UPDATE assignments SET expires_at = {past} "
                                                  "WHERE state = 'leased'")))

    def slots(self) -> dict[int, int]:
        """Label assignments that hold a slot, by item."""
        from sqlalchemy import text

        return dict(self.store.read(lambda c: c.execute(text(
            "SELECT item_id, count(*) FROM assignments WHERE purpose = 'label' AND state IN ('leased', 'done') "
            "GROUP BY item_id")).all()))

    def missing(self) -> dict[int, int]:
        """What each item says that it still wants."""
        from sqlalchemy import text

        return dict(self.store.read(lambda c: c.execute(text("SELECT id, missing FROM items")).all()))


@pytest.fixture
def team(store: Store) -> Team:
    return Team(store)


@pytest.fixture
def make_rows() -> Callable[..., list[Completions]]:
    return rows


@pytest.fixture
def make_ranking() -> Callable[..., Ranking]:
    return ranking
