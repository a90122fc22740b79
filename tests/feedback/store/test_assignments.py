"""Who gets what: overlap, order, leases, gold items, repeats, pause, reassign."""

from __future__ import annotations

from collections import Counter

import pytest
from sqlalchemy import event

from trivet.errors import TrivetError
from trivet.feedback.store import Invalid, LeaseLost, NotYours, Store
from trivet.feedback.store.assignments import WINDOW


def test_three_labelers_each_once(team, make_rows) -> None:
    assert team.store.add_completions(make_rows(5)).added == 5
    people = [team.person(name) for name in ("Ann", "Bob", "Cid", "Dan")]
    done = [team.label_all(user) for user in people]
    assert [len({g.item_id for g in d}) for d in done] == [5, 5, 5, 0]
    assert [len(d) for d in done] == [5, 5, 5, 0]  # the fourth finds every item at its overlap
    assert Counter(r.id for r in team.store.rankings()) == {f"p{i}": 3 for i in range(5)}
    assert set(team.missing().values()) == {0}


def test_what_is_nearest_to_completion_comes_first(team, make_rows) -> None:
    team.store.add_completions(make_rows(8))
    ann, bob, cid = (team.person(name) for name in ("Ann", "Bob", "Cid"))
    first = [team.next(ann)]
    team.submit(first[0])
    first.append(team.next(ann))
    team.submit(first[1])
    begun = {g.item_id for g in first}
    one = team.next(bob)
    assert one.item_id == first[0].item_id  # both are begun once: the seeded order decides
    team.submit(one)
    assert team.next(cid).item_id == one.item_id  # judged twice, the other once
    assert team.next(bob).item_id in begun - {one.item_id}


def test_order_is_seeded(store: Store, team, make_rows) -> None:
    store.add_completions(make_rows(12))
    order = [g.prompt_id for g in team.label_all(team.person("Ann"))]
    assert order == [g.prompt_id for g in team.label_all(team.person("Bob"))]
    assert order != [f"p{i}" for i in range(12)]
    store.change_settings(None, seed=7)
    store.add_completions(make_rows(12, prefix="q"))
    other = [g.prompt_id for g in team.label_all(team.person("Cid")) if g.prompt_id[0] == "q"]
    assert [p[1:] for p in other] != [p[1:] for p in order]


def test_shown_order_is_a_stored_shuffle_of_labeler_and_item(team, make_rows) -> None:
    team.store.add_completions(make_rows(10, k=4))
    ann, bob = team.person("Ann"), team.person("Bob")
    by_ann, by_bob = ({g.item_id: g.shown_order for g in team.label_all(user)} for user in (ann, bob))
    assert all(sorted(order) == [0, 1, 2, 3] for order in by_ann.values())
    assert len(set(map(tuple, by_ann.values()))) > 3 and by_ann != by_bob
    given = team.store.history(ann.id)[0]
    assert team.store.assignment(given.assignment_id, ann.id).shown_order == by_ann[given.item_id]


def test_completions_keep_the_order_of_the_file(team, make_rows) -> None:
    row = make_rows(1, k=4)[0]
    team.store.add_completions([row])
    given = team.next(team.person("Ann"))
    assert given.completions == row.completions and given.messages == row.messages and given.prompt_id == row.id


def test_what_one_holds_is_given_again(team, make_rows) -> None:
    team.store.add_completions(make_rows(3))
    ann = team.person("Ann")
    given = team.next(ann)
    assert team.next(ann) == given
    assert sum(team.slots().values()) == 1


def test_a_lease_in_use_begins_anew(team, make_rows) -> None:
    team.store.change_settings(None, lease_seconds=1000)
    team.store.add_completions(make_rows(1))
    ann = team.person("Ann")
    given = team.next(ann)
    team.store.change_settings(None, lease_seconds=10_000)
    team.next(ann)  # less than half of 10,000 s is left
    assert (team.next(ann).expires_at - given.expires_at).total_seconds() > 8000


def test_an_expired_lease_goes_to_somebody_else_and_comes_back(team, make_rows) -> None:
    store = team.store
    store.change_settings(None, overlap=1)
    store.add_completions(make_rows(1))
    ann, bob = team.person("Ann"), team.person("Bob")
    given = team.next(ann)
    assert store.next_assignment(bob.id) is None
    team.expire()
    taken = team.next(bob)  # nobody called release_expired
    assert taken.item_id == given.item_id
    assert store.assignment(given.id, ann.id).state == "expired" and store.next_assignment(ann.id) is None
    team.expire()
    assert store.release_expired() == 1 and store.release_expired() == 0
    again = team.next(ann)
    assert (again.id, again.shown_order) == (given.id, given.shown_order)
    assert team.missing() == {given.item_id: 0}


def test_with_as_many_labelers_as_the_overlap_an_expired_lease_is_no_loss(team, make_rows) -> None:
    team.store.add_completions(make_rows(2))
    people = [team.person(name) for name in ("Ann", "Bob", "Cid")]
    for user in people:
        team.next(user)
    team.expire()
    for user in people:
        team.label_all(user)
    assert len(team.store.rankings()) == 6


def test_overlap_can_change_on_the_way(team, make_rows) -> None:
    store = team.store
    store.add_completions(make_rows(4))
    people = [team.person(f"P{k}") for k in range(5)]
    for user in people[:2]:
        team.label_all(user)
    store.change_settings(None, overlap=1)
    assert store.next_assignment(people[2].id) is None and set(team.missing().values()) == {-1}
    store.change_settings(None, overlap=4)
    for user in people[2:]:
        team.label_all(user)
    assert set(team.slots().values()) == {4} and set(team.missing().values()) == {0}


def test_gold_comes_at_its_rate_and_counts_against_no_overlap(team, make_rows, make_ranking) -> None:
    store = team.store
    store.change_settings(None, gold_rate=0.25, overlap=2)
    store.add_completions(make_rows(90))
    gold = [make_ranking(row, [3, 1, None], "key") for row in make_rows(60, prefix="g")]
    assert [store.add_gold(gold).added, store.add_gold(gold).added, store.add_gold(gold).present] == [60, 0, 60]
    given = team.label_all(team.person("Ann"))
    kinds = Counter(g.purpose for g in given)
    assert kinds["label"] == 90 and len({g.item_id for g in given}) == len(given)
    assert 15 <= kinds["gold"] <= 45  # 30 expected of 120
    assert {g.prompt_id[0] for g in given if g.purpose == "gold"} == {"g"}
    assert len(store.rankings()) == 90 and len(store.gold()) == kinds["gold"]
    ranks, known = store.gold()[0]
    assert (ranks.ranks, known) == ([1, 2, 3], [3, 1, None])
    assert team.slots() == {g.item_id: 1 for g in given if g.purpose == "label"}


def test_an_item_that_becomes_gold_leaves_the_rest(team, make_rows, make_ranking) -> None:
    store = team.store
    store.add_completions(make_rows(2))
    row = make_rows(1)[0]
    swapped = row.model_copy(update={"completions": row.completions[::-1]})
    assert store.add_gold([make_ranking(swapped, [1, 2, 3], "key")]).added == 1
    assert [g.prompt_id for g in team.label_all(team.person("Ann"))] == ["p1"]
    store.change_settings(None, gold_rate=0.9)
    store.add_completions(make_rows(6, prefix="q"))
    bob = team.person("Bob")
    golds = [g for g in team.label_all(bob) if g.purpose == "gold"]
    assert [g.prompt_id for g in golds] == ["p0"]
    assert store.gold()[0][1] == [3, 2, 1]  # by the positions of the stored answers
    assert store.progress().items == 7


def test_repeats_come_at_their_rate_later_and_shuffled_anew(team, make_rows) -> None:
    store = team.store
    store.change_settings(None, repeat_rate=0.25, overlap=1)
    store.add_completions(make_rows(90, k=4))
    ann = team.person("Ann")
    given = team.label_all(ann)
    kinds = Counter(g.purpose for g in given)
    assert kinds["label"] == 90 and 15 <= kinds["repeat"] <= 45
    first = {g.item_id: (n, g.shown_order) for n, g in enumerate(given) if g.purpose == "label"}
    again = [(n, g) for n, g in enumerate(given) if g.purpose == "repeat"]
    assert len({g.item_id for _, g in again}) == len(again)  # each once
    for n, g in again:
        assert n - first[g.item_id][0] >= 8 and g.shown_order != first[g.item_id][1]
    assert len(store.repeats()) == kinds["repeat"] and len(store.rankings()) == 90
    assert all(a.id == b.id and a.labeler == b.labeler == "Ann" for a, b in store.repeats())


def test_pauses(team, make_rows) -> None:
    store = team.store
    store.change_settings(None, overlap=1)
    store.add_completions(make_rows(2))
    ann, bob = team.person("Ann"), team.person("Bob")
    held = team.next(ann)
    store.pause_user(ann.id, True, by=None)
    assert store.next_assignment(ann.id) is None
    with pytest.raises(LeaseLost, match="paused"):
        team.submit(held)
    assert {g.item_id for g in team.label_all(bob)} == {1, 2}  # Ann's lease was taken back
    store.add_completions(make_rows(1, prefix="q"))
    store.pause_user(ann.id, False, by=None)
    q = team.next(ann)
    store.pause_item(q.item_id, True, by=None)
    assert store.next_assignment(ann.id) is None
    team.submit(q)  # who had it on the screen may finish
    store.add_completions(make_rows(1, prefix="r"))
    store.change_settings(None, paused=True)
    assert store.next_assignment(bob.id) is None
    store.change_settings(None, paused=False)
    assert store.next_assignment(bob.id) is not None
    with pytest.raises(TrivetError, match="no item 99"):
        store.pause_item(99, True, by=None)


def test_reassign(team, make_rows) -> None:
    store = team.store
    store.change_settings(None, overlap=1)
    store.add_completions(make_rows(1))
    ann, bob, cid = (team.person(name) for name in ("Ann", "Bob", "Cid"))
    held = team.next(ann)
    given = store.reassign(held.item_id, by=None, user_id=bob.id)
    assert given.user_id == bob.id and team.next(bob).id == given.id
    assert store.next_assignment(ann.id) is None
    with pytest.raises(LeaseLost, match="taken this item"):
        team.submit(held)
    assert store.reassign(held.item_id, by=None) is None
    assert store.next_assignment(bob.id) is None and store.next_assignment(ann.id) is None
    assert store.reassign(held.item_id, by=None, user_id=ann.id).id == held.id
    team.submit(held)
    with pytest.raises(LeaseLost, match="overlap"):
        store.reassign(held.item_id, by=None, user_id=cid.id)
    with pytest.raises(TrivetError, match="judged or skipped"):
        store.reassign(held.item_id, by=None, user_id=ann.id)
    with pytest.raises(TrivetError, match="no item"):
        store.reassign(99, by=None)
    with pytest.raises(TrivetError, match="not there"):
        store.reassign(held.item_id, by=None, user_id=99)
    assert team.slots() == {held.item_id: 1} and team.missing() == {held.item_id: 0}


def test_nobody_reaches_anothers_assignment(team, make_rows) -> None:
    store = team.store
    store.add_completions(make_rows(1))
    ann, bob = team.person("Ann"), team.person("Bob")
    held = team.next(ann)
    assert store.assignment(held.id, bob.id) is None and store.assignment(999, bob.id) is None
    told = []
    for assignment_id in (held.id, 999):
        for act in (lambda i: store.submit(i, bob.id, [1, 2, 3], seconds=1.0, request_id=f"a{i}"),
                    lambda i: store.skip(i, bob.id, "no", f"b{i}"),
                    lambda i: store.edit(i, bob.id, [1, 2, 3], seconds=1.0, request_id=f"c{i}"),
                    lambda i: store.choose_live(i, bob.id, 0)):
            with pytest.raises(NotYours) as refusal:
                act(assignment_id)
            told.append(str(refusal.value))
    assert len(set(told)) == 1  # whether there is such an assignment is not told either
    with pytest.raises(NotYours):
        store.next_assignment(99)
    assert store.rankings() == [] and store.history(bob.id) == []


def test_adjudication(team, make_rows) -> None:
    store = team.store
    store.add_completions(make_rows(2))
    admin, ann = store.create_user("Admin", "admin"), team.person("Ann")
    with pytest.raises(TrivetError, match="only an admin"):
        store.adjudication_assignment(1, ann.id)
    given = store.adjudication_assignment(1, admin.id)
    assert given.purpose == "adjudicate" and store.adjudication_assignment(1, admin.id).id == given.id
    team.submit(given, [2, 1, None])
    assert [(r.id, r.ranks) for r in store.adjudications()] == [(given.prompt_id, [2, 1, None])]
    assert store.rankings() == [] and team.slots() == {} and store.history(admin.id) == []
    other = store.create_user("Other", "admin")
    team.submit(store.adjudication_assignment(1, other.id), [1, 2, 3])
    assert [r.ranks for r in store.adjudications()] == [[1, 2, 3]]  # the newest decides
    assert store.adjudication_assignment(1, admin.id).current.ranks == [2, 1, None]
    with pytest.raises(TrivetError, match="no item"):
        store.adjudication_assignment(99, admin.id)


def test_live_turns(team, make_rows) -> None:
    store = team.store
    ann, bob = team.person("Ann"), team.person("Bob")
    row = make_rows(1)[0]
    given = store.add_live_item(ann.id, row.messages, row.completions)
    assert given.purpose == "live" and store.next_assignment(bob.id) is None and store.next_assignment(ann.id) is None
    with pytest.raises(TrivetError, match="not been ranked"):
        store.choose_live(given.id, ann.id, 0)
    team.submit(given, [2, 1, 3])
    store.choose_live(given.id, ann.id, 1)
    with pytest.raises(Invalid, match="no answer 3"):
        store.choose_live(given.id, ann.id, 3)
    with pytest.raises(NotYours):
        store.choose_live(given.id, bob.id, 1)
    turn = [*row.messages, {"role": "assistant", "content": row.completions[1].text},
            {"role": "user", "content": "More"}]
    after = store.add_live_item(ann.id, turn, row.completions, parent_item_id=given.item_id)
    assert len(after.messages) == 3
    with pytest.raises(NotYours):
        store.add_live_item(bob.id, turn, row.completions, parent_item_id=given.item_id)
    with pytest.raises(Invalid, match="must be the user's"):
        store.add_live_item(ann.id, turn[:-1], row.completions)
    assert store.rankings() == [] and [r.ranks for r in store.rankings(include=("label", "live"))] == [[2, 1, 3]]
    assert [j.ranks for j in store.history(ann.id)] == [[2, 1, 3]]


def test_a_lone_labeler_of_many_items_is_served_all_of_them_in_few_statements(team, make_rows) -> None:
    """More items than are looked at together, all of them open, and the nearest to completion all one's own."""
    store, count = team.store, 3 * WINDOW
    store.change_settings(None, overlap=2)
    store.add_completions(make_rows(count, k=2))
    ann, bob = team.person("Ann"), team.person("Bob")
    statements: list[str] = []
    event.listen(store._engine, "before_cursor_execute", lambda c, cursor, statement, *_: statements.append(statement))
    seen, most = set(), 0
    for _ in range(count):
        before = len(statements)
        given = team.next(ann)
        most = max(most, len(statements) - before)
        seen.add(given.item_id)
        team.submit(given)
    assert len(seen) == count and most <= 18  # two of them are BEGIN on SQLite
    begun = team.next(bob)  # one that Ann has done
    team.submit(begun)
    assert store.next_assignment(ann.id) is None
    assert len(team.label_all(bob)) == count - 1
    assert set(team.slots().values()) == {2}
