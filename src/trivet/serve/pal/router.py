"""Whether a question wants a program: a logistic score over a few features that a person can read.

The weights stand in router.json, fitted by `benchmarks/router.py`, which also measures them on questions held out.
No torch and no numpy: deciding takes well under a millisecond.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trivet.artifacts import Message
from trivet.errors import TrivetError
from trivet.generate.config import Sampling
from trivet.serve.answering import ChatModel, Reply, Say, Step, Way

WEIGHTS = Path(__file__).with_name("router.json")
LONGEST = 4000
"""Characters of a question that are looked at: its end, where what is asked mostly stands."""

_WORDS = ("one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fifteen|twenty|thirty|forty|fifty|"
          "sixty|hundred|thousand|million|dozen|half|third|quarter|twice|double|triple")
_UNITS = ("cents?|dollars?|euros?|pounds?|miles?|km|kilomet(?:er|re)s?|met(?:er|re)s?|cm|feet|foot|inch(?:es)?|yards?|"
          "kg|grams?|ounces?|tons?|lit(?:er|re)s?|gallons?|cups?|seconds?|minutes?|hours?|days?|weeks?|months?|years?|"
          "percent|mph|degrees?")
_PATTERNS: dict[str, str] = {
    "how many or how much": r"\bhow (?:many|much)\b",
    "what amount": r"\bhow (?:long|old|far|fast|tall|heavy|often)\b|\bwhat(?:'s| is| was| will be| are)? (?:the )?"
                   r"(?:total|sum|average|mean|median|difference|product|remainder|probability|percentage|percent|area|"
                   r"perimeter|volume|speed|cost|price|date|number|value)\b",
    "arithmetic words": r"\b(?:total|altogether|in all|combined|sum of|left|remain(?:s|ing)?|difference between|each|"
                        r"every|per|times as|more than|fewer than|less than|average|shares?d? equally|divided|"
                        r"multipl(?:y|ied)|add(?:ed)?|subtract|discount|interest|profit|twice|half)\b",
    "buying and having": r"\b(?:buys?|bought|sells?|sold|costs?|pays?|paid|earns?|earned|spends?|spent|gave|gives|"
                         r"gets?|eats?|ate|has|had|picked|found|lost|made|makes)\b",
    "a formula": r"\d\s*[-+*/×÷^=]\s*\(?\d|\bsolve\b|\bcalculate\b|\bcompute\b",
    "money or percent": r"[$€£]\s?\d|\d\s?(?:%|percent\b)",
    "units": rf"\b\d[\d,.]*[ -](?:{_UNITS})\b",
    "a date": r"\b\d{1,2}/\d{1,2}(?:/\d{2,4})?\b|\bMM/DD/YYYY\b|\b(?:yesterday|tomorrow)\b|"
              r"\bdays? (?:ago|from now|later)\b",
    "asks for a text": r"\b(?:write|rewrite|draft|compose|explain|describe|summari[sz]e|translate|discuss|suggest|"
                       r"brainstorm|recommend|advise|tell me|story|poem|essay|email|letter|blog|paragraph|article)\b",
    "asks why or whether": r"\b(?:why|how (?:do|does|did|can|could|would|should|to)|should i|what happens|"
                           r"what does|who|which of)\b",
    "code or markup": r"```|[{}<>]{1}\w|\b(?:function|class|script|python|javascript|java|html|css|sql|api|regex|"
                      r"code|docker|linux|excel|latex)\b",
}
_COMPILED = {name: re.compile(pattern, re.IGNORECASE) for name, pattern in _PATTERNS.items()}
_NUMBER = re.compile(rf"(?<![\w.])\$?\d[\d,]*(?:\.\d+)?|\b(?:{_WORDS})\b", re.IGNORECASE)
FEATURES = ("bias", "numbers", "two numbers or more", *_PATTERNS, "ends with ?", "length")


def features(question: str) -> dict[str, float]:
    """Each feature's value, 0 to 1: patterns count up to three times, numbers up to six, length on a log scale."""
    text = question[-LONGEST:]
    numbers = len(_NUMBER.findall(text))
    return {"bias": 1.0, "numbers": min(numbers, 6) / 6, "two numbers or more": float(numbers >= 2),
            **{name: min(len(pattern.findall(text)), 3) / 3 for name, pattern in _COMPILED.items()},
            "ends with ?": float(text.rstrip().endswith("?")),
            "length": min(math.log1p(len(text)) / math.log1p(LONGEST), 1.0)}


@dataclass(frozen=True)
class Decision:
    """Whether a question wants a program, and by what."""

    wants: bool
    probability: float
    because: tuple[tuple[str, float], ...]
    """The features that weighed the most, with their share of the score in nats; positive ones speak for a program."""


@functools.cache
def weights(file: Path = WEIGHTS) -> dict[str, float]:
    """The fitted weights by feature. Raises TrivetError for a file that is not the router's."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))["weights"]
        if set(found) != set(FEATURES) or not all(isinstance(v, int | float) for v in found.values()):
            raise ValueError("its features are not this version's")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrivetError(f"the router's weights can't be read ({error})", file=file,
                          mend="fit them anew: python benchmarks/router.py --write") from None
    return {name: float(v) for name, v in found.items()}


def decide(question: str, threshold: float = 0.5) -> Decision:
    """Whether a question wants a program. threshold: the probability from which it does."""
    fitted = weights()
    shares = {name: value * fitted[name] for name, value in features(question).items()}
    score = sum(shares.values())
    probability = 1 / (1 + math.exp(-max(min(score, 500.0), -500.0)))
    because = sorted(((n, round(s, 3)) for n, s in shares.items() if s and n != "bias"), key=lambda p: -abs(p[1]))[:4]
    return Decision(probability >= threshold, probability, tuple(because))


class Routed:
    """A way that sends questions that want a program to one way and the others to another."""

    def __init__(self, program: Way, words: Way, *, threshold: float = 0.5) -> None:
        self.program, self.words, self.threshold = program, words, threshold

    async def answer(self, messages: Sequence[Message], model: ChatModel, sampling: Sampling, *, seed: int = 0,
                     say: Say = lambda step: None) -> Reply:
        """See Way. A question that goes to the program says so in a step; the decision is in its data."""
        import dataclasses

        decision = decide(messages[-1].content if messages else "", self.threshold)
        if not decision.wants:
            return await self.words.answer(messages, model, sampling, seed=seed, say=say)
        step = Step("note", "a program is to answer this", ", ".join(n for n, share in decision.because if share > 0),
                    {"probability": round(decision.probability, 4), "because": [list(b) for b in decision.because]})
        say(step)
        reply = await self.program.answer(messages, model, sampling, seed=seed, say=say)
        return dataclasses.replace(reply, steps=(step, *reply.steps))
