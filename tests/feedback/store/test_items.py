"""Putting items and rankings in, and taking rankings out."""

from __future__ import annotations

from pathlib import Path

import pytest

from trivet.artifacts import Completions, Ranking, read_rows, write_rows
from trivet.errors import TrivetError


def test_the_same_file_again_adds_nothing(team, make_rows) -> None:
    store, rows = team.store, make_rows(450)
    assert (store.add_completions(rows).added, store.add_completions(iter(rows)).present) == (450, 450)
    swapped = rows[0].model_copy(update={"completions": rows[0].completions[::-1]})
    assert store.add_completions([swapped]).present == 1
    assert store.progress().items == 450 and [e.action for e in store.audit()].count("add_completions") == 1


def test_other_texts_need_another_round(team, make_rows) -> None:
    store, row = team.store, make_rows(1)[0]
    store.add_completions([row])
    better = row.model_copy(update={"completions": [c.model_copy(update={"text": c.text + "!"})
                                                    for c in row.completions]})
    with pytest.raises(TrivetError, match="is in round 1 already, with other texts"):
        store.add_completions([better])
    assert store.add_completions([better], round=2).added == 1
    assert store.add_completions([row], round=3).present == 1
    team.label_all(team.person("Ann"))
    assert {r.id for r in store.rankings()} == {"p0", "p0@2"}
    assert [(r.id, r.completions[0].text[-1]) for r in store.rankings(rounds=[2])] == [("p0@2", "!")]
    assert [r.id for r in store.rankings(rounds=[1])] == ["p0"] and store.rankings(rounds=[9]) == []


@pytest.mark.parametrize("change, words", [
    ({"completions": [{"id": "a", "text": "only"}]}, "one answer only"), ({"id": "a\0b"}, "no id for a store"),
    ({"id": "x" * 501}, "no id for a store"),
])
def test_rows_that_are_refused(team, make_rows, change: dict, words: str) -> None:
    row = Completions.model_validate({**make_rows(1)[0].model_dump(), **change})
    with pytest.raises(TrivetError, match=words):
        team.store.add_completions([row])
    assert team.store.progress().items == 0


def test_texts_come_back_to_the_character(team, make_rows) -> None:
    row = make_rows(1)[0].model_dump()
    row["messages"][0]["content"] = "NUL \0, bidi \u202e, zero\u200bwidth, 🎈, \\ud83c, \r\n 'quote' \"double\""
    row["completions"][0]["text"] = "<script>alert(1)</script>" * 40_000  # 1 MB
    row["completions"][1] |= {"text": "\0\x01\x7f", "model": "m\0", "sampling": {"temperature": 1.0, "x": None},
                              "ended": True, "tokens": 7}
    row |= {"reference": "42\0", "tags": ["a", "b"]}
    team.store.add_completions([Completions.model_validate(row)])
    given = team.next(team.person("Ann"))
    team.submit(given)
    found = team.store.rankings()[0]
    for source in (given, found):
        assert [m.model_dump() for m in source.messages] == row["messages"]
        assert [c.model_dump() for c in source.completions] == \
            [{"model": None, "sampling": None, "ended": None, "tokens": None} | c for c in row["completions"]]
    assert (found.reference, found.tags) == ("42\0", ["a", "b"])


def test_rankings_are_a_sound_artifact(team, make_rows, tmp_path: Path) -> None:
    team.store.add_completions(make_rows(3))
    for name in ("Ann", "Bob"):
        team.label_all(team.person(name), [1, 1, None])
    write_rows(tmp_path / "rankings.jsonl", team.store.rankings())
    assert read_rows(tmp_path / "rankings.jsonl", Ranking) == team.store.rankings()


def test_imported_rankings_take_slots(team, make_rows, make_ranking) -> None:
    store, rows = team.store, make_rows(2)
    store.add_completions(rows)
    swapped = rows[0].model_copy(update={"completions": rows[0].completions[::-1]})
    given = [make_ranking(swapped, [1, 2, None], "Zoe", seconds=3.0, note="ok"),
             make_ranking(rows[1], [1, 2, 3], "zoe")]
    assert (store.add_rankings(given).added, store.add_rankings(given).present) == (2, 2)
    assert [(r.labeler, r.ranks, r.seconds, r.note) for r in store.rankings(rounds=[1]) if r.id == "p0"] == \
        [("Zoe", [None, 2, 1], 3.0, "ok")]
    assert len(store.users()) == 1 and store.users()[0].kind == "person"
    assert set(team.missing().values()) == {2}
    for name in ("Ann", "Bob", "Cid"):
        team.label_all(team.person(name))
    assert set(team.slots().values()) == {3}
    with pytest.raises(TrivetError, match="ranked it otherwise"):
        store.add_rankings([make_ranking(rows[0], [3, 2, 1], "Zoe")])
    more = [make_ranking(rows[0], [1, 2, 3], f"More {k}") for k in range(3)]
    assert store.add_rankings(more).added == 3  # an admin's own doing may go beyond the overlap
    assert store.next_assignment(team.person("Last").id) is None


def test_imported_rankings_bring_their_items(team, make_rows, make_ranking) -> None:
    team.store.add_rankings([make_ranking(make_rows(1, prefix="new")[0], [2, 1, 3], "Zoe")])
    assert team.store.progress().needed == 3 and team.store.progress().done == 1
    assert team.next(team.person("Ann")).prompt_id == "new0"
