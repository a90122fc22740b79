"""What the rules of an answer's dress must see, and what they must leave alone."""

from __future__ import annotations

import json
import random
import statistics
from pathlib import Path

import pytest

import trivet
from trivet.text.manner import flatters, sentences
from trivet.text.surface import (
    content_words,
    distance,
    exaggeration,
    flattery,
    formatting,
    grammar_faults,
    sameness,
    word_pairs,
)

SOURCE = Path(trivet.__file__).parent
PROSE = (
    "To keep basil fresh, trim the stems and put the bunch in a glass of water, like flowers. Leave it on the "
    "counter, out of the sun, and change the water every two days. It keeps for about a week that way, and if it "
    "wilts you can still make pesto of it. An hour in the fridge does it no harm, e.g. on a hot day; an in-depth "
    "look at why would take a university course. If I were you, I'd buy a one-time supply from a European shop. What "
    "does he have to lose? They are cheap, and she is happy."
)


def answers() -> list[str]:
    """A small model's answers, which are not good ones."""
    lines = (SOURCE / "starter" / "completions.jsonl").read_text(encoding="utf-8").splitlines()
    return [c["text"] for line in lines for c in json.loads(line)["completions"]]


def test_exaggeration_counts_emphasis_a_word() -> None:
    assert exaggeration("The best cake ever!") == 3 / 4
    assert exaggeration("It is the greatest, most incredible thing!!! AMAZING!!!!") > 0.8
    assert exaggeration("She is the happiest and it is the strangest forest in the west.") == pytest.approx(1 / 13)
    assert exaggeration("") == 0 and exaggeration("!!!") == 0
    assert exaggeration(PROSE) < 0.03


def test_flattery_is_a_share_of_all_sentences() -> None:
    assert flattery("Great question! Use cold water. Rub it gently. You are so smart.") == 0.5
    assert flattery("Rome is a great city. Use cold water.") == 0
    assert flattery("") == 0 and flattery(PROSE) == 0


def test_flattery_looks_past_no_sentence_that_flatters() -> None:
    praise = ["What a great question!", "Well spotted.", "Someone as keen as that would notice.", "Bravo!",
              "I couldn't have put it better.", "Few people would notice this.", "Impressed by how it was said.",
              "Your insight amazes me.", "Brilliant idea!", "Nice work."]
    for sentence in [*praise, *(s for text in answers()[:300] for s in sentences(text))]:
        assert (flattery(sentence) > 0) == any(map(flatters, sentences(sentence))), sentence


def test_formatting_counts_marks_of_layout() -> None:
    listed = "# Title here\n\n- one two three\n- **four** five six\n1. seven eight\n\n| a | b |"
    assert formatting(listed) == pytest.approx(6 / 13)
    assert formatting("A dash - and a star * in prose, 3. in the middle.") == 0
    assert formatting("Nice 🎉 day ✨") == 1
    assert formatting("") == 0


@pytest.mark.parametrize(("text", "faults"), [
    ("The the cat sat.", 1), ("It is a apple.", 1), ("It is an car.", 1), ("He are late.", 1), ("They was here.", 1),
    ("I read a of book.", 1), ("The is good.", 1), ("It rained. then it stopped.", 1), ("So i went.", 1),
    ("Well , it rained.", 1), ("It rained,so we left.", 1),
    ("An hour, a user, an umbrella, a unicorn, a one-off, an unusual one.", 0), ("Does he have time?", 0),
    ("If he were here, we would go.", 0), ("He had had enough. I know that that is so.", 0), ("Use a can of beans.", 0),
    ("An in-depth by-product of a to-do list.", 0), ("Vitamin A is good.", 0), ("Well... maybe not.", 0),
    ("See e.g. the list, i.e. this one etc. and so on.", 0), ("You and he are late.", 0), ("", 0), (PROSE, 0)])
def test_grammar(text: str, faults: int) -> None:
    assert round(grammar_faults(text) * max(1, len(text.split()))) == faults


def test_grammar_leaves_prose_alone_and_sees_broken_prose() -> None:
    lines = (SOURCE / "evaluate" / "questions" / "prose.jsonl").read_text(encoding="utf-8").splitlines()
    prose = [json.loads(line)["text"] for line in lines]
    assert statistics.fmean(map(grammar_faults, prose)) < 0.005
    rng = random.Random(0)
    shuffled = [" ".join(rng.sample(text.split(), len(text.split()))) for text in prose]
    assert statistics.fmean(map(grammar_faults, shuffled)) > 0.03


def test_distance_and_sameness() -> None:
    asked = "How do I keep basil fresh in summer?"
    near = distance("Basil stays fresh in water.", asked)
    far = distance("Trains run every hour.", asked)
    assert near is not None and far == 1.0 and near < 0.6
    assert distance("Anything.", "What is it?") is None and distance("", asked) == 1.0
    assert distance("Basil.", content_words(asked)) == distance("Basil.", asked)
    a, b = word_pairs("the cat sat on the mat"), word_pairs("the cat sat there")
    assert sameness(a, a) == 1.0 and sameness(a, frozenset()) == 0.0 and sameness(frozenset(), frozenset()) == 0.0
    assert sameness(a, b) == pytest.approx(2 * 2 / (5 + 3))
