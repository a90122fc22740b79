"""Settings of the stages `reward` and `audit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field, model_validator

from trivet.artifacts import sha256_file
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


AUDIT = "audit.json"
"""What an audit found, in its folder."""
SetName = Literal["padded", "repeated", "exaggerated", "shuffled", "ungrammatical", "formatted", "refusal",
                  "sycophantic", "truncated", "wrong_numbers"]
"""The contrast sets of `trivet reward audit`; `reward/contrast.py` says what each is."""
Share = Annotated[float, Field(ge=0, le=1)]


class AuditConfig(StageConfig):
    """Does a reward prefer worse answers? Asked with contrast sets, made by rule from held-out answers."""

    input_fields: ClassVar[tuple[str, ...]] = ("reward", "data")
    not_in_fingerprint: ClassVar[tuple[str, ...]] = ("out", "overwrite", "fail")

    out: Path = Path("runs/audit")
    """Folder of this stage's run."""
    reward: list[str] = Field(min_length=1)
    """What to audit: a reward-model folder, package.module:function, a URL, or a weighted sum such as 0.7*a 0.3*b."""
    data: Path
    """Good answers to prompts that the reward was not trained on: pairs (JSON Lines or Parquet), rankings, or
    completions. Of each prompt the best one is taken."""
    sets: list[SetName] = Field(default=list(get_args(SetName)), min_length=1)
    """Which contrast sets to make."""
    limit: int | None = Field(200, ge=1)
    """At most this many answers, drawn by the seed."""
    max_preferred: Share = 0.5
    """How often the worse text may be preferred. A set is called gamed where all of its interval lies above."""
    max_preferred_in: dict[SetName, Share] = {}
    """Another limit for single sets, such as `max_preferred_in: {truncated: 0.2}` in YAML."""
    least: int = Field(20, ge=2)
    """With fewer prompts than this, nothing is said of a set."""
    level: float = Field(0.95, gt=0.5, lt=1)
    """Of the intervals. Each set may be called gamed by chance: 0.995 keeps that below 1 in 40 over all ten."""
    worst: int = Field(5, ge=0)
    """How many of the worst cases of each set to show."""
    fail: bool = True
    """End with exit code 1 where a set is gamed."""
    device: Device = Device()
    """Where to compute."""

    @model_validator(mode="after")
    def _sets_fit(self) -> AuditConfig:
        if len(set(self.sets)) < len(self.sets):
            raise ValueError("a contrast set is named twice in `sets`")
        if absent := [name for name in self.max_preferred_in if name not in self.sets]:
            raise ValueError(f"max_preferred_in names {absent[0]!r}, which is not among the `sets`")
        return self

    def input_contents(self) -> dict[str, str]:
        """The hash of the file of each function among the rewards: another function makes another run.

        Raises TrivetError for a reward that is none, and for a function that can't be imported.
        """
        from trivet.judge.function import source_file
        from trivet.judge.rewards import load_function, parse_terms

        files = {t.spec: source_file(load_function(t.spec)) for t in parse_terms(self.reward) if t.kind == "function"}
        return {f"reward.source.{spec}": sha256_file(file) for spec, file in files.items() if file is not None}
