"""What can be said of a text by rule: repetition, loops, gibberish, script. Pure functions of a str.

All of it is crude, and made to be: a rule costs a fraction of a millisecond, needs no model and can be read.
Lengths are in words as `words` counts them. Standard library only.

Not covered: which language a text is in (only its script), grammar, and whether it makes sense.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections import Counter
from functools import lru_cache
from itertools import groupby, pairwise

_ASCII_WORD = re.compile(r"[A-Za-z0-9]+(?:'[A-Za-z]+)*")
_NOT_PROSE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|(?:https?://|www\.)\S+", re.DOTALL)
_CAMEL = re.compile(r"[a-z]?(?:[A-Z][a-z]+)+[A-Z]?")  # YouTube, WomenInScience, iPhone, LaTeX
_SYMBOL_LOOP = re.compile(r"([^\s\w]{1,4}?)\1{29,}\s*\Z|(\w{1,4}?)\2{29,}\s*\Z")
_EAST_ASIAN = frozenset({"CJK", "HIRAGANA", "KATAKANA", "BOPOMOFO"})
_UNSPACED = _EAST_ASIAN | {"THAI", "LAO", "KHMER", "MYANMAR"}  # written without spaces between words

LONGEST_PERIOD = 60
"""A phrase that is repeated may have this many words."""


# --- words --------------------------------------------------------------------------------------------


def words(text: str) -> list[str]:
    """The words of a text, as written: runs of letters, marks and digits, with inner apostrophes.

    In scripts written without spaces (Chinese, Japanese, Thai …) every letter stands as a word of its own.
    """
    return _ASCII_WORD.findall(text) if text.isascii() else [text[start:end] for start, end in places(text)]


def places(text: str) -> list[tuple[int, int]]:
    """Where the words of a text stand: (start, end) of each, so that text[start:end] is the word."""
    if text.isascii():
        return [found.span() for found in _ASCII_WORD.finditer(text)]
    found: list[tuple[int, int]] = []
    start: int | None = None
    for place, (here, after) in enumerate(zip(text, f"{text[1:]} ", strict=True)):
        kind = unicodedata.category(here)[0]
        if kind in "LMN" and _script_of(here) not in _UNSPACED:
            start = place if start is None else start
        elif here not in "'’" or start is None or not after.isalpha():
            if start is not None:
                found.append((start, place))
                start = None
            if kind == "L":
                found.append((place, place + 1))
    return found if start is None else [*found, (start, len(text))]


# --- repetition ---------------------------------------------------------------------------------------


def repetition(text: str, n: int = 3) -> float:
    """Share of the word n-grams that stood in the text before, in [0, 1): 1 - distinct / all.

    Case is ignored. 0 for a text of fewer than n words. (Welleck et al. 2019, 'Neural Text Generation with
    Unlikelihood Training', seq-rep-n.)
    """
    tokens = [word.casefold() for word in words(text)]
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def compression_ratio(text: str) -> float:
    """Bytes of the UTF-8 text over bytes of it compressed (zlib): the higher, the more repetitive.

    English prose of an answer's length has 1.2 to 2.2, Whisper takes 2.4 for the sign of a loop (Radford et
    al. 2022, 'Robust Speech Recognition via Large-Scale Weak Supervision', section 4.5). A short text has
    less than 1, an empty one 0: zlib has its own overhead.
    """
    data = text.encode("utf-8", "surrogatepass")
    return len(data) / len(zlib.compress(data))


def loops(text: str) -> bool:
    """Whether the text ends in one phrase said again and again.

    True if the last words repeat with a period of at most 60 words: 10 times for a single word, 6 for two
    words, 4 up to nine words, 3 for more; the last word may be cut off, and numbers that count on (`4. Be
    kind 5. Be kind`) count as equal. Also for 30 equal runs of up to 4 characters at the end (`!!!!!!`).
    Refrains and short lists of equal lines can meet the rule too.
    """
    if _SYMBOL_LOOP.search(text[-400:]):
        return True
    tokens = [word.casefold() for word in words(text)]
    return _periodic_end(tokens) or _periodic_end(tokens[:-1])


def _periodic_end(tokens: list[str]) -> bool:
    """Whether a list of words ends in enough repetitions of a phrase."""
    masked = ["0" if word.isdigit() else word for word in tokens]
    for period in range(1, min(LONGEST_PERIOD, len(tokens) // 3) + 1):
        needed = 10 if period == 1 else 6 if period == 2 else 4 if period < 10 else 3
        # a row of numbers is no loop: the mask is used where words stand between them
        phrase = set(masked[-period:]) - {"0"}
        row = masked if len(phrase) >= 2 else tokens
        length = needed * period
        if len(row) >= length and row[-length:-period] == row[-length + period :]:
            return True
    return False


# --- gibberish ----------------------------------------------------------------------------------------


def gibberish(text: str) -> float:
    """Share of words that look like no word of any language, in [0, 1]; 0 for a text without words.

    A word of four characters or more looks like none if it has Latin letters and no vowel (short
    abbreviations pass), eight consonants in a row, letters of two scripts, more than 40 letters, letters and
    digits in alternation, or a capital after a small letter (YouTube and iPhone pass). A run of broken
    characters (undecodable bytes, control and unassigned characters) counts as one such word. Web addresses
    and code in back quotes are left out.

    This is a crude rule. It does not know one real word from an invented one, says nothing of word salad
    (`word_salad` says a little), and is wrong about names in camel case, formulas, serial numbers and the few
    languages (such as Czech) whose words do without vowels. A few per cent say nothing; 0.15 is no language.
    """
    plain = prose(text)
    torn = len(broken(plain))
    every = words(plain)
    total = len(every) + torn
    return (sum(map(looks_like_no_word, every)) + torn) / total if total else 0.0


def prose(text: str) -> str:
    """A text with web addresses and code in back quotes blanked out: as long as it was, in its places."""
    return _NOT_PROSE.sub(lambda found: " " * len(found[0]), text)


def broken(text: str) -> list[tuple[int, int]]:
    """Where runs of broken characters stand: undecodable bytes, control and unassigned characters."""
    found, place = [], 0
    for bad, run in groupby(text, _is_broken):
        end = place + sum(1 for _ in run)
        if bad:
            found.append((place, end))
        place = end
    return found


def looks_like_no_word(word: str) -> bool:
    """The rule of `gibberish` for one word."""
    if len(word) < 4:
        return False
    letters = "".join(c for c in unicodedata.normalize("NFD", word) if c.isalpha())
    if len(letters) > 40 or (not word.isascii() and _mixed(letters)):
        return True
    if re.fullmatch(r"[A-Z]{1,6}s?", letters):
        return False  # an abbreviation
    changes = sum(a.isdigit() != b.isdigit() for a, b in pairwise(word))
    if changes >= 3 and len(word) >= 6:
        return True
    if any(a.islower() and b.isupper() for a, b in pairwise(letters)) and not _CAMEL.fullmatch(letters):
        return True
    latin = letters.casefold()
    if not latin or any(_script_of(c) != "LATIN" for c in latin):
        return False
    consonants = re.split(r"[aeiouyæœøıəw]", latin)
    return (len(latin) >= 4 and len(consonants) == 1) or max(map(len, consonants)) >= 8


@lru_cache(maxsize=8192)
def _is_broken(character: str) -> bool:
    """No text has it: the mark of an undecodable byte, control, unassigned and private characters."""
    kind = unicodedata.category(character)
    return character == "\ufffd" or kind in ("Cn", "Co", "Cs") or (kind == "Cc" and not character.isspace())


def _mixed(letters: str) -> bool:
    """Letters of two scripts. Greek ones are also symbols, and Korean particles stand behind Latin names."""
    return len({_script_of(c) for c in letters} - {"", "GREEK", "HANGUL"}) > 1


def word_salad(text: str) -> bool:
    """Whether a text reads like tokens drawn at random from a large vocabulary.

    Real text of 30 words says some of them twice (the, of, you …) and its words are short in the mean. True if
    at most one of the first 30 words was said before and the words are long (over 6.5 letters in the mean) or
    a twentieth of them look like none; also for letters of four scripts or more. False for fewer than 30
    words. Lists of long nouns come near; sentences of real words without sense are not seen.
    """
    plain = prose(text)
    if len({"CJK" if s in _EAST_ASIAN else s for c in plain if c.isalpha() and (s := _script_of(c))}) >= 4:
        return True
    first = [word.casefold() for word in words(plain)][:30]
    if len(first) < 30 or len(set(first)) < 29:
        return False
    return sum(map(len, first)) / 30 > 6.5 or gibberish(text) >= 0.05


# --- script -------------------------------------------------------------------------------------------


@lru_cache(maxsize=8192)
def _script_of(letter: str) -> str:
    """The script of one character after its Unicode name ('LATIN', 'CJK', 'HIRAGANA', …), '' for no letter."""
    plain = unicodedata.normalize("NFKC", letter)[:1]
    if not plain.isalpha():
        return ""
    return re.split("[ -]", unicodedata.name(plain, ""), maxsplit=1)[0]


def script(text: str) -> str:
    """The script that most letters of a text belong to, by their Unicode names; '' for a text without letters.

    'LATIN', 'CYRILLIC', 'ARABIC', 'CJK' (Chinese characters), 'HIRAGANA', 'HANGUL' … Chinese characters among
    Japanese kana count as the kana, so that Japanese text is 'HIRAGANA' or 'KATAKANA'.
    """
    counts = Counter(_script_of(c) for c in text if c.isalpha())
    counts.pop("", None)
    if not counts:
        return ""
    kana = max(("HIRAGANA", "KATAKANA"), key=lambda name: counts[name])
    if counts["HIRAGANA"] + counts["KATAKANA"] > counts["CJK"] / 10:
        counts[kana] += counts.pop("CJK", 0)
    return max(counts, key=lambda name: (counts[name], name))


def off_script(text: str, like: str) -> bool:
    """Whether a text is mostly in another script than the text `like`.

    False where either has no letters, and where fewer than 8 letters of `text` would decide it. A text in
    another language of the same script is not seen: French after an English question is not off-script.
    """
    if sum(map(str.isalpha, text)) < 8:
        return False
    here, there = script(text), script(like)
    together = {here, there} <= _EAST_ASIAN
    return bool(here and there) and here != there and not together
