"""The Pareto front and the pick, beside naive ones."""

from __future__ import annotations

import itertools
import random

import pytest

from trivet.compress.choosing import Candidate, Limits, front, on_front, parse_size, pick

SOURCE = Candidate("source", 4.0, 500, 0.0)
INT8 = Candidate("int8", 1.0, 140, 0.01)
INT4 = Candidate("int4", 0.8, 85, 0.12)
PRUNED = Candidate("pruned", 4.0, 500, 0.4)
SMALL = Candidate("small", 2.0, 250, 0.2)
ALL = [SOURCE, INT8, INT4, PRUNED, SMALL]


def naive_front(points):
    """By sorting out, one after the other, what a second point beats: no shared code."""
    kept = []
    for i in range(len(points)):
        beaten = False
        for j in range(len(points)):
            worse = sum(points[j][k] > points[i][k] for k in range(len(points[i])))
            better = sum(points[j][k] < points[i][k] for k in range(len(points[i])))
            beaten = beaten or (worse == 0 and better > 0)
        if not beaten:
            kept.append(i)
    return kept


@pytest.mark.parametrize("criteria", [1, 2, 3])
def test_front_is_the_naive_one(criteria: int) -> None:
    random.seed(criteria)
    for _ in range(200):
        points = [[random.randint(0, 5) for _ in range(criteria)] for _ in range(random.randint(0, 12))]
        assert front(points) == naive_front(points)


def test_front_keeps_equals_and_needs_equal_lengths() -> None:
    assert front([(1, 2), (1, 2), (2, 1), (2, 2)]) == [0, 1, 2]
    with pytest.raises(ValueError):
        front([(1, 2), (1,)])


def test_on_front_leaves_out_what_is_not_known() -> None:
    assert on_front(ALL) == {"source", "int8", "int4"}
    assert on_front([*ALL, Candidate("mute", None, 1, 0.0)]) == {"source", "int8", "int4"}
    assert on_front([*ALL, Candidate("mute", None, 1, 0.0)], ("size", "quality")) == {"mute"}


@pytest.mark.parametrize(("limits", "name", "wanted"), [
    (Limits(latency=1.5), "int8", "quality"),          # fast enough: the most quality
    (Limits(size=100), "int4", "quality"),
    (Limits(quality=0.05), "int8", "latency"),         # good enough: the fastest
    (Limits(quality=0.15), "int4", "latency"),
    (Limits(quality=0.0), "source", "latency"),
    (Limits(latency=5, quality=0.15), "int4", "size"),  # fast and good enough: the smallest
    (Limits(size=300, quality=0.05), "int8", "latency"),
    (Limits(latency=5, size=300, quality=0.5), "int8", "quality"),
    (Limits(latency=0.5), None, "quality"),
    (Limits(latency=0.9, quality=0.05), None, "size"),
])
def test_pick(limits: Limits, name: str | None, wanted: str) -> None:
    found = pick(ALL, limits)
    assert (found.name, found.wanted) == (name, wanted)


def test_pick_is_the_best_of_all_that_fit() -> None:
    """Whatever the limits: the pick keeps them, and nothing else that does is better in what was wanted."""
    rng = random.Random(3)
    for _ in range(300):
        crowd = [Candidate(str(i), rng.choice([None, rng.random()]), rng.random(), rng.choice([None, rng.random()]))
                 for i in range(6)]
        for given in itertools.product([None, rng.random()], repeat=3):
            limits = Limits(*given)
            if not limits.given:
                continue
            found = pick(crowd, limits)
            by_name = {c.name: c for c in crowd}
            fits = {c.name for c in crowd if all(
                c.value(x) is not None and c.value(x) <= limits.of(x) for x in limits.given)}
            assert set(found.fitting) == fits and (found.name in fits or (found.name is None and not fits))
            told = [v for n in fits if (v := by_name[n].value(found.wanted)) is not None]
            if found.name is not None and told:
                assert by_name[found.name].value(found.wanted) == min(told)


def test_pick_says_who_comes_nearest_and_what_is_not_known_never_fits() -> None:
    found = pick([*ALL, Candidate("mute", None, 10, None)], Limits(latency=0.5, quality=-0.1))
    assert found.name is None and found.fitting == ()
    assert found.nearest == {"latency": "int4", "quality": "source"}
    assert pick([Candidate("mute", None, 10, None)], Limits(size=20)).name == "mute"
    with pytest.raises(ValueError, match="nothing is limited"):
        pick(ALL, Limits())


def test_ties_go_to_the_other_criteria() -> None:
    slow, fast = Candidate("slow", 2.0, 10, 0.1), Candidate("fast", 1.0, 10, 0.1)
    assert pick([slow, fast], Limits(size=20)).name == "fast"


@pytest.mark.parametrize(("text", "size"), [("120MB", 120e6), ("1.5 GB", 1.5e9), ("100MiB", 100 * 2**20), ("7", 7),
                                            (" .5kb ", 500)])
def test_sizes(text: str, size: float) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "0MB", "-1GB", "1 parsec", "1e3MB", "nan"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="is no size"):
        parse_size(text)
