"""Replies of an endpoint's model, as verdicts."""

from __future__ import annotations

import math

import pytest

from trivet.judge.reply import label_probability, read_verdict

AB, YN = ("A", "B"), ("yes", "no")


@pytest.mark.parametrize(("text", "labels", "label"), [
    ('{"verdict": "A"}', AB, "A"),
    ('```json\n{"verdict" : " b "}\n```', AB, "B"),
    ('Here you are: {"verdict": "no"} Anything else?', YN, "no"),
    ("B", AB, "B"), ("**A**.", AB, "A"), ("Answer B", AB, "B"), ("The better answer is A!", AB, "A"),
    ("Verdict: yes", YN, "yes"), ("No.", YN, "no"),
    ('<think>"verdict": "A"? No, B.</think>{"verdict": "B"}', AB, "B"),
    ('{"verdict": "A"}\n{"verdict": "A"}', AB, "A"),
    ('{"verdict": "A"} {"verdict": "B"}', AB, None),
    ('{"verdict": "tie"}', AB, None), ('{"verdict": ""}', AB, None), ("", AB, None),
    ("A or B", AB, None), ("Both are fine.", AB, None), ("A good answer is B", AB, None), ("Yesterday", YN, None),
    ("I can't help with that.", YN, None), ("Answering", AB, None),
])
def test_verdicts(text, labels, label) -> None:
    found = read_verdict(text, labels)
    assert (found and found[0]) == label
    if found:
        assert text[found[1]: found[1] + len(label)].casefold() == label.casefold()


def token(text: str, p: float = 1.0, **others: float) -> dict:
    return {"token": text, "logprob": math.log(p),
            "top_logprobs": [{"token": t, "logprob": math.log(q)} for t, q in others.items()]}


def test_the_probability_is_read_where_the_verdict_begins() -> None:
    tokens = [token('{"'), token("verdict", 0.9, A=0.1), token('":"'), token("A", 0.6, A=0.6, B=0.2), token('"}')]
    assert label_probability(tokens, AB) == pytest.approx(0.75)
    assert label_probability(tokens, ("B", "A")) == pytest.approx(0.25)


def test_spellings_are_added_up() -> None:
    tokens = [token("Yes", 0.5, **{"Yes": 0.5, " yes": 0.1, "YES": 0.1, "No": 0.2, "not": 0.05, "n": 0.1, "y": 0.1})]
    assert label_probability(tokens, YN) == pytest.approx(0.8 / 1.1)
    quoted = [token('{"verdict":'), token(' "B', 0.7, **{' "B': 0.7, ' "A': 0.3}), token('"}')]
    assert label_probability(quoted, AB) == pytest.approx(0.3)


def test_an_alternative_that_is_not_shown_counts_as_nothing() -> None:
    assert label_probability([token("A", 0.4)], AB) == 1.0


@pytest.mark.parametrize("tokens", [
    None, [], "A", 7, [{"token": "A"}], [{"logprob": 0.0}], [None], [token("maybe")],
    [{"token": "A", "logprob": "x", "top_logprobs": []}], [{"token": "A", "logprob": math.nan, "top_logprobs": None}],
])
def test_tokens_that_tell_nothing(tokens) -> None:
    assert label_probability(tokens, AB) is None
