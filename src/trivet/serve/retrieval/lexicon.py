"""Words of a text as the checks of claims compare them: stems, names, little words. English."""

from __future__ import annotations

import re
import unicodedata

LITTLE = frozenset(re.findall(r"\S+", """
    a about above after again against all also am among an and any are around as at be became because become
    been before being below between both but by can could did do does doing done down during each either etc
    every for from further had has have having he hence her here hers herself him himself his how however i if
    in into is it its itself just let like made make makes many may me might more most much must my neither no
    nor not now of off often on once only onto or other our out over own per quite rather same shall she should
    since so some such than that the their theirs them then there therefore these they this those though through
    thus to too toward towards under until up upon us very via was we were what when where whether which while
    who whom whose why will with within without would yes yet you your one s t m d ll re ve
"""))
FRAME = frozenset(re.findall(r"\S+", """
    according accordance passage passages source sources document documents text texts based following follows
    given provided information answer answers question stated states state says said say mentioned mentions
    found here summary context note please sure certainly okay ok however additionally furthermore also
    therefore called named known located
"""))
NEGATIONS = frozenset(re.findall(r"\S+", """
    not no never none nobody nothing neither nor without cannot n't hardly unable
"""))
MODAL = frozenset(re.findall(r"\S+", """
    plan plans planned planning propose proposes proposed proposal expect expects expected may might could would
    consider considered considering reject rejected deny denied denies rumour rumours rumor rumors alleged
    allegedly claim claims claimed hope hopes hoped intend intends intended scheduled possibly perhaps probably
    likely unlikely reportedly candidate estimated forecast will shall if unless cancelled canceled abandoned
    supposed
"""))
_OPPOSITES = """increase/decrease increased/decreased rose/fell rise/fall before/after more/less more/fewer above/below
    open/close opened/closed opens/closes north/south northern/southern east/west eastern/western largest/smallest
    larger/smaller biggest/smallest highest/lowest higher/lower longest/shortest longer/shorter oldest/newest
    older/newer older/younger won/lost win/lose accepted/rejected approved/rejected allowed/forbidden
    allowed/prohibited legal/illegal first/last earliest/latest early/late left/right inside/outside hot/cold dry/wet
    male/female man/woman father/mother son/daughter brother/sister husband/wife buy/sell bought/sold import/export
    arrive/depart arrives/departs arrived/departed joined/left gained/lost start/end started/ended began/ended
    upstream/downstream public/private free/paid day/night summer/winter morning/evening true/false safe/dangerous
    major/minor minimum/maximum present/absent alive/dead built/demolished founded/dissolved safe/unsafe
    possible/impossible"""
OPPOSITES: dict[str, frozenset[str]] = {}
for _pair in _OPPOSITES.split():
    for _one, _other in (_pair.split("/"), _pair.split("/")[::-1]):
        OPPOSITES[_one] = OPPOSITES.get(_one, frozenset()) | {_other}

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_SUFFIXES = ("ingly", "edly", "ation", "ments", "ment", "ings", "ing", "ions", "ion", "ies", "ied", "ers", "ed", "es",
             "er", "ly", "s", "e")


def normalised(text: str) -> str:
    """Small letters, plain quotes and dashes, no accents, single spaces: what quotes are compared by."""
    text = unicodedata.normalize("NFKD", text).casefold()
    text = "".join(c for c in text if not unicodedata.combining(c))
    text = text.replace("’", "'").replace("‘", "'").translate(dict.fromkeys(map(ord, "“”„«»"), '"'))
    return re.sub(r"\s+", " ", re.sub("[‐‑–—]", "-", text)).strip()


def words(text: str) -> list[str]:
    """The words of a text, small letters, possessive 's cut off."""
    return [re.sub(r"'s?$", "", w) for w in _WORD.findall(normalised(text))]


def stem(word: str) -> str:
    """A word without its commonest endings; at least three letters stay. Crude: it need only be the same both times."""
    if word.isdigit():
        return word
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= 3 and not (suffix == "s" and word.endswith("ss")):
            word = word[: -len(suffix)] + ("y" if suffix in ("ies", "ied") else "")
            break
    if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "aeiouls":
        word = word[:-1]
    return word[:-1] if len(word) > 3 and word[-1] in "ey" else word


_IRREGULAR = {a: b for b, many in {
    "build": "built", "win": "won", "lead": "led", "hold": "held", "sell": "sold", "buy": "bought",
    "begin": "began begun",
    "run": "ran", "write": "wrote written", "grow": "grew grown", "rise": "rose risen", "fall": "fell fallen",
    "speak": "spoke spoken", "find": "found", "make": "made", "stand": "stood", "pay": "paid",
    "person": "people", "child": "children", "long": "length", "wide": "width", "deep": "depth",
    "lie": "lies lying", "open": "opening opened", "teach": "taught", "high": "height tall",
    "price": "cost costs costing", "population": "inhabitants residents", "establish": "founded",
    "weight": "weigh weighs weighed heavy", "break": "broke broken", "choose": "chose chosen",
}.items() for a in many.split()}


_NAME = re.compile(r"\b[^\W\d_a-z][\w’'-]*(?:\s+(?:of|the|de|van|von|al|del|la)(?=\s+[A-Z])|"
                   r"\s+[A-Z][\w’'-]*)*")


def stems(text: str) -> frozenset[str]:
    """The stems of a text's content words; numbers are left out: they are compared by value."""
    return frozenset(stem(_IRREGULAR.get(w, w)) for w in words(text)
                     if w not in LITTLE and len(w) > 1 and not w[0].isdigit() and not w.endswith("n't"))


def names(text: str) -> list[tuple[str, int]]:
    """(name, where it begins) of each run of capitalised words that is a name, as far as letters tell.

    A capital at a sentence's beginning is none, unless another capitalised word follows it, or it stands inside the
    text again.
    """
    found: list[tuple[str, int]] = []
    for match in _NAME.finditer(text):
        name, start = match[0], match.start()
        if not name[0].isupper():
            continue
        before = text[:start].rstrip(" \"'“‘([*_-")
        at_beginning = not before or before[-1] in ".!?:\n"
        while at_beginning and (first := re.match(r"[\w’'-]+\s*", name)) and \
                (first[0].strip().casefold() in LITTLE | FRAME):
            name, start, at_beginning = name[first.end():], start + first.end(), False
        if not name or name.casefold() in LITTLE or not name[0].isupper():
            continue
        if at_beginning and len(name.split()) == 1 and not re.search(rf"(?<=[a-z,] ){re.escape(name)}\b", text):
            continue
        found.append((re.sub(r"[’']s?$", "", name), start))
    return found
