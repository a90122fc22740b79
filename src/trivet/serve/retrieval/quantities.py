"""Numbers, dates and units in English text, normalised so that 1,200 m is 1.2 kilometres and 3 May is May 3rd."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

_SMALL = {w: i for i, w in enumerate(
    re.findall(r"\S+", """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen
"""))}
_TENS = {w: 10 * i for i, w in enumerate(re.findall(r"\S+", """
    twenty thirty forty fifty sixty seventy eighty ninety
"""), 2)}
_SCALES = {"hundred": 1e2, "thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
_ORDINALS = {w: i for i, w in enumerate(
    re.findall(r"\S+", """
    first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth
"""), 1)}
_OTHERS = {"dozen": 12.0, "half": 0.5, "twice": 2.0}
_MONTHS = {m: i for i, m in enumerate(
    re.findall(r"\S+", """
    january february march april may june july august september october november december
"""), 1)}
_MONTHS |= {m[:3]: i for m, i in _MONTHS.items()} | {"sept": 9}
_UNITS: dict[str, tuple[str, float]] = {}
for _dimension, _factor, _names in (
    ("length", 1e-3, "mm millimetre millimeter"), ("length", 1e-2, "cm centimetre centimeter"),
    ("length", 1.0, "m metre meter"), ("length", 1e3, "km kilometre kilometer"), ("length", 1609.344, "mile mi"),
    ("length", 0.3048, "ft foot feet"), ("length", 0.0254, "inch inches"),
    ("mass", 1.0, "kg kilogram kilo kilogramme"), ("mass", 1e-3, "g gram gramme"),
    ("mass", 1e3, "t tonne ton"), ("mass", 0.45359237, "lb pound-weight"),
    ("time", 1.0, "s second sec"), ("time", 60.0, "minute min"), ("time", 3600.0, "hour hr h"),
    ("time", 86400.0, "day"), ("time", 604800.0, "week"), ("month", 1.0, "month"), ("month", 12.0, "year yr"),
    ("share", 1.0, "% percent percentage"), ("area", 1e4, "hectare ha"), ("area", 4046.856, "acre"),
    ("volume", 1.0, "litre liter l"), ("volume", 1e-3, "ml millilitre milliliter"),
    ("power", 1e3, "kw kilowatt"), ("power", 1e6, "mw megawatt"), ("power", 1e9, "gw gigawatt"), ("power", 1.0, "watt"),
    ("temperature", 1.0, "°c celsius"), ("fahrenheit", 1.0, "°f fahrenheit"),
    ("dollars", 1.0, "$ dollar usd"), ("euros", 1.0, "€ euro eur"), ("pounds", 1.0, "£ pound gbp"),
    ("crowns", 1.0, "crown"),
):
    for _name in _names.split():
        _UNITS[_name] = (_dimension, _factor)
        if len(_name) > 2 and not _name.endswith(("s", "%")):
            _UNITS[_name + "s"] = (_dimension, _factor)

_WORDS = "|".join([*_SMALL, *_TENS, *_SCALES, *_OTHERS])
_DIGITS = r"[-−]?\d{1,3}(?:,\d{3})+(?:\.\d+)?|[-−]?\d+(?:\.\d+)?"
_MONTH = "(" + "|".join(sorted(_MONTHS, key=len, reverse=True)) + r")\.?"
_DATES = [re.compile(p, re.IGNORECASE) for p in (
    r"\b(?P<y>\d{4})-(?P<m>\d{2})-(?P<d>\d{2})(?!\d)",
    rf"\b(?P<d>\d{{1,2}})(?:st|nd|rd|th)?(?: of)? (?P<m>{_MONTH})(?:,? (?P<y>\d{{4}}))?\b",
    rf"\b(?P<m>{_MONTH}) (?P<d>\d{{1,2}})(?:st|nd|rd|th)?(?!\d|[.,:]\d|%| (?:people|percent))(?:,? (?P<y>\d{{4}}))?\b",
    rf"\b(?P<m>{_MONTH}),? (?P<y>\d{{4}})\b",
)]
_TIME = re.compile(r"\b(\d{1,2})[:.](\d{2})(?:\s*([ap])\.?m\b\.?)?|\b(\d{1,2})\s*([ap])\.?m\b\.?", re.IGNORECASE)
_NUMBER = re.compile(
    rf"(?P<money>[$€£])?\s?(?<![\w.])(?P<digits>{_DIGITS})(?P<ordinal>st|nd|rd|th)?(?![\d])|"
    rf"\b(?P<words>(?:{_WORDS})(?:[ -](?:and )?(?:{_WORDS}))*)\b|\b(?P<rank>{'|'.join(_ORDINALS)})\b", re.IGNORECASE)
_AFTER = re.compile(r"\s*-?\s*(?P<scale>hundred|thousand|million|billion|trillion)?\s*-?\s*"
                    r"(?P<unit>%|°[cf]\b|per ?cent\b|[a-z]+)?", re.IGNORECASE)


@dataclass(frozen=True)
class Quantity:
    """A number, date or time in a text."""

    value: float
    """In the base unit of its dimension; of a date 10000·year + 100·month + day, absent parts 0."""
    dimension: str | None
    """length, mass, share, date, clock …; None: a bare number, or one of counted things."""
    noun: str | None
    """The word behind a bare number, small letters: what is counted, perhaps."""
    start: int
    end: int
    text: str
    soft: bool = False
    """`one`, `half`, `first` and the like: often no number at all."""


@functools.lru_cache(maxsize=4096)
def quantities(text: str) -> tuple[Quantity, ...]:
    """What numbers, dates and times stand in a text, in order.

    A four-digit number from 1000 to 2999 without unit and comma counts as a year: a date without month and day.
    Not known: Roman numerals, fractions (3/4), numbers beyond those words, other languages.
    """
    found: list[Quantity] = []
    taken = bytearray(len(text))

    def take(quantity: Quantity) -> None:
        found.append(quantity)
        taken[quantity.start:quantity.end] = b"\1" * (quantity.end - quantity.start)

    for pattern in _DATES:
        for match in pattern.finditer(text):
            parts = match.groupdict()
            if any(taken[match.start():match.end()]):
                continue
            month = parts["m"].strip(".").casefold()
            if month == "may" and parts["m"][0].islower():
                continue  # the verb
            m = int(month) if month.isdigit() else _MONTHS[month]
            value = 10000 * int(parts.get("y") or 0) + 100 * m + int(parts.get("d") or 0)
            take(Quantity(value, "date", None, match.start(), match.end(), match[0]))
    for match in _TIME.finditer(text):
        if any(taken[match.start():match.end()]):
            continue
        half = match[3] or match[5]
        if match[4] is None and half is None and ":" not in match[0]:
            continue  # 10.30 is more often a decimal
        hour, minute = int(match[1] or match[4]), int(match[2] or 0)
        if half:
            hour = hour % 12 + (12 if half in "pP" else 0)
        if hour < 25 and minute < 60:
            take(Quantity(hour * 60 + minute, "clock", None, match.start(), match.end(), match[0]))
    for match in _NUMBER.finditer(text):
        if not any(taken[match.start():match.end()]):
            take(_number(text, match))
    return tuple(sorted(found, key=lambda q: q.start))


def _number(text: str, match: re.Match[str]) -> Quantity:
    start, end = match.start(), match.end()
    start += len(match[0]) - len(match[0].lstrip())
    if match["rank"]:
        return Quantity(_ORDINALS[match["rank"].casefold()], "rank", None, start, end, match[0].strip(), True)
    soft = False
    if match["words"]:
        words = re.findall(rf"\b(?:{_WORDS})\b", match["words"].casefold())
        value, soft = _worded(words), words in (["one"], ["half"], ["hundred"], ["thousand"], ["million"], ["dozen"],
                                                ["twice"])
    else:
        value = float(match["digits"].replace(",", "").replace("−", "-"))
        if match["digits"][0] in "-−" and start and text[start - 1].isalnum():
            value = -value  # a range, or A-12
    if match["ordinal"]:
        return Quantity(value, "rank", None, start, end, match[0].strip())
    after = _AFTER.match(text, end)
    assert after is not None
    scaled = after["scale"] if not match["words"] else None
    if scaled:
        value *= _SCALES[scaled.casefold()]
        end = after.end("scale")
    if match["money"]:
        dimension, _ = _UNITS[match["money"]]
        return Quantity(value, dimension, None, start, end, text[start:end])
    unit = (after["unit"] or "").casefold()
    unit = "%" if unit.startswith("per") and unit.replace(" ", "") == "percent" else unit
    gap = text[end:after.start("unit")] if after["unit"] else ""
    if unit in _UNITS and not (len(unit) == 1 and unit.isalpha() and len(gap) > 1):
        dimension, factor = _UNITS[unit]
        return Quantity(value * factor, dimension, None, start, after.end("unit"), text[start:after.end("unit")])
    digits = match["digits"]
    if digits and not scaled and re.fullmatch(r"[12]\d{3}", digits) and not gap.strip() and \
            (not unit or unit in _YEAR_FOLLOWED):
        return Quantity(10000 * value, "date", None, start, end, digits)
    return Quantity(value, None, unit or None, start, end, text[start:end], soft)


_YEAR_FOLLOWED = frozenset(re.findall(r"\S+", """
    and or to the a an in by for at from when it he she they was is were has had with after before as on of but
    because since until till edition season report census election
"""))


def _worded(words: list[str]) -> float:
    total = current = 0.0
    for word in words:
        if word in _SCALES:
            scale = _SCALES[word]
            current = max(current, 1.0) * scale
            if scale > 100:
                total, current = total + current, 0.0
        elif word == "dozen":
            current = max(current, 1.0) * 12
        else:
            current += _SMALL.get(word, _TENS.get(word, _OTHERS.get(word, 0.0)))
    return total + current


def number_words() -> frozenset[str]:
    """Words that are numbers, scales or units, small letters: they are compared by value, not as words."""
    listed = {*_SMALL, *_TENS, *_SCALES, *_ORDINALS, *_UNITS, "percent", "cent", "am", "pm"}
    return frozenset(listed) - {"second", "pound", "foot"}


def same(claim: Quantity, passage: Quantity) -> bool:
    """Whether a passage's number bears out the claim's.

    A date may be less exact in the claim than in the passage, not more. A number without unit in either is compared
    by its value alone; with units of two dimensions they differ. Values may differ by rounding in the claim's last
    place only where the claim says about: not here.
    """
    if "date" in (claim.dimension, passage.dimension) and claim.dimension != passage.dimension:
        # 2031 read as a year on one side, as a count on the other
        year, other = (claim, passage) if claim.dimension == "date" else (passage, claim)
        return other.dimension is None and year.value % 10000 == 0 and year.value == 10000 * other.value
    if claim.dimension == "date":
        return all(c in (0, p) for c, p in zip(_parts(claim.value), _parts(passage.value), strict=True))
    if claim.dimension and passage.dimension and claim.dimension != passage.dimension:
        return False
    return abs(claim.value - passage.value) <= 1e-6 * max(abs(claim.value), abs(passage.value))


def _parts(value: float) -> tuple[int, int, int]:
    number = int(value)
    return number // 10000, number // 100 % 100, number % 100
