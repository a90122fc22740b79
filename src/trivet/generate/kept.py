"""Files of JSON lines that only grow: what was asked for and came is read by the next run, and never asked again.

A line is handed to the operating system at once, so that `kill -9` does not lose it; `sync` puts what was added on the
disk, for the power cut, and is apart from adding because many lines can share it.
"""

from __future__ import annotations

import json
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import ValidationError

from trivet.artifacts import Row, fsync_folder, json_lines, row_error, write_error

R = TypeVar("R", bound=Row)
V = TypeVar("V")


class Keeping(Generic[V]):
    """Takes values as they come, each with the number of what it answers. Called, it keeps them and hands them on."""

    def __init__(self, write: Callable[[Sequence[tuple[int, V]]], None],
                 settle: Callable[[Sequence[tuple[int, V]]], None]) -> None:
        """write: hands values to the operating system, from any thread. settle: in the caller's thread, puts on the
        disk what was written, and only then tells of the values; one call for many."""
        self.write, self.settle = write, settle

    def __call__(self, rows: Sequence[tuple[int, V]]) -> None:
        self.write(rows)
        self.settle(rows)

    def shifted(self, by: int) -> Keeping[V]:
        """The same for a part of what was asked that begins at number `by`."""
        return Keeping(lambda rows: self.write([(by + i, v) for i, v in rows]),
                       lambda rows: self.settle([(by + i, v) for i, v in rows]))


class Lines(Generic[R]):
    """Such a file. It is made with the first line. Threads may add to it side by side; one process at a time."""

    def __init__(self, path: Path, row: type[R]) -> None:
        self.path, self._row = path, row
        self._lock, self._sync_lock = threading.Lock(), threading.Lock()
        self._file = -1
        self._end = self._synced = 0

    def read(self) -> Iterator[tuple[int, R]]:
        """(where its line begins, in bytes; row) of each line. A last line torn by a power cut is dropped first.

        Raises TrivetError for a damaged line, with its number.
        """
        if not self.path.exists():
            return
        self._drop_torn_line()
        with self.path.open("rb") as raw:
            place = seen = length = 0
            for number, value in json_lines(self.path):
                while seen < number:
                    place, seen = place + length, seen + 1
                    length = len(raw.readline())
                try:
                    yield place, self._row.model_validate(value)
                except ValidationError as error:
                    raise row_error(error, self._row, self.path, number) from None

    def _drop_torn_line(self) -> None:
        try:
            with self.path.open("rb") as file:
                size = place = end = file.seek(0, os.SEEK_END)
                while place:  # from the end, block by block
                    step = min(place, 1 << 16)
                    place = file.seek(place - step)
                    if (last := file.read(step).rfind(b"\n")) >= 0:
                        end = place + last + 1
                        break
                    end = 0
            if end < size:
                os.truncate(self.path, end)
        except OSError as error:
            raise write_error(error, self.path) from None

    def _open(self) -> int:
        if self._file < 0:
            new = not self.path.exists()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            weakref.finalize(self, os.close, self._file)
            self._end = self._synced = os.lseek(self._file, 0, os.SEEK_END)
            if new:
                fsync_folder(self.path.parent)
        return self._file

    def add(self, rows: Sequence[R]) -> list[int]:
        """Append lines in one write; where each begins, in bytes. Raises TrivetError where they can't be written."""
        lines = [row.model_dump_json(exclude_none=True).encode() + b"\n" for row in rows]
        data = b"".join(lines)
        with self._lock:
            try:
                file, written = self._open(), 0
                try:
                    while written < len(data):
                        written += os.write(file, data[written:])
                except OSError:
                    os.ftruncate(file, self._end)  # what a full disk took of it: no line must follow half a one
                    raise
            except OSError as error:
                raise write_error(error, self.path) from None
            places, self._end = [self._end], self._end + len(data)
        for line in lines[:-1]:
            places.append(places[-1] + len(line))
        return places

    def sync(self) -> None:
        """Put on the disk whatever was added before. Raises TrivetError where that fails."""
        end = self._end
        with self._sync_lock:
            if self._synced >= end:
                return  # another thread's sync, begun after our lines were written, took them along
            end = self._end
            try:
                os.fsync(self._file)
            except OSError as error:
                raise write_error(error, self.path) from None
            self._synced = end

    def at(self, place: int) -> R:
        """The row whose line begins there."""
        with self._lock:
            self._open()
        parts: list[bytes] = []
        size = 1 << 14
        while not parts or b"\n" not in parts[-1]:
            parts.append(os.pread(self._file, size, place + sum(map(len, parts))))
            if not parts[-1]:
                raise write_error(OSError("the file was cut while it was in use"), self.path)
        return self._row.model_validate(json.loads(b"".join(parts).split(b"\n", 1)[0]))
