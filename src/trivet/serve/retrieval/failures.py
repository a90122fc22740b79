"""Answers that failed while serving, kept for the next round of alignment: prompts, and pairs to be preferred.

    FOLDER/prompts.jsonl        what people asked, with tags: served, and abstained, removed or disliked
    FOLDER/preferences.jsonl    where there was something better: the grounded answer against the draft that was not

Both are artifacts (docs/artifacts.md): `trivet sample --prompts` and `trivet reward` read them as they are. Written
only where somebody asked for it, since they hold what people wrote.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trivet.artifacts import Message, Preference, Prompt, Row, fsync_folder, text_id, write_error

Why = Literal["abstained", "removed", "disliked"]
MOST_BYTES = 50_000_000


@dataclass(frozen=True)
class Failure:
    """What went wrong with an answer."""

    why: Why
    asked: list[Message]
    """What the model was asked, passages included."""
    draft: str | None
    """Its answer as it came; None where it was not asked."""
    better: str | None
    """What should have been said; None where nobody knows."""


class Failures:
    """The two files. Several threads and processes may add to them; a failure that is known is not added again."""

    def __init__(self, folder: Path, *, most_bytes: int = MOST_BYTES) -> None:
        """most_bytes: of each file; what would go beyond it is not kept."""
        self.folder, self.most_bytes = Path(folder), most_bytes
        self._lock = threading.Lock()
        self._known: dict[str, tuple[int, set[str]]] = {}
        self.full = False
        """Something was not kept because a file was full."""

    def add(self, messages: Sequence[Message], failure: Failure) -> bool:
        """Keep a failure; on the disk when this returns. Whether it was new and had room.

        messages: the conversation as the person had it. Raises TrivetError where the files can't be written.
        """
        conversation = [m.model_dump() for m in messages]
        if messages[-1].role != "user" or not messages[-1].content.strip():
            return False
        prompt = Prompt(id=text_id([conversation, failure.why]), messages=list(messages), tags=["served", failure.why])
        with self._held():
            added = self._append("prompts.jsonl", prompt)
            draft, better = failure.draft, failure.better
            if draft is not None and better is not None and draft.strip() != better.strip():
                asked = text_id([m.model_dump() for m in failure.asked])
                pair = Preference(id=text_id([asked, better, draft]), prompt_id=asked,
                                  prompt=failure.asked, chosen=better, rejected=draft,
                                  source=f"served: {failure.why}")
                added = self._append("preferences.jsonl", pair) or added
        return added

    def disliked(self, messages: Sequence[Message], answer: str, better: str | None = None) -> bool:
        """Keep an answer that a person did not like, and what they would have liked. See `add`."""
        return self.add(messages, Failure("disliked", list(messages), answer, better))

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        """The folder for this thread of this process alone."""
        with self._lock:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                file = (self.folder / ".lock").open("w")
            except OSError as error:
                raise write_error(error, self.folder) from None
            with file:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield

    def _append(self, name: str, row: Row) -> bool:
        path = self.folder / name
        try:
            new = not path.exists()
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)  # what people wrote is not all's
            try:
                size = _mended(descriptor)
                known = self._ids(name, descriptor, size)
                id = str(row.id)  # type: ignore[attr-defined]
                if id in known:
                    return False
                line = row.model_dump_json().encode() + b"\n"
                if size + len(line) > self.most_bytes:
                    self.full = True
                    return False
                try:
                    written = 0
                    while written < len(line):
                        written += os.pwrite(descriptor, line[written:], size + written)
                except OSError:
                    os.ftruncate(descriptor, size)  # no half line is left where the disk is full
                    raise
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if new:
                fsync_folder(self.folder)
        except OSError as error:
            raise write_error(error, path) from None
        known.add(id)
        self._known[name] = (size + len(line), known)
        return True

    def _ids(self, name: str, descriptor: int, size: int) -> set[str]:
        """The ids in a file: read anew where another process has changed it."""
        length, known = self._known.get(name, (-1, set[str]()))
        if length != size:
            known = set()
            for line in os.pread(descriptor, size, 0).split(b"\n"):
                with contextlib.suppress(ValueError, TypeError, KeyError):  # a damaged line is for its reader to name
                    known.add(json.loads(line)["id"])
            self._known[name] = (size, known)
        return known


def _mended(descriptor: int) -> int:
    """The file's size, once a last line that a power cut tore is cut off."""
    size = place = os.fstat(descriptor).st_size
    while place:
        step = min(place, 1 << 16)
        place -= step
        if (last := os.pread(descriptor, step, place).rfind(b"\n")) >= 0:
            end = place + last + 1
            break
    else:
        end = 0
    if end < size:
        os.ftruncate(descriptor, end)
    return end
