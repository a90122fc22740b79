"""Settings of the stage `dpo`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from trivet.config import (
    EMBEDDED,
    Checkpointing,
    Device,
    LoRA,
    Optimizer,
    ReportTo,
    StageConfig,
)

PreferenceLoss = Literal["sigmoid", "ipo"]


class DPOConfig(StageConfig):
    """Direct preference optimization: the policy learns from pairs, with neither reward model nor sampling."""

    input_fields: ClassVar[tuple[str, ...]] = ("preferences", "heldout", "model")
    not_in_fingerprint: ClassVar[tuple[str, ...]] = ("out", "overwrite", "report_to", "checkpoint", "device.shard")

    out: Path = Path("runs/dpo")
    """Folder of this stage's run."""
    preferences: Path
    """Pairs to train on (`trivet pairs` writes them), JSON Lines or Parquet. Their `label` (probability that chosen
    wins) and `weight` are honoured; a declared tie is a label of one half."""
    heldout: Path | None = None
    """Pairs of other prompts, to evaluate on before and after."""
    model: str = EMBEDDED
    """The policy's start, and frozen the reference."""
    tune: Literal["lora", "full"] = "lora"
    """Adapters over the frozen reference, or all weights."""
    lora: LoRA = LoRA()
    """The policy's adapter, where tune is lora."""
    merge: bool = False
    """Also write the policy as a whole model, its adapter merged."""
    loss: PreferenceLoss = "sigmoid"
    """sigmoid (DPO), or ipo: a squared distance to a fixed margin, which does not run off on sure labels."""
    beta: float | None = Field(None, gt=0, le=100)
    """How hard the reference holds: implicit rewards are beta times log-ratios, and ipo aims at a margin of
    1 / (2 beta) nats. Default: 0.1, with log-ratios a token 2."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of labels taken to be wrong (conservative DPO)."""
    per_token: bool | None = None
    """Log-ratios as means a token, so that length earns nothing. Default: with ipo yes, with sigmoid no (sums)."""
    optimizer: Optimizer = Optimizer(lr=5e-5)
    """AdamW's settings (5e-7 suits tune=full)."""
    epochs: float = Field(1.0, gt=0)
    """Passes over the pairs."""
    batch: int = Field(8, ge=1)
    """Prompts a step, each with all its answers and pairs."""
    micro_batch: int | None = Field(None, ge=1)
    """Prompts a pass; fewer need less memory and change nothing else. Default: all of the step."""
    max_length: int | None = Field(None, ge=8)
    """Leave out pairs longer than this many tokens (counted in the summary). Default: the context, and an error."""
    checkpoint: Checkpointing = Checkpointing()
    """Saving."""
    device: Device = Device()
    """Where to compute."""
    report_to: ReportTo = []
    """Also log to tensorboard or wandb."""

    @model_validator(mode="after")
    def _fits(self) -> DPOConfig:
        if self.merge and self.tune == "full":
            raise ValueError("merge: with tune full the policy is a whole model already; leave it out")
        return self

    @property
    def averaged(self) -> bool:
        """`per_token`, the default resolved."""
        return self.loss == "ipo" if self.per_token is None else self.per_token

    @property
    def strength(self) -> float:
        """`beta`, the default resolved."""
        return self.beta or (2.0 if self.averaged else 0.1)
