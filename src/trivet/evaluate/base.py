"""What an evaluation is made of: measures, and what each item says of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trivet.artifacts import Row

Leg = Literal["helpful", "honest", "harmless", "capable"]
Kind = Literal["mean", "exp", "ece", "kappa", "win", "lc_win"]
"""How a measure's figure comes out of its scores (v: value, o: other, w: weight):

    mean     Σ w·v / Σ w
    exp      exp(Σ w·v / Σ w): a perplexity from nats (w: tokens)
    ece      expected calibration error of confidences o where v says whether the choice was right
    kappa    Cohen's κ between two verdicts, v and o, each 0 or 1
    win      mean of v, the probability that the model's answer beats the base's; nothing gained is 0.5
    lc_win   the same at no difference in length (o: length of the model's answer over the base's, in tokens)
"""


@dataclass(frozen=True)
class Measure:
    """A line of the table."""

    name: str
    leg: Leg
    words: str
    """What it says, in a few words for people: `attacks that succeed, by rule`."""
    better: Literal["higher", "lower", "neither"]
    kind: Kind = "mean"
    share: bool = True
    """Values lie in [0, 1] and are shown in percent."""
    unit: str = ""
    tested: bool = True
    """Compared between models by a paired test, in Holm's family. Off for what is not a property of the answers
    (speed) or follows from another measure."""
    paired: bool = True
    """An id names the same item in every run. Off for what is scored by the way, such as speed, whose items are
    stretches of work: two runs' figures stand side by side, without a difference and without a test."""

    @property
    def key(self) -> str:
        """Its name in files: leg.name."""
        return f"{self.leg}.{self.name}"


class Score(Row):
    """What one item says of one measure."""

    measure: str
    """`leg.name`."""
    id: str
    """The item: the same in every run on the same data, so that two models are compared item by item."""
    group: str
    """Items of one group (one prompt, one question) are not independent: they are drawn together."""
    value: float
    other: float | None = None
    weight: float = 1.0
    topic: str | None = None
    """What it is broken down by, such as the kind of harm."""
