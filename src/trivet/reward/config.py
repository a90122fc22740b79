"""Settings of the stage `reward`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from trivet.config import (
    EMBEDDED,
    Checkpointing,
    Device,
    LoRA,
    Optimizer,
    Part,
    ReportTo,
    StageConfig,
)
from trivet.generate.config import Sampling


class CalibrationConfig(Part):
    """The reference model's own answers, among which a score is placed."""

    completions: Path | None = None
    """Answers already sampled from the base model (`trivet sample`). Default: sample some now."""
    answers: int = Field(64, ge=2)
    """How many of them at most, from as many prompts as there are."""
    sampling: Sampling = Sampling(temperature=0.7, max_new_tokens=64)
    """How they are drawn; should be the sampling that `ppo` will use."""


class RewardConfig(StageConfig):
    """A reward model trained on preference pairs; all completions of a prompt form one batch element."""

    input_fields: ClassVar[tuple[str, ...]] = ("preferences", "heldout", "model", "calibration.completions")
    not_in_fingerprint: ClassVar[tuple[str, ...]] = ("out", "overwrite", "report_to", "checkpoint", "device.shard")

    out: Path = Path("runs/reward")
    """Folder of this stage's run."""
    preferences: Path
    """Pairs to train on (`trivet pairs` writes them), JSON Lines or Parquet."""
    heldout: Path | None = None
    """Pairs of other prompts, to evaluate on. Without them nothing can be said of accuracy."""
    model: str = EMBEDDED
    """The trunk. The same one that `ppo` will align saves memory there."""
    tune: Literal["head", "lora", "full"] = "lora"
    """The head alone (for a few hundred rankings or fewer), adapters over a frozen trunk, or all weights."""
    lora: LoRA = LoRA()
    """Adapters, where tune is lora."""
    pool: Literal["last", "mean"] = "last"
    """The head reads the state of the answer's last token (the field's form), or the mean over its tokens (learns
    more from few rankings; other programs can't read it)."""
    optimizer: Optimizer = Optimizer(lr=3e-4)
    """AdamW's settings (3e-5 suits tune=full, 3e-3 tune=head)."""
    epochs: float = Field(1.0, gt=0)
    """Passes over the pairs; more than one or two overfits (InstructGPT, appendix C.2)."""
    batch: int = Field(8, ge=1)
    """Prompts a step, each with all its completions."""
    micro_batch: int | None = Field(None, ge=1)
    """Prompts a pass; fewer need less memory and change nothing else. Default: all of the step."""
    max_length: int | None = Field(None, ge=8)
    """Leave out pairs longer than this many tokens (counted in the summary). Default: the context, and an error."""
    loss: Literal["bradley-terry", "davidson"] = "bradley-terry"
    """davidson also learns from declared ties (`trivet pairs --keep-ties`)."""
    margin: bool = False
    """Ask for the pair's margin between the scores (Llama 2)."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of labels taken to be wrong."""
    centering: float = Field(0.01, ge=0)
    """Weight of the penalty on the squared sum of a pair's scores, which keeps them around 0."""
    keep_states: float = Field(4.0, ge=0)
    """GB of memory for what the frozen blocks make of the training data: with more than one epoch they then run
    once. 0: never."""
    checkpoint: Checkpointing = Checkpointing()
    """Saving."""
    calibration: CalibrationConfig = CalibrationConfig()
    """Placing scores among the reference's."""
    device: Device = Device()
    """Where to compute."""
    report_to: ReportTo = []
    """Also log to tensorboard or wandb."""
