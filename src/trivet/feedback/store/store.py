"""The label store: everything that the labelling app knows, in SQLite or PostgreSQL."""

from __future__ import annotations

import os
from types import TracebackType

from trivet.feedback.store.administration import Administration
from trivet.feedback.store.assignments import Assignments
from trivet.feedback.store.database import connect
from trivet.feedback.store.items import Items
from trivet.feedback.store.judgments import Judgments
from trivet.feedback.store.live import Live
from trivet.feedback.store.people import People
from trivet.feedback.store.rankings import Rankings
from trivet.feedback.store.settings import Settings
from trivet.feedback.store.statistics import Statistics


class Store(Settings, People, Items, Assignments, Judgments, Live, Rankings, Statistics, Administration):
    """One labelling project's database. All methods are synchronous and may be called from any thread.

    Each part of it stands in a file of its own, named like the class.
    """

    @classmethod
    def open(cls, url: str | os.PathLike[str]) -> Store:
        """Open, and make or update the tables of, `sqlite:///FILE`, a plain path, or `postgresql://…`.

        Raises TrivetError when it cannot be reached, is no label store, or was made by a newer Trivet.
        """
        return cls(connect(os.fspath(url)))

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()
