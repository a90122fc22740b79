"""Contrast rules: what each does to a text, that it does the same twice, and where it does not apply."""

from __future__ import annotations

import re
from collections import Counter
from typing import get_args

import pytest

from trivet.artifacts import Message
from trivet.reward.config import SetName
from trivet.reward.contrast import CONTRASTS, Answer, Skip, unfit, worsen
from trivet.reward.contrast_english import AGREEMENT_FIRST, REFUSAL_FIRST, harmless
from trivet.reward.contrast_text import ended, english, prose, sentences
from trivet.text.manner import agrees, flatters, refuses
from trivet.text.rules import repetition, words

GOOD = ("The tides are caused by the pull of the moon and, to a lesser degree, of the sun. As the earth turns, the "
        "oceans on the near side are drawn towards the moon. This is why there are about 2 high tides in 24 hours, "
        "and why the times are never quite the same. A good tide table, first printed in 1833, tells you when.")
CUT = "You can start by taking some of the fresh herbs that you have at home, and then you should"
CODE = "You can use this function for it.\n\n```python\ndef add(a, b):\n    return a + 2 * b\n```\n\nThat is all."
GERMAN = ("Die Gezeiten entstehen durch die Anziehung des Mondes. Zweimal am Tag steigt das Wasser an der Küste, und "
          "zweimal fällt es wieder, seit 1833 steht das in Tabellen.")
CHINESE = "潮汐是由月球的引力引起的。每天有两次涨潮，也有两次退潮。太阳的引力也有一些影响，但是比较小。"
RUSSIAN = "Приливы вызваны притяжением Луны. Каждый день вода поднимается дважды и дважды опускается, и так всегда."
TEXTS = {"good": GOOD, "cut": CUT, "code": CODE, "german": GERMAN, "chinese": CHINESE, "russian": RUSSIAN,
         "empty": "", "blank": " \n\t", "word": "Paris.", "number": "42", "symbols": "?! … --", "emoji": "👍👍 👍",
         "only code": "```\nprint(1)\n```", "list": "1. Wash the rice.\n2. Boil it for 12 minutes.\n3. Let it rest.",
         "link": "See https://example.org/a_b?c=1 for the whole of the table, which is kept there for you.",
         "surrogate-free marks": "“Yes,” she said, “it is the best of the 3!” (And they all agreed with her.)"}


def answer(text: str, question: str = "What are the tides, and what is the cause of them?") -> Answer:
    return Answer((Message(role="user", content=question),), text)


def worse(name: str, text: str = GOOD, question: str = "What are the tides, and what is the cause of them?",
          seed: int = 0) -> str:
    found = worsen(name, answer(text, question), seed)
    assert isinstance(found, str), found
    return found


def reason(name: str, text: str, question: str = "What are the tides, and what is the cause of them?") -> str:
    found = worsen(name, answer(text, question))
    assert isinstance(found, Skip), found
    return found.reason


def test_the_sets_are_those_of_the_configuration() -> None:
    assert tuple(CONTRASTS) == get_args(SetName)
    assert all(c.does for c in CONTRASTS.values())


@pytest.mark.parametrize("name", CONTRASTS)
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_any_text_gives_another_text_or_a_reason_and_always_the_same(name: str, text: str) -> None:
    for seed in range(3):
        found = worsen(name, answer(text), seed)
        assert found == worsen(name, answer(text), seed)
        if isinstance(found, Skip):
            assert found.reason
        else:
            assert found.strip() and found.split() != text.split()
            found.encode()


@pytest.mark.parametrize("name", CONTRASTS)
def test_every_rule_applies_to_a_good_answer_and_the_seed_matters(name: str) -> None:
    found = {worse(name, seed=seed) for seed in range(6)}
    assert len(found) > 1 or name == "repeated"  # which leaves nothing to chance


@pytest.mark.parametrize("name", CONTRASTS)
@pytest.mark.parametrize("text", ["", " \n\t", "```\nprint(1)\n```"])
def test_nothing_is_made_of_nothing(name: str, text: str) -> None:
    assert reason(name, text)


@pytest.mark.parametrize("name", ["padded", "exaggerated", "ungrammatical"])
@pytest.mark.parametrize("text", [GERMAN, CHINESE, RUSSIAN])
def test_english_rules_leave_other_languages_alone(name: str, text: str) -> None:
    assert reason(name, text, text) in {"not in English", "fewer than 3 words of prose"}


@pytest.mark.parametrize("name", ["refusal", "sycophantic"])
def test_replaced_answers_need_an_english_question(name: str) -> None:
    assert reason(name, GERMAN, "Was sind die Gezeiten?") == "not in English"


@pytest.mark.parametrize("name", ["repeated", "shuffled", "formatted", "truncated"])
@pytest.mark.parametrize("text", [GERMAN, CHINESE, RUSSIAN])
def test_other_rules_work_in_any_language(name: str, text: str) -> None:
    assert set(re.sub(r"[\W_]", "", worse(name, text, text).casefold())) <= set(text.casefold())


def test_english_is_told_from_its_neighbours() -> None:
    for text in (GOOD, CUT, CODE, "Are bats blind?", "In one sentence, what causes the tides?"):
        assert english(text), text
    for text in (GERMAN, CHINESE, RUSSIAN, "", "De katten zijn in de tuin en we zien ze graag.",
                 "Det er en god ting at have for dig, hvis du vil.", "La casa è bella, ma il giardino è piccolo.",
                 "Je ne sais pas ce que c'est, mais il faut le faire.", "No es lo mismo, pero me gusta mucho."):
        assert not english(text), text


# --- what each rule does --------------------------------------------------------------------------------


def test_padded_says_the_same_at_twice_the_length_and_ends_as_it_did() -> None:
    found = worse("padded")
    assert 1.5 < len(words(found)) / len(words(GOOD)) < 3
    place = 0
    for sentence in sentences(GOOD):  # all of it is still there, in its order
        place = found.index(sentence, place)
    assert found.endswith(sentences(GOOD)[-1]) and not ended(worse("padded", CUT))
    assert CODE in worse("padded", CODE)


def test_repeated_keeps_the_length_and_loses_the_end() -> None:
    for text in (GOOD, GERMAN, RUSSIAN, CUT):
        found = worse("repeated", text)
        assert 0.6 < len(words(found)) / len(words(text)) < 1.4
        assert set(words(found)) < set(words(text))
        assert repetition(found) > repetition(text) + 0.2
    one = worse("repeated", "The moon pulls at the sea, and so the water rises.")
    assert one == "The moon pulls at the The moon pulls at the The."
    three = "The moon pulls at the sea. So the water rises and falls, twice a day, everywhere. It is called the tide."
    assert worse("repeated", three) == " ".join(["The moon pulls at the sea."] * 3)
    assert reason("repeated", "Yes, of course.") == "fewer than 6 words of prose"


def test_exaggerated_flatters_and_shouts() -> None:
    found = worse("exaggerated")
    assert flatters(found) and found.count("!!!") >= 4 and "absolutely phenomenal tide table" in found.lower()
    assert "1833" in found
    assert not ended(worse("exaggerated", CUT))
    assert "return a + 2 * b\n" in worse("exaggerated", CODE)
    listed = worse("exaggerated", "1. It is 3.5 of them.\n2. They are 40.")
    assert listed.endswith("!!!\n\n1. It is 3.5 of them!!!\n2. They are 40!!!")


def test_shuffled_has_the_same_words_in_each_sentence() -> None:
    for text in (GOOD, GERMAN, RUSSIAN, CHINESE):
        found = worse("shuffled", text)
        assert Counter(re.sub(r"\W", "", found)) == Counter(re.sub(r"\W", "", text))
        assert len(found) == len(text) and found[-1] == text[-1]
    assert Counter(words(worse("shuffled"))) == Counter(words(GOOD))
    assert "```python\ndef add(a, b):\n    return a + 2 * b\n```" in worse("shuffled", CODE)
    assert reason("shuffled", "Paris.") == "fewer than 5 words of prose"
    assert reason("shuffled", "no no no no no") == "its words can't be put in another order"


def test_ungrammatical_breaks_a_fifth_of_the_words_and_keeps_the_length() -> None:
    found = worse("ungrammatical")
    assert 0.85 < len(words(found)) / len(words(GOOD)) < 1.15
    changed = sum((Counter(words(GOOD)) - Counter(words(found))).values())
    assert changed >= 4
    assert "The tides is" in " ".join(worse("ungrammatical", seed=s) for s in range(20))
    # without a word to break, the order is broken
    dull = worse("ungrammatical", "Cats that sleep dream of birds with wings.")
    assert sorted(words(dull.lower())) == sorted(words("cats that sleep dream of birds with wings"))
    assert "return a + 2 * b" in worse("ungrammatical", CODE)


def test_formatted_says_the_same_under_headings() -> None:
    found = worse("formatted")
    assert found.startswith("# What are the\n") and found.count("\n## ") == 2 and found.count("\n- ") == 4
    assert found.count("**") >= 8
    bare = re.sub(r"\*\*|^- ", "", found, flags=re.M)
    assert all(sentence in bare for sentence in sentences(GOOD))
    assert reason("formatted", TEXTS["list"]) == "has marks of formatting of its own"


def test_refusal_refuses_harmless_prompts_at_the_same_length() -> None:
    found = worse("refusal")
    assert refuses(found) and 0.75 < len(words(found)) / len(words(GOOD)) < 1.25
    assert worse("refusal", "The sea.") in REFUSAL_FIRST
    assert reason("refusal", GOOD, "How do I steal the neighbour's car?") == "the prompt may not be harmless"
    for text in ("I'm sorry, but I can't help with that.", "Nobody can know what the weather is in a year."):
        assert "itself declines" in reason("refusal", text)
    assert worse("refusal", GOOD, "Write a two-line poem about an umbrella left on a bus.")  # one English word alone
    assert not harmless("How can I hurt somebody without them noticing?") and harmless("What did you forget to pack?")


def test_sycophantic_agrees_with_what_was_claimed() -> None:
    found = worse("sycophantic")
    assert agrees(found) and 0.75 < len(words(found)) / len(words(GOOD)) < 1.25
    assert worse("sycophantic", "The sea.") in AGREEMENT_FIRST
    claimed = worse("sycophantic", GOOD, "I believe that my tea was the cause of the tides. What do you say to that?")
    assert claimed.startswith("Yes, you are absolutely right that your tea was the cause of the tides.")
    assert "may be right" in reason("sycophantic", "Yes, you are right, the moon is the cause of it.")


def test_truncated_stops_halfway_in_a_sentence() -> None:
    for text in (GOOD, CUT, GERMAN, RUSSIAN, CHINESE):
        for seed in range(10):
            found = worse("truncated", text, seed=seed)
            assert text.startswith(found) and 0.3 < len(found) / len(text) < 0.7 and not ended(found)
    assert reason("truncated", "Paris.") == "fewer than 8 words of prose"


def test_wrong_numbers_are_all_wrong_and_said_with_certainty() -> None:
    for seed in range(20):
        found = worse("wrong_numbers", seed=seed)
        old, new = re.findall(r"\d+", GOOD), re.findall(r"\d+", found)
        assert len(new) == len(old) == 3 and all(a != b and len(a) == len(b) for a, b in zip(old, new, strict=True))
        assert new[2].startswith("18") and "about" not in found and "exactly" in found
        assert found.endswith("tells you when.")
    # one number is one number throughout; what numbers a list stays
    twice = worse("wrong_numbers", "It is 12.50 for two, 12.50 again for the other two, and 1,000 in all.")
    a, b, c = re.findall(r"\d+[.,]\d+", twice)
    assert a == b != "12.50" and c != "1,000" and re.fullmatch(r"\d\d\.\d\d", a) and re.fullmatch(r"\d,\d{3}", c)
    listed = worse("wrong_numbers", TEXTS["list"])
    assert re.findall(r"^\d", listed, flags=re.M) == ["1", "2", "3"] and "12 minutes" not in listed
    assert reason("wrong_numbers", CODE) == "no number in it"
    assert reason("wrong_numbers", "A 3D film, COVID-19, and the 2nd one of them.") == "no number in it"
    assert worse("wrong_numbers", GERMAN, GERMAN).startswith("Die Gezeiten")
    assert worse("wrong_numbers", "42") != "42"


# --- what is no good answer to begin with ---------------------------------------------------------------


def test_answers_that_are_broken_already_are_left_out() -> None:
    assert unfit(answer(GOOD)) is None and unfit(answer("Paris.")) is None and unfit(answer(CHINESE)) is None
    assert unfit(answer(" ")) == "the answer is empty"
    assert "loops" in (unfit(answer("I am here to help you. " * 9)) or "")
    assert "gibberish" in (unfit(answer("xkcdq wrtzp hnmkl the bcdfg of qqqqz")) or "")


def test_prose_is_what_is_no_code() -> None:
    assert "return" not in prose(CODE) and "function" in prose(CODE)
    assert "example" not in prose(TEXTS["link"])
