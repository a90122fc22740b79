"""What `revise` writes: every round of every prompt, and the rows that `sft` learns from. No torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from trivet.artifacts import Message, Row
from trivet.constitution.gates import Gate


class Revision(BaseModel):
    """One revision, and what the gates say of it."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    text: str
    """Without what leads to it, such as `Here is the revised answer:`."""
    written: str | None = None
    """As it was written, where that differs."""
    ended: bool
    similarity: float
    """With what it revises or the first answer, whichever is nearer."""
    echo: float
    """Share of its words that are said after what was shown to the model."""
    better: float | None = None
    """The judge's probability that it is better than what it revises; None where no judge was asked, since there is
    none or another gate had stopped it."""
    given: float | None = None
    """The same, asked with what it revises as the second answer; `better` is the mean of `given` and `swapped`. None
    where both orders were not asked for."""
    swapped: float | None = None
    """The same, asked with what it revises as the first answer."""
    stopped_by: list[Gate] = []
    """The gates that it did not pass; none: it may go on."""


class Round(BaseModel):
    """One critique, and the revisions after it."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())
    round: int = Field(ge=1)
    principle: str
    critique: str | None
    """None: no critique was asked for, or it was empty; the revision was asked for at once."""
    revisions: list[Revision]
    taken: int | None
    """Which of them went on; None: what they revise did."""


class Trace(Row):
    """All that happened to one prompt."""

    id: str
    messages: list[Message]
    tags: list[str] = []
    constitution: str
    """The sha256 of the constitution's content."""
    target: str
    critic: str | None
    reviser: str
    judge: str | None
    first: str
    """The target's answer."""
    first_ended: bool
    rounds: list[Round]
    final: str | None
    """The last revision that passed; None: the prompt was dropped."""


class Tuning(Row):
    """A conversation to learn from: the last turn only, for earlier ones may be what should not be said."""

    id: str
    messages: list[Message] = Field(min_length=2)
    learn: Literal["last"] = "last"
    tags: list[str] = []
    source: Literal["revision", "helpful"]
    round: int | None = None
    """Of a revision: the round that it comes from."""
    constitution: str
