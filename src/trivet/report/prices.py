"""What things cost, by a price table of the user's, and what a stage cost by it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from trivet.config import Part, load_yaml, validate
from trivet.errors import TrivetError
from trivet.ledger import Calls


class EndpointPrice(Part):
    """Per million tokens."""

    input: float = Field(ge=0)
    """Tokens that the endpoint reads."""
    output: float = Field(ge=0)
    """Tokens that it writes."""


class Prices(Part):
    """A price table. What has no price is in no cost."""

    currency: str = Field("", max_length=12)
    """Shown behind each cost."""
    machine_hour: float | None = Field(None, ge=0)
    """An hour of the machine, wall clock."""
    gpu_hour: float | None = Field(None, ge=0)
    """An hour of one GPU, on top of the machine's."""
    person_hour: float | None = Field(None, ge=0)
    """An hour of people's work on rankings."""
    endpoints: dict[str, EndpointPrice] = {}
    """By the model's name at its endpoint."""

    def cost(self, *, seconds: float, gpu_seconds: float, people_seconds: float | None,
             endpoints: Mapping[str, Calls]) -> float | None:
        """The cost, in the table's currency, of what has a price and is known; None where nothing has and is.

        No time is none that was measured, and no tokens of an endpoint are tokens that it did not tell.
        """
        hours = ((self.machine_hour, seconds), (self.gpu_hour, gpu_seconds), (self.person_hour, people_seconds))
        known = [price * time / 3600 for price, time in hours if price is not None and time]
        known += [(p.input * calls.input_tokens + p.output * calls.output_tokens) / 1e6
                  for model, calls in endpoints.items() if calls.tokens and (p := self.endpoints.get(model))]
        return sum(known) if known else None


def read_prices(path: Path) -> Prices:
    """A price table. Raises TrivetError, with the line, for one that does not fit or holds no price."""
    values, lines = load_yaml(path)
    found = validate(Prices, values, file=path, lines=lines)
    if not found.endpoints and found.machine_hour is found.gpu_hour is found.person_hour is None:
        raise TrivetError("this price table holds no price", file=path,
                          expected="one of machine_hour, gpu_hour, person_hour, endpoints",
                          mend="give a price, or leave --prices out (docs/ledger.md has an example)")
    return found
