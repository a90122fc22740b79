"""Settings of the stage `prefer`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from trivet.config import EMBEDDED, Device, StageConfig
from trivet.generate.config import Sampling, Writing
from trivet.judge.config import Judging

Combine = Literal["probability", "log-odds"]


class PreferConfig(StageConfig):
    """Preference pairs by AI feedback: a judge compares two answers by a principle of the constitution (RLAIF)."""

    input_fields: ClassVar[tuple[str, ...]] = ("prompts", "completions", "human", "constitution", "target.by",
                                               "judge.by")
    not_in_fingerprint: ClassVar[tuple[str, ...]] = (
        "out", "overwrite", *(f"{part}.{name}" for part in ("judge", "target") for name in Judging.only_how))

    out: Path = Path("runs/prefer")
    """Folder of this stage's run."""
    prompts: Path | None = None
    """Prompts, each answered several times by `target`."""
    completions: Path | None = None
    """In place of `prompts`: answers that are there, two or more a prompt (`trivet sample` writes such a file)."""
    human: Path | None = None
    """Pairs that people judged (preferences, hh dialogues, or rankings): the judge is asked about them too, and how far
    it agrees is measured. May be given alone. They do not enter the preferences."""
    limit: int | None = Field(None, ge=1)
    """Take only the first N prompts, and N of the pairs that people judged, drawn by the seed."""
    target: Writing = Writing(by=EMBEDDED)
    """What answers the prompts."""
    answers: int = Field(2, ge=2, le=64)
    """Answers to each prompt."""
    sampling: Sampling = Sampling(temperature=1.0)
    """How answers are drawn."""
    pairs: int = Field(1, ge=1)
    """Pairs of answers a prompt at most, drawn by the seed."""
    constitution: Path | None = None
    """The principles, a YAML file (`trivet constitution show` prints one). Default: the shipped ones."""
    principles: int = Field(1, ge=1)
    """Principles that each pair is judged by, drawn by weight, no one twice; the label is the mean over them."""
    judge: Judging = Judging()
    """What compares two answers; it is always asked in both orders."""
    combine: Combine = "probability"
    """How both orders become one: the mean of the two probabilities, or of their log-odds. A judge that leans far to
    one side in whatever order says hardly anything by the first, and what it leans is taken out by the second."""
    keep: float = Field(0.0, ge=0, lt=0.5)
    """Leave out pairs whose label is nearer to 0.5 than this."""
    device: Device = Device()
    """Where to compute."""

    @model_validator(mode="after")
    def _goes_together(self) -> PreferConfig:
        if self.prompts is not None and self.completions is not None:
            raise ValueError("give --prompts FILE or --completions FILE, one of the two")
        if self.prompts is None and self.completions is None and self.human is None:
            raise ValueError("there is nothing to compare: give --prompts FILE, --completions FILE or --human FILE")
        if self.judge.by is None:
            raise ValueError("judge.by: name what compares: a reward-model folder, a model, or an endpoint's URL")
        if not self.judge.both_orders:
            raise ValueError("judge.both_orders: preferences are always asked in both orders, which is how the "
                             "position bias is measured and removed")
        if self.prompts is not None and self.pairs > self.answers * (self.answers - 1) // 2:
            raise ValueError(f"pairs: {self.answers} answers make {self.answers * (self.answers - 1) // 2} pairs, "
                             f"not {self.pairs}")
        return self

    def input_contents(self) -> dict[str, str]:
        """The constitution's own hash (also where it is the shipped one), and that of a judge's function's file.

        Raises TrivetError for a constitution that does not fit, and a function that can't be imported.
        """
        from trivet.constitution.principles import load_constitution
        from trivet.judge.function import function_sources

        return {"constitution": load_constitution(self.constitution).sha256} | function_sources(judge=self.judge)
