"""Answers cut into claims with their citations, and put together again."""

from __future__ import annotations

import pytest

from trivet.serve.retrieval.claims import cited, claims, plain, rewritten
from trivet.serve.retrieval.quantities import quantities, same


def texts(answer: str) -> list[str]:
    return [c.text for c in claims(answer)]


@pytest.mark.parametrize(("answer", "expected"), [
    ("One is here. Two is there.", ["One is here.", "Two is there."]),
    ("Dr. J. Smith met Mrs. Lee. They left.", ["Dr. J. Smith met Mrs. Lee.", "They left."]),
    ("It costs 3.50 crowns. That is approx. 4 dollars.", ["It costs 3.50 crowns.", "That is approx. 4 dollars."]),
    ("Fruit, e.g. plums, is sold. See fig. 3 there.", ["Fruit, e.g. plums, is sold.", "See fig. 3 there."]),
    ("It opens at 9 a.m. The hall is large.", ["It opens at 9 a.m.", "The hall is large."]),
    ("It opens at 9 a.m. on Sundays.", ["It opens at 9 a.m. on Sundays."]),
    ("He said \"Stop!\" Then he left.", ["He said \"Stop!\"", "Then he left."]),
    ("Really? Yes! 12 came.", ["Really?", "Yes!", "12 came."]),
    ("Look at example.org for v2.5 of it.", ["Look at example.org for v2.5 of it."]),
    ("- first thing\n- second thing\n\n3. third thing", ["first thing", "second thing", "third thing"]),
    ("# Head\n> quoted line", ["Head", "quoted line"]),
    ("```\na = 1. Then\nb\n```\nAfter it.", ["```\na = 1. Then\nb\n```", "After it."]),
    ("no full stop", ["no full stop"]),
    ("... and so on", ["... and so on"]),
    ("", []),
    (" \n\t\n", []),
    ("[1]", []),
])
def test_sentences(answer: str, expected: list[str]) -> None:
    assert texts(answer) == expected


@pytest.mark.parametrize(("text", "numbers"), [
    ("a [1].", (1,)), ("a. [1][3]", (1, 3)), ("a [2, 1]", (2, 1)), ("a [1-3]", (1, 2, 3)), ("a 【4】", (4,)),
    ("a [^2]", (2,)), ("a [passage 2]", (2,)), ("a [1 and 2]", (1, 2)), ("in [2031] a", ()), ("list[i] a", ()),
    ("[1] a [1]", (1,)), ("[9-1] a", (9, 1)),
])
def test_citations(text: str, numbers: tuple[int, ...]) -> None:
    assert cited(text) == numbers


def test_a_citation_behind_the_full_stop_belongs_to_the_sentence_before_it() -> None:
    found = claims("One is here. [2] Two is there [1]. Three.\n[3]")
    assert [(c.text, c.cites) for c in found] == [("One is here.", (2,)), ("Two is there.", (1,)), ("Three.", (3,))]


def test_citing_everything_from_1_to_999_is_bounded() -> None:
    assert len(cited("[1-999]")) < 25


def test_places_are_those_of_the_answer() -> None:
    answer = "Well, one. [1] And two!\n- three [2]"
    assert [answer[c.start:c.end] for c in claims(answer)] == ["Well, one. [1]", "And two!", "- three [2]"]


def test_rewriting_keeps_lines_and_marks_and_counts_anew() -> None:
    answer = ("They say:\n- One is here [4].\n- Two is wrong [2].\n- Three is there. [1][4]\n\n"
              "All in all \"so it is.\" [4]")
    found = claims(answer)
    kept = [(found[0], ()), (found[1], (4,)), (found[3], (4, 1)), (found[4], (4,))]
    assert rewritten(answer, kept, {4: 1, 1: 2}) == \
        "They say:\n- One is here [1].\n- Three is there [1][2].\n\nAll in all \"so it is [1].\""
    assert rewritten(answer, [], {}) == ""
    assert plain("One is [1] here. [2]") == "One is here."


# --- numbers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("one", "other", "equal"), [
    ("1,200 metres", "1.2 km", True), ("12%", "twelve per cent", True), ("twenty-one thousand", "21,000", True),
    ("3 May 2031", "2031-05-03", True), ("May 2031", "3 May 2031", True), ("3 May 2031", "May 2031", False),
    ("2031", "3 May 2031", True), ("5 March 2031", "3 May 2031", False), ("5:30 pm", "17:30", True),
    ("$2 million", "2,000,000 dollars", True), ("$2", "2 euros", False), ("3 kg", "3 km", False),
    ("340", "340 metres", True), ("-4 °C", "4 °C", False), ("two hundred and five", "205", True),
    ("3rd", "third", True), ("sixty-four people", "64 people", True),
    ("1999 ships", "1999", True), ("7.5", "75", False),
])
def test_numbers_are_compared_by_value(one: str, other: str, equal: bool) -> None:
    assert same(quantities(one)[0], quantities(other)[0]) is equal


def test_words_that_are_no_numbers() -> None:
    assert quantities("it may rain, often, someone said") == ()
    assert [q.soft for q in quantities("one of them")] == [True]
