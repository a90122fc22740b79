"""Settings of judges, and of the stage `score`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field, model_validator

from trivet.config import Device, StageConfig
from trivet.generate.config import EndpointSettings


class Judging(EndpointSettings):
    """What compares or grades answers."""

    by: str | None = None
    """A reward-model folder (compares only), a model (asked by log-probability), package.module:function, or the URL
    of an OpenAI-compatible endpoint, such as http://localhost:8000/v1."""
    model: str | None = None
    """The model's name at the endpoint."""
    both_orders: bool = True
    """Ask about each pair in both orders and take the mean: a preference for the first answer cancels out."""
    longest: int = Field(6000, ge=200)
    """Characters of the conversation, and of each answer, that a judge is shown; what is longer is cut, and says so."""
    answer_tokens: int = Field(64, ge=1)
    """Tokens that an endpoint's model may reply with. A model that thinks before it answers needs a few thousand."""
    think: bool = False
    """Reasons first, then the verdict (chain of thought). A local model writes them and its label is read after them;
    an endpoint's model gives both in one reply. Slower by as many tokens as are written."""
    think_tokens: int = Field(256, ge=8)
    """With `think`: tokens for the reasons; what is longer is cut off (a local model), or no verdict (an endpoint)."""
    clamp: float = Field(0.4, ge=0, lt=0.5)
    """With `think`: probabilities are moved into [clamp, 1 - clamp], since a model that has just argued for an answer
    is surer of it than it should be (Bai et al. 2022, section 4.1: 0.4). 0: as they are."""
    votes: int = Field(1, ge=1, le=100)
    """Replies a case, drawn at temperature 1, whose verdicts are averaged: of a model that reasons first (`think`), and
    of an endpoint that tells no log-probabilities. 1: the likeliest reply alone."""


class ScoreConfig(StageConfig):
    """Scores of answers: normalised, as a percentile of the reference's answers, as a win probability."""

    input_fields: ClassVar[tuple[str, ...]] = ("reward", "completions")

    out: Path = Path("runs/score")
    """Folder of this stage's run."""
    overwrite: bool = True
    """Scoring is quick and often repeated: what an earlier `score` left in the folder is replaced."""
    reward: str
    """A reward-model folder."""
    completions: Path | None = None
    """Answers to score (`trivet sample` writes such a file)."""
    prompt: str | None = None
    """Or one prompt …"""
    answer: str | None = None
    """… and its answer."""
    show: int = Field(10, ge=0)
    """How many scored answers to print."""
    device: Device = Device()
    """Where to compute."""

    @model_validator(mode="after")
    def _one_source(self) -> ScoreConfig:
        pair = self.prompt is not None and self.answer is not None
        if pair == (self.completions is not None) or (self.prompt is None) != (self.answer is None):
            raise ValueError("give either --completions FILE, or --prompt TEXT with --answer TEXT")
        return self
