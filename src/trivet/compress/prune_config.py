"""Settings of the stage `prune`. No torch."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from trivet.compress.calibration_config import Calibration, HeldOut
from trivet.config import EMBEDDED, Device, Part, StageConfig

ZEROS = ("magnitude", "wanda", "sparsegpt")
"""Methods that set single weights to zero; the others leave whole parts out."""


class Zeros(Part):
    """Single weights set to zero: magnitude, wanda, sparsegpt."""

    sparsity: float = Field(0.5, gt=0, lt=1)
    """Share of the weights of each chosen layer that become zero."""
    pattern: Literal["unstructured", "2:4", "4:8"] = "unstructured"
    """N:M: N weights out of every M neighbours of a row, which some hardware can skip. Both make half of them zero."""
    targets: list[str] | Literal["all-linear"] = "all-linear"
    """Which layers of the blocks: all, or the ends of their names, such as up_proj down_proj."""
    damping: float = Field(0.01, gt=0, le=1)
    """sparsegpt: this share of the Hessian's mean diagonal is added to its diagonal."""
    columns: int = Field(128, ge=1)
    """sparsegpt: the weights of so many columns are chosen together."""

    @model_validator(mode="after")
    def _pattern_says_the_share(self) -> Self:
        if self.pattern != "unstructured" and self.sparsity != 0.5:
            raise ValueError(f"the pattern {self.pattern} makes half of the weights zero, sparsity says {self.sparsity}"
                             ": leave sparsity out")
        return self


class Depth(Part):
    """Whole blocks left out."""

    layers: int | None = Field(None, ge=1)
    """How many blocks to leave out. Default: `share` of them."""
    share: float = Field(0.25, gt=0, lt=1)
    """Share of the blocks to leave out, where `layers` is not given."""
    order: Literal["once", "greedy"] = "once"
    """once: the loss is measured without each block in turn, and the least missed go. greedy: measured again after
    each removal, which takes as many times longer as blocks are removed, and is better."""
    windows: int = Field(4, ge=1)
    """How many of the calibration windows rank the blocks."""


class Width(Part):
    """Feed-forward channels and attention groups left out of every block."""

    channels: float = Field(0.25, ge=0, lt=1)
    """Share of the feed-forward channels of each block to leave out."""
    groups: int = Field(0, ge=0)
    """How many key/value heads of each block to leave out, each with the query heads that share it."""
    damping: float = Field(0.01, gt=0, le=1)
    """How near the weights that stay are kept to what they were: a share of the inputs' mean square."""


class PruneConfig(StageConfig):
    """Weights, blocks, channels or attention groups removed from a model."""

    input_fields: ClassVar[tuple[str, ...]] = ("model", "calibration.data", "held_out.data")
    not_in_fingerprint: ClassVar[tuple[str, ...]] = ("out", "overwrite")

    method: Literal["magnitude", "wanda", "sparsegpt", "depth", "width"]
    """magnitude, wanda, sparsegpt set single weights to zero: neither smaller nor faster in itself. depth leaves out
    whole blocks, width channels and attention heads: really smaller and faster."""
    model: str = EMBEDDED
    """Folder or hub id of the model to prune; an adapter is merged first."""
    zeros: Zeros = Zeros()
    """Of magnitude, wanda, sparsegpt."""
    depth: Depth = Depth()
    """Of depth."""
    width: Width = Width()
    """Of width."""
    calibration: Calibration = Calibration()
    """Text that shows what the layers are given; magnitude needs none."""
    held_out: HeldOut = HeldOut()
    """Text whose perplexity is measured before and after."""
    batch_size: int = Field(8, ge=1)
    """Windows run through a block at a time."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What the weights are stored as. auto: as in the source; float32 for an adapter, merged."""
    device: Device = Device()
    """Where to compute."""

    @model_validator(mode="after")
    def _nothing_ignored(self) -> Self:
        own = "zeros" if self.method in ZEROS else self.method
        for name, default in (("zeros", Zeros()), ("depth", Depth()), ("width", Width())):
            if name != own and getattr(self, name) != default:
                raise ValueError(f"the method {self.method} has no settings under `{name}`: leave them out, or choose "
                                 f"{' or '.join(ZEROS) if name == 'zeros' else name}")
        if self.method == "width" and not self.width.channels and not self.width.groups:
            raise ValueError("width leaves nothing out: give width.channels or width.groups")
        if self.method == "depth" and self.depth.windows > self.calibration.windows:
            raise ValueError(f"depth.windows is {self.depth.windows}, calibration.windows {self.calibration.windows}: "
                             "raise the latter")
        return self
