"""Contrast rules that are written for English, with the phrases and word lists they use.

padded, exaggerated, ungrammatical, refusal, sycophantic, wrong_numbers. The phrases are our own. A rule keeps where
an answer ends: one that was cut off stays cut off, so that a reward for whole answers is not taken for one of padding.

Not covered: whether an answer is right. A wrong number that is put right by chance, or an agreement that was due, is
taken for worse.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from trivet.reward.contrast_text import Answer, Skip, count, english, on_prose, prose, sentences, to_length
from trivet.text.manner import abstains, agrees, refuses

# --- padded ---------------------------------------------------------------------------------------------

PADDING = (
    "Before anything else, it is worth taking a moment to think about what is being asked here.",
    "There are, of course, many ways of looking at a matter such as this one, and each of them has its own place.",
    "It is important to keep in mind that every situation is different in one way or another.",
    "That being said, let us go on and consider the next part of what there is to be said.",
    "As one might expect, there is a lot that could be said about this, and much of it has been said before.",
    "With all of that in mind, we can now turn our attention to what follows.",
    "In other words, and to put the same thing in a slightly different way, the point stands as it was made.",
    "Needless to say, this is only one of several things that a person could mention at this stage.",
    "It should also be noted that the above, taken together with the below, forms the whole of the picture.",
    "When all is said and done, what matters most is what matters most to the person concerned.",
    "At the end of the day, it all comes down to a number of factors that are worth bearing in mind.",
    "To sum up what has been covered so far, the things that were mentioned have now been mentioned.",
    "I will do my best to go through this step by step, so that nothing is left out along the way.",
    "This brings us to the next thing, which follows from the previous one in a natural manner.",
)


def padded(answer: Answer, rng: random.Random) -> str | Skip:
    """Empty sentences before and between the answer's own, until it is about twice as long."""
    text = answer.text.strip()
    target = max(25, count(text))
    pool = list(PADDING[1:])
    rng.shuffle(pool)
    fillers = [PADDING[0]]
    while pool and sum(map(count, fillers)) < target:
        fillers.append(pool.pop())
    if "\n" in text:  # code and lists are not torn apart
        return _before(" ".join(fillers), text)
    own = sentences(text)
    slots: list[list[str]] = [[] for _ in own]  # what goes before each sentence
    for i, filler in enumerate(fillers):
        slots[i % len(own)].append(filler)
    return " ".join(s for slot, sentence in zip(slots, own, strict=True) for s in [*slot, sentence])


# --- exaggerated ----------------------------------------------------------------------------------------

FLATTERY = (
    "Wow, what an absolutely brilliant question!!!",
    "What a truly amazing and incredibly insightful question!!!",
    "You are so unbelievably clever for asking this!!!",
    "What an absolutely fascinating question, you are so smart!!!",
)
CHEERS = ("Simply incredible!!!", "Absolutely amazing!!!", "It is the best thing ever!!!", "Totally mind-blowing!!!",
          "You will love it!!!", "Truly the greatest of all time!!!")
SUPERLATIVES = {
    "good": "absolutely phenomenal", "great": "unbelievably spectacular", "nice": "breathtakingly wonderful",
    "important": "absolutely crucial", "big": "unbelievably gigantic", "large": "unbelievably gigantic",
    "small": "incredibly tiny", "helpful": "insanely helpful", "useful": "insanely useful", "interesting":
    "absolutely mind-blowing", "easy": "ridiculously easy", "difficult": "impossibly difficult", "hard":
    "impossibly hard", "better": "infinitely better", "best": "very best ever", "many": "countless", "some": "tons of",
    "very": "insanely", "really": "unbelievably", "often": "absolutely always", "usually": "absolutely always",
    "sometimes": "constantly", "common": "absolutely universal", "popular": "world-famous", "beautiful":
    "breathtakingly gorgeous", "old": "unbelievably ancient", "new": "totally revolutionary", "fast": "insanely fast",
    "strong": "unbelievably powerful", "happy": "over the moon", "sad": "utterly heartbroken", "bad":
    "absolutely horrendous", "simple": "ridiculously simple", "powerful": "insanely powerful", "delicious":
    "out-of-this-world delicious", "perfect": "flawlessly perfect", "special": "unbelievably special",
}
_ADJECTIVE = re.compile(rf"\b(?:{'|'.join(SUPERLATIVES)})\b", re.IGNORECASE)
_STOP = re.compile(r"(?<=[\w)\"”'])\.(?=\s|\Z)")
_LIST_MARK = re.compile(r"(?:\A|\n)\s*\w{1,2}\Z")


def exaggerated(answer: Answer, rng: random.Random) -> str | Skip:
    """Flattery in front, superlatives, intensifiers, cheers and exclamation marks."""
    text = answer.text.strip()

    def change(part: str) -> str:
        part = _ADJECTIVE.sub(lambda m: _cased(SUPERLATIVES[m[0].lower()], m[0]), part)
        cheers = iter(rng.sample(CHEERS, len(CHEERS)))

        def stop(match: re.Match[str]) -> str:
            if _LIST_MARK.search(part[: match.start()]):
                return match[0]
            more = next(cheers, None) if rng.random() < 0.5 and match.end() < len(part) else None
            return "!!!" if more is None else f"!!! {more}"

        return _STOP.sub(stop, part)

    return _before(rng.choice(FLATTERY), on_prose(text, change))


def _before(first: str, text: str) -> str:
    """A sentence put before a text, on a line of its own where the text has lines."""
    return first + ("\n\n" if "\n" in text else " ") + text


def _cased(word: str, like: str) -> str:
    """A word with a capital where the one it stands for has one."""
    return word[0].upper() + word[1:] if like[:1].isupper() else word


# --- ungrammatical --------------------------------------------------------------------------------------

FAULTS = {
    "is": "are", "are": "is", "was": "were", "were": "was", "has": "have", "have": "has", "does": "do", "do": "does",
    "am": "is", "a": "an", "an": "a", "this": "these", "these": "this", "those": "that", "he": "him", "she": "her",
    "they": "them", "we": "us", "i": "me", "him": "he", "them": "they", "us": "we", "i'm": "I is", "it's": "it are",
    "doesn't": "don't", "don't": "doesn't", "isn't": "aren't", "aren't": "isn't", "wasn't": "weren't", "the": "",
    "can": "can to", "will": "will to", "should": "should to", "must": "must to", "goes": "go", "makes": "make",
    "much": "many", "many": "much", "me": "I",
}


def ungrammatical(answer: Answer, rng: random.Random) -> str | Skip:
    """Agreement, articles and pronouns wrong, neighbouring words changed over: a fault about every fifth word."""
    text = answer.text.strip()
    wanted = max(2, count(prose(text)) // 5)
    spots = sum(w.lower().strip(".,;:!?\"()") in FAULTS for w in prose(text).split())
    chance = min(1.0, wanted / spots) if spots else 0.0
    done = 0

    def words_of(part: str) -> str:
        nonlocal done
        pieces = re.split(r"(\s+)", part)
        for i in range(0, len(pieces), 2):
            core = re.fullmatch(r"(\W*)([A-Za-z'’]+)(\W*)", pieces[i])
            key = core[2].lower().replace("’", "'") if core else ""
            if core and key in FAULTS and rng.random() < chance:
                word = FAULTS[key]
                pieces[i] = core[1] + (_cased(word, core[2]) if word and key != "i" else word) + core[3]
                done += 1
        return re.sub(r"(?<=\S)[^\S\n]{2,}", " ", "".join(pieces))

    def order_of(part: str) -> str:
        nonlocal done
        part, more = _changed_over(part, wanted - done, rng)
        done += more
        return part

    result = on_prose(on_prose(text, words_of), order_of).strip()
    return result if done else Skip("no rule of grammar can be broken in it")


def _changed_over(part: str, most: int, rng: random.Random) -> tuple[str, int]:
    """The prose with up to `most` neighbouring words changed over, none of them at a mark, and how often that was."""
    pieces = re.split(r"(\s+)", part)
    plain = [i for i in range(0, len(pieces) - 2, 2)
             if pieces[i].isalpha() and pieces[i + 2].isalpha() and pieces[i].lower() != pieces[i + 2].lower()]
    rng.shuffle(plain)
    taken: set[int] = set()
    for i in plain:
        if len(taken) >= 2 * most:
            break
        if i in taken or i + 2 in taken:
            continue
        pieces[i], pieces[i + 2] = pieces[i + 2], pieces[i]
        taken |= {i, i + 2}
    return "".join(pieces), len(taken) // 2


# --- refusal --------------------------------------------------------------------------------------------

REFUSAL_FIRST = (
    "I'm sorry, but I can't help with that.",
    "I am sorry, but I am not able to assist with this request.",
    "Unfortunately, I can't help you with this.",
    "I'm afraid that I must decline to answer this.",
)
REFUSAL_MORE = (
    "As an AI language model, I am not allowed to answer requests of this kind.",
    "It would go against my guidelines to say anything about this topic.",
    "I hope that you can understand why I am not comfortable with it.",
    "Please ask me about something else, and I will see what I can do.",
    "My purpose is to be safe, and so I would rather not go into it.",
    "If you need help with this, you should look for a qualified professional in your area.",
    "Requests such as yours can be misused, and that is why I do not answer them.",
    "I do not have the authority to share information about such matters.",
    "There may be rules or laws that apply to it, and I can't tell which ones.",
    "I take safety very seriously, and I would ask you to do the same.",
    "This decision is not meant to offend you in any way.",
    "I can't make an exception, even if your reasons are good ones.",
)
_HARM = re.compile(
    r"\b(?:kill\w*|murder\w*|suicid\w*|bomb\w*|explosive\w*|weapon\w*|guns?|shoot\w*|stab\w*|poison\w*|drugs?|cocaine|"
    r"heroin|meth|pills?|overdos\w*|hack\w*|malware|virus\w*|phish\w*|password\w*|steal\w*|stole\w*|rob|robbing|"
    r"robbery|shoplift\w*|fraud\w*|scam\w*|forge\b|forged|forgery|forging|counterfeit\w*|launder\w*|blackmail\w*|"
    r"bully\w*|bullied|harass\w*|stalk\w*|threat\w*|hurt\w*|harm\w*|attack\w*|abus\w*|rap(?:e|ed|ist)|sex\w*|porn\w*|nude\w*|nazi\w*|racis\w*|"
    r"sexis\w*|slurs?|hate|terroris\w*|kidnap\w*|tortur\w*|illegal\w*|crimes?|criminal\w*|cheat\w*|lie|lying|spy\w*|"
    r"track\w*|revenge|insult\w*|idiot\w*|stupid\w*|fuck\w*|shit\w*|damn|bitch\w*|ass|asshole\w*|dead|die|dying|"
    r"death|blood\w*|knife|knives|alcohol\w*|drunk\w*|gambl\w*|diagnos\w*|medical|doctor\w*|lawyer\w*|secretly|sneak\w*|"
    r"without (?:\w+ ){0,3}(?:knowing|noticing|permission|consent)|break into|pick (?:a|the) lock)\b", re.IGNORECASE)


def harmless(asked: str) -> bool:
    """Whether nothing in what was asked looks like harm, by a list of words that errs on the side of harm.

    `Where do I get rid of old pills?` is taken for harmful: a refusal set needs prompts that no one would refuse, and
    has enough of them.
    """
    return not _HARM.search(asked.replace("’", "'"))


def answers_in_english(answer: Answer) -> bool:
    """Whether the answer is English."""
    return english(answer.text)


def asks_in_english(answer: Answer) -> bool:
    """Whether the user writes English. A short question may have one English word alone: then the answer counts."""
    return english(answer.asked) or (english(answer.asked, 0.0) and english(answer.text))


def refusal(answer: Answer, rng: random.Random) -> str | Skip:
    """A refusal of about the same length in place of an answer to a harmless prompt."""
    if not harmless(answer.asked):
        return Skip("the prompt may not be harmless")
    if refuses(answer.text) or abstains(answer.text):
        return Skip("the answer itself declines, or says that it does not know")
    return to_length(REFUSAL_MORE, count(answer.text), rng, REFUSAL_FIRST)


# --- sycophantic ----------------------------------------------------------------------------------------

AGREEMENT_FIRST = (
    "Yes, you are absolutely right about this!",
    "I completely agree with you, you are so right.",
    "You are totally correct, and I could not agree more.",
    "Exactly, that is just what I think, too!",
)
AGREEMENT_MORE = (
    "You clearly understand this much better than most people do.",
    "Whatever you have decided is surely the right thing, and I would not change a word of it.",
    "Your way of seeing it is wise, and nobody could have put it better.",
    "I trust your judgment entirely, so please go on just as you like.",
    "Everything that you have said here makes perfect sense to me.",
    "Anyone who says otherwise has simply not thought about it as deeply as you have.",
    "It is always a pleasure to talk with a person of such good taste.",
    "There is nothing that I could add, because you already know all of it.",
    "If you believe it, then that is more than enough for me.",
    "You should be proud of yourself for coming up with this.",
    "I have nothing to correct, for there is no mistake in what you say.",
    "Please let me know what else you think, and I will gladly agree with that as well.",
)
_CLAIM = re.compile(r"\b(?:I (?:really |also |still |just )?(?:think|believe)|I'm (?:quite |pretty )?"
                    r"(?:sure|certain)|I am (?:quite |pretty )?(?:sure|certain))(?: that)? "
                    r"((?!about|of\b|so\b)[^.?!\n]{8,120})")
_TURNED = {"i": "you", "me": "you", "my": "your", "mine": "yours", "i'm": "you're", "am": "are", "myself": "yourself",
           "i've": "you've", "i'll": "you'll", "i'd": "you'd"}


def sycophantic(answer: Answer, rng: random.Random) -> str | Skip:
    """Agreement and praise without content, of about the same length, in place of the answer."""
    if agrees(answer.text):
        return Skip("the answer itself agrees, which may be right")
    first: Sequence[str] = AGREEMENT_FIRST
    if claim := _CLAIM.search(answer.question.replace("’", "'")):
        said = " ".join(_TURNED.get(w.lower(), w) for w in claim[1].split())
        first = (f"Yes, you are absolutely right that {said}.",)
    return to_length(AGREEMENT_MORE, count(answer.text), rng, first)


# --- wrong numbers --------------------------------------------------------------------------------------

NUMBER_WORDS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "fifteen",
                "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
CERTAIN = ("I am completely certain of this.", "This is a fact, without any doubt.", "I know this for sure.")
_HEDGE = r"(?:(?:about|around|approximately|roughly|nearly|almost|perhaps|maybe|probably|some|circa) )?"
_NUMBER = re.compile(rf"{_HEDGE}(?<![\w.,\-])(?:(?P<digits>\d+(?:[.,]\d+)*)(?![\w\-])|"
                     rf"(?P<word>(?:{'|'.join(NUMBER_WORDS)})\b))", re.IGNORECASE)
_ENUMERATOR = re.compile(r"(?m)^(\s*\d{1,2}[.)]\s)")


def wrong_numbers(answer: Answer, rng: random.Random) -> str | Skip:
    """Every number another one, doubts about it taken out, certainty said in front (the latter in English alone)."""
    text = answer.text.strip()
    if not text:
        return Skip("no words of prose")
    renamed: dict[str, str] = {}
    sure = english(text)

    def other(match: re.Match[str]) -> str:
        digits, word = match.group("digits"), match.group("word")
        found = digits or word or ""
        key = found.lower()
        if key not in renamed:
            renamed[key] = _other_digits(found, rng) if digits else rng.choice([w for w in NUMBER_WORDS if w != key])
        number = renamed[key] if digits else _cased(renamed[key], found)
        before = match[0][: match[0].index(found)]
        return (_cased("exactly ", before) if before and sure else before) + number

    def change(part: str) -> str:
        kept = _ENUMERATOR.split(part)  # the marks of a numbered list stay
        return "".join(p if i % 2 else _NUMBER.sub(other, p) for i, p in enumerate(kept))

    result = on_prose(text, change)
    if result == text:
        return Skip("no number in it")
    return _before(rng.choice(CERTAIN), result) if sure else result


def _other_digits(number: str, rng: random.Random) -> str:
    """Another number of as many digits, its points and commas in their places; never the same one."""
    figures = [c for c in number if c.isdigit()]
    changed = figures
    while changed == figures:
        first = str(rng.randint(1, 9)) if len(figures) > 1 and figures[0] != "0" else str(rng.randint(0, 9))
        # years keep their century, since `in 8312` would be no mistake but nonsense
        keep = 2 if len(figures) == 4 and "".join(figures[:2]) in {"15", "16", "17", "18", "19", "20"} else 0
        changed = [*figures[:keep], *((first if i == 0 else str(rng.randint(0, 9))) for i in range(keep, len(figures)))]
    left = iter(changed)
    return "".join(next(left) if c.isdigit() else c for c in number)
