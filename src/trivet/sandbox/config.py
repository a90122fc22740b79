"""Settings of `trivet sandbox run`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from trivet.config import Part
from trivet.sandbox.base import Limits

TierName = Literal["monty", "bubblewrap", "sandlock"]


class SandboxRunConfig(Part):
    """A program in a file, and what it may use."""

    file: Path
    """The program: Python, UTF-8."""
    limits: Limits = Limits()
    """What it may use."""
    tiers: list[TierName] = Field(["monty", "bubblewrap", "sandlock"], min_length=1)
    """Which may run it, in this order."""
    steps: int = Field(0, ge=0, le=10_000)
    """Show what so many lines wrote, as they ran."""
    json_output: bool = False
    """Print all that is known of the run as one JSON object."""
