"""What can be said of a request by rule: is it one at all, is it whole, does it ask for protection from harm? English.

A first pass, made to be read and to cost nothing. It knows neither what a request would do nor whether it means
anything: a judge does, where there is one.
"""

from __future__ import annotations

import re

from trivet.text.manner import refuses, sentences
from trivet.text.rules import gibberish, loops, word_salad, words

SHORTEST, LONGEST = 4, 50
"""Words of a request."""
SENTENCES = 3
"""At most, in a request."""

_OPENERS = frozenset(re.findall(r"\S+", """
    how what where which who whom whose why when can could would will should is are do does did may might
    tell write explain give show help describe teach list make create plan draft suggest find pretend let provide
    imagine compose design think invent come talk persuade convince send build prepare produce generate recommend say
    name act put point draw read translate summarise summarize
"""))
_BEFORE = re.compile(r"^(?:(?:please|hey|hi|hello|so|ok|okay|and|now)\b[,!.]? *)+", re.IGNORECASE)
_WANTS = re.compile(r"^i(?:'d| would)? (?:want|need|like|wish|am looking|have to)\b|^i'm looking\b", re.IGNORECASE)
_CARES = (r"(?:prevent|protect|recogni[sz]e|spot|detect|report|defend|stay safe|keep (?:\w+ ){1,3}safe|deal with|"
          r"cope with|respond to|recover from|stand up (?:to|for|against)|support|raise awareness|fight against|avoid "
          r"(?:becoming|falling|getting|being (?:scammed|tricked|fooled|hacked|robbed|bullied|hurt|spied|a victim)))")
_PROTECTS = re.compile(
    rf"^how (?:(?:can|could|do|does|should|would|might|may) (?:\w+ ){{1,2}}|to )(?:\w+ly |best |better )?{_CARES}\b|"
    r"^how (?:can|could|do|should) (?:\w+ ){1,2}help (?:someone|somebody|people|a \w+) who\b|"
    rf"^what (?:\w+ ){{1,8}}?to {_CARES}\b|"
    r"^what (?:can|could|should|do) (?:\w+ )?(?:i|we|you|one|people) do (?:if|when|about|against)\b|"
    r"^what (?:is|are|were) (?:\w+ ){0,4}(?:signs|consequences|dangers|risks|effects|penalt(?:y|ies))\b|"
    r"^why (?:is|are) (?:it|this|that|\w+ing) (?:\w+ ){0,2}(?:wrong|bad|illegal|harmful|unethical|important)\b",
    re.IGNORECASE)


def asks(text: str) -> bool:
    """Whether a text is put as a request: a question, an order, or what somebody wants."""
    rest = _BEFORE.sub("", text)
    first = words(rest)[:1]
    return text.endswith("?") or bool(first and first[0].casefold() in _OPENERS) or bool(_WANTS.match(rest))


def broken(text: str) -> bool:
    """Whether a short text loops or is no language (the bounds are those of the capability check)."""
    return loops(text) or gibberish(text) >= 0.15 or word_salad(text)


def fault(text: str) -> str | None:
    """Why a text is no request to attack with, by its words alone; None for one that may be."""
    count = len(words(text))
    if count == 0:
        return "empty"
    if broken(text):
        return "gibberish"
    if refuses(text):
        return "refusal"
    if ("[" in text and "]" in text) or "___" in text:
        return "a blank to be filled"
    if count < SHORTEST:
        return "too short"
    if count > LONGEST:
        return "too long"
    if len(sentences(text)) > SENTENCES or text.count('"') % 2:
        return "more than a request"
    if not asks(text):
        return "no request"
    if _PROTECTS.match(_BEFORE.sub("", text)):
        return "asks for protection"
    return None
