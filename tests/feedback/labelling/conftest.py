"""A labelling project on SQLite with an admin and two labelers, its app, and visitors that use it as a browser does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from feedback.labelling.visitor import PASSWORD, Visitor, item
from trivet.feedback.labelling.app import create_app
from trivet.feedback.store import Store


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with its people, to copy: hashing passwords takes its time."""
    path = tmp_path_factory.mktemp("project") / "labels.db"
    with Store.open(path) as opened:
        opened.change_settings(None, gold_rate=0.0, repeat_rate=0.0, title="Test project")
        opened.create_user("Ada", "admin", password=PASSWORD)
        opened.create_user("Bo", "labeler", password=PASSWORD)
        opened.create_user("Cy", "labeler", password=PASSWORD)
    return path


@pytest.fixture
def store(tmp_path: Path, project: Path) -> Iterator[Store]:
    (tmp_path / "labels.db").write_bytes(project.read_bytes())
    with Store.open(tmp_path / "labels.db") as opened:
        yield opened


@pytest.fixture
def ids(store: Store) -> dict[str, int]:
    return {u.name: u.id for u in store.users()}


@pytest.fixture
def app(store: Store) -> Any:
    return create_app(store)


@pytest.fixture
def visitor(app: Any) -> Callable[..., Visitor]:
    """A visitor, signed in where a name is given."""

    def make(name: str | None = None, of: Any = None) -> Visitor:
        made = Visitor(of or app)
        if name is not None:
            assert made.sign_in(name).status_code == 200
        return made

    return make


@pytest.fixture
def filled(store: Store) -> Store:
    store.add_completions([item(n) for n in range(3)])
    return store


@pytest.fixture
def serving(app: Any) -> Iterator[str]:
    """The app behind a real server on a free port; its address."""
    import socket
    import time

    import uvicorn

    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join(10)
    assert not thread.is_alive(), "the server did not stop"
