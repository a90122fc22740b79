"""Settings of the stage `quantize`, and of whatever trains through a quantization. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from trivet.compress.calibration_config import Calibration, HeldOut
from trivet.config import EMBEDDED, Device, Part, StageConfig


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


class QuantizeConfig(Grid, StageConfig):
    """Weights as integers, and the form that they are written in."""

    input_fields: ClassVar[tuple[str, ...]] = ("model", "calibration.data", "held_out.data")

    out: Path = Path("runs/quantize")
    """Folder of this stage's run."""
    model: str = EMBEDDED
    """The model to quantize: a folder with safetensors weights, an adapter (merged), a hub id, the embedded one."""
    name: str | None = None
    """What tables call the result. Default: made of method and bits."""
    format: Literal["safetensors", "compressed-tensors"] = "safetensors"
    """safetensors: the rounded numbers in float32, for any loader; not smaller. compressed-tensors: integers, packed,
    for vLLM and transformers."""
    method: Literal["rtn", "gptq"] = "rtn"
    """rtn: each weight to the nearest number of its grid, no text needed. gptq: layer by layer on calibration text, the
    error of a weight made up by others."""
    embeddings: Literal["keep", 8] = "keep"
    """The embedding, and with it an output layer that is tied to it: left as it is, or 8 bits with a scale a token."""
    head: Literal["keep", 8] = "keep"
    """The output layer, where it is not tied to the embedding: left as it is, or 8 bits with a scale a token."""
    activations: Literal["keep", 8] = "keep"
    """8: while the model runs, inputs of the quantized layers are rounded to 8 bits, too, with a scale a token. Only
    with 8 bits, whole rows and compressed-tensors: vLLM then computes in integers. Its CPU build computes 8 bits in no
    other way."""
    damping: float = Field(0.01, gt=0, le=10)
    """gptq: share of the mean of the inputs' second moments that is added to each."""
    act_order: bool = False
    """gptq: columns with the largest inputs first."""
    calibration: Calibration = Calibration()
    """gptq: the text that is run through the model."""
    held_out: HeldOut = HeldOut(windows=16)
    """The text on which what was saved is compared with its source."""
    device: Device = Device()
    """Where to compute."""

    @property
    def grid(self) -> Grid:
        """The grid of the blocks' layers."""
        return Grid(bits=self.bits, group=self.group, symmetric=self.symmetric, scales=self.scales)

    @property
    def label(self) -> str:
        """What tables call the result."""
        rows = "rows" if self.group is None else f"g{self.group}"
        inputs = "-a8" if self.activations == 8 else ""
        return self.name or f"{self.method}-{self.bits}{'' if self.symmetric else 'z'}-{rows}{inputs}"

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        packed = self.format == "compressed-tensors"
        if self.activations == 8 and (self.bits, self.group, self.symmetric, packed) != (8, None, True, True):
            raise ValueError("activations: 8 goes with --bits 8 --group None --symmetric --format compressed-tensors")
        if packed and self.bits == 3:
            raise ValueError("3 bits are packed in one way by compressed-tensors and read in another by vLLM: write "
                             "--format safetensors, or take 4 bits")
        if packed and 8 in (self.embeddings, self.head):
            raise ValueError("compressed-tensors keeps embeddings and output layer: vLLM reads a packed embedding on "
                             "GPUs alone, and never one that is tied to the output layer")
        return self
