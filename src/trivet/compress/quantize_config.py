"""Settings of the stage `quantize`, and of whatever trains through a quantization."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trivet.config import Part


class Grid(Part):
    """The numbers a weight may take: integers times a scale, that is shared by a group of neighbours in a row."""

    bits: Literal[3, 4, 8] = 4
    """Bits of an integer."""
    group: int | None = Field(64, ge=2, le=65_536)
    """Neighbouring weights of a row that share a scale; it must divide every row. None: the whole row."""
    symmetric: bool = True
    """Integers around 0. False: a zero point a group, which costs more bits and follows lopsided groups."""
    scales: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """What a scale is stored as. It is rounded before the weights are, so that every form holds the same numbers."""
