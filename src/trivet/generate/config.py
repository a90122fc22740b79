"""Settings of sampling, and of the stage `sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from trivet.config import EMBEDDED, Device, Part, StageConfig


class Sampling(Part):
    """How answers are drawn."""

    temperature: float = Field(1.0, ge=0, le=10)
    """Logits are divided by it; 0 is greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Keep the fewest tokens whose probabilities add up to this. 1: all."""
    top_k: int = Field(0, ge=0)
    """Keep the K most probable tokens. 0: all."""
    max_new_tokens: int = Field(128, ge=1)
    """An answer longer than this is cut off."""
    stop: list[Annotated[str, Field(min_length=1)]] = []
    """Texts that end an answer; its text is cut before them."""


class SampleConfig(StageConfig):
    """Several answers to each prompt, from one model."""

    input_fields: ClassVar[tuple[str, ...]] = ("prompts", "model")
    not_in_fingerprint: ClassVar[tuple[str, ...]] = ("out", "overwrite", "batch_size")

    out: Path = Path("runs/sample")
    """Folder of this stage's run."""
    prompts: Path
    """Prompts as JSON Lines: `messages`, or plain `prompt`; optional `id`, `reference`, `tags`."""
    model: str = EMBEDDED
    """A model folder, an adapter folder, a hub id, or the embedded default."""
    completions: int = Field(4, ge=1)
    """Answers to each prompt."""
    limit: int | None = Field(None, ge=1)
    """Take only the first N prompts."""
    sampling: Sampling = Sampling(temperature=1.0)
    """How answers are drawn."""
    batch_size: int = Field(32, ge=1)
    """Answers generated side by side."""
    device: Device = Device()
    """Where to compute."""
