"""Settings of the stage `quantize`, and of whatever trains through a quantization. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from trivet.compress.calibration_config import Calibration, HeldOut
from trivet.config import EMBEDDED, Device, Part, StageConfig

GGUFType = Literal["F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q5_0", "Q5_1", "Q4_K_M", "Q4_K", "Q4_0", "Q4_1"]


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
    format: Literal["safetensors", "compressed-tensors", "gguf", "openvino"] = "safetensors"
    """safetensors: the rounded numbers in float32, for any loader; not smaller. compressed-tensors: integers, packed,
    for vLLM and transformers. gguf: for llama.cpp. openvino: for OpenVINO."""
    type: GGUFType | None = None
    """gguf: what its matrices are stored as; bits, group and symmetric follow from it. Default: Q8_0."""
    method: Literal["rtn", "gptq"] = "rtn"
    """rtn: each weight to the nearest number of its grid, no text needed. gptq: layer by layer on calibration text, the
    error of a weight made up by others."""
    embeddings: Literal["auto", "keep", 8] = "auto"
    """The embedding, and with it an output layer that is tied to it: left as it is, or 8 bits (gguf: Q8_0; else a scale
    a token). auto: 8 for gguf and openvino, else keep."""
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
    held_out: HeldOut = HeldOut()
    """The text on which what was saved is compared with its source."""
    device: Device = Device()
    """Where to compute."""

    @property
    def grid(self) -> Grid:
        """The grid of the blocks' layers."""
        return Grid(bits=self.bits, group=self.group, symmetric=self.symmetric, scales=self.scales)

    @property
    def kind(self) -> GGUFType:
        """What the matrices of a GGUF file are stored as."""
        return self.type or "Q8_0"

    @property
    def table(self) -> Literal["keep", 8]:
        """What becomes of the embedding."""
        if self.embeddings == "auto":
            return 8 if self.format in ("gguf", "openvino") else "keep"
        return self.embeddings

    @property
    def label(self) -> str:
        """What tables call the result."""
        rows = "rows" if self.group is None else f"g{self.group}"
        if self.format == "gguf":
            return self.name or f"gguf-{self.kind}"
        if self.format == "openvino":
            return self.name or f"openvino-int{self.bits}"
        inputs = "-a8" if self.activations == 8 else ""
        return self.name or f"{self.method}-{self.bits}{'' if self.symmetric else 'z'}-{rows}{inputs}"

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        packed, exported = self.format == "compressed-tensors", self.format in ("gguf", "openvino")
        if exported and (self.method, self.head, self.activations, self.act_order) != ("rtn", "keep", "keep", False):
            raise ValueError(f"{self.format} rounds in its own way, and the output layer with the embedding: GPTQ "
                             "goes with --format safetensors or compressed-tensors")
        if self.method == "rtn" and (self.act_order or self.damping != QuantizeConfig.model_fields["damping"].default):
            raise ValueError("damping and act_order go with --method gptq: rtn looks at no inputs")
        if self.type is not None and self.format != "gguf":
            raise ValueError("type goes with --format gguf")
        if self.format == "gguf" and self.grid != Grid():
            raise ValueError("bits, group, symmetric and scales of a GGUF file follow from its type: give --type")
        if self.format == "openvino" and (self.bits == 3 or self.scales != Grid().scales):
            raise ValueError("openvino stores 8 or 4 bits, with scales of its own")
        if self.format == "openvino" and (self.group is None if self.bits == 4 else self.group not in (None, 64)):
            raise ValueError("openvino has a scale for each group at 4 bits, and for each row at 8")
        if self.format == "openvino" and self.bits == 8 and not self.symmetric:
            raise ValueError("openvino's 8 bits are symmetric")
        if self.activations == 8 and (self.bits, self.group, self.symmetric, packed) != (8, None, True, True):
            raise ValueError("activations: 8 goes with --bits 8 --group None --symmetric --format compressed-tensors")
        if packed and self.bits == 3:
            raise ValueError("3 bits are packed in one way by compressed-tensors and read in another by vLLM: write "
                             "--format safetensors, or take 4 bits")
        if packed and 8 in (self.table, self.head):
            raise ValueError("compressed-tensors keeps embeddings and output layer: vLLM reads a packed embedding on "
                             "GPUs alone, and never one that is tied to the output layer")
        return self
