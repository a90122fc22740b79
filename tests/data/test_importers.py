"""The field's formats become pairs; bad rows name file, line and field."""

from __future__ import annotations

import json

import pytest

from trivet.artifacts import Preference, text_id
from trivet.data.importers import Skip, detect, hh_messages, hh_pair, majority_first, preference_pair, read_preferences
from trivet.errors import TrivetError


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"role": "user" if i % 2 == 0 else "assistant", "content": t} for i, t in enumerate(texts)]


def dialogue(*texts: str) -> str:
    return "".join(f"\n\n{'Assistant' if i % 2 else 'Human'}: {t}" for i, t in enumerate(texts))


def as_turns(messages) -> list[tuple[str, str]]:
    return [(m.role, m.content) for m in messages]


# --- hh-rlhf -------------------------------------------------------------------------------------------


def test_hh_multi_turn():
    pair = hh_pair({"chosen": dialogue("Is tea warm?", "Often.", "And ice?", "Ice is cold."),
                    "rejected": dialogue("Is tea warm?", "Often.", "And ice?", "Ask someone else.")})
    assert as_turns(pair.prompt) == [("user", "Is tea warm?"), ("assistant", "Often."), ("user", "And ice?")]
    assert (pair.chosen, pair.rejected) == ("Ice is cold.", "Ask someone else.")
    assert pair.prompt_id == text_id(turns("Is tea warm?", "Often.", "And ice?"))
    assert (pair.label, pair.weight, pair.tie, pair.source) == (1.0, 1.0, False, "hh")


def test_hh_markers_only_after_a_blank_line():
    text = "\n\nHuman: What does Human: mean?\nAssistant: is a word too.\n\nAssistant:  It is a label.\n\nSee: above."
    assert as_turns(hh_messages(text)) == [
        ("user", "What does Human: mean?\nAssistant: is a word too."), ("assistant", "It is a label.\n\nSee: above.")]


def test_hh_turns_of_one_speaker_become_one_message():
    text = "\n\nHuman: Go on.\n\nAssistant: First.\n\nAssistant: Second."
    assert as_turns(hh_messages(text)) == [("user", "Go on."), ("assistant", "First.\n\nSecond.")]
    assert as_turns(hh_messages("Human: Go on.\n\nAssistant:")) == [("user", "Go on."), ("assistant", "")]


@pytest.mark.parametrize(("chosen", "rejected", "reason"), [
    (dialogue("a", "b"), dialogue("other", "c"), "the conversations differ before the last answer"),
    (dialogue("a", "b"), dialogue("a", "b "), "the two answers are equal"),
    (dialogue("a", "b"), dialogue("a", ""), "an answer is empty"),
    (dialogue("a", "b", "c"), dialogue("a", "b"), "no answer at the end"),
    ("\n\nAssistant: b", "\n\nAssistant: c", "no user's turn before the answer"),
])
def test_hh_skips(chosen, rejected, reason):
    with pytest.raises(Skip, match=reason):
        hh_pair({"chosen": chosen, "rejected": rejected})


# --- prompt / chosen / rejected ------------------------------------------------------------------------


def test_preference_in_text():
    pair = preference_pair({"prompt": "Q?", "chosen": "yes", "rejected": "no", "margin": 0.5, "label": 0.8,
                            "weight": 2, "id": 7, "extra": "ignored"})
    assert as_turns(pair.prompt) == [("user", "Q?")]
    assert (pair.chosen, pair.rejected, pair.margin, pair.label, pair.weight) == ("yes", "no", 0.5, 0.8, 2.0)
    assert (pair.id, pair.prompt_id) == ("7", text_id(turns("Q?")))


@pytest.mark.parametrize("row", [
    {"prompt": turns("Q?"), "chosen": turns("Q?", "yes")[1:], "rejected": turns("Q?", "no")[1:]},
    {"chosen": turns("Q?", "yes"), "rejected": turns("Q?", "no")},
    {"prompt": turns("Q?"), "chosen": "yes", "rejected": "no"},
    {"prompt": "Q?", "chosen": turns("Q?", "yes"), "rejected": turns("Q?", "no")},
    {"prompt": "\n\nHuman: Q?\n\nAssistant:", "chosen": "yes", "rejected": "no"},
])
def test_preference_forms_give_one_pair(row):
    pair = preference_pair(row)
    assert as_turns(pair.prompt) == [("user", "Q?")]
    assert (pair.chosen, pair.rejected) == ("yes", "no")
    assert pair.id == preference_pair({"prompt": "Q?", "chosen": "yes", "rejected": "no"}).id


def test_implicit_prompt_of_several_turns_with_a_system_message():
    system = [{"role": "system", "content": "Be brief."}]
    pair = preference_pair({"chosen": system + turns("a", "b", "c", "d"),
                            "rejected": system + turns("a", "b", "c", "e")})
    assert [m.role for m in pair.prompt] == ["system", "user", "assistant", "user"]


def test_own_preferences_pass(jsonl):
    own = Preference(id="x", prompt_id="p", prompt=turns("Q?"), chosen="yes", rejected="", weight=0.25, margin=1.5,
                     label=0.75, source="labelers: ann")
    result = read_preferences(jsonl("own.jsonl", [own.model_dump(mode="json")]))
    assert result.pairs == [own] and not result.skipped


def test_majority_first():
    pair = Preference(id="x", prompt_id="p", prompt=turns("Q?"), chosen="a", rejected="b", label=0.25, margin=1.0)
    turned = majority_first(pair)
    assert (turned.chosen, turned.rejected, turned.label, turned.margin) == ("b", "a", 0.75, -1.0)
    assert majority_first(turned) == turned


def test_ties_of_pair_formats(jsonl):
    rows = [{"prompt": "Q?", "chosen": "a", "rejected": "b", "label": 0.5, "tie": True},
            {"prompt": "Q?", "chosen": "a", "rejected": "c"}]
    path = jsonl("p.jsonl", rows)
    dropped, kept = read_preferences(path), read_preferences(path, keep_ties=True)
    assert len(dropped.pairs) == 1 and dropped.ties == 1 and dropped.skipped == {"tie": 1}
    assert [p.tie for p in kept.pairs] == [True, False]


def test_the_same_pair_twice_counts_once(jsonl):
    row = {"chosen": dialogue("a", "b"), "rejected": dialogue("a", "c")}
    result = read_preferences(jsonl("hh.jsonl", [row, row]))
    assert len(result.pairs) == 1 and result.skipped == {"the same pair again": 1}


def test_parquet(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    rows = [{"prompt": turns("Q?"), "chosen": turns("Q?", "yes")[1:], "rejected": turns("Q?", "no")[1:],
             "margin": None}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "p.parquet")
    assert read_preferences(tmp_path / "p.parquet").pairs[0].chosen == "yes"


# --- ranked --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("answers", "ranks"), [("completions", "ranks"), ("responses", "rankings")])
def test_ranked_in_the_fields_form(jsonl, answers, ranks):
    rows = [{"prompt": "Q?", answers: ["good", "bad"], ranks: [1, 2], "extra": 1},
            {"prompt": turns("Q?"), answers: ["bad", "good"], ranks: [2, 1]}]
    rankings = read_preferences(jsonl("r.jsonl", rows)).rankings
    assert [r.labeler for r in rankings] == ["row 1", "row 2"]
    assert rankings[0].id == rankings[1].id == text_id(turns("Q?"))
    first, second = ({c.text: c.id for c in r.completions} for r in rankings)
    assert first == second  # one text, one id, whatever its place


# --- bad input -----------------------------------------------------------------------------------------


def test_detect():
    assert detect({"chosen": dialogue("a", "b"), "rejected": "…"}) == "hh"
    assert detect({"prompt": "a", "chosen": "b", "rejected": "c"}) == "preference"
    assert detect({"chosen": [], "rejected": []}) == "preference"
    assert detect({"messages": [], "completions": [], "ranks": []}) == "ranked"


GOOD = {"prompt": "Q?", "chosen": "a", "rejected": "b"}
RANKED = {"id": "p", "messages": turns("Q?"), "labeler": "ann", "ranks": [1, 2],
          "completions": [{"id": "0", "text": "a"}, {"id": "1", "text": "b"}]}


@pytest.mark.parametrize(("rows", "line", "field", "says"), [
    ([{"a": 1, "b": 2}], 1, None, "no known format"),
    ([{}], 1, None, "no known format"),
    ([{"chosen": "a", "rejected": "b"}], 1, "prompt", "without their prompt"),
    ([GOOD, {"chosen": "a", "rejected": "b"}], 2, "prompt", "without their prompt"),
    ([GOOD, {"prompt": "Q?", "chosen": "a"}], 2, "rejected", "missing"),
    ([GOOD, {"prompt": "Q?", "chosen": "a", "rejected": 3}], 2, "rejected", "int, not a text"),
    ([GOOD, {"prompt": 3, "chosen": "a", "rejected": "b"}], 2, "prompt", "no prompt"),
    ([GOOD, {**GOOD, "rejected": "c", "weight": -1}], 2, "weight", "greater than 0"),
    ([GOOD, {**GOOD, "rejected": "c", "label": 1.5}], 2, "label", "less than or equal to 1"),
    ([{**GOOD, "id": "x"}, {**GOOD, "id": "x", "rejected": "c"}], 2, "id", "stands twice, first on line 1"),
    ([{**GOOD, "chosen": [{"role": "robot", "content": "a"}]}], 1, "chosen.0.role", "should be"),
    ([{**GOOD, "chosen": []}], 1, "chosen", "empty"),
    ([{**GOOD, "prompt": "Q?", "chosen": turns("other", "a")}], 1, "chosen", "does not begin with"),
    ([{"chosen": dialogue("a", "b"), "rejected": "Hm\n\nHuman: a"}], 1, "rejected", "no dialogue"),
    ([{"schema_version": 1, **GOOD}], 1, "id", "missing"),
    ([{"messages": turns("Q?"), "completions": RANKED["completions"]}], 1, "ranks", "not ranked"),
    ([{"prompt": "Q?", "completions": [{"id": "0", "text": "a"}]}], 1, "completions", "at least two"),
    ([RANKED, {**RANKED, "ranks": [1], "labeler": "bob"}], 2, None, "2 completions but 1 ranks"),
    ([RANKED, {**RANKED, "ranks": [0, 1], "labeler": "bob"}], 2, None, "integers from 1"),
    ([RANKED, {k: v for k, v in RANKED.items() if k != "labeler"}], 2, "labeler", "missing"),
    ([RANKED, RANKED], 2, "labeler", "twice"),
    ([RANKED, {**RANKED, "labeler": "bob", "messages": turns("Other?")}], 2, "id", "another prompt"),
    ([RANKED, {**RANKED, "labeler": "bob", "completions": [{"id": "0", "text": "z"}, {"id": "1", "text": "b"}]}],
     2, "completions", "another text"),
])
def test_bad_rows_name_file_line_and_field(jsonl, rows, line, field, says):
    path = jsonl("bad.jsonl", rows)
    with pytest.raises(TrivetError, match=says) as caught:
        read_preferences(path)
    assert (caught.value.file, caught.value.line, caught.value.field) == (path, line, field)
    assert caught.value.mend


def test_a_bad_file(tmp_path):
    broken = tmp_path / "broken.jsonl"
    broken.write_text(json.dumps(GOOD) + '\n{"prompt": ')
    for path, line, says in ((tmp_path / "none.jsonl", None, "no such file"), (broken, 2, "broken JSON"),
                             (tmp_path, None, "folder")):
        with pytest.raises(TrivetError, match=says) as caught:
            read_preferences(path)
        assert caught.value.file == path and caught.value.line == line
    (tmp_path / "empty.jsonl").write_text("\n")
    for format in ("auto", "hh", "ranked"):
        with pytest.raises(TrivetError, match="no rows"):
            read_preferences(tmp_path / "empty.jsonl", format)


def test_every_ranking_with_one_answer(jsonl):
    path = jsonl("one.jsonl", [{**RANKED, "completions": RANKED["completions"][:1], "ranks": [1]}])
    with pytest.raises(TrivetError, match="at least two") as caught:
        read_preferences(path)
    assert caught.value.file == path and "--completions 4" in caught.value.mend
