"""Many at once, and death in the middle: no item over its overlap, nothing acknowledged lost, nothing doubled."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import text

from trivet.feedback.store import LeaseLost, Store

PEOPLE, ITEMS, OVERLAP = 12, 20, 3


def at_once(works: list[Callable[[], None]]) -> None:
    """Run all of them in threads that start together; raise what one of them raised."""
    gate, faults = threading.Barrier(len(works)), []

    def run(work: Callable[[], None]) -> None:
        gate.wait()
        try:
            work()
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise faults[0]


def test_all_at_once_fill_every_item_and_none_over_its_overlap(team, make_rows) -> None:
    store = team.store
    store.add_completions(make_rows(ITEMS))
    people = [team.person(f"P{k}") for k in range(PEOPLE)]
    acknowledged: list[int] = []

    def label(user) -> None:
        for given in iter(lambda: store.next_assignment(user.id), None):
            acknowledged.append(team.submit(given).id)

    at_once([lambda user=user: label(user) for user in people])
    assert len(acknowledged) == len(set(acknowledged)) == ITEMS * OVERLAP
    assert set(team.slots().values()) == {OVERLAP} and set(team.missing().values()) == {0}
    found = store.rankings()
    assert Counter(r.id for r in found) == {f"p{i}": OVERLAP for i in range(ITEMS)}
    assert len({(r.id, r.labeler) for r in found}) == len(found)


def test_leases_that_run_out_under_way(team, make_rows) -> None:
    """Leases so short that many are lost; the rest of the promise holds."""
    store = team.store
    store.change_settings(None, lease_seconds=0.03)
    store.add_completions(make_rows(10))
    people = [team.person(f"P{k}") for k in range(8)]
    acknowledged: list[int] = []
    lost: list[int] = []

    def label(user) -> None:
        chance = random.Random(user.id)
        until = time.monotonic() + 60
        while len(acknowledged) < 10 * OVERLAP and time.monotonic() < until:
            given = store.next_assignment(user.id)
            time.sleep(chance.choice([0.0, 0.0, 0.06]))
            if given is not None:
                try:
                    acknowledged.append(team.submit(given).id)
                except LeaseLost:
                    lost.append(given.id)

    at_once([lambda user=user: label(user) for user in people])
    assert set(team.slots().values()) == {OVERLAP} and set(team.missing().values()) == {0}
    assert len(set(acknowledged)) == len(store.rankings()) == 10 * OVERLAP


def test_one_request_sent_many_times_at_once(team, make_rows) -> None:
    team.store.add_completions(make_rows(1))
    given = team.next(team.person("Ann"))
    answers: list[object] = []
    at_once([lambda: answers.append(team.submit(given, [1, 2, 3], request_id="one"))] * 8)
    assert len(answers) == 8 and len(set(map(repr, answers))) == 1
    assert team.store.read(lambda c: c.execute(text("SELECT count(*) FROM judgments")).scalar()) == 1


def test_one_labeler_in_many_windows_is_given_one_thing(team, make_rows) -> None:
    team.store.add_completions(make_rows(5))
    ann = team.person("Ann")
    given: list[int] = []
    at_once([lambda: given.append(team.next(ann).id)] * 8)
    assert len(set(given)) == 1 and sum(team.slots().values()) == 1


def test_overlap_changed_while_all_label(team, make_rows) -> None:
    store = team.store
    store.add_completions(make_rows(12))
    people = [team.person(f"P{k}") for k in range(8)]

    def change() -> None:
        for overlap in (5, 2, 4, 3, 6, 4):
            store.change_settings(None, overlap=overlap)

    at_once([*[lambda user=user: team.label_all(user) and None for user in people], change])
    for user in people:
        team.label_all(user)
    missing = team.missing()
    assert all(missing[item] == 4 - count for item, count in team.slots().items())
    assert all(4 <= count <= 6 for count in team.slots().values())


WRITER = """
import sys, threading
from trivet.feedback.store import Store
store = Store.open(sys.argv[1])
lock = threading.Lock()
def label(user):
    n = 0
    while (given := store.next_assignment(user)) is not None:
        said = store.submit(given.id, user, [1, 2, 3], seconds=1.0, request_id=f"{sys.argv[2]}-{n}")
        n += 1
        with lock:  # acknowledged: what a server would answer now
            sys.stdout.write(f"{said.user_id} {said.request_id} {said.id}\\n")
            sys.stdout.flush()
for user in map(int, sys.argv[3:]):
    threading.Thread(target=label, args=(user,)).start()
"""


def test_acknowledged_judgments_survive_kill_9(store: Store, store_url: str, team, make_rows, tmp_path: Path) -> None:
    store.add_completions(make_rows(150))
    users = [str(team.person(f"P{k}").id) for k in range(4)]
    acknowledged: set[tuple[int, str, int]] = set()
    for life in range(3):
        with (tmp_path / f"out{life}").open("w+") as out:
            writer = subprocess.Popen([sys.executable, "-c", WRITER, store_url, f"life{life}", *users], stdout=out,
                                      env=dict(os.environ))
            until = time.monotonic() + 60
            while (tmp_path / f"out{life}").stat().st_size < 600 and time.monotonic() < until:
                time.sleep(0.01)
            writer.send_signal(signal.SIGKILL)
            writer.wait()
            lines = (tmp_path / f"out{life}").read_text().split("\n")[:-1]  # a torn last line was not acknowledged
            assert len(lines) > 10
            for line in lines:
                user, request, number = line.split()
                acknowledged.add((int(user), request, int(number)))
    kept = store.read(lambda c: c.execute(text("SELECT user_id, request_id, id FROM judgments")).all())
    assert acknowledged <= set(kept)
    assert len({(user, request) for user, request, _ in kept}) == len(kept)
    team.expire()
    for user in map(int, users):  # life goes on, and every slot is filled
        while (given := store.next_assignment(user)) is not None:
            team.submit(given)
    assert set(team.slots().values()) == {OVERLAP} and set(team.missing().values()) == {0}
