"""Settings of program-aided answers."""

from __future__ import annotations

from pydantic import Field

from trivet.config import Part
from trivet.sandbox.base import Limits
from trivet.sandbox.config import TierName


class PalSettings(Part):
    """How many programs are written, and what each may use."""

    samples: int = Field(1, ge=1, le=64)
    """Programs that are drawn for one question; the value that most of them give is the answer."""
    temperature: float = Field(0.7, gt=0, le=10)
    """With several samples and greedy sampling: programs are drawn at this one; greedy ones would all be alike."""
    repairs: int = Field(1, ge=0, le=10)
    """Where no program worked: how often one is sent back with its error, to be written anew."""
    shown: int = Field(50, ge=0, le=1000)
    """Lines of a program's run whose values are shown."""
    limits: Limits = Limits()
    """What a program may use."""
    tiers: list[TierName] = Field(["monty", "bubblewrap", "sandlock"], min_length=1)
    """Sandboxes that may run it, in this order."""
