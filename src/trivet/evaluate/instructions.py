"""Instructions that a program can check: a generator of prompts with one to three constraints, and their checks.

After Zhou et al. 2023, 'Instruction-Following Evaluation for Large Language Models' (IFEval), whose idea this is; the
topics, constraints and wordings are our own, and prompts are drawn without end from a seed. Constraints that no answer
can meet together are never put together (`clash`). Checks are strict: they look at the answer as it is, without
taking off an opening line or marks of Markdown as IFEval's loose accuracy does.

Pure functions, no torch. The standard count of words in an answer is small, so that it fits into about 128 tokens.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from trivet.text.rules import words

TOPICS: tuple[tuple[str, tuple[str, str, str]], ...] = (
    ("Describe a walk in the rain.", ("rain", "umbrella", "wet")),
    ("Explain how bread is baked.", ("flour", "oven", "dough")),
    ("Tell me about the Moon.", ("light", "orbit", "night")),
    ("Give advice on how to sleep better.", ("bed", "night", "relax")),
    ("Describe a busy market.", ("people", "stall", "fruit")),
    ("Explain why trees matter.", ("air", "shade", "leaf")),
    ("Write about a day at the beach.", ("sand", "sun", "wave")),
    ("Explain how to plant a tomato.", ("soil", "water", "seed")),
    ("Tell me what a library is for.", ("book", "read", "quiet")),
    ("Describe a cat that is asleep.", ("cat", "fur", "soft")),
    ("Explain how a bicycle works.", ("wheel", "pedal", "chain")),
    ("Give advice to somebody who moves to a new town.", ("town", "friend", "map")),
    ("Describe a cup of coffee.", ("hot", "cup", "dark")),
    ("Tell me about winter in the mountains.", ("snow", "cold", "peak")),
    ("Explain what a clock does.", ("time", "hour", "hand")),
    ("Write about a train journey.", ("train", "window", "seat")),
    ("Explain how to wash a shirt.", ("water", "soap", "dry")),
    ("Describe an old house.", ("door", "roof", "wall")),
    ("Tell me about honey bees.", ("bee", "honey", "flower")),
    ("Give advice on how to save money.", ("money", "spend", "plan")),
    ("Describe a football match.", ("ball", "team", "goal")),
    ("Explain why people sing.", ("song", "voice", "joy")),
    ("Write about a lost key.", ("key", "door", "search")),
    ("Explain how rivers begin.", ("water", "rain", "hill")),
    ("Tell me about a good neighbour.", ("help", "friend", "house")),
    ("Describe a birthday party.", ("cake", "gift", "guest")),
    ("Explain how to boil an egg.", ("water", "egg", "pot")),
    ("Write about a letter from a friend.", ("letter", "friend", "read")),
    ("Tell me how to keep a bedroom tidy.", ("shelf", "floor", "clean")),
    ("Describe a thunderstorm.", ("storm", "wind", "dark")),
    ("Explain what a bridge is for.", ("river", "road", "cross")),
    ("Give advice on how to learn a language.", ("word", "speak", "listen")),
    ("Describe a forest in autumn.", ("leaf", "tree", "wind")),
    ("Explain how to wrap a present.", ("paper", "ribbon", "fold")),
    ("Tell me about the work of a nurse.", ("care", "patient", "help")),
    ("Write about a quiet evening at home.", ("home", "lamp", "book")),
)
"""A request for prose, one sentence without a comma, and three words that come to mind."""
NEUTRAL = ("lantern", "velvet", "puzzle", "copper", "carrot", "engine", "island", "mirror", "pocket", "silver")
"""Words that a plain answer to no topic is likely to have."""
STARTS = ("To begin with", "In my view", "Let me tell you", "Here is my answer", "Most of the time")
ENDS = ("That is all for now.", "I hope this helps.", "And that is how it is.", "Now you know.")
KEYS = ("title", "summary", "topic", "text", "mood", "place", "advice", "reason")
LETTERS = "bcfgkmpvwy"
CHOICES = (
    ("Is the sky on a clear day blue?", ("yes", "no")),
    ("Is ice warmer than steam?", ("yes", "no")),
    ("Which of these is a fruit?", ("hammer", "apple", "river")),
    ("Which of these can fly?", ("eagle", "table", "stone")),
    ("Do fish live in water?", ("yes", "no", "maybe")),
    ("Which of these is the largest?", ("ant", "mouse", "elephant")),
    ("Can a person eat an iron bridge?", ("yes", "no", "maybe")),
    ("Which of these is a colour?", ("green", "seven", "loud")),
)
"""Questions with the words of which the whole answer must be one; any of them obeys the instruction."""

DIGITS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


# --- what is counted ----------------------------------------------------------------------------------


def lines(text: str) -> list[str]:
    """The lines of a text that are not blank, without spaces around them."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def paragraphs(text: str) -> int:
    """How many blocks of lines there are, with blank lines between them."""
    return len([p for p in re.split(r"\n[^\S\n]*\n", text) if p.strip()])


def sentence_count(text: str) -> int:
    """How many sentences a text has: ends by `.`, `!` or `?` before a space or the end; a rest without one counts.

    The numbers of a numbered list and common abbreviations (`e.g.`, `Mr.`) end none; other abbreviations do.
    """
    text = re.sub(r"(?m)^\s*\d+[.)]\s", "", text)
    text = re.sub(r"(?i)\b(e\.g|i\.e|etc|mr|mrs|ms|dr|st|vs|a\.m|p\.m)\.(?=\s+[a-z])", r"\1", text)
    return sum(any(map(str.isalnum, part)) for part in re.split(r"[.!?]+[\"')\]*]*(?:\s+|$)", text))


def bullets(text: str) -> int:
    """How many lines begin with `-`, `*` or `•` and a space."""
    return sum(bool(re.match(r"[-*•]\s+\S", line)) for line in lines(text))


def numbers(text: str) -> list[int]:
    """The numbers that lines begin with: `1. …` or `1) …`."""
    return [int(m[1]) for line in lines(text) if (m := re.match(r"(\d{1,3})[.)]\s+\S", line))]


def json_keys(text: str) -> set[str] | None:
    """The keys of the JSON object that the text is, in a code fence or not; None where it is none."""
    bare = re.sub(r"\A```(?:json)?\s*\n(.*)\n\s*```\Z", r"\1", text.strip(), flags=re.DOTALL)
    try:
        value = json.loads(bare)
    except (ValueError, RecursionError):
        return None
    return set(value) if isinstance(value, dict) else None


def count_word(text: str, word: str) -> int:
    """How often a word stands in a text, as a whole word in any case."""
    return sum(w.casefold() == word for w in words(text))


def letters(text: str) -> str:
    """The letters of a text alone."""
    return "".join(filter(str.isalpha, text))


def _more(text: str, phrase: str) -> bool:
    """Whether a text says more than the phrase that it has to have."""
    return len(words(text)) > len(words(phrase))


# --- the families -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Family:
    """A kind of constraint."""

    draw: Callable[[random.Random, tuple[str, ...]], tuple[Any, ...]]
    """Its values, from a generator and the topic's words."""
    met: Callable[..., bool]
    """(answer, request, *values) → whether the answer obeys."""
    wordings: tuple[str, ...]
    """How it is said; `{0}` is its first value, `{n}` the first value as a word and `{s}` the plural's s."""
    apart: str = ""
    """Families that it can't be put together with."""
    asks: bool = True
    """An answer that takes no notice fails it almost surely. Off where many plain answers obey by chance."""


FAMILIES: dict[str, Family] = {
    "words at least": Family(
        lambda rng, topic: (rng.choice((30, 40, 50)),), lambda a, r, n: len(words(a)) >= n,
        ("Use at least {0} words.", "Your answer must have {0} words or more."),
        apart="words at most, choice, json", asks=False),
    "words at most": Family(
        lambda rng, topic: (rng.choice((20, 30, 40)),), lambda a, r, n: len(words(a)) <= n,
        ("Use at most {0} words.", "Do not use more than {0} words."),
        apart="repeat, sections, two answers, paragraphs, choice, json", asks=False),
    "sentences": Family(
        lambda rng, topic: (rng.choice((1, 2, 3, 4)),), lambda a, r, n: sentence_count(a) == n,
        ("Write exactly {n} sentence{s}.", "Answer in {n} sentence{s}, no more and no less."),
        apart="bullets, numbered, title, postscript, sections, two answers, paragraphs, repeat, json, choice, end, "
              "capitals"),
    "paragraphs": Family(
        lambda rng, topic: (rng.choice((2, 3)),), lambda a, r, n: paragraphs(a) == n,
        ("Write exactly {n} paragraphs with a blank line between them.",
         "Your answer must have {n} paragraphs, with blank lines between them."),
        apart="bullets, numbered, title, postscript, sections, two answers, repeat, json, choice"),
    "bullets": Family(
        lambda rng, topic: (rng.choice((2, 3, 4)),), lambda a, r, n: bullets(a) == n,
        ("Use exactly {n} bullet points, each on a line that begins with '- '.",
         "Answer with a list of exactly {n} points, each on its own line after '- '."),
        apart="numbered, sections, two answers, json, choice, quotes"),
    "numbered": Family(
        lambda rng, topic: (rng.choice((2, 3, 4)),), lambda a, r, n: numbers(a) == list(range(1, n + 1)),
        ("Answer with a numbered list of exactly {n} items: 1., 2. and so on.",
         "Write a list of {n} items, numbered from 1. to {0}., each on its own line."),
        apart="sections, two answers, json, choice, quotes"),
    "include": Family(
        lambda rng, topic: (rng.choice(NEUTRAL),), lambda a, r, w: count_word(a, w) >= 1,
        ("Use the word '{0}'.", "The word '{0}' must be in your answer."), apart="choice"),
    "include twice": Family(
        lambda rng, topic: (rng.choice(NEUTRAL),), lambda a, r, w: count_word(a, w) >= 2,
        ("Use the word '{0}' at least twice.", "The word '{0}' must be in your answer two times or more."),
        apart="choice"),
    "exclude": Family(
        lambda rng, topic: (rng.choice(topic),), lambda a, r, w: count_word(a, w) == 0,
        ("Do not use the word '{0}'.", "The word '{0}' must not be in your answer."), apart="choice", asks=False),
    "start": Family(
        lambda rng, topic: (rng.choice(STARTS),), lambda a, r, w: _more(a, w) and a.casefold().startswith(w.casefold()),
        ("Begin your answer with the words: {0}", "The first words of your answer must be: {0}"),
        apart="json, repeat, quotes, choice, title, sections"),
    "end": Family(
        lambda rng, topic: (rng.choice(ENDS),), lambda a, r, w: _more(a, w) and a.casefold().endswith(w.casefold()),
        ("End your answer with this sentence: {0}", "The last sentence of your answer must be: {0}"),
        apart="json, quotes, postscript, question, choice"),
    "lower case": Family(
        lambda rng, topic: (), lambda a, r: a == a.lower(),
        ("Write all in lower case, without a capital letter.", "Use small letters only."),
        apart="upper case, capitals, sections, postscript, repeat, start, end, choice"),
    "upper case": Family(
        lambda rng, topic: (), lambda a, r: a == a.upper(),
        ("WRITE ALL IN CAPITAL LETTERS.", "Use capital letters only."),
        apart="capitals, sections, repeat, json, start, end, choice, exclude, include, include twice"),
    "no commas": Family(
        lambda rng, topic: (), lambda a, r: "," not in a,
        ("Do not use commas.", "Your answer must be without commas."), apart="json, choice", asks=False),
    "no letter": Family(
        lambda rng, topic: (rng.choice(LETTERS),), lambda a, r, c: c not in a.casefold(),
        ("Do not use the letter '{0}' anywhere.", "The letter '{0}' must not be in your answer."),
        apart="json, repeat, choice", asks=False),
    "json": Family(
        lambda rng, topic: tuple(rng.sample(KEYS, rng.choice((2, 3)))),
        lambda a, r, *keys: json_keys(a) == set(keys),
        ("Answer with one JSON object with just these keys: {all}.",
         "Your whole answer must be a JSON object with exactly the keys {all}."),
        apart="quotes, title, postscript, sections, two answers, repeat, choice, brackets, stars, capitals, question"),
    "quotes": Family(
        lambda rng, topic: (), lambda a, r: len(a) > 2 and a[0] in '"“' and a[-1] in '"”',
        ("Put your whole answer in double quotation marks.", "Your answer must begin and end with a double quote."),
        apart="repeat, postscript, sections, two answers, title, choice"),
    "repeat": Family(
        lambda rng, topic: (), lambda a, r: a.casefold().startswith(r.casefold()),
        ("First repeat my first sentence word for word, then answer it.",
         "Before you answer, repeat the first sentence of this message word for word."),
        apart="title, sections, two answers, choice"),
    "title": Family(
        lambda rng, topic: (), lambda a, r: bool(lines(a)) and bool(re.fullmatch(r"<<[^<>\n]+>>", lines(a)[0])),
        ("Begin with a title on a line of its own in double angle brackets, such as <<Title>>.",),
        apart="two answers, choice, sections"),
    "postscript": Family(
        lambda rng, topic: (), lambda a, r: bool(re.search(r"(?m)^\s*P\. ?S\. *:? *\S", a)),
        ("At the end add a postscript that begins with P.S.", "Close with a line that begins with P.S."),
        apart="two answers, choice, question"),
    "brackets": Family(
        lambda rng, topic: (rng.choice((1, 2, 3)),), lambda a, r, n: len(re.findall(r"\[[^\[\]\n]+\]", a)) >= n,
        ("Use at least {n} placeholder{s} in square brackets, such as [name].",), apart="choice"),
    "stars": Family(
        lambda rng, topic: (rng.choice((1, 2)),),
        lambda a, r, n: len(re.findall(r"(?<!\*)\*{1,2}[^\s*](?:[^*\n]*[^\s*])?\*{1,2}(?!\*)", a)) >= n,
        ("Put at least {n} part{s} of your answer between stars, such as *this*.",), apart="choice"),
    "capitals": Family(
        lambda rng, topic: (rng.choice((2, 3)),),
        lambda a, r, n: sum(len(letters(w)) > 1 and w == w.upper() for w in words(a)) >= n,
        ("Write at least {n} words in CAPITAL LETTERS.",), apart="choice"),
    "sections": Family(
        lambda rng, topic: (rng.choice((2, 3)),),
        lambda a, r, n: [int(m) for m in re.findall(r"(?m)^[#*\s]*Section (\d+)", a)] == list(range(1, n + 1)),
        ("Divide your answer into {n} sections that begin with the lines Section 1, Section 2 and so on.",),
        apart="two answers, choice, postscript"),
    "two answers": Family(
        lambda rng, topic: (),
        lambda a, r: len(parts := [p.strip() for p in a.split("******")]) == 2 and all(parts) and parts[0] != parts[1],
        ("Give two different answers with a line of six stars between them: ******",), apart="choice, stars"),
    "question": Family(
        lambda rng, topic: (), lambda a, r: a.rstrip("\"'”*_ ").endswith("?"),
        ("End with a question.", "The last sentence of your answer must be a question."), apart="choice"),
    "choice": Family(
        lambda rng, topic: topic, lambda a, r, *options: a.strip(" .!\"'*").casefold() in options,
        ("Answer with one of these words and nothing else: {all}.",
         "Your whole answer must be one of these words: {all}.")),
}


@dataclass(frozen=True)
class Constraint:
    """One thing that an answer has to obey, with its wording."""

    family: str
    values: tuple[Any, ...]
    wording: int = 0

    @property
    def text(self) -> str:
        """The instruction as a sentence."""
        first = self.values[0] if self.values else ""
        number = DIGITS[first] if isinstance(first, int) and first < len(DIGITS) else str(first)
        return FAMILIES[self.family].wordings[self.wording].format(
            first, n=number, s="" if first == 1 else "s", all=", ".join(map(str, self.values)))

    def met(self, answer: str, request: str) -> bool:
        """Whether an answer obeys it; the request is what stands before the instructions.

        An answer without a letter obeys nothing.
        """
        answer = answer.strip()
        return bool(letters(answer)) and FAMILIES[self.family].met(answer, request, *self.values)


@dataclass(frozen=True)
class Instruction:
    """A prompt with one to three constraints. The id is the hash of its text."""

    id: str
    request: str
    constraints: tuple[Constraint, ...]

    @property
    def text(self) -> str:
        """What the user says."""
        return " ".join((self.request, *(c.text for c in self.constraints)))


# --- the generator ------------------------------------------------------------------------------------


def literals(constraint: Constraint, request: str) -> tuple[str, ...]:
    """Texts that must stand in any answer that obeys."""
    if constraint.family in ("include", "include twice", "start", "end"):
        return tuple(map(str, constraint.values))
    return {"postscript": ("P.S.",), "sections": ("Section",), "repeat": (request,),
            "json": constraint.values}.get(constraint.family, ())


def clash(a: Constraint, b: Constraint, request: str) -> bool:
    """Whether no answer, or only a strained one, obeys both."""
    if a.family == b.family or b.family in FAMILIES[a.family].apart.split(", ") \
            or a.family in FAMILIES[b.family].apart.split(", "):
        return True
    values = {a.family: a.values, b.family: b.values}
    if values.keys() == {"include", "include twice"}:
        return a.values == b.values
    if values.keys() == {"words at least", "sentences"}:
        return bool(values["words at least"][0] > 25 * values["sentences"][0])
    for mine, its in ((a, b), (b, a)):
        if mine.family in ("exclude", "no letter", "no commas") and any(
                not mine.met(text, request) for text in literals(its, request)):
            return True
    return False


def generate(seed: int) -> Iterator[Instruction]:
    """Instructions without end, all different, the same for one seed.

    Two fifths have one constraint, two fifths two, a fifth three; at least one of them is such that an answer that
    takes no notice fails it almost surely.
    """
    rng = random.Random(seed)
    seen: set[str] = set()
    while True:
        made = _draw(rng)
        if made is not None and made.id not in seen:
            seen.add(made.id)
            yield made


def _draw(rng: random.Random) -> Instruction | None:
    """One instruction, or None where the draw had constraints that clash."""
    count = rng.choice((1, 1, 2, 2, 3))
    families = rng.sample(sorted(FAMILIES), count)
    if "choice" in families:
        if count > 1:
            return None
        request, options = rng.choice(CHOICES)
        return _instruction(request, [Constraint("choice", options, rng.randrange(2))])
    if not any(FAMILIES[f].asks for f in families):
        return None
    request, topic = rng.choice(TOPICS)
    constraints = [Constraint(f, FAMILIES[f].draw(rng, topic), rng.randrange(len(FAMILIES[f].wordings)))
                   for f in families]
    if any(clash(a, b, request) for i, a in enumerate(constraints) for b in constraints[:i]):
        return None
    return _instruction(request, constraints)


def _instruction(request: str, constraints: Sequence[Constraint]) -> Instruction:
    bare = Instruction("", request, tuple(constraints))
    return Instruction(f"i-{hashlib.sha256(bare.text.encode()).hexdigest()[:10]}", request, tuple(constraints))
