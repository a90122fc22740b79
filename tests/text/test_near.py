"""Repeats among texts: exact, near, and none missed beside a plain comparison of all pairs."""

from __future__ import annotations

import random

import pytest

from trivet.text.near import Distinct, jaccard, normalised, shingles


def test_words_alone_count():
    assert normalised("How do I, *really*, do THIS?") == ("how", "do", "i", "really", "do", "this")
    assert normalised(" ?! ") == ("?!",)
    assert shingles("One two three four") == {("one", "two", "three"), ("two", "three", "four")}
    assert shingles("One two") == {("one", "two")}


def test_jaccard():
    one, other = shingles("a b c d e"), shingles("a b c d f")
    assert jaccard(one, one) == 1.0
    assert jaccard(one, other) == 0.5
    assert jaccard(one, shingles("v w x y z")) == 0.0


def test_exact_and_near_repeats():
    kept = Distinct(0.6)
    first = "How can I open a locked door without its key?"
    assert kept.add(first) is None
    assert kept.add("how can i open a locked door, without its key") == ("exact", first)
    found = kept.add("How can I open a locked door without its key today?")
    assert found is not None and found.kind == "near"
    assert kept.add("How can I open a locked window from outside?") is None
    assert len(kept) == 2


def test_one_counts_exact_repeats_alone():
    kept = Distinct(1.0)
    assert kept.add("a b c a b c") is None
    assert kept.add("a b c a b c a") is None  # the same set of shingles, yet another text
    assert kept.add("A b c, a b c.") == ("exact", "a b c a b c")


@pytest.mark.parametrize("near", [0, -1, 1.1])
def test_near_is_a_share(near):
    with pytest.raises(ValueError, match="near lies in"):
        Distinct(near)


@pytest.mark.parametrize("near", [0.2, 0.5, 2 / 3, 0.9])
def test_none_is_missed(near):
    """Beside a plain greedy comparison with every kept text."""
    rng = random.Random(3)
    texts = [" ".join(rng.choice("abc") for _ in range(rng.randint(1, 9))) for _ in range(300)]
    kept, plain = Distinct(near), []
    for text in texts:
        mine = shingles(text)
        repeats = any(jaccard(mine, shingles(t)) >= near or normalised(t) == normalised(text) for t in plain)
        assert (kept.add(text) is not None) == repeats
        if not repeats:
            plain.append(text)
    assert 1 < len(plain) < 300
