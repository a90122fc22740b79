"""Submit, edit, skip, undo, history."""

from __future__ import annotations

import math

import pytest

from trivet.feedback.store import Invalid, LeaseLost


def test_a_judgment_is_kept_whole(team, make_rows) -> None:
    team.store.add_completions(make_rows(1))
    given = team.next(team.person("Ann"))
    ratings = {0: {"helpful": 5, "honest": 1}, 2: {"harmless": 3}}
    note = "odd \0 text \u202e, ünïcode 🎈 and 'quotes'"
    said = team.submit(given, [2, 2, None], ratings=ratings, note=note, seconds=12.5, request_id="r-1")
    assert (said.kind, said.ranks, said.ratings, said.note, said.seconds, said.supersedes) == \
        ("judge", [2, 2, None], ratings, note, 12.5, None)
    assert team.store.history(given.user_id) == [said]
    after = team.store.assignment(given.id, given.user_id)
    assert (after.state, after.current) == ("done", said)
    ranking = team.store.rankings()[0]
    assert (ranking.id, ranking.ranks, ranking.labeler, ranking.seconds, ranking.note) == \
        (given.prompt_id, [2, 2, None], "Ann", 12.5, note)


def test_the_same_request_is_one_judgment(team, make_rows) -> None:
    team.store.add_completions(make_rows(2))
    ann, bob = team.person("Ann"), team.person("Bob")
    given = team.next(ann)
    first = team.submit(given, [1, 2, 3], request_id="same")
    assert team.submit(given, [3, 2, 1], request_id="same") == first  # what was acknowledged holds
    with pytest.raises(Invalid, match="answered this item already"):
        team.submit(given, [3, 2, 1], request_id="another")
    with pytest.raises(Invalid, match="used for another"):
        team.submit(team.next(ann), request_id="same")
    with pytest.raises(Invalid, match="used for another"):
        team.store.skip(given.id, ann.id, "why", "same")
    team.submit(team.next(bob), request_id="same")  # another user's ids are their own
    assert len(team.store.rankings()) == 2


@pytest.mark.parametrize("wrong, field", [
    ({"ranks": [1, 2]}, "ranks"), ({"ranks": [1, 2, 3, 4]}, "ranks"), ({"ranks": [0, 1, 2]}, "ranks"),
    ({"ranks": [1, 2, 4]}, "ranks"), ({"ranks": [True, 2, 3]}, "ranks"), ({"ranks": ["1", 2, 3]}, "ranks"),
    ({"ranks": [1.0, 2, 3]}, "ranks"), ({"ratings": {3: {"helpful": 1}}}, "ratings"),
    ({"ratings": {0: {"kind": 1}}}, "ratings"), ({"ratings": {0: {"helpful": 6}}}, "ratings"),
    ({"ratings": {0: 5}}, "ratings"), ({"ratings": [1]}, "ratings"), ({"seconds": -1.0}, "seconds"),
    ({"seconds": math.nan}, "seconds"), ({"seconds": math.inf}, "seconds"), ({"note": "x" * 10_001}, "note"),
    ({"request_id": ""}, "request_id"), ({"request_id": "x" * 201}, "request_id"),
    ({"request_id": "a\0"}, "request_id"),
])
def test_unsound_judgments_change_nothing(team, make_rows, wrong: dict, field: str) -> None:
    team.store.add_completions(make_rows(1))
    given = team.next(team.person("Ann"))
    with pytest.raises(Invalid) as fault:
        team.submit(given, **wrong)
    assert fault.value.field == field
    assert team.store.history(given.user_id) == [] and team.next_state(given) == "leased"


def test_every_rank_from_1_to_k_and_f_is_sound(team, make_rows) -> None:
    team.store.add_completions(make_rows(5))
    ann = team.person("Ann")
    for ranks in ([1, 1, 1], [3, 3, 1], [None, None, None], [1, 3, 3], [2, 2, None]):
        assert team.submit(team.next(ann), ranks).ranks == ranks


def test_a_late_answer_counts_while_the_overlap_permits(team, make_rows) -> None:
    store = team.store
    store.change_settings(None, overlap=1)
    store.add_completions(make_rows(2))
    ann, bob = team.person("Ann"), team.person("Bob")
    late = team.next(ann)
    team.expire()
    team.submit(late)  # nobody has noticed yet
    late = team.next(ann)
    team.expire()
    assert store.release_expired() == 1
    team.submit(late)  # ended, but nobody else has it
    assert len(store.rankings()) == 2 and set(team.slots().values()) == {1} and set(team.missing().values()) == {0}
    store.add_completions(make_rows(1, prefix="q"))
    late = team.next(ann)
    team.expire()
    taken = team.next(bob)
    assert taken.item_id == late.item_id
    with pytest.raises(LeaseLost, match="ran out"):
        team.submit(late)
    team.submit(taken)
    assert set(team.slots().values()) == {1}


def test_edit_adds_a_row(team, make_rows) -> None:
    team.store.add_completions(make_rows(1))
    ann = team.person("Ann")
    given = team.next(ann)
    with pytest.raises(Invalid, match="no answer to change"):
        team.store.edit(given.id, ann.id, [1, 2, 3], seconds=1.0, request_id="e0")
    first = team.submit(given)
    edited = team.store.edit(given.id, ann.id, [3, 2, 1], note="again", seconds=2.0, request_id="e1")
    assert team.store.edit(given.id, ann.id, [3, 2, 1], note="again", seconds=2.0, request_id="e1") == edited
    assert edited.supersedes == first.id and team.store.history(ann.id) == [edited]
    assert [r.ranks for r in team.store.rankings()] == [[3, 2, 1]]
    assert team.store.labeler_statistics()[0].judgments == 1


def test_undo_gives_the_item_back(team, make_rows) -> None:
    store = team.store
    store.add_completions(make_rows(3))
    ann = team.person("Ann")
    assert store.undo(ann.id, "u0") is None
    first, second = (team.submit(team.next(ann)) for _ in range(2))
    third = team.next(ann)
    undone = store.undo(ann.id, "u1")
    assert (undone.id, undone.state, undone.current) == (second.assignment_id, "leased", None)
    assert store.undo(ann.id, "u1") == undone  # once is once
    assert [j.id for j in store.history(ann.id)] == [first.id]
    assert team.next(ann).id == undone.id  # before the one that was begun already
    assert store.undo(ann.id, "u2").id == first.assignment_id
    assert store.rankings() == [] and store.undo(ann.id, "u3") is None
    ids = [team.submit(team.next(ann)).assignment_id for _ in range(3)]
    assert ids == [first.assignment_id, undone.id, third.id]
    assert set(team.slots().values()) == {1} and set(team.missing().values()) == {2}


def test_undo_after_an_edit_takes_the_whole_answer_back(team, make_rows) -> None:
    team.store.add_completions(make_rows(1))
    ann = team.person("Ann")
    given = team.next(ann)
    team.submit(given)
    team.store.edit(given.id, ann.id, [3, 2, 1], seconds=2.0, request_id="e1")
    assert team.store.undo(ann.id, "u1").current is None
    assert team.store.rankings() == [] and team.store.history(ann.id) == []


def test_skip_gives_the_item_to_others(team, make_rows) -> None:
    store = team.store
    store.change_settings(None, overlap=1)
    store.add_completions(make_rows(1))
    ann, bob = team.person("Ann"), team.person("Bob")
    given = team.next(ann)
    with pytest.raises(Invalid, match="wants a reason"):
        store.skip(given.id, ann.id, "  ", "s0")
    said = store.skip(given.id, ann.id, "I do not read Welsh", "s1")
    assert store.skip(given.id, ann.id, "I do not read Welsh", "s1") == said
    assert (said.kind, said.reason, said.ranks) == ("skip", "I do not read Welsh", None)
    assert store.next_assignment(ann.id) is None and store.history(ann.id) == [said]
    assert (store.progress().skipped, store.progress().done, store.rankings()) == (1, 0, [])
    taken = team.next(bob)
    with pytest.raises(LeaseLost, match="others have judged"):
        store.undo(ann.id, "u1")
    with pytest.raises(LeaseLost):
        store.edit(given.id, ann.id, [1, 2, 3], seconds=1.0, request_id="e1")
    store.skip(taken.id, bob.id, "nor do I", "s2")
    assert store.undo(ann.id, "u2").state == "leased"  # the slot is free again
    team.submit(given)
    assert set(team.slots().values()) == {1} and set(team.missing().values()) == {0}


def test_a_skipped_item_can_be_judged_after_all(team, make_rows) -> None:
    team.store.add_completions(make_rows(1))
    ann = team.person("Ann")
    given = team.next(ann)
    said = team.store.skip(given.id, ann.id, "hm", "s1")
    edited = team.store.edit(given.id, ann.id, [1, 1, 2], seconds=1.0, request_id="e1")
    assert edited.supersedes == said.id and team.store.history(ann.id) == [edited]
    assert team.slots() == {given.item_id: 1} and team.missing() == {given.item_id: 2}


def test_history_in_pages(team, make_rows) -> None:
    team.store.add_completions(make_rows(7))
    ann = team.person("Ann")
    ids = [team.submit(team.next(ann)).id for _ in range(7)][::-1]
    page = team.store.history(ann.id, limit=3)
    assert [j.id for j in page] == ids[:3]
    assert [j.id for j in team.store.history(ann.id, limit=10, before=page[-1].id)] == ids[3:]
