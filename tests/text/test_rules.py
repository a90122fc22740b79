"""The text rules: what they must see, and what they must leave alone."""

from __future__ import annotations

import random

import pytest

from trivet.text.rules import (
    compression_ratio,
    gibberish,
    looks_like_no_word,
    loops,
    off_script,
    repetition,
    script,
    word_salad,
    words,
)

PROSE = (
    "To keep basil fresh, trim the stems and put the bunch in a glass of water, like flowers. Leave it on the "
    "counter, out of the sun, and change the water every two days. It keeps for about a week that way, and if it "
    "wilts you can still make pesto of it."
)
GERMAN = "Der Angstschweiß der Donaudampfschifffahrtsgesellschaft war für uns alle ein großes Rätsel im Herbst."


@pytest.mark.parametrize(("text", "expected"), [
    ("Don't stop, she said.", ["Don't", "stop", "she", "said"]),
    ("It’s 3 o’clock", ["It’s", "3", "o’clock"]),
    ("naïve café", ["naïve", "café"]),
    ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
    ("我爱 Python", ["我", "爱", "Python"]),
    ("...", []),
    ("", []),
])
def test_words(text, expected):
    assert words(text) == expected


def test_repetition_counts_n_grams_that_stood_before():
    assert repetition("a b c d e f") == 0.0
    assert repetition("a b c a b c") == pytest.approx(1 / 4)  # abc bca cab abc
    assert repetition("a b") == 0.0
    assert repetition("go Go GO go") == pytest.approx(1 / 2)
    assert repetition("a b a b a b", n=2) == pytest.approx(3 / 5)


def test_compression_ratio_rises_with_repetition():
    assert compression_ratio("") == 0.0
    assert compression_ratio("short") < 1.0
    assert 1.0 < compression_ratio(PROSE) < 2.0 < 2.4 < compression_ratio("I am a model. " * 40)
    assert compression_ratio("\ud800") > 0  # a lone surrogate, as broken JSON can give


@pytest.mark.parametrize("text", [
    "Well, " + "no, " * 12,
    "It is a good idea to rest. " * 4,
    "It is a good idea to rest. " * 4 + "It is a go",  # cut off in the middle
    "Steps:\n" + "\n".join(f"{i}. Be kind to others" for i in range(1, 7)),
    "Wow" + "!" * 60,
    "a" * 50,
    "好" * 20,
    "The next question is who I can trust. The answer is a coin, and it always was, they say. " * 3,
])
def test_loops_are_seen(text):
    assert loops(text)


@pytest.mark.parametrize("text", [
    "", PROSE, "No, no, no!", "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16", "Row, row, row your boat",
    "1. Bread\n2. Milk\n3. Eggs\n4. Cheese\n5. Apples", "ha ha ha ha", "A table:\n| --- | --- | --- | --- |", GERMAN,
    "It is a good idea to rest. " * 4 + "Then get up, drink a glass of water, and go on with the day.",
])
def test_what_is_no_loop(text):
    assert not loops(text)


@pytest.mark.parametrize("word", ["xkcdq", "Knghtsbrdgapf", "приvет", "a1b2c3d4", "arkClIent", "doesYes", "a" * 41])
def test_no_words(word):
    assert looks_like_no_word(word)


@pytest.mark.parametrize("word", [
    "a", "rhythm", "HTML", "catchphrase", "YouTube", "iPhone", "H2SO4", "mp3", "2024", "1st", "Wörter", "cwm",
    "Привет", "Python을", "日", "don't", "O'Neill", "WomenInScience",
])
def test_words_that_are_some(word):
    assert not looks_like_no_word(word)


def test_gibberish_is_a_share():
    assert gibberish("") == gibberish("...") == gibberish(PROSE) == gibberish(GERMAN) == 0.0
    assert gibberish("one two three xkcdq") == pytest.approx(1 / 4)
    assert gibberish("good \ufffd\ufffd\x00 text") == pytest.approx(1 / 3)  # one run of broken characters
    assert gibberish("see https://a.example/x9k2q7z1?b=QwErTy and `aBcDe = fGhIj` or\n```\nxYzAb\n```") == 0.0


def test_word_salad_of_a_large_vocabulary():
    stems = ["pesto", "harbour", "solvent", "mission", "reptile", "analysis", "cathedral", "pronoun", "granite",
             "lantern"]
    ends = ["ization", "esque", "like", "ful", "ology"]
    drawn = random.Random(0).sample([a + b for a in stems for b in ends], 40)
    assert word_salad(" ".join(drawn))
    assert word_salad("one два τρία четыре 五 ستة")  # four scripts
    assert not word_salad(" ".join(drawn[:20]))  # too little to tell
    assert not word_salad(PROSE)


@pytest.mark.parametrize(("text", "expected"), [
    ("Hello", "LATIN"), ("Привет, world", "CYRILLIC"), ("你好", "CJK"), ("私は日本語を話します", "HIRAGANA"),
    ("안녕하세요", "HANGUL"), ("مرحبا", "ARABIC"), ("ＡＢＣ", "LATIN"), ("123 !", ""), ("", ""),
])
def test_script(text, expected):
    assert script(text) == expected


def test_off_script():
    assert off_script("Это совсем другой язык", "What is the capital of France?")
    assert not off_script("C'est une autre langue", "What is the capital of France?")  # the same script: not seen
    assert not off_script("Да", "Yes or no?")  # too short to tell
    assert not off_script("12345678910", "How many?")
    assert not off_script("東京大学物理学部研究室", "ここはどこですか")  # Japanese without kana
    assert not off_script("Thank you is спасибо in Russian.", "How do I say thank you in Russian?")
