"""Rankings become pairs, and pairs are split by prompt."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from trivet.artifacts import Preference, Ranking, is_held_out, read_rows
from trivet.errors import TrivetError
from trivet.feedback.config import PairsConfig
from trivet.feedback.pairs import PairsSummary, length_wins, ranked_pairs, run, split
from trivet.runs import execute


def ranking(ranks, *, labeler="ann", id="p", texts="abcdefgh", order=None) -> Ranking:
    places = order or range(len(ranks))
    return Ranking(id=id, messages=[{"role": "user", "content": f"Question {id}?"}], labeler=labeler,
                   completions=[{"id": f"{id}/{k}", "text": texts[k]} for k in places], ranks=list(ranks))


def beats(pairs) -> dict[str, tuple[float, float]]:
    return {f"{p.chosen}>{p.rejected}": (p.label, pytest.approx(p.weight)) for p in pairs}


def test_one_ranking_gives_its_pairs_and_weighs_one():
    result = ranked_pairs([ranking([2, 1, 4, 3])])
    assert set(beats(result.pairs)) == {"b>a", "a>c", "a>d", "b>c", "b>d", "d>c"}
    assert all(p.weight == pytest.approx(1 / 6) and p.label == 1.0 and not p.tie for p in result.pairs)
    assert {p.prompt_id for p in result.pairs} == {"p"} and len({p.id for p in result.pairs}) == 6
    assert result.pairs[0].source == "labelers: ann"


def test_ties_and_fails():
    result = ranked_pairs([ranking([1, 1, 2, None, None])])
    assert set(beats(result.pairs)) == {"a>c", "b>c", "a>d", "a>e", "b>d", "b>e", "c>d", "c>e"}
    assert all(p.weight == pytest.approx(1 / 8) for p in result.pairs)
    assert result.ties == 1 and result.skipped == {"tie": 1, "both failed": 1}


def test_declared_ties_are_kept_when_asked_for():
    result = ranked_pairs([ranking([1, 1, 2])], keep_ties=True)
    tie = next(p for p in result.pairs if p.tie)
    assert (tie.chosen, tie.rejected, tie.label) == ("a", "b", 0.5)
    assert [p.weight for p in result.pairs] == pytest.approx([1 / 3] * 3)


def test_equal_texts_give_no_pair():
    result = ranked_pairs([ranking([1, 2, 3], texts=["same", "same ", "other"])])
    assert len(result.pairs) == 2 and result.skipped == {"the two answers are equal": 1}


@pytest.mark.parametrize("keep_ties", [False, True])
def test_each_ranking_weighs_one_whatever_it_holds(keep_ties):
    rng = random.Random(0)
    for number in range(60):
        ranks = [rng.choice([1, 2, 3, 4, None]) for _ in range(rng.randint(2, 6))]
        result = ranked_pairs([ranking(ranks, id=f"p{number}")], keep_ties)
        assert sum(p.weight for p in result.pairs) == pytest.approx(1.0 if result.pairs else 0.0)


def test_several_labelers_are_merged():
    # ann: a>b a>c b>c (1/3 each); bob: b>a, b>c, a=c (1/2 each); cat, in another order: a>b alone
    group = [ranking([1, 2, 3]), ranking([2, 1, 2], labeler="bob"), ranking([2, 1], labeler="cat", order=[1, 0])]
    result = ranked_pairs(group)
    assert beats(result.pairs) == {
        "a>b": (pytest.approx((1 / 3 + 1) / (1 / 3 + 1 / 2 + 1)), pytest.approx((1 / 3 + 1 / 2 + 1) / 3)),
        "a>c": (1.0, pytest.approx(1 / 9)),
        "b>c": (1.0, pytest.approx((1 / 3 + 1 / 2) / 3)),
    }
    assert result.ties == 1
    assert result.pairs[0].source == "labelers: ann, bob, cat"
    assert sum(p.weight for p in result.pairs) == pytest.approx(1.0)


def test_a_tie_beside_a_decision_is_a_row_of_its_own():
    result = ranked_pairs([ranking([1, 2]), ranking([1, 1], labeler="bob")], keep_ties=True)
    decided, tie = sorted(result.pairs, key=lambda p: p.tie)
    assert (decided.label, decided.weight, decided.source) == (1.0, 0.5, "labelers: ann")
    assert (tie.label, tie.weight, tie.source) == (0.5, 0.5, "labelers: bob")
    assert decided.id != tie.id


def test_an_even_split():
    group = [ranking([1, 2]), ranking([2, 1], labeler="bob")]
    assert not ranked_pairs(group).pairs
    assert ranked_pairs(group).skipped == {"labelers split evenly": 1}
    kept = ranked_pairs(group, keep_ties=True).pairs
    assert [(p.label, p.tie, p.weight) for p in kept] == [(0.5, False, 1.0)]


def test_the_majority_is_chosen_and_the_id_does_not_turn():
    two, three = [ranking([1, 2]), ranking([2, 1], labeler="b")], [ranking([2, 1], labeler="c")]
    turned = ranked_pairs(two + three).pairs[0]
    assert (turned.chosen, turned.label) == ("b", pytest.approx(2 / 3))
    assert turned.id == ranked_pairs(two[:1]).pairs[0].id


def test_split_keeps_a_first_turn_together_and_lengths_are_compared():
    pairs = [Preference(id=f"{i}{tail}", prompt_id=f"{i}{tail}", chosen="longer", rejected="short", prompt=[
        {"role": "user", "content": f"Q{i}"}, {"role": "assistant", "content": "A"},
        {"role": "user", "content": tail}]) for i in range(200) for tail in "xy"]
    train, heldout = split(pairs, 0.25, seed=1)
    assert {p.prompt[0].content for p in train}.isdisjoint(p.prompt[0].content for p in heldout)
    assert len(train) + len(heldout) == 400 and 60 < len(heldout) < 140
    assert all(is_held_out(p.prompt, 0.25, 1) for p in heldout)
    assert split(pairs, 0.25, seed=2) != (train, heldout) and split(pairs, 0.0, seed=1) == (pairs, [])
    even = Preference(id="e", prompt_id="e", prompt=pairs[0].prompt, chosen="aaa", rejected="b", label=0.5)
    assert length_wins([*pairs[:3], even]) == (1.0, 0.0) and length_wins([even]) == (0.0, 0.0)


# --- the stage -----------------------------------------------------------------------------------------


def go(tmp_path, path, **settings) -> PairsSummary:
    return execute("pairs", PairsConfig(out=tmp_path / "run", input=path, **settings), run, PairsSummary)


def test_the_stage_writes_both_sides(tmp_path, jsonl):
    rows = [r.model_dump(mode="json") for i in range(40) for r in (
        ranking([1, 2, 3, None], id=f"p{i}"), ranking([2, 1, 3, None], id=f"p{i}", labeler="bob"))]
    summary = go(tmp_path, jsonl("rankings.jsonl", rows))
    train = read_rows(tmp_path / "run" / "train.jsonl", Preference)
    heldout = read_rows(tmp_path / "run" / "heldout.jsonl", Preference)
    assert summary.artifacts.keys() == {"train", "heldout", "rankings"}
    assert (summary.train_pairs, summary.heldout_pairs) == (len(train), len(heldout))
    assert summary.pairs == 40 * 5 and summary.prompts == 40  # a against b is an even split
    assert summary.skipped == {"labelers split evenly": 40} and summary.skipped_total == 40
    assert {p.prompt_id for p in train}.isdisjoint(p.prompt_id for p in heldout)
    assert Counter(p.prompt_id for p in train + heldout) == Counter({f"p{i}": 5 for i in range(40)})


def test_without_heldout_only_train(tmp_path, jsonl):
    summary = go(tmp_path, jsonl("r.jsonl", [ranking([1, 2]).model_dump(mode="json")]), heldout=0)
    assert summary.artifacts.keys() == {"train", "rankings"} and summary.heldout_pairs == 0
    assert not (tmp_path / "run" / "heldout.jsonl").exists()


@pytest.mark.parametrize(("ranks", "settings", "says"), [
    ([1, 1], {}, r"gives no pair \(tie: 1\)"),
    ([None, None], {}, r"gives no pair \(both failed: 1\)"),
    ([1], {}, "at least two"),
    ([1, 2], {"heldout": 1e-6}, "leaves no held-out pair"),
    ([1, 2], {"heldout": 0.999999}, "leaves no training pair"),
])
def test_refused(tmp_path, jsonl, ranks, settings, says):
    path = jsonl("r.jsonl", [ranking(ranks).model_dump(mode="json")])
    with pytest.raises(TrivetError, match=says) as caught:
        go(tmp_path, path, **settings)
    assert caught.value.file == path
    assert not (tmp_path / "run" / "summary.json").exists()
