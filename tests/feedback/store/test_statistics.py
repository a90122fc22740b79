"""Progress, labelers' counts, drift, disputes."""

from __future__ import annotations

import itertools

import pytest
from sqlalchemy import text

from trivet.feedback.store.administration import disagreement
from trivet.feedback.store.statistics import f_rate, outcomes, tie_rate


def test_outcomes_of_pairs() -> None:
    assert outcomes([1, 2, None]) == [1, 1, 1]
    assert outcomes([2, 1, 1]) == [-1, -1, 0]
    assert outcomes([None, None, 1]) == [0, -1, -1]  # F is the lowest rank, two F are a tie


def test_rates() -> None:
    assert tie_rate([[1, 1, 2], [1, 2, None]]) == pytest.approx(1 / 4)  # F takes no part: 3 + 1 pairs
    assert tie_rate([[None, None, 1]]) is None and tie_rate([]) is None
    assert f_rate([[1, None], [None, None]]) == pytest.approx(3 / 4) and f_rate([]) is None


def test_progress_and_forecast(team, make_rows) -> None:
    store = team.store
    empty = store.progress()
    assert (empty.items, empty.needed, empty.done, empty.forecast_hours) == (0, 0, 0, 0.0)
    store.add_completions(make_rows(4))
    assert store.progress().forecast_hours is None  # nobody has labeled
    ann, bob = team.person("Ann"), team.person("Bob")
    team.label_all(ann)
    team.next(bob)
    now = store.progress()
    assert (now.items, now.needed, now.done, now.leased, now.skipped) == (4, 12, 4, 1, 0)
    assert now.judgments_per_hour == pytest.approx(240)  # 4 within the first minute
    assert now.forecast_hours == pytest.approx(8 / 240)
    store.change_settings(None, overlap=1)
    assert store.progress().forecast_hours == 0.0


def test_pace_counts_the_last_hour_alone(team, make_rows) -> None:
    store = team.store
    store.add_completions(make_rows(4))
    team.label_all(team.person("Ann"))
    for offset, minutes in enumerate((30, 20, 90, 600), 1):
        earlier = f"datetime('now', '-{minutes} minutes') || '.000000'" if store.dialect == "sqlite" \
            else f"now() - interval '{minutes} minutes'"
        store.write(lambda c, e=earlier, o=offset: c.execute(
            text(f"UPDATE assignments SET finished_at = {e} WHERE id = {o}")))
    assert store.progress().judgments_per_hour == pytest.approx(4, rel=0.01)  # two in half an hour
    assert store.progress().forecast_hours == pytest.approx(2, rel=0.01)


def test_labelers_counts(team, make_rows, make_ranking) -> None:
    store = team.store
    store.change_settings(None, gold_rate=0.3, repeat_rate=0.3)
    store.add_completions(make_rows(40))
    store.add_gold([make_ranking(row, [1, 1, 2], "key") for row in make_rows(40, prefix="g")])
    ann, bob = team.person("Ann"), team.person("Bob")
    for n in itertools.count():
        given = store.next_assignment(ann.id)
        if given is None:
            break
        ranks = {"gold": [1, 2, 2], "repeat": [2, 1, 3]}.get(given.purpose, [1, 2, 3])
        if given.purpose == "label" and given.prompt_id == "p7":
            store.skip(given.id, ann.id, "hm", "skip")
        else:
            team.submit(given, ranks, seconds=float(n % 2))
    mine, other = store.labeler_statistics()
    assert (mine.user, other.user) == (ann, bob)
    assert mine.gold_n > 5 and mine.gold_accuracy == pytest.approx(1 / 2)  # of (1,3) and (2,3), the first
    assert mine.repeats_n > 5 and mine.repeats_agree == pytest.approx(2 / 3)
    assert mine.judgments == 39 + mine.gold_n + mine.repeats_n and mine.skips == 1
    assert mine.tie_rate == pytest.approx(mine.gold_n / (3 * mine.judgments)) and mine.f_rate == 0.0
    assert 0.0 <= mine.median_seconds <= 1.0
    assert (other.judgments, other.median_seconds, other.tie_rate, other.gold_accuracy) == (0, None, None, None)


def test_drift_looks_at_the_last_ones(team, make_rows) -> None:
    store = team.store
    store.add_completions(make_rows(30))
    ann, bob = team.person("Ann"), team.person("Bob")
    for n, user in [(n, user) for n in range(30) for user in (ann, bob)]:
        tied = user is ann and n >= 20
        team.submit(team.next(user), [1, 1, 1] if tied else [1, 2, 3], seconds=1.0 if tied else 9.0)
    drift = store.labeler_drift(ann.id, last=10)
    assert (drift.n, drift.tie_rate, drift.median_seconds) == (10, 1.0, 1.0)
    assert (drift.all_n, drift.all_tie_rate, drift.all_median_seconds) == (60, pytest.approx(10 / 60), 9.0)
    nobody = store.labeler_drift(99)
    assert (nobody.n, nobody.tie_rate, nobody.median_seconds) == (0, None, None)


def test_disagreement_against_counting_by_hand(make_rows, make_ranking) -> None:
    row = make_rows(1)[0]
    given = [make_ranking(row, ranks, name) for name, ranks in
             (("a", [1, 2, 3]), ("b", [3, 2, 1]), ("c", [1, 1, None]))]
    # a-b: all 3 pairs opposite; a-c: none (one a tie); b-c: (1,3) and (2,3) opposite
    assert disagreement(given) == pytest.approx(5 / 9)
    assert disagreement(given[:1]) == 0.0


def test_disputed_items_worst_first(team, make_rows) -> None:
    store = team.store
    store.add_completions(make_rows(3))
    said = {"Ann": [1, 2, 3], "Bob": [1, 2, 3], "Cid": [1, 2, 3]}
    wrong = {("Cid", "p1"): [3, 2, 1], ("Bob", "p2"): [1, 3, 2]}
    for name, ranks in said.items():
        user = team.person(name)
        for given in iter(lambda user=user: store.next_assignment(user.id), None):
            team.submit(given, wrong.get((name, given.prompt_id), ranks))
    found = store.disputed()
    assert [(d.prompt_id, d.disagreement, d.adjudicated, len(d.rankings)) for d in found] == \
        [("p1", pytest.approx(6 / 9), False, 3), ("p2", pytest.approx(2 / 9), False, 3)]
    admin = store.create_user("Admin", "admin")
    team.submit(store.adjudication_assignment(found[0].item_id, admin.id))
    assert [d.adjudicated for d in store.disputed()] == [True, False] and len(store.disputed(limit=1)) == 1
