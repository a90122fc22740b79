"""Settings of the stage `pairs`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from trivet.config import StageConfig


class PairsConfig(StageConfig):
    """Rankings, or pairs in a form the field uses, become preference pairs, split by prompt."""

    input_fields: ClassVar[tuple[str, ...]] = ("input",)

    out: Path = Path("runs/pairs")
    """Folder of this stage's run."""
    input: Path
    """Rankings or pairs, as JSON Lines or Parquet."""
    format: Literal["auto", "ranked", "hh", "preference"] = "auto"
    """ranked: answers with ranks; hh: whole dialogues (`chosen`, `rejected`) in Human:/Assistant: form;
    preference: `prompt`, `chosen`, `rejected` as text or messages. auto: told by the first row."""
    heldout: float = Field(0.2, ge=0, lt=1)
    """Share of the prompts kept apart for evaluation, chosen by a hash of the first turn; 0 keeps none."""
    keep_ties: bool = False
    """Write declared ties as pairs with label 0.5 and tie=true, for a loss that knows ties (Davidson)."""
    seed: int = Field(0, ge=0)
    """Seed of the split: another one keeps other prompts apart."""
