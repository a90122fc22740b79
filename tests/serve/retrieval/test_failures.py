"""Served failures on disk: readable artifacts, whatever happens to the process or the disk."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from trivet.artifacts import Message, Preference, Prompt, read_rows
from trivet.errors import TrivetError
from trivet.serve.retrieval.failures import Failure, Failures


def said(text: str) -> list[Message]:
    return [Message(role="user", content=text)]


def removed(text: str, draft: str = "bad", better: str = "good") -> Failure:
    return Failure("removed", said(f"passages. {text}"), draft, better)


def test_each_failure_once(tmp_path: Path) -> None:
    failures = Failures(tmp_path)
    assert failures.add(said("a"), removed("a")) and not failures.add(said("a"), removed("a"))
    assert failures.add(said("a"), removed("a", "worse"))                  # another draft of the same prompt
    assert not Failures(tmp_path).add(said("a"), removed("a"))             # another process knows it, too
    assert len(read_rows(tmp_path / "prompts.jsonl", Prompt)) == 1
    pairs = read_rows(tmp_path / "preferences.jsonl", Preference)
    assert [(p.chosen, p.rejected, p.source) for p in pairs] == [("good", "bad", "served: removed"),
                                                                 ("good", "worse", "served: removed")]


def test_no_pair_without_two_different_answers(tmp_path: Path) -> None:
    failures = Failures(tmp_path)
    failures.add(said("a"), Failure("abstained", said("a"), None, "I can't"))
    failures.add(said("b"), Failure("removed", said("b"), "same ", "same"))
    failures.disliked(said("c"), "wrong")
    assert not (tmp_path / "preferences.jsonl").exists()
    assert failures.disliked(said("c"), "wrong", "right")
    assert read_rows(tmp_path / "preferences.jsonl", Preference)[0].chosen == "right"
    assert [p.tags[1] for p in read_rows(tmp_path / "prompts.jsonl", Prompt)] == ["abstained", "removed", "disliked"]


def test_a_torn_last_line_is_cut_off(tmp_path: Path) -> None:
    Failures(tmp_path).add(said("a"), removed("a"))
    with (tmp_path / "prompts.jsonl").open("a") as file:
        file.write('{"id": "torn", "mess')
    failures = Failures(tmp_path)
    failures.add(said("b"), removed("b"))
    assert [p.messages[0].content for p in read_rows(tmp_path / "prompts.jsonl", Prompt)] == ["a", "b"]
    (tmp_path / "prompts.jsonl").write_text("no end of line at all")
    failures.add(said("c"), removed("c"))
    assert [p.messages[0].content for p in read_rows(tmp_path / "prompts.jsonl", Prompt)] == ["c"]


def test_a_full_file_takes_no_more(tmp_path: Path) -> None:
    failures = Failures(tmp_path, most_bytes=600)
    kept = [failures.disliked(said(f"question {i}"), "wrong") for i in range(20)]
    assert kept[0] and not kept[-1] and failures.full
    assert (tmp_path / "prompts.jsonl").stat().st_size <= 600
    assert len(read_rows(tmp_path / "prompts.jsonl", Prompt)) == sum(kept)


def test_many_threads_and_two_writers(tmp_path: Path) -> None:
    writers = [Failures(tmp_path), Failures(tmp_path)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: writers[i % 2].add(said(f"q{i // 2}"), removed(f"q{i // 2}")), range(60)))
    assert len(read_rows(tmp_path / "prompts.jsonl", Prompt)) == 30        # read_rows refuses doubled ids
    assert len(read_rows(tmp_path / "preferences.jsonl", Preference)) == 30


def test_only_the_owner_may_read_what_people_wrote(tmp_path: Path) -> None:
    Failures(tmp_path).add(said("a"), removed("a"))
    assert stat.S_IMODE((tmp_path / "prompts.jsonl").stat().st_mode) == 0o600


def test_a_place_that_can_not_be_written_is_an_error_with_a_mend(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrivetError, match="to mend"):
        Failures(tmp_path / "file").add(said("a"), removed("a"))


def test_an_empty_question_is_not_kept(tmp_path: Path) -> None:
    assert not Failures(tmp_path).disliked(said("  "), "x") and not (tmp_path / "prompts.jsonl").exists()
