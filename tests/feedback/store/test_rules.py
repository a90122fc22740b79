"""Random operations against a small model of the rules, written a second time and naively."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from trivet.errors import TrivetError
from trivet.feedback.store import Invalid, LeaseLost, NotYours

PEOPLE, ITEMS = 5, 6


@dataclass
class Model:
    """What is true of every (user, item), and nothing of how it is stored."""

    overlap: int = 2
    state: dict[tuple[int, int], str] = field(default_factory=dict)
    ranks: dict[tuple[int, int], list[int | None]] = field(default_factory=dict)
    said: dict[int, list[int]] = field(default_factory=dict)
    """Items in the order in which a user answered them, newest last."""
    paused: set[int] = field(default_factory=set)

    def taken(self, item: int) -> int:
        return sum(state in {"leased", "done"} for (_, i), state in self.state.items() if i == item)

    def room(self, item: int) -> bool:
        return self.taken(item) < self.overlap

    def open_to(self, user: int, items: list[int]) -> list[int]:
        return [i for i in items if self.room(i) and self.state.get((user, i)) in {None, "expired"}]


def refused(work, kind: type[TrivetError]) -> None:
    with pytest.raises(kind):
        work()


@pytest.mark.parametrize("seed", range(6))
def test_random_operations_keep_the_rules(team, make_rows, seed: int) -> None:
    store, chance, model = team.store, random.Random(seed), Model()
    store.change_settings(None, overlap=2)
    store.add_completions(make_rows(ITEMS))
    people = [team.person(f"P{k}").id for k in range(PEOPLE)]
    items = sorted(team.missing())
    ids: dict[tuple[int, int], int] = {}

    def order(user: int) -> int:
        given = store.next_assignment(user)
        held = [i for i in items if model.state.get((user, i)) == "leased"]
        can = model.open_to(user, items)
        if user in model.paused or not (held or can):
            assert given is None
            return 0
        assert given is not None
        if held:
            assert given.item_id in held
        else:
            assert given.item_id in can
            nearest = min(model.overlap - model.taken(i) for i in can)
            assert model.overlap - model.taken(given.item_id) == nearest
        model.state[user, given.item_id], ids[user, given.item_id] = "leased", given.id
        return given.item_id

    for step in range(140):
        user = chance.choice(people)
        request = f"{seed}-{step}"
        known = [pair for pair in ids if pair[0] == user]
        pair = chance.choice(known) if known else None
        state = model.state.get(pair) if pair else None
        ranks = [chance.choice([1, 2, 3, None]) for _ in range(3)]
        action = chance.choice(["next", "next", "submit", "submit", "submit", "skip", "undo", "edit", "expire", "sweep",
                                "pause", "overlap", "reassign", "theft"])
        if action == "next":
            order(user)
        elif action in {"submit", "edit", "skip"} and pair:
            item, editing, skipping = pair[1], action == "edit", action == "skip"

            def act(assignment=ids[pair], user=user, action=action, ranks=ranks, request=request):
                if action == "skip":
                    return store.skip(assignment, user, "why", request)
                return getattr(store, action)(assignment, user, ranks, seconds=1.0, request_id=request)

            if user in model.paused:
                refused(act, LeaseLost)
            elif (state in {"done", "skipped"}) != editing:
                refused(act, Invalid)
            elif state == "released" or (not skipping and state in {"expired", "skipped"} and not model.room(item)):
                refused(act, LeaseLost)
            else:
                assert act() == act()
                model.state[pair] = "skipped" if skipping else "done"
                model.ranks[pair] = ranks
                model.said.setdefault(user, [])
                model.said[user] = [i for i in model.said[user] if i != item] + [item]
        elif action == "undo":
            said = model.said.get(user, [])
            pair = (user, said[-1]) if said else None
            if user in model.paused or (pair and model.state[pair] == "skipped" and not model.room(pair[1])):
                refused(lambda user=user, request=request: store.undo(user, request), LeaseLost)
            else:
                given = store.undo(user, request)
                assert (given is None) == (pair is None)
                if pair:
                    assert given.item_id == pair[1]
                    model.state[pair] = "leased"
                    said.pop()
        elif action in {"expire", "sweep"}:
            team.expire()
            ended = store.release_expired()
            assert ended == sum(s == "leased" for s in model.state.values())
            model.state = {k: "expired" if s == "leased" else s for k, s in model.state.items()}
        elif action == "pause":
            pausing = user not in model.paused
            store.pause_user(user, pausing, by=None)
            model.paused ^= {user}
            if pausing:
                model.state = {k: "expired" if s == "leased" and k[0] == user else s for k, s in model.state.items()}
        elif action == "overlap":
            model.overlap = chance.choice([1, 2, 3])
            store.change_settings(None, overlap=model.overlap)
        elif action == "reassign":
            item, to = chance.choice(items), chance.choice([None, user])
            after = {k: "released" if s == "leased" and k[1] == item else s for k, s in model.state.items()}
            kept, model.state = model.state, after
            own = after.get((user, item))
            if to is not None and (user in model.paused or own in {"done", "skipped"} or not model.room(item)):
                refused(lambda item=item, to=to: store.reassign(item, None, to), TrivetError)
                model.state = kept  # refused as a whole
            else:
                given = store.reassign(item, None, to)
                assert (given is None) == (to is None)
                if given:
                    model.state[user, item], ids[user, item] = "leased", given.id
        elif action == "theft" and pair:
            thief = chance.choice([p for p in people if p != user])
            if thief not in model.paused:
                refused(lambda thief=thief, pair=pair, ranks=ranks, request=request: store.submit(
                    ids[pair], thief, ranks, seconds=1.0, request_id=request), NotYours)
                assert store.assignment(ids[pair], thief) is None

        assert team.missing() == {i: model.overlap - model.taken(i) for i in items}
        assert team.slots() == {i: model.taken(i) for i in items if model.taken(i)}
    done = {k: model.ranks[k] for k, s in model.state.items() if s == "done"}
    names = {u.id: u.name for u in store.users()}
    found = {(r.labeler, r.id): r.ranks for r in store.rankings()}
    prompts = {i: store.assignment(a, u).prompt_id for (u, i), a in ids.items()}
    assert found == {(names[u], prompts[i]): ranks for (u, i), ranks in done.items()}
    for user in people:
        assert [j.item_id for j in store.history(user)] == model.said.get(user, [])[::-1]
