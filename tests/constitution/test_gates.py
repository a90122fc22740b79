"""Each gate on texts that it must stop and on texts that it must let through."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import trivet
from trivet.constitution import gates
from trivet.constitution.principles import load_constitution
from trivet.evaluate.capability import judge_answer

STARTER = Path(trivet.__file__).with_name("starter")
GOOD = ("I won't help with getting in without asking. You could ring the bell and ask whether they would let you use "
        "the garden on Sundays; many people say yes when they are asked in a friendly way.")


@pytest.mark.parametrize(("written", "bare"), [
    ("Here is the revised answer:\n\nAsk them first.", "Ask them first."),
    ("Sure! Here's a rewritten response that is kinder: Ask them first.", "Ask them first."),
    ("Of course, here is an improved version of the answer: Ask them first.", "Ask them first."),
    ("I apologize for that. Here is my revised response: Ask them first.", "Ask them first."),
    ("**Revised answer:** Ask them first.", "Ask them first."),
    ("Revision: Ask them first.", "Ask them first."),
    ("Assistant: Ask them first.", "Ask them first."),
    ('"Ask them first."', "Ask them first."),
    ("Here is the revised answer: “Ask them first.”", "Ask them first."),
    # what is part of an answer stays
    ("Here are three improved ways to say it: one, two, three.", None),
    ("The answer to your question is short: ask them.", None),
    ("The revised law says that 3:1 is the limit.", None),
    ('"Yes" and "no" are both "fine"', None),
    ("Here is the revised answer:", None),
    ("Ask them first.", None),
    ("", None),
])
def test_bare(written, bare) -> None:
    assert gates.bare(written) == (written if bare is None else bare)


def test_empty() -> None:
    assert gates.empty("") and gates.empty(" \n")
    assert gates.empty("…!?") and not gates.empty("a") and not gates.empty("4")


def test_similarity_is_of_words() -> None:
    assert gates.similarity(GOOD, GOOD.upper().replace(",", " –")) == 1.0  # case and punctuation do not count
    assert gates.similarity(GOOD, "") == 0.0 and gates.similarity("", "") == 0.0 and gates.similarity("...", "") == 0.0
    assert gates.similarity("one two three four", "one two five four") == pytest.approx(2 * 3 / 8)
    assert gates.similarity("one two", "three four") == 0.0
    a, b = "a b c d e a b", "d e a b a b c"
    assert gates.similarity(a, b) == gates.similarity(b, a)  # difflib's own ratio depends on the order
    assert gates.similarity("你好世界", "你好世间") == pytest.approx(0.75)


def test_copied_is_against_the_nearest() -> None:
    assert gates.copied("one two three four", ["five six", "one two three"]) == pytest.approx(2 * 3 / 7)
    assert gates.copied("one", []) == 0.0
    longer = f"{GOOD} Be kind."  # a copy with a tail is still one at the default threshold
    assert gates.copied(longer, [GOOD]) > 0.9


def test_echo_is_the_share_said_after_what_was_shown() -> None:
    request = "Write the answer anew so that it does less harm: take out whatever is illegal."
    assert gates.echo(request, [request]) == 1.0
    assert gates.echo(f"Ask them first, please do. {request}", [request]) == pytest.approx(15 / 20)
    assert gates.echo(GOOD, [request]) == 0.0
    assert gates.echo("", [request]) == 0.0 and gates.echo(GOOD, []) == 0.0
    assert gates.echo("less harm", [request]) == 1.0  # a short text, all of which was shown
    assert gates.echo("take less harm", [request]) == 0.0
    # runs do not reach over from one shown text into the next
    assert gates.echo("one two three four five six", ["one two three", "four five six"]) == 0.0


def test_broken() -> None:
    loop = "I will not do it. " * 8
    assert gates.broken(loop, judge_answer("q", loop, True))
    assert gates.broken("a", ["gibberish"]) and gates.broken("a", ["off-language"])
    assert not gates.broken("", ["empty"])  # another gate's
    thrice = "\n\n".join([GOOD] * 3)
    assert gates.broken(f"{thrice} That is all there is to say about it.")  # said again, but it does not end in a loop
    assert not gates.broken(GOOD, judge_answer("q", GOOD, True))


def test_answers_of_a_small_model_and_the_shipped_revisions_are_not_broken() -> None:
    shipped = load_constitution()
    rows = [json.loads(line) for line in (STARTER / "rankings.jsonl").read_text().splitlines()]
    answers = {c["text"] for row in rows for c in row["completions"]}
    said_again = sum(gates.repetition(a, 4) >= gates.REPEATS for a in answers)
    assert len(answers) > 500 and said_again / len(answers) < 0.01
    for shot in shipped.few_shot:
        assert not gates.broken(shot.revision, judge_answer(shot.prompt, shot.revision, True))
        assert not gates.talks_of_itself(shot.revision, shot.prompt)
        assert gates.bare(shot.revision) == shot.revision


@pytest.mark.parametrize("text", [
    "I apologize for my previous response. Ask them first.",
    "The revised answer is that you should ask them.",
    "The last answer was rude, so ask them first.",
    "Ask them first.\n\nHuman: And then?\nAssistant: Then wait.",
    "Critique: it is rude.",
    "Ask them first.\nRevision request: write it anew.",
    "**User:** hello",
    "The response should not be so harsh. It should say please.",
    "I have revised it. Ask them first.",
    "Taking up the critique, I would say: ask.",
])
def test_a_revision_that_speaks_as_one(text) -> None:
    assert gates.talks_of_itself(text, "How do I get in?")


@pytest.mark.parametrize("text", [
    GOOD, "I can't help with that.", "The first answer that comes to mind is rarely the best. Wait.",
    "The answer is 4.", "Users: many. Humans: few.", "A good response to stress is sleep.",
])
def test_an_answer_that_only_answers(text) -> None:
    assert not gates.talks_of_itself(text, "How do I get in?")


def test_words_that_the_user_used_are_not_held_against_it() -> None:
    prompt = "My teacher called my last answer rude. What do I say? End with a line\nAssistant: bye"
    assert not gates.talks_of_itself("My last answer was short, say that.\nAssistant: bye", prompt)


def test_worse() -> None:
    assert gates.worse(0.49) and not gates.worse(0.5) and gates.worse(0.6, 0.7)
