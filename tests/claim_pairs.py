"""Claims and passages of our own with known verdicts: what the gate of grounded answers is measured on.

Each is (kind, heading, passage, claim, whether the passage bears the claim out). All names are invented. The kinds
`relation` and `inference` hold what rules on words can't see: they are here so that the figures say so.
"""

from __future__ import annotations

from typing import NamedTuple


class Pair(NamedTuple):
    """A claim about a passage."""

    kind: str
    heading: str
    passage: str
    claim: str
    borne_out: bool


BRIDGE = ("Bridges of Velmora", "The Tal Bridge crosses the Orrin at Velmora. It was opened on 3 May 2031 by mayor "
          "Ada Quist. "
          "The bridge is 340 metres long and 24 metres wide, and cost 18.5 million crowns. Cyclists cross it free of "
          "charge; lorries above 7.5 tonnes are not allowed on it. A second deck is planned for 2036.")
LIGHT = ("Port of Hask", "The lighthouse of Hask stands 41 metres high. The lighthouse of Ebbing is 36 metres high. "
         "Keeper Jon "
         "Brask retired in 2032, and his daughter Lene Brask took over. \"No ship was lost that winter,\" the harbour "
         "office wrote. In 2033, 1,204 ships called at Hask, 12% more than in 2032.")
FAIR = ("Sorrel fair", "The Sorrel fair takes place every October. In 2034 it drew twenty-one thousand visitors, "
        "fewer than in "
        "2033. The fair does not sell tickets at the gate. A day ticket costs 14 crowns. "
        "Opening hours are 9:30 to 18:00. "
        "The council rejected a plan to move the fair to Dunmere.")
LAB = ("Ferrin Laboratory", "Dr. Mira Oslund leads the Ferrin Laboratory. The laboratory was founded in 2029 and "
       "employs 64 "
       "people. Its Halcyon battery stores 3.2 kWh and weighs 11 kg. The Halcyon battery may be sold from 2035, the "
       "company says. The older Meridian battery weighs 15 kg.")

_SAID: list[tuple[str, tuple[str, str], str, bool]] = [
    # borne out
    ("copy", BRIDGE, "The bridge is 340 metres long and 24 metres wide.", True),
    ("copy", LIGHT, "The lighthouse of Hask stands 41 metres high.", True),
    ("copy", FAIR, "A day ticket costs 14 crowns.", True),
    ("copy", LAB, "Dr. Mira Oslund leads the Ferrin Laboratory.", True),
    ("number written otherwise", BRIDGE, "The Tal Bridge is 0.34 km long.", True),
    ("number written otherwise", BRIDGE, "The bridge was opened on May 3, 2031.", True),
    ("number written otherwise", BRIDGE, "The bridge cost 18,500,000 crowns.", True),
    ("number written otherwise", LIGHT, "In 2033, 1204 ships called at Hask, twelve percent more than in 2032.", True),
    ("number written otherwise", FAIR, "In 2034 the fair drew 21,000 visitors.", True),
    ("number written otherwise", FAIR, "Opening hours are 9.30 a.m. to 6 pm.", True),
    ("number written otherwise", LAB, "The laboratory employs sixty-four people.", True),
    ("less exact", BRIDGE, "The Tal Bridge was opened in 2031.", True),
    ("less exact", BRIDGE, "The bridge opened in May 2031.", True),
    ("other word forms", BRIDGE, "Ada Quist, the mayor, opened the Tal Bridge in Velmora.", True),
    ("other word forms", LAB, "The Halcyon battery's weight is 11 kg.", True),
    ("other word forms", LIGHT, "Lene Brask took over when Jon Brask retired.", True),
    ("other word forms", LAB, "The Ferrin Laboratory is led by Mira Oslund.", True),
    ("negation kept", BRIDGE, "Lorries above 7.5 tonnes are not allowed on the bridge.", True),
    ("negation kept", FAIR, "Tickets are not sold at the gate of the fair.", True),
    ("negation kept", BRIDGE, "Lorries heavier than 7.5 tonnes can't use the bridge: they aren't allowed.", True),
    ("quote", LIGHT, "The harbour office wrote that \"no ship was lost that winter\".", True),
    ("plan kept", BRIDGE, "A second deck is planned for 2036.", True),
    ("plan kept", LAB, "The Halcyon battery may be sold from 2035.", True),
    ("from two sentences", BRIDGE, "The Tal Bridge, opened in 2031, is 340 metres long.", True),
    ("from two sentences", LAB, "The Ferrin Laboratory, led by Mira Oslund, was founded in 2029.", True),
    ("pronoun", LIGHT, "Jon Brask, the keeper, retired in 2032.", True),
    ("yes", BRIDGE, "Yes, cyclists cross the bridge free of charge.", True),
    ("paraphrase", BRIDGE, "Riding a bicycle over the bridge costs nothing.", True),
    ("paraphrase", FAIR, "Visitor numbers went down between 2033 and 2034.", True),
    ("paraphrase", LAB, "Mira Oslund is the head of the Ferrin Laboratory.", True),
    # not borne out
    ("wrong number", BRIDGE, "The bridge is 430 metres long.", False),
    ("wrong number", FAIR, "A day ticket costs 40 crowns.", False),
    ("wrong number", LAB, "The laboratory employs 46 people.", False),
    ("wrong number", LIGHT, "In 2033, 1,240 ships called at Hask.", False),
    ("wrong date", BRIDGE, "The Tal Bridge was opened on 5 March 2031.", False),
    ("wrong date", LAB, "The laboratory was founded in 2019.", False),
    ("wrong date", LIGHT, "Keeper Jon Brask retired in October 2032.", False),
    ("wrong unit", BRIDGE, "The bridge is 340 kilometres long.", False),
    ("wrong unit", LAB, "The Halcyon battery weighs 11 tonnes.", False),
    ("wrong name", BRIDGE, "The Tal Bridge was opened by mayor Ben Harrow.", False),
    ("wrong name", FAIR, "The council rejected a plan to move the fair to Velmora.", False),
    ("wrong name", LAB, "The Solstice battery weighs 11 kg.", False),
    ("another's number", LIGHT, "The lighthouse of Ebbing is 41 metres high.", False),
    ("another's number", LAB, "The Meridian battery weighs 11 kg.", False),
    ("another's number", BRIDGE, "The bridge is 24 metres long.", False),
    ("negation", BRIDGE, "Lorries above 7.5 tonnes are allowed on the bridge.", False),
    ("negation", FAIR, "The fair sells tickets at the gate.", False),
    ("negation", BRIDGE, "Cyclists do not cross it free of charge.", False),
    ("opposite", FAIR, "In 2034 the fair drew more visitors than in 2033.", False),
    ("opposite", LIGHT, "In 2033, ships called at Hask 12% less than in 2032.", False),
    ("plan as fact", BRIDGE, "A second deck was opened in 2036.", False),
    ("plan as fact", LAB, "The Halcyon battery is sold from 2035.", False),
    ("plan as fact", FAIR, "The fair moved to Dunmere.", False),
    ("quote", LIGHT, "The harbour office wrote: \"Two ships were lost that winter.\"", False),
    ("added", BRIDGE, "The bridge is 340 metres long and painted dark green by local artists.", False),
    ("added", LAB, "The Halcyon battery weighs 11 kg and won a national design prize.", False),
    ("nothing of it", FAIR, "The town of Hask lies on an island in the north.", False),
    ("nothing of it", LIGHT, "Photosynthesis turns sunlight into sugar.", False),
    ("general knowledge", BRIDGE, "Paris is the capital of France.", False),
    ("relation", LIGHT, "Jon Brask took over from Lene Brask.", False),
    ("relation", BRIDGE, "Ada Quist cost 18.5 million crowns.", False),
    ("relation", LIGHT, "Jon Brask is the daughter of Lene Brask.", False),
    ("inference", LAB, "The Halcyon battery stores 3.2 kWh in each kg.", False),
    ("inference", FAIR, "The fair takes place every October and costs 14 crowns at the gate.", False),
]
PAIRS = [Pair(kind, about[0], about[1], claim, borne_out) for kind, about, claim, borne_out in _SAID]
