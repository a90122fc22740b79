"""Instructions that a program can check: the checks one by one, the generator, and that each prompt can be obeyed."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest

from solver import solve
from trivet.evaluate.instructions import (
    CHOICES,
    FAMILIES,
    TOPICS,
    Constraint,
    clash,
    generate,
    json_keys,
    paragraphs,
    sentence_count,
)

REQUEST = "Describe an old house."
PLAIN = ("Well, this is a quick answer, which takes no notice of what was asked; it only fills a few lines with words, "
         "for example about jumping foxes, big vans, grey kettles, parks, milk, yards and weeks. It ends as it began. "
         "Then there is one more remark. And a fifth. And nothing else, in fact.")

CASES = [
    ("words at least", (5,), "One two three four five.", "One two three four."),
    ("words at most", (4,), "One two three four.", "One two three four five."),
    ("sentences", (2,), "It is old. It is big!", "It is old."),
    ("sentences", (1,), "It is old, e.g. the door", "It is old. Yes."),
    ("paragraphs", (2,), "One.\n\nTwo.\nStill two.", "One.\nTwo."),
    ("bullets", (2,), "Here:\n- one\n* two", "- one\n- two\n- three"),
    ("numbered", (2,), "1. one\n2) two", "1. one\n3. two"),
    ("numbered", (2,), "Here:\n1. one\n2. two", "1 one\n2 two"),
    ("include", ("lantern",), "A Lantern.", "Lanterns."),
    ("include twice", ("lantern",), "lantern, LANTERN", "lantern lanterns"),
    ("exclude", ("roof",), "roofs", "The Roof."),
    ("start", ("In my view",), "in my view it is old", "It is, in my view, old"),
    ("end", ("Now you know.",), "It is old. Now you know.\n", "Now you know. It is old."),
    ("end", ("Now you know.",), "Old. Now you know.", "Now you know."),
    ("lower case", (), "it is old.", "It is old."),
    ("upper case", (), "IT IS OLD.", "IT is OLD."),
    ("no commas", (), "It is old.", "It is old, yes."),
    ("no letter", ("k",), "It is old.", "Oak."),
    ("json", ("mood", "place"), '{"mood": "x", "place": 1}', '{"mood": "x"}'),
    ("json", ("mood",), '```json\n{"mood": "x"}\n```', 'Here: {"mood": "x"}'),
    ("quotes", (), '"It is old."', '"It" is old.'),
    ("quotes", (), "“It is old.”", "“It is old."),
    ("repeat", (), "Describe an old house. It is old.", "It is old. Describe an old house."),
    ("title", (), "<<Old>>\nIt is old.", "It is <<old>>."),
    ("postscript", (), "It is old.\nP.S. Very.", "It is old. P.S. Very."),
    ("brackets", (2,), "[name] has [thing]", "[name] has a thing"),
    ("stars", (2,), "*one* and **two**", "* one\n* two"),
    ("capitals", (2,), "It IS OLD", "I AM old, A b"),
    ("sections", (2,), "Section 1\nOld.\nSection 2\nBig.", "Section 1\nOld."),
    ("two answers", (), "Old.\n******\nBig.", "Old.\n******\nOld."),
    ("question", (), "It is old. Is it not?", "Is it not? It is old."),
    ("choice", ("yes", "no"), "Yes.", "Yes, it is."),
]


@pytest.mark.parametrize(("family", "values", "good", "bad"), CASES)
def test_checks(family, values, good, bad):
    constraint = Constraint(family, values)
    assert constraint.met(good, REQUEST)
    assert not constraint.met(bad, REQUEST)


def test_every_family_has_a_case():
    assert {case[0] for case in CASES} == set(FAMILIES)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_an_empty_answer_obeys_nothing(family):
    values = next(case[1] for case in CASES if case[0] == family)
    for text in ("", "  \n", "...", "123"):
        assert not Constraint(family, values).met(text, REQUEST)


@pytest.mark.parametrize("wording", sorted((f, i) for f in FAMILIES for i in range(len(FAMILIES[f].wordings))))
def test_wordings_say_all_values(wording):
    family, index = wording
    values = next(case[1] for case in CASES if case[0] == family)
    text = Constraint(family, values, index).text
    assert "{" not in text and text == text.strip()
    for value in values:
        spelled = {1: "one", 2: "two", 3: "three"}.get(value, str(value))
        assert str(value) in text or spelled in text


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_instruction_can_be_obeyed(seed):
    for item in islice(generate(seed), 1500):
        answer = solve(item)
        unmet = [c for c in item.constraints if not c.met(answer, item.request)]
        assert not unmet, (item.text, answer)


def test_an_answer_that_takes_no_notice_fails():
    for item in islice(generate(0), 1500):
        assert not all(c.met(PLAIN, item.request) for c in item.constraints), item.text


def test_an_answer_to_another_instruction_mostly_fails():
    items = list(islice(generate(0), 400))
    passed = sum(all(c.met(solve(other), item.request) for c in item.constraints)
                 for item, other in zip(items, items[1:] + items[:1], strict=True))
    assert passed < 0.1 * len(items)


def test_the_generator_is_seeded_and_never_repeats_itself():
    first, again = (list(islice(generate(7), 300)) for _ in range(2))
    assert first == again
    assert len({item.text for item in first}) == len({item.id for item in first}) == 300
    assert {item.id for item in first[:50]} != {item.id for item in islice(generate(8), 50)}
    counts = Counter(len(item.constraints) for item in first)
    assert set(counts) == {1, 2, 3} and min(counts.values()) > 15
    assert {c.family for item in first for c in item.constraints} == set(FAMILIES)


def test_what_clashes():
    def constraint(family, *values):
        return Constraint(family, values)

    assert clash(constraint("json", "mood", "place"), constraint("bullets", 2), REQUEST)
    assert clash(constraint("bullets", 2), constraint("json", "mood", "place"), REQUEST)
    assert clash(constraint("words at least", 50), constraint("words at most", 30), REQUEST)
    assert clash(constraint("words at least", 40), constraint("sentences", 1), REQUEST)
    assert not clash(constraint("words at least", 40), constraint("sentences", 3), REQUEST)
    assert clash(constraint("exclude", "house"), constraint("repeat"), REQUEST)
    assert not clash(constraint("exclude", "roof"), constraint("repeat"), REQUEST)
    assert clash(constraint("no letter", "k"), constraint("include", "pocket"), REQUEST)
    assert clash(constraint("no letter", "p"), constraint("postscript"), REQUEST)
    assert not clash(constraint("no letter", "k"), constraint("include", "silver"), REQUEST)


def test_families_that_stand_apart_exist():
    for family in FAMILIES.values():
        assert set(filter(None, family.apart.split(", "))) <= set(FAMILIES)


def test_topics_can_be_repeated():
    """A request is one sentence without a comma, so that `repeat` goes with the other constraints."""
    for request, words in TOPICS:
        assert sentence_count(request) == 1 and "," not in request and request.endswith(".")
        assert len(set(words)) == 3 and all(w == w.casefold() for w in words)
    assert all(request.endswith("?") and len(set(options)) == len(options) for request, options in CHOICES)


@pytest.mark.parametrize(("text", "count"), [
    ("", 0), ("No end", 1), ("One. Two.", 2), ("One... two!", 2), ("It costs 3.50 today.", 1), ("Ask Mr. brown.", 1),
    ('He said "No." Then he left.', 2), ("1. One.\n2. Two.", 2), ("What?! Yes.", 2),
])
def test_sentences(text, count):
    assert sentence_count(text) == count


def test_paragraphs_are_cut_by_blank_lines():
    assert paragraphs("a\n \n\nb\nc") == 2
    assert paragraphs("\n\n") == 0


def test_json_keys():
    assert json_keys('{"a": 1}') == {"a"}
    assert json_keys("[1]") is None
    assert json_keys("{" * 5000) is None
