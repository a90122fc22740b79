"""Marks stand where the rules count, and nowhere else."""

from __future__ import annotations

import itertools
import random

import pytest

from trivet.text import rules, spans, surface
from trivet.text.spans import Span

TEXTS = [
    "", "Plain prose, as it is written on most days of the week.",
    "Wow, what a great question! This is the BEST and most amazing answer ever!!! You are so clever!",
    "# Title\n\n- one **bold** item\n- two\n3. three ✨\n| a | b |\n",
    "say it again and say it again and say it again",
    "The xkcdqz zzkrtp \ufffd\ufffd b7f9a2c1 is `code xkcdqz` www.bcdfg.net",
    "He are the the one , who i know. she go a apple.",
    "日本語のテキスト。ภาษาไทย and naïve words’ ends", "it's “quoted” – don’t – I'm",
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(("mark", "rule"), [
    (spans.repeated, rules.repetition), (spans.no_words, rules.gibberish), (spans.exaggerated, surface.exaggeration),
    (spans.flattery, surface.flattery), (spans.formatting, surface.formatting), (spans.grammar, surface.grammar_faults),
])
def test_marked_is_what_the_rule_counts(text: str, mark, rule) -> None:
    found = mark(text)
    assert bool(found) == (rule(text) > 0)
    assert all(0 <= s.start < s.end <= len(text) and s.why and s.kind in spans.KINDS for s in found)


def said(text: str, found: list[Span]) -> list[str]:
    return [text[s.start : s.end] for s in found]


def test_what_is_marked() -> None:
    text = TEXTS[2]
    assert said(text, spans.exaggerated(text)) == ["!", "BEST", "BEST", "amazing", "ever", "!!!", "!"]
    assert said("!!!", spans.exaggerated("!!!")) == ["!!!"]  # which the rule, a share of words, counts for nothing
    assert said(text, spans.flattery(text)) == ["Wow, what a great question!", "You are so clever!"]
    assert said(TEXTS[3], spans.formatting(TEXTS[3])) == ["# ", "- ", "**bold**", "- ", "3. ", "✨", "|"]
    assert said(TEXTS[4], spans.repeated(TEXTS[4])) == ["say it again and say it again"]
    assert said(TEXTS[5], spans.no_words(TEXTS[5])) == ["xkcdqz", "zzkrtp", "\ufffd\ufffd", "b7f9a2c1"]
    assert said(TEXTS[6], spans.grammar(TEXTS[6])) == ["He are", "the the", "one ,", ". she go ", "i", "a apple"] or \
        {"He are", "the the", "a apple"} <= set(said(TEXTS[6], spans.grammar(TEXTS[6])))


def test_places_are_the_words() -> None:
    rng = random.Random(0)
    alphabet = "aZ9é'’ .-—\n日カก่้한ًмь\u0301\ud800"
    for _ in range(2000):
        text = "".join(rng.choice(alphabet) for _ in range(rng.randrange(12)))
        at = rules.places(text)
        assert [text[a:b] for a, b in at] == rules.words(text)
        assert all(b <= c for (_, b), (c, _) in itertools.pairwise(at))


def test_length_and_end() -> None:
    text = "one two three, four five.  "
    assert said(text, spans.beyond(text, 3)) == ["four five."]
    assert spans.beyond(text, 5) == []
    assert said("It was cut of", spans.cut_off("It was cut of")) == ["of"]
    assert spans.cut_off(" \n") == [] and said("???", spans.cut_off("???")) == ["???"]


def test_what_other_answers_say_too() -> None:
    texts = ["I love you so much, dear friend.", "Yes: I love you so much indeed.", "Rome is a city.", "No."]
    grams = spans.common(texts)
    assert said(texts[0], spans.shared(texts[0], grams)) == ["I love you so much"]
    assert spans.shared(texts[2], grams) == [] and spans.common(texts[:1]) == frozenset()


def test_what_was_added() -> None:
    before, after = "It rains in spring.", "As is well known, it rains in the early spring."
    assert said(after, spans.added(before, after)) == ["As is well known", "the early"]
    assert spans.added(before, "Something else was said here") == [] and spans.added("", "") == []


def test_parts_give_the_text_again() -> None:
    text = "say it now and say it now!!!"
    found = sorted([*spans.repeated(text), *spans.exaggerated(text), *spans.cut_off(text)])
    parts = spans.parts(text, found)
    assert "".join(p.text for p in parts) == text
    assert [[s.kind for s in p.spans] for p in parts] == [[], ["repeated"], ["repeated", "cut off"],
                                                          ["exaggerated", "cut off"]]
    assert spans.parts("", []) == [] and spans.parts("a", []) == [spans.Part("a", ())]
