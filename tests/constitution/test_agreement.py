"""Agreement with people, calibration, position bias: against naive computations, and on judges whose worth is known."""

from __future__ import annotations

import random

import pytest

from trivet.artifacts import Message
from trivet.constitution.agreement import BINS, beside_people, position, reliability, right
from trivet.constitution.comparing import Compared, Opinion, Pair


def compared(i: int, given: float, swapped: float | None = None, people: float | None = 1.0,
             answers: tuple[str, str] = ("one", "two")) -> Compared:
    pair = Pair(f"i{i}", f"q{i}", (Message(role="user", content="?"),), answers, people=people)
    return Compared(pair, (Opinion(principle="p", given=given, swapped=given if swapped is None else swapped),))


def test_figures_equal_naive_ones() -> None:
    draw = random.Random(1)
    rows = [compared(i, draw.random(), draw.random(), draw.choice([0.0, 1.0, 1 / 3]),
                     ("a" * draw.randrange(1, 9), "b" * draw.randrange(1, 9))) for i in range(300)]
    found = beside_people(rows)
    probability = [(r.said[0].given + r.said[0].swapped) / 2 for r in rows]
    people = [r.pair.people for r in rows]
    agrees = [h if p > 0.5 else 1 - h for p, h in zip(probability, people, strict=True)]
    once = [r.pair.people if r.said[0].given > 0.5 else 1 - r.pair.people for r in rows]
    assert found["agreement"]["value"] == pytest.approx(sum(agrees) / 300)
    assert found["once"]["value"] == pytest.approx(sum(once) / 300)
    assert found["gained"]["value"] == pytest.approx(sum(agrees) / 300 - sum(once) / 300)
    assert found["brier"]["value"] == pytest.approx(
        sum((p - h) ** 2 for p, h in zip(probability, people, strict=True)) / 300)
    ece = 0.0
    for low in (0.5, 0.6, 0.7, 0.8, 0.9):
        inside = [(max(p, 1 - p), a) for p, a in zip(probability, agrees, strict=True)
                  if low <= max(p, 1 - p) < low + 0.1]
        ece += abs(sum(c for c, _ in inside) - sum(a for _, a in inside)) / 300
    assert found["ece"]["value"] == pytest.approx(ece)
    longer = [0.5 if len(r.pair.answers[0]) == len(r.pair.answers[1]) else
              r.pair.people if len(r.pair.answers[0]) > len(r.pair.answers[1]) else 1 - r.pair.people for r in rows]
    assert found["longer"]["value"] == pytest.approx(sum(longer) / 300)
    assert found["pairs"] == 300 and found["prompts"] == 300 and found["agreement"]["n"] == 300
    for name in ("agreement", "once", "brier", "ece", "longer"):
        assert found[name]["low"] < found[name]["value"] < found[name]["high"]


def test_a_judge_that_leans_is_found_out_and_mended() -> None:
    draw = random.Random(2)
    rows = []
    for i in range(400):  # it knows the better one, faintly; and much prefers what stands first
        people = float(draw.random() < 0.5)
        know = 0.1 if people else -0.1
        rows.append(compared(i, 0.8 + know, 0.2 + know, people))
    place = position(rows)
    assert place.before["value"] == pytest.approx(0.8, abs=0.02) and place.before["low"] > 0.75
    assert place.after["low"] < 0.5 < place.after["high"] and place.flips["value"] == 1.0
    found = beside_people(rows)
    assert found["agreement"]["value"] == 1.0 and found["once"]["value"] == pytest.approx(0.5, abs=0.06)
    assert found["gained"]["low"] > 0.3


def test_confidences_that_are_right_are_called_so() -> None:
    draw = random.Random(3)
    ps = [draw.random() for _ in range(1000)]
    honest = beside_people([compared(i, p, people=float(draw.random() < p)) for i, p in enumerate(ps)])
    assert honest["ece"]["low"] == 0.0 and honest["ece"]["value"] < 0.05
    boastful = beside_people([compared(i, 0.99 if p > 0.5 else 0.01, people=float(draw.random() < p))
                              for i, p in enumerate(ps)])
    assert boastful["ece"]["low"] > 0.15
    for row in honest["reliability"]:
        assert row.agreement["low"] - 0.05 < row.confidence < row.agreement["high"] + 0.05


def test_rows_hold_as_many_pairs_each() -> None:
    draw = random.Random(4)
    rows = reliability([compared(i, 0.4 + 0.2 * draw.random()) for i in range(400)])
    assert len(rows) == BINS and all(r.pairs == 40 for r in rows)
    assert [r.low for r in rows] == sorted(r.low for r in rows) and rows[0].low >= 0.5 and rows[-1].high <= 0.6
    assert all(r.low <= r.confidence <= r.high for r in rows)
    assert len(reliability([compared(i, 0.6) for i in range(15)])) == 1


def test_votes_of_0_and_1_stand_apart() -> None:
    rows = reliability([compared(i, 1.0, float(i % 20 > 0)) for i in range(400)])
    assert [(r.pairs, r.confidence) for r in rows] == [(20, 0.5), (380, 1.0)]


def test_half_right() -> None:
    assert right(compared(0, 0.5, people=1.0), 0.5) == 0.5
    assert right(compared(0, 0.9, people=0.75), 0.9) == 0.75
    with pytest.raises(ValueError, match="nobody judged the pair i0"):
        right(compared(0, 0.9, people=None), 0.9)
