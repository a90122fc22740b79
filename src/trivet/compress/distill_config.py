"""Settings of the stage `distill`. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from trivet.artifacts import sha256_file
from trivet.compress.quantize_config import Grid
from trivet.config import Checkpointing, Device, Optimizer, Part, ReportTo, StageConfig
from trivet.generate.config import EndpointSettings, Sampling, Writing, is_endpoint

Divergence = Literal["forward", "reverse", "jsd"]
LOGITS = "logits.json"
"""In a folder of stored logits."""


class Teacher(Writing):
    """Who teaches: a model in this process, an endpoint that tells log-probabilities, or what was stored of one."""

    stored: Path | None = None
    """A folder of logits that an earlier run has stored (its `logits`), for the same data and tokenizer."""
    top_k: int | None = Field(None, ge=1, le=65_536)
    """Keep only the K most probable tokens of each position and the mass of all others together: a model's are then
    computed once, stored as `logits`, and the teacher leaves memory (unless `heldout` asks it again). Default: whole
    distributions from a model in memory; of an endpoint 20."""
    tail: Literal["bucket", "drop"] = "bucket"
    """What becomes of all other tokens: one more event with their mass, or left out, the rest made to add up to 1."""


class Student(Part):
    """Where the student comes from."""

    by: str | None = None
    """A model of the teacher's vocabulary: a folder or hub id; it is trained on. With `layers` or `sizes`: the model
    that is cut smaller, or whose family and tokenizer are taken. Default: the teacher."""
    layers: int | None = Field(None, ge=1)
    """Keep this many blocks, evenly spaced, first and last among them."""
    sizes: Path | None = None
    """A YAML or JSON file of sizes (hidden_size, num_hidden_layers …), to begin from random weights."""


class Rounding(Grid):
    """Training through a quantization: the blocks' weights are rounded to a grid in every pass, and gradients go
    straight through to the weights themselves."""

    on: bool = False
    """Whether to."""


class DistillConfig(StageConfig):
    """A smaller student learns from a frozen teacher: its soft labels, and the hard labels of the data.

    loss = alpha · T² · divergence(teacher at T, student at T) + (1 - alpha) · cross-entropy(hard labels, T = 1)
    """

    input_fields: ClassVar[tuple[str, ...]] = ("data", "prompts", "heldout", "teacher.by", "student.by",
                                               "student.sizes")
    not_in_fingerprint: ClassVar[tuple[str, ...]] = (
        "out", "overwrite", "report_to", "checkpoint", "device.shard", "checkpoint_activations", "teacher.stored",
        *(f"teacher.{name}" for name in EndpointSettings.only_how))

    out: Path = Path("runs/distill")
    """Folder of this stage's run."""
    data: Path | None = None
    """Conversations in the forms that `sft` reads (their answers are the hard labels), or plain text: a .txt file, or
    JSON Lines with `text`."""
    prompts: Path | None = None
    """Prompts that the teacher answers first: its answers are the hard labels."""
    limit: int | None = Field(None, ge=1)
    """Take only the first N prompts."""
    heldout: Path | None = None
    """Other conversations, in the same forms: student and teacher are compared on them before and after."""
    sampling: Sampling = Sampling(temperature=0.7, max_new_tokens=128)
    """How the teacher answers `prompts`, and the student where it is on policy."""
    teacher: Teacher = Teacher()
    """The frozen teacher."""
    student: Student = Student()
    """The student."""
    alpha: float = Field(0.5, ge=0, le=1)
    """Weight of the distillation loss; the student loss has the rest. 0: hard labels alone, the teacher is not run."""
    temperature: float = Field(2.0, ge=1, le=100)
    """Of soft labels and soft predictions. Hard predictions are always at 1."""
    kind: Divergence = "forward"
    """forward KL (cover the teacher), reverse KL (keep to where it is likely), or the generalised Jensen–Shannon
    divergence."""
    beta: float = Field(0.5, gt=0, lt=1)
    """Of jsd: the teacher's weight in the mixture."""
    on_policy: float = Field(0.0, ge=0, le=1)
    """Share of the rows of a step whose answer the student writes anew, for the teacher to say what it would have
    written instead; such answers have no hard labels."""
    keep_zeros: bool = False
    """Weights of the student's blocks that are zero stay zero: recovery of a pruned model."""
    quantize: Rounding = Rounding()
    """Train through this quantization: `trivet quantize --method rtn` on the same grid then gives what was trained."""
    store_only: bool = False
    """Store the teacher's logits and stop: another run trains from them."""
    optimizer: Optimizer = Optimizer(lr=1e-4)
    """AdamW's settings (1e-3 suits a student from random weights)."""
    epochs: float = Field(1.0, gt=0)
    """Passes over the data."""
    max_length: int = Field(512, ge=8)
    """Tokens of a row at most. A longer conversation is an error, a longer text is cut into pieces."""
    packing: bool = True
    """Fill rows of max_length with several conversations, which do not see each other. Not where on_policy is set."""
    batch: int = Field(8, ge=1)
    """Rows a step."""
    micro_batch: int | None = Field(None, ge=1)
    """Rows a pass; fewer need less memory and change nothing else. Default: all of the step."""
    checkpoint_activations: bool = False
    """Keep no activations of a block but its input, and compute them again in the backward pass: less memory, more
    time, the same bits."""
    checkpoint: Checkpointing = Checkpointing()
    """Saving."""
    device: Device = Device()
    """Where to compute."""
    report_to: ReportTo = []
    """Also log to tensorboard or wandb."""

    @model_validator(mode="after")
    def _fits(self) -> DistillConfig:
        self._require_teacher()
        if self.data is None and self.prompts is None:
            raise ValueError("data: nothing is given to learn from; set data, prompts, or both")
        if self.limit is not None and self.prompts is None:
            raise ValueError("limit: it counts prompts, and none are given; set prompts, or leave it out")
        if self.kind != "jsd" and self.beta != 0.5:
            raise ValueError(f"beta: kind {self.kind} mixes nothing; set kind: jsd, or leave it out")
        if not self.quantize.on and self.quantize != Rounding():
            raise ValueError("quantize: a grid is given, and not used; set quantize.on, or leave it out")
        if self.student.layers is not None and self.student.sizes is not None:
            raise ValueError("student.sizes: a student of fewer layers keeps its weights, one of other sizes begins "
                             "from random ones; set one of the two")
        if not self.store_only and self.student == Student():
            raise ValueError("student: nothing is said of the student; set student.by, student.layers or student.sizes")
        if self.on_policy and not self.alpha:
            raise ValueError("on_policy: the student's own answers have no hard labels, and alpha 0 gives what the "
                             "teacher says of them no weight; raise alpha")
        if self.keep_zeros and self.student.sizes is not None:
            raise ValueError("keep_zeros: random weights have no zeros to keep; leave it out")
        if (self.keep_zeros or self.quantize.on) and self.device.shard == "full":
            raise ValueError("device.shard: zeros and quantization are kept on whole weights; set none")
        return self

    def _require_teacher(self) -> None:
        """Raise ValueError where the teacher is not said, or can't do what is asked of it."""
        teacher = self.teacher
        if (teacher.by is None) == (teacher.stored is None):
            raise ValueError("teacher: set teacher.by (a model, or an endpoint's URL) or teacher.stored (a folder of "
                             "logits), one of the two")
        if teacher.stored is not None:
            for name, given in (("prompts", self.prompts), ("on_policy", self.on_policy),
                                ("store_only", self.store_only), ("teacher.top_k", teacher.top_k)):
                if given:
                    raise ValueError(f"{name}: stored logits are of given text alone; set teacher.by, or leave it out")
        if teacher.tail == "drop" and not (teacher.top_k or teacher.stored is not None or self.endpoint):
            raise ValueError("teacher.tail: a model in memory tells of all tokens; set teacher.top_k, or leave it out")
        if self.store_only and not (teacher.top_k or self.endpoint):
            raise ValueError("store_only: how much is to be stored? Set teacher.top_k")
        if self.on_policy and (teacher.top_k or self.endpoint):
            raise ValueError("on_policy: what the student will write can't be stored beforehand, and an endpoint tells "
                             "nothing of given text; set teacher.by to a model, and no teacher.top_k")
        if self.endpoint:
            if self.data is not None:
                raise ValueError("data: an endpoint tells the probabilities of what it writes itself, not of given "
                                 "text; set prompts")
            if self.temperature != 1 and teacher.tail == "bucket" and self.alpha:
                raise ValueError("temperature: an endpoint tells probabilities at temperature 1, and the mass of the "
                                 f"tokens that it does not tell is not known at {self.temperature:g}; set "
                                 "temperature: 1, or teacher.tail: drop")
            if teacher.top_k is not None and teacher.top_k > 20:
                raise ValueError("teacher.top_k: endpoints tell 20 at most; lower it")
        if not self.alpha and (teacher.top_k or teacher.stored is not None):
            raise ValueError("alpha: at 0 the teacher's logits have no weight; raise it, or leave them out")
        if self.student.by is None and (self.endpoint or teacher.stored is not None):
            raise ValueError("student.by: there are no teacher's weights here to take a student or a tokenizer from; "
                             "set it")

    @property
    def endpoint(self) -> bool:
        """Whether the teacher is an endpoint."""
        return self.teacher.by is not None and is_endpoint(self.teacher.by)

    def input_contents(self) -> dict[str, str]:
        """The hash of stored logits' index, which holds those of its files. Raises TrivetError for one without."""
        if self.teacher.stored is None:
            return {}
        from trivet.errors import TrivetError

        if self.teacher.stored.resolve().is_relative_to(self.out.resolve()):
            raise TrivetError(f"these logits stand in the run folder {self.out}, which the stage would fill or clear",
                              file=self.teacher.stored, field="teacher.stored",
                              mend="choose another folder with --out")
        index = self.teacher.stored / LOGITS
        if not index.is_file():
            raise TrivetError("there are no stored logits in this folder", file=self.teacher.stored,
                              field="teacher.stored", expected=f"{LOGITS}, as `trivet distill --teacher.top-k` writes "
                              "it", mend="give the `logits` of a run that has stored them")
        return {"teacher.stored": sha256_file(index)}
