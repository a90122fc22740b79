"""Settings of the text that calibrates a compression, and of the text it is measured on. No torch."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from trivet.config import Part


class Calibration(Part):
    """Text that is run through the model to see what its layers are given."""

    data: Path | None = None
    """JSON Lines with `text`, `messages`, `prompt` with `completion` …, or a .txt file. Default: the starter set."""
    windows: int = Field(32, ge=1)
    """How many pieces of text."""
    length: int = Field(512, ge=8)
    """Tokens of a piece."""


class HeldOut(Part):
    """Text on which the model is measured before and after."""

    data: Path | None = None
    """As of calibration; one file for both is parted by a hash of each text. Default: Trivet's own prose."""
    windows: int | None = Field(None, ge=1)
    """How many pieces of text. Default: all there are."""
    length: int = Field(512, ge=8)
    """Tokens of a piece."""
