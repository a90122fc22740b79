"""Principles in a file: what an answer is criticised by, how it is to be revised, and by what two answers are compared.

After Bai et al. 2022, 'Constitutional AI' (arXiv 2212.08073): a pair of requests for each principle (critique and
revision, section 3.1), a question for comparisons (section 4.1), and dialogues that are shown first, so that the model
knows a critique from a revision (section 3.1). The shipped file is in our own words. No torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, StringConstraints, ValidationError, field_validator, model_validator

from trivet.artifacts import Message, text_digest
from trivet.config import Part, config_error, load_yaml
from trivet.errors import TrivetError
from trivet.judge.cases import Criterion

SHIPPED = Path(__file__).with_name("constitution.yaml")
"""The constitution that is used where none is given."""
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
_NAME = re.compile(r"[a-z0-9]+(?:[-_][a-z0-9]+)*")


class _Misfit(ValueError):
    """Parts that are sound one by one, and don't go together."""

    def __init__(self, what: str, place: tuple[str | int, ...], mend: str) -> None:
        super().__init__(what)
        self.place, self.mend = place, mend


class Principle(Part):
    """One principle: two requests and a question, which must be understood without its name."""

    name: str
    """Its name in files and tables: small letters, digits, hyphens."""
    critique: Text
    """What the critic is asked of an answer that stands above."""
    revision: Text
    """What the reviser is asked after the critique."""
    preference: Text
    """A question of two answers: which of them …? A judge replies with one of their letters."""
    weight: float = Field(1.0, ge=0, le=1e6)
    """How often it is drawn, beside the others' weights. 0: never."""
    openings: list[Text] = []
    """What a revision by it may begin with, for a reviser too small to follow the request (`revise --openings`)."""

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError("a principle's name is of small letters, digits and hyphens, such as less-harmful")
        return name

    @property
    def criterion(self) -> Criterion:
        """The preference question as what a judge is asked by."""
        return Criterion(self.name, self.preference)


class FewShot(Part):
    """A dialogue that is shown first: what a critique and a revision by one of the principles look like."""

    principle: str
    """The name of the principle, whose requests stand in the dialogue."""
    prompt: Text
    """What the user said."""
    response: Text
    """An answer that has room for improvement."""
    critique: Text
    revision: Text


class Constitution(Part):
    """Principles, and dialogues that show how to use them."""

    name: str = Field(min_length=1)
    """What it is called in reports."""
    about: str = ""
    """What it is for, in a sentence."""
    principles: list[Principle] = Field(min_length=1)
    few_shot: list[FewShot] = []
    """The first of them are shown, as many as a stage asks for."""

    @model_validator(mode="after")
    def _hangs_together(self) -> Constitution:
        names = [p.name for p in self.principles]
        for i, name in enumerate(names):
            if name in names[:i]:
                raise _Misfit(f"two principles are called {name!r}", ("principles", i, "name"),
                              "give each principle a name of its own")
        if not any(p.weight for p in self.principles):
            raise _Misfit("all principles have weight 0, so that none can be drawn", ("principles",),
                          "give a weight above 0 to those that count")
        for i, shot in enumerate(self.few_shot):
            if shot.principle not in names:
                raise _Misfit(f"no principle is called {shot.principle!r}", ("few_shot", i, "principle"),
                              "name one of this file: its requests stand in the dialogue")
        return self

    @cached_property
    def sha256(self) -> str:
        """Of the content: comments, layout and the order of keys do not change it. Stands in every artifact."""
        data = json.dumps(self.model_dump(), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(data.encode()).hexdigest()

    def named(self, name: str) -> Principle:
        """A principle by its name. Raises KeyError."""
        return {p.name: p for p in self.principles}[name]

    def draw(self, seed: int, item: str, round: int = 0) -> Principle:
        """The principle of an item's round, the same each time it is asked for.

        Weighted, and without replacement among the rounds of an item, until each principle has had its turn
        (Efraimidis & Spirakis 2006, 'Weighted random sampling with a reservoir': in the order of E / weight, with E
        exponential, here from a hash of seed, item and name). So a principle that is added or dropped leaves the order
        of the others as it was. Raises ValueError for a negative round.
        """
        if round < 0:
            raise ValueError(f"there is no round {round}")
        known = [p for p in self.principles if p.weight > 0]
        turn, place = divmod(round, len(known))
        waits = {p.name: _exponential(f"{seed}\0{item}\0{turn}\0{p.name}") / p.weight for p in known}
        return sorted(known, key=lambda p: (waits[p.name], p.name))[place]

    def shots(self, count: int) -> list[Message]:
        """The first `count` few-shot dialogues as turns: prompt, answer, request, critique, request, revision."""
        turns: list[Message] = []
        for shot in self.few_shot[:count]:
            principle = self.named(shot.principle)
            for said, reply in ((shot.prompt, shot.response), (principle.critique, shot.critique),
                                (principle.revision, shot.revision)):
                turns += [Message(role="user", content=said), Message(role="assistant", content=reply)]
        return turns


def load_constitution(path: str | Path | None = None) -> Constitution:
    """A constitution from a YAML file; None: the shipped one.

    Raises TrivetError with file, line and field for what does not fit.
    """
    file = SHIPPED if path is None else Path(path)
    values, lines = load_yaml(file)
    try:
        return Constitution.model_validate(values)
    except ValidationError as error:
        misfit = error.errors()[0].get("ctx", {}).get("error")
        if isinstance(misfit, _Misfit):
            raise TrivetError(str(misfit), file=file, line=lines.get(misfit.place),
                              field=".".join(map(str, misfit.place)), mend=misfit.mend) from None
        raise _file_error(error, file, lines) from None


def _file_error(error: ValidationError, file: Path, lines: dict[tuple[Any, ...], int]) -> TrivetError:
    """The first fault of the file, in words that fit a file and not a command's settings."""
    fault = config_error(error, file=file, lines=lines)
    assert fault is not None
    place = error.errors()[0]["loc"]
    kinds: dict[str, type[Part]] = {"principles": Principle, "few_shot": FewShot}
    kind = kinds.get(str(place[0]), Constitution) if len(place) > 1 else Constitution
    what = {"missing": "this is missing", "extra_forbidden": "this is not known here"}.get(
        error.errors()[0]["type"], fault.what)
    return TrivetError(what, file=file, line=fault.line, field=fault.field,
                       expected=f"the fields of a {kind.__name__}: {', '.join(kind.model_fields)}",
                       mend="correct it; `trivet constitution show` prints one to begin with")


def _exponential(text: str) -> float:
    """A draw from the exponential distribution of rate 1, from the text's hash."""
    return -math.log((int.from_bytes(text_digest(text)[:8], "big") + 0.5) / 2**64)
