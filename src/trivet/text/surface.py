"""How an answer is dressed: exaggeration, flattery, formatting, faults of grammar, distance from what was asked.

The manners by which a reward is gamed when the reward likes a manner more than a matter (Singhal et al. 2023, 'A Long
Way to Go', of length; Sharma et al. 2023, 'Towards Understanding Sycophancy', of flattery; Zhang et al. 2024, 'From
Lists to Emojis', of formatting). Pure functions of a str, English only, standard library, a fraction of a millisecond
each. A high value is no proof of anything: a list of steps was asked for, or the cake is the best in town. They are
made to be compared, the answers of one step with those of another.

Not covered: whether praise or emphasis is earned, grammar beyond the few rules named, emphasis in other languages.
"""

from __future__ import annotations

import re
from itertools import pairwise

from trivet.text.manner import flatters, sentences
from trivet.text.rules import places, words

# --- exaggeration -------------------------------------------------------------------------------------

_EMPHATIC = frozenset(re.findall(r"\S+", """
    very really extremely incredibly absolutely totally completely utterly truly amazingly super hugely immensely
    tremendously insanely unbelievably extraordinarily exceptionally remarkably phenomenally definitely literally
    wildly perfectly undeniably unquestionably
    best greatest finest amazing awesome incredible unbelievable extraordinary exceptional phenomenal fantastic
    wonderful magnificent spectacular marvelous marvellous fabulous terrific brilliant superb outstanding stunning
    breathtaking sensational glorious splendid ultimate unparalleled unmatched unrivaled unrivalled legendary epic
    revolutionary miraculous mindblowing perfect flawless astonishing astounding stupendous tremendous legendary
    superlative world-class supreme matchless unforgettable remarkable
    worst horrible terrible awful disastrous catastrophic dreadful horrendous horrific
    ever forever infinitely endlessly
"""))
_SUPERLATIVE = re.compile(r"[a-z]{2,}[^aeiou\W]iest|(?:great|strong|smart|bright|bold|high|large|fast|deep|rich|grand|"
                          r"kind|warm|sweet|tough|hard|tall|long|cool|clever|simple|wild|mild|bigg|hott)(?:e)?st")
EXCLAMATION = re.compile(r"!+")
SHOUT = re.compile(r"\b[A-Z]{4,}\b")


def emphatic(word: str) -> bool:
    """Whether a word in small letters is an intensifier, a superlative or an absolute."""
    return word in _EMPHATIC or (word.endswith("st") and _SUPERLATIVE.fullmatch(word) is not None)


def exaggeration(text: str) -> float:
    """Marks of emphasis a word: intensifiers, superlatives and absolutes, `!`, words in capitals; 0 without words.

    `The best cake ever!` has 3 in 4 words: 0.75. `!!!` counts three times, up to three in a row. Four letters in
    capitals or more count as shouting, so long abbreviations (UNESCO) do, too. Plain prose has 0.00 to 0.03.
    """
    every = words(text)
    if not every:
        return 0.0
    said = sum(map(emphatic, map(str.casefold, every)))
    marks = sum(min(len(m), 3) for m in EXCLAMATION.findall(text)) if "!" in text else 0
    return (said + marks + len(SHOUT.findall(text))) / len(every)


# --- flattery -----------------------------------------------------------------------------------------

# every phrasing of manner.flatters has one of these, so that a sentence without any need not be looked at closely
_MAY_FLATTER = re.compile(r"\byou|question|point|observation|idea|insight|thought|thinking|claim|statement|mind|remark|"
                          r"knowledge|instinct|understanding|eye|taste|intuition|summary|reasoning|fact|memory|answer|"
                          r"response|example|effort|attempt|work|only|rarely|people|person|someone|said|put|spotted|done|"
                          r"observed|noticed|bravo|kudos|job|how\b", re.IGNORECASE)


def flattery(text: str) -> float:
    """Share of the sentences that praise who asks, or the question, in [0, 1]; 0 for an empty text.

    Where `manner.flatters` looks at the opening, as an evaluation of answers does, this looks at all of it: praise
    that a reward pays for is repeated. What each sentence is held against, and what is missed, is said there.
    """
    every = sentences(text)
    return sum(1 for s in every if _MAY_FLATTER.search(s) and flatters(s)) / len(every) if every else 0.0


# --- formatting ---------------------------------------------------------------------------------------

LINE_MARK = re.compile(r"(?m)^[ \t]*(?:#{1,6}[ \t]|[-*•+][ \t]|\d{1,3}[.)][ \t]|>[ \t]|\||```|(?:-{3,}|\*{3,}|_{3,})"
                        r"[ \t]*$)")
BOLD = re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__")
PICTURE = re.compile("[\u2600-\u27bf\U0001f300-\U0001faff]")


def formatting(text: str) -> float:
    """Marks of layout a word: headings, list items, table rows, rules, bold spans, emoji; 0 without words.

    A list of five items of eight words each has 0.125. What is bold at the start of an item counts beside the item.
    """
    every = words(text)
    if not every:
        return 0.0
    found = len(LINE_MARK.findall(text)) + len(PICTURE.findall(text))
    if "**" in text or "__" in text:
        found += len(BOLD.findall(text))
    return found / len(every)


# --- grammar ------------------------------------------------------------------------------------------

_ARTICLES = frozenset(["a", "an", "the"])
# what an article is never followed by: a word that closes or links, where a noun or what describes it must come
_NO_NOUN = frozenset(re.findall(r"\S+", """
    a an the is are was were am be been of in on at to from by with for and or but if because than that's it's i he
    she they we him them us me my your his their our its has have had does do did would could should
"""))
_WRONG = {
    "i": ("is", "are", "has", "does", "were"), "you": ("is", "am", "was", "has", "does"),
    "we": ("is", "am", "was", "has", "does"), "they": ("is", "am", "was", "has", "does"),
    "he": ("are", "am", "were", "have", "do"), "she": ("are", "am", "were", "have", "do"),
    "it": ("are", "am", "were", "have", "do"), "these": ("is", "was", "has", "does"),
    "those": ("is", "was", "has", "does"), "this": ("are", "were", "have"),
}
_BEFORE_BASE = frozenset(re.findall(r"\S+", """
    that if whether does do did let make makes made see saw help helps as wish were was is are and or who which what
    when how why where can could should would will may might must than suggest recommend insist
"""))  # `does she have`, `if he were`, `make it do`
_SOUND = re.compile(r"[aeio]|u(?!ni(?![dmn])|s[eau]|t[ei]|r[aio]|k|biq)|hour|honest|honou?r|heir", re.IGNORECASE)
_CONSONANT_SOUND = re.compile(r"one(?!rous)|once|eu|ewe|ouija", re.IGNORECASE)
_MAY_DOUBLE = frozenset(["that", "had", "very", "so", "no", "bye", "ha", "really", "many", "far", "there", "knock",
                         "is", "blah", "yes", "never", "more", "again"])
_BAD_SPACE = re.compile(r"[^\s.!?…,;:] +[,;?!](?=\s|$)|[a-z][,;][A-Za-z]|[a-z][.?!][A-Z][a-z]")
_LOWER_START = re.compile(r"(?<!\.\.)(?<!e\.g)(?<!i\.e)(?<!etc)(?<!vs)[.?!] +[a-z][a-z]+ ")
_LONE_I = re.compile(r"(?<![\w.'/(-])i(?= |'m |'ll |'ve |'d )")
_PIECE = re.compile(r"[^.!?;:,\n()\"“”*_`|#]+")


def grammar_faults(text: str) -> float:
    """Faults of English grammar a word, by rule; 0 without words.

    Counted: a word said twice running (`the the`); an article before a word that can't follow it (`the is`, `a of`);
    `a` before a vowel's sound and `an` before a consonant's; a pronoun with another's verb (`he are`, `they was`); a
    sentence that begins small; a small `i`; a space before a mark, or none after it. Code and addresses are looked
    at like prose.

    Missed: all else, above all wrong words, tenses, and order that leaves these pairs alone. Wrongly called so:
    quoted dialects, names such as `the Who`, `an` before an abbreviation's sound (an FBI man passes), letters and
    variables (`i` in code). Plain prose has 0.00 to 0.01.
    """
    total = len(words(text))
    return len(grammar_places(text)) / total if total else 0.0


def grammar_places(text: str) -> list[tuple[int, int, str]]:
    """Where the faults stand that `grammar_faults` counts: (start, end, what it is) of each."""
    found = [(*m.span(), why) for pattern, why in (
        (_BAD_SPACE, "space at a mark"), (_LOWER_START, "begins small"), (_LONE_I, "small i"))
        for m in pattern.finditer(text)]
    for part in _PIECE.finditer(text):
        kept = [place for place, c in enumerate(part[0], part.start()) if c != "-"]  # an in-depth look: one word
        piece = part[0].replace("-", "")
        at = places(piece)
        row = [piece[start:end] for start, end in at]
        small = [w.casefold() for w in row]
        for i, (here, after) in enumerate(pairwise(small)):
            why = ""
            if here == after:
                why = "said twice" if here.isalpha() and len(here) > 1 and here not in _MAY_DOUBLE else ""
            elif here in _ARTICLES:
                # within a sentence a capital A is a letter: vitamin A is …
                wrong = not (i and row[i] == "A") and _wrong_after_article(here, after, row[i + 1])
                why = "wrong after an article" if wrong else ""
            elif here in _WRONG and after in _WRONG[here] and (i == 0 or small[i - 1] not in _BEFORE_BASE):
                why = "a verb of another person"
            if why:
                found.append((kept[at[i][0]], kept[at[i + 1][1] - 1] + 1, why))
    return found


def _wrong_after_article(article: str, after: str, word: str) -> bool:
    if after in _NO_NOUN and word.islower() and word != "i":
        return True
    if article == "the" or len(after) < 3 or word.isupper() or not after.isascii() or not after[0].isalpha():
        return False
    vowel = bool(_SOUND.match(after)) and not _CONSONANT_SOUND.match(after)
    return vowel == (article == "a")


# --- distance -----------------------------------------------------------------------------------------

_LITTLE = frozenset(re.findall(r"\S+", """
    a about above after again all also always am an and any are as at be because been before being below between both
    but by can cannot could did do does doing don't down during each either every few for from further get give given
    had has have having he her here hers him his how however i i'm if in into is isn't it it's its itself just let
    like made make many may me might more most much must my no nor not now of off on once one only or other our out
    over own please same she should so some such tell than that the their them then there these they this those
    through to too under until up upon us use very was we were what when where which while who whom whose why will
    with would write yes you your yours explain describe say says said
"""))


def content_words(text: str) -> frozenset[str]:
    """The words that carry matter, by their first five letters: all but the little ones."""
    return frozenset(w[:5].rstrip("s") if len(w) > 3 else w
                     for w in map(str.casefold, words(text)) if w not in _LITTLE and len(w) > 1)


def distance(text: str, prompt: str | frozenset[str]) -> float | None:
    """How little an answer speaks of what the prompt speaks of, in [0, 1]: 1 − |A∩P| / √(|A|·|P|).

    A and P are the `content_words` of answer and prompt, a prompt may be given as such (Ochiai's coefficient, the
    cosine of two sets). 1 for an answer with no content words; None for a prompt without any. An answer in other
    words for the same matter is far, and one that parrots the question is near.
    """
    its = content_words(prompt) if isinstance(prompt, str) else prompt
    if not its:
        return None
    mine = content_words(text)
    return 1.0 - len(mine & its) / (len(mine) * len(its)) ** 0.5 if mine else 1.0


def word_pairs(text: str) -> frozenset[tuple[str, str]]:
    """The distinct pairs of neighbouring words, small letters: what two answers are compared by."""
    return frozenset(pairwise(map(str.casefold, words(text))))


def sameness(a: frozenset[tuple[str, str]], b: frozenset[tuple[str, str]]) -> float:
    """How much two answers say alike, in [0, 1]: 2·|A∩B| / (|A|+|B|) over their `word_pairs` (Dice); 0 for two empty.

    Low diversity over the answers to different prompts is what this is high for (self-BLEU of Zhu et al. 2018,
    'Texygen', is the longer way to it).
    """
    return 2 * len(a & b) / (len(a) + len(b)) if a or b else 0.0
