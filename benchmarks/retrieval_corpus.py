"""Documents with planted facts that no model can know, and questions about them: all invented, made by rule from a seed.

Towns, people, companies and products have made-up names, and their facts are dated after any model's training. Each fact
has a sentence of its own among others with other numbers, and a question in other words. Some facts were changed: the
town's yearbook of 2031 says the old value and stands beside the register of 2033, as archives do.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

Kind = Literal["plain", "changed", "as_of", "unknown name", "unknown attribute", "older than asked"]
OLD, NEW = "2031-03-01T00:00:00+00:00", "2033-06-01T00:00:00+00:00"
_A = "Vel Dun Has Orr Bren Cas Tul Mor Fen Gar Lind Sel Ost Kar Nim Pel Rav Wes Yar Zel Hul Jor Arn Ebb".split()
_B = "mora mere wick ingen dale holm ston bury vik garth by sund ford hagen minster".split()
_FIRST = "Ada Ben Cleo Dario Edda Finn Greta Hugo Ines Jonas Kaia Leif Mira Nils Orla Pavel Runa Sven Tilda Ulf".split()
_LAST = "Quist Harrow Brask Oslund Tamm Veldt Kroll Aske Lund Ferro Dahlin Holt Rask Stroem Wren Zander Ibsen".split()
_THING = "Halcyon Meridian Solstice Aurel Corvin Lumen Petrel Tern Zephyr Quill Onyx Sable Brio Cirrus".split()


@dataclass(frozen=True)
class Section:
    """A passage of a document."""

    document: str
    title: str
    heading: str
    text: str
    modified: str


@dataclass(frozen=True)
class Question:
    """A question with what answers it."""

    id: str
    kind: Kind
    text: str
    answers: tuple[str, ...]
    """Spellings of the right value; empty where the documents have none."""
    gold: tuple[tuple[str, str], ...] = ()
    """(document, heading) of the sections that say it."""
    wrong: tuple[str, ...] = ()
    """Values that were right at another time."""
    as_of: str | None = None
    since: str | None = None

    @property
    def answerable(self) -> bool:
        return bool(self.answers)


def corpus(seed: int, towns: int = 24) -> tuple[list[Section], list[Question]]:
    """Sections and questions: eight plain facts a town, two changed ones asked for now and as of 2031, and unanswerable
    ones of three kinds. 24 towns: 264 questions, a quarter of them unanswerable."""
    rng = random.Random(seed)
    names = rng.sample([a + b for a in _A for b in _B], towns + towns)
    people = rng.sample([f"{a} {b}" for a in _FIRST for b in _LAST], 6 * towns)
    sections: list[Section] = []
    questions: list[Question] = []
    for i in range(towns):
        found, asked = _town(rng, i, names[i], people[6 * i : 6 * i + 6], names[towns + i])
        sections += found
        questions += asked
    return sections, questions


def _town(rng: random.Random, i: int, town: str, people: list[str], unknown: str
          ) -> tuple[list[Section], list[Question]]:
    old_mayor, mayor, head, founder, designer, _ = people
    register, book = f"registers/{town.lower()}.md", f"yearbooks/{town.lower()}-2031.md"
    thing = f"{_THING[i % len(_THING)]} {rng.randint(2, 9)}{rng.choice('ABCX')}"
    old_pop, pop = rng.sample(range(2100, 9900), 2)
    length, width, year, height = rng.randint(120, 980), rng.randint(9, 31), rng.randint(2028, 2032), rng.randint(21, 74)
    ticket, card = rng.sample(range(4, 39), 2)
    weight, hours = rng.randint(3, 48), rng.randint(5, 40)
    visitors, staff = rng.randint(11, 89) * 1000, rng.randint(23, 190)
    month = rng.choice("March April June July September October November".split())
    day, opened = rng.randint(2, 27), rng.choice("February March May June August".split())
    bridge = f"{town} Bridge"
    # half the towns have a sentence that lacks what others say of the like
    tells_width = i % 2 == 0
    sections = [
        Section(book, f"Yearbook of {town} 2031", "Town hall", f"The mayor of {town} is {old_mayor}. {town} has "
                f"{old_pop:,} inhabitants. The town hall stands on the market square.", OLD),
        Section(register, f"Register of {town}", "Town hall", f"The mayor of {town} is {mayor}. {town} has {pop:,} "
                f"inhabitants. The council meets on the first Monday of the month.", NEW),
        Section(register, f"Register of {town}", "Bridge", f"The {bridge} was opened on {day} {opened} {year}. It is {length} "
                f"metres long{f' and {width} metres wide' if tells_width else ''}. It was designed by {designer}. Repairs "
                f"of the pier took {hours} days.", NEW),
        Section(register, f"Register of {town}", "Museum", f"A ticket of the {town} Museum costs {ticket} crowns, and a "
                f"yearly card {card} crowns. The museum shows looms and ship models. {staff} people work there.", NEW),
        Section(register, f"Register of {town}", "Fair", f"The {town} Fair is held every {month}. In 2032 it drew "
                f"{visitors:,} visitors. Stalls are given out by lot.", NEW),
        Section(register, f"Register of {town}", "Works", f"{town} Works makes the {thing} lamp, which weighs {weight} kg. "
                f"The firm was founded by {founder}. Its chimney is {height} metres high.", NEW),
        Section(register, f"Register of {town}", "School", f"The {town} School is led by {head}. Lessons begin at 8:{day + 20}. "
                f"Pupils from the islands come by ferry.", NEW),
    ]

    def section(heading: str) -> tuple[tuple[str, str], ...]:
        return ((register, heading),)

    rows: list[tuple[Kind, str, tuple[str, ...], tuple[tuple[str, str], ...], tuple[str, ...], str | None, str | None]] = [
        ("plain", f"In what year was the {bridge} opened?", (str(year),), section("Bridge"), (), None, None),
        ("plain", f"How long is the {bridge}?", (f"{length}",), section("Bridge"), (), None, None),
        ("plain", f"Who designed the {bridge}?", (designer,), section("Bridge"), (), None, None),
        ("plain", f"What does a ticket of the {town} Museum cost?", (f"{ticket} crowns",), section("Museum"), (), None, None),
        ("plain", f"In which month is the {town} Fair held?", (month,), section("Fair"), (), None, None),
        ("plain", f"How heavy is the {thing} lamp of {town} Works?", (f"{weight} kg", f"{weight} kilograms"),
         section("Works"), (), None, None),
        ("changed", f"Who is the mayor of {town}?", (mayor,), section("Town hall"), (old_mayor,), None, None),
        ("as_of", f"How many inhabitants does {town} have?", (f"{old_pop:,}", str(old_pop)), ((book, "Town hall"),),
         (f"{pop:,}", str(pop)), "2032-01-01T00:00:00+00:00", None),
        ("unknown name", f"Who is the mayor of {unknown}?", (), (), (), None, None),
        ("unknown attribute", rng.choice([f"How many visitors did the {town} Museum have in 2032?",
                                          f"In what year was the {town} School founded?",
                                          f"What does a stall of the {town} Fair cost?",
                                          f"How deep is the harbour of {town}?"]), (), (), (), None, None),
    ]
    if not tells_width:
        rows.append(("unknown attribute", f"How wide is the {bridge}?", (), (), (), None, None))
    if i % 2 == 0:
        rows.append(("older than asked", f"Who leads the {town} School?", (), (), (), None, "2034-01-01T00:00:00+00:00"))
    return sections, [Question(f"{town.lower()}-{n}", kind, text, answers, gold, wrong, as_of, since)
                      for n, (kind, text, answers, gold, wrong, as_of, since) in enumerate(rows, 1)]
