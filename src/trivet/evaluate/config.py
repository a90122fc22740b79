"""Settings of the stage `check`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from trivet.config import EMBEDDED, Device, StageConfig
from trivet.generate.config import Sampling

MAX_FAIL = 0.34  # largest share of answers that may fail; `sft` and `ppo` ask with it, too


class CheckConfig(StageConfig):
    """Can this model answer such prompts at all? Refused if not, with its answers as evidence."""

    input_fields: ClassVar[tuple[str, ...]] = ("prompts", "model")
    not_in_fingerprint: ClassVar[tuple[str, ...]] = ("out", "overwrite", "force")

    out: Path = Path("runs/check")
    """Folder of this stage's run."""
    prompts: Path
    """Prompts as JSON Lines: `messages`, or plain `prompt`."""
    model: str = EMBEDDED
    """A model folder, an adapter folder, a hub id, or the embedded default."""
    count: int = Field(12, ge=1)
    """How many of the prompts it has to answer, drawn by the seed."""
    sampling: Sampling = Sampling(temperature=0.7, max_new_tokens=64)
    """How answers are drawn."""
    max_fail: float = Field(MAX_FAIL, ge=0, le=1)
    """Largest share of the answers that may fail (empty, looping, gibberish, off-language)."""
    force: bool = False
    """Go on with a model that fails; the verdict is written down all the same."""
    device: Device = Device()
    """Where to compute."""
