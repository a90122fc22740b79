"""Writers that say what the test tells them, behind the real `Writer` with its kept texts, and judges likewise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trivet.generate.config import Sampling
from trivet.generate.writing import Ask, Texts, Writer, Written


class Killed(Exception):
    """What a scripted writer raises in the place of `kill -9`."""


class Script:
    """A source of texts: `say(ask)` gives a text, or a text and whether it ended. Remembers what it was asked."""

    loaded: dict[str, Any] = {}

    def __init__(self, say: Callable[[Ask], str | tuple[str, bool]], name: str = "script") -> None:
        self.say, self.name = say, name
        self.asked: list[Ask] = []
        self.samplings: list[Sampling] = []
        self.stop_after: int | None = None

    @property
    def identity(self) -> dict[str, str]:
        return {"kind": "script", "name": self.name}

    def write(self, asks: Sequence[Ask], seeds: Sequence[int], sampling: Sampling, keep: Any) -> None:
        self.samplings.append(sampling)
        for i, ask in enumerate(asks):
            if self.stop_after is not None and len(self.asked) >= self.stop_after:
                raise Killed
            self.asked.append(ask)
            said = self.say(ask)
            text, ended = said if isinstance(said, tuple) else (said, True)
            keep([(i, Written(text, ended, len(text.split())))])


class Bench:
    """In place of `make_writer`: a script by the name of the setting, its texts kept in the stage's folder."""

    def __init__(self, **scripts: Script) -> None:
        self.scripts = scripts

    def __call__(self, settings: Any, compute: Any, *, seed: int, folder: Path, field: str, **others: Any) -> Writer:
        return Writer(self.scripts[field], Texts(folder / "texts.jsonl"), seed)

    @property
    def asked(self) -> list[tuple[str, str, int]]:
        """(writer, ask, number) of every text that was really written."""
        return [(name, a.id, a.number) for name, s in self.scripts.items() for a in s.asked]
