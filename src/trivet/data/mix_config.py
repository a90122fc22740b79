"""Settings of the stage `mix`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from trivet.config import StageConfig


class MixConfig(StageConfig):
    """Several files of prompts, or of preference pairs, become one."""

    input_fields: ClassVar[tuple[str, ...]] = ("inputs",)

    out: Path = Path("runs/mix")
    """Folder of this stage's run."""
    inputs: list[Path] = Field(min_length=1)
    """Files of one kind: prompts, or preference pairs (JSON Lines or Parquet)."""
    take: list[Annotated[int, Field(ge=1)]] = []
    """Prompts taken of each file at most, in the files' order, drawn by the seed; pairs of a prompt stay together.
    Default: all."""

    @model_validator(mode="after")
    def _goes_together(self) -> MixConfig:
        if self.take and len(self.take) != len(self.inputs):
            raise ValueError(f"take: {len(self.take)} numbers for {len(self.inputs)} files; give one for each, or none")
        if len({p.resolve() for p in self.inputs}) < len(self.inputs):
            raise ValueError("inputs: a file is named twice")
        return self
