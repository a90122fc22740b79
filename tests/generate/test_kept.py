"""Files of lines that only grow: torn lines are dropped, damaged ones told, and half a write is taken back."""

from __future__ import annotations

import errno
import os
import threading

import pytest

from trivet.errors import TrivetError
from trivet.generate import kept
from trivet.generate.kept import Lines
from trivet.generate.writing import Text


def text(i: int, size: int = 5) -> Text:
    return Text(key=f"{i:064x}", ask=f"a{i}", text="ä\n" * size, ended=True)


def test_rows_are_found_where_they_stand(tmp_path) -> None:
    lines = Lines(tmp_path / "new" / "t.jsonl", Text)
    assert not (tmp_path / "new").exists()
    places = [*lines.add([text(0), text(1, 20_000)]), *lines.add([text(2)])]
    lines.sync()
    again = Lines(tmp_path / "new" / "t.jsonl", Text)
    assert list(again.read()) == [(place, text(i, 20_000 if i == 1 else 5)) for i, place in enumerate(places)]
    assert again.at(places[1]) == text(1, 20_000) and again.at(places[2]) == text(2)
    (place,) = again.add([text(3)])
    assert again.at(place) == text(3)


@pytest.mark.parametrize("torn", ['{"schema_version":1,"key":"k2","te', "\x00", "{", "x" * 200_000])
def test_a_torn_last_line_is_dropped(tmp_path, torn) -> None:
    path = tmp_path / "t.jsonl"
    for whole in (0, 1):
        path.write_text("".join(text(i).model_dump_json() + "\n" for i in range(whole)))
        before = path.read_text()
        path.write_text(before + torn)
        assert len(list(Lines(path, Text).read())) == whole and path.read_text() == before


def test_a_damaged_line_is_told_with_its_place(tmp_path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(f'{text(0).model_dump_json()}\n\n{{"key": "k"}}\n')
    with pytest.raises(TrivetError, match="ask") as caught:
        list(Lines(path, Text).read())
    assert caught.value.line == 3


def test_blank_lines_do_not_move_places(tmp_path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(f"{text(0).model_dump_json()}\n\n  \n{text(1).model_dump_json()}\n")
    lines = Lines(path, Text)
    assert [lines.at(place) for place, _ in lines.read()] == [text(0), text(1)]


def test_a_full_disk_leaves_whole_lines(tmp_path, monkeypatch) -> None:
    lines = Lines(tmp_path / "t.jsonl", Text)
    lines.add([text(0)])
    real = os.write

    def full(file: int, data: bytes) -> int:
        if len(data) < 30:
            raise OSError(errno.ENOSPC, "no space")
        return real(file, data[: len(data) - 20])

    monkeypatch.setattr(kept.os, "write", full)
    with pytest.raises(TrivetError, match="no space left"):
        lines.add([text(1)])
    monkeypatch.undo()
    lines.add([text(2)])
    assert [row for _, row in Lines(tmp_path / "t.jsonl", Text).read()] == [text(0), text(2)]


def test_one_sync_serves_all_that_was_added_before_it(tmp_path, monkeypatch) -> None:
    lines, real = Lines(tmp_path / "t.jsonl", Text), os.fsync
    lines.add([text(0)])
    begun, go, synced = threading.Event(), threading.Event(), []

    def slow(file: int) -> None:
        synced.append(file)
        begun.set()
        go.wait(5)
        real(file)

    monkeypatch.setattr(kept.os, "fsync", slow)
    first = threading.Thread(target=lines.sync)
    first.start()
    begun.wait(5)

    def add_and_sync(i: int) -> None:
        lines.add([text(i)])
        lines.sync()

    others = [threading.Thread(target=add_and_sync, args=(i,)) for i in range(1, 6)]
    for t in others:
        t.start()
    for _ in range(200):
        if len(list(Lines(tmp_path / "t.jsonl", Text).read())) == 6:
            break
        threading.Event().wait(0.01)
    go.set()
    for t in [first, *others]:
        t.join(5)
    assert len(synced) == 2  # the one under way, and one for the five that came meanwhile
