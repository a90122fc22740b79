"""Settings of the stage `revise`. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from trivet.config import EMBEDDED, Device, Part, StageConfig
from trivet.generate.config import EndpointSettings, Sampling, Writing, is_endpoint
from trivet.judge.config import Judging

RESULTS = "revise.json"


class Gates(Part):
    """What a revision must not be; one that is does not go on. The rules: constitution/gates.py."""

    similarity: float = Field(0.9, gt=0, le=1)
    """Similarity, word by word, with what it revises or with the first answer, from which a revision is a copy."""
    echo: float = Field(0.5, gt=0, le=1)
    """Share of its words said after the requests, the critique or the few-shot dialogues, from which it is an echo."""
    parrot: float = Field(0.9, gt=0, le=1)
    """The same of the user's last message, which an answer may well quote."""
    refusals: Literal["rule", "judge", "off"] = "rule"
    """How a refusal of a safe prompt (tagged so, or out of `helpful`) is found: by phrases, by the judge, or not
    at all. Not `rule` where the rule measures the result afterwards."""
    safe_tag: str = Field("safe", min_length=1)
    """The tag of prompts with which nothing is wrong, so that refusing them is."""
    better: float = Field(0.5, ge=0, le=1)
    """With a judge: the least probability that a revision is better than what it revises."""
    survive: float = Field(0.1, ge=0, le=1)
    """Least share of prompts with a revision that passes; with fewer the stage ends, and says which gate it was."""


class ReviseConfig(StageConfig):
    """Answers, critiques and revisions by the principles of a constitution: data for `sft` (SL-CAI)."""

    input_fields: ClassVar[tuple[str, ...]] = ("prompts", "helpful", "target.by", "critic.by", "judge.by")
    not_in_fingerprint: ClassVar[tuple[str, ...]] = (  # the constitution is in it by its content
        "out", "overwrite", "constitution", *(f"{part}.{name}" for part in ("target", "critic", "judge")
                              for name in EndpointSettings.only_how))

    out: Path = Path("runs/revise")
    """Folder of this stage's run."""
    prompts: Path
    """Prompts whose answers are revised, such as the `train` prompts of `redteam`."""
    limit: int | None = Field(None, ge=1)
    """Take only the first N prompts."""
    constitution: Path | None = None
    """The principles, a YAML file (`trivet constitution show` prints one). Default: the shipped ones."""
    target: Writing = Writing(by=EMBEDDED)
    """What answers, and revises."""
    critic: Writing = Writing()
    """What critiques. Default: the target."""
    reviser: Literal["target", "critic"] = "target"
    """Which of the two revises."""
    judge: Judging = Judging()
    """What says whether a revision is better than what it revises, by the principle drawn: for the gate, and to choose
    among samples. Default: nothing does."""
    rounds: int = Field(4, ge=1, le=100)
    """Critiques and revisions, one after the other, each by another principle."""
    critiques: bool = True
    """Off: revise at once, without a critique (Bai et al. 2022, section 3.5)."""
    samples: int = Field(1, ge=1, le=1000)
    """Revisions drawn in each round. With a judge the best by it goes on, else the first that passes the gates."""
    openings: bool = False
    """Begin the revisions with the principle's `openings`, in turn, and let the reviser write on. For a reviser that is
    too small to follow the request; it must be a local model. By a principle without openings it begins as it likes."""
    few_shot: int = Field(2, ge=0)
    """How many of the constitution's dialogues are shown first."""
    sampling: Sampling = Sampling(temperature=0.7, top_p=0.95, max_new_tokens=256)
    """How answers, critiques and revisions are drawn. The paper draws at temperature 1, from 52B parameters."""
    critique_tokens: int = Field(192, ge=1)
    """A critique longer than this is cut off, and used all the same."""
    gates: Gates = Gates()
    """What a revision must not be."""
    learn: Literal["last", "all"] = "last"
    """Which revisions stand in the data set: each prompt's last one, or those of all rounds."""
    helpful: Path | None = None
    """Prompts with which nothing is wrong; the target's plain answers to them are mixed in, so that the tuned model
    keeps helping."""
    helpful_share: float = Field(0.5, ge=0, lt=1)
    """Share of the data set that such answers make up, as far as there are enough."""
    helpful_answers: int = Field(2, ge=1, le=1000)
    """Answers taken of one helpful prompt at most."""
    helpful_tokens: int | None = Field(None, ge=1)
    """Tokens of such an answer at most; one that is cut off is not taken. Default: as of the others."""
    helpful_pairs: bool = True
    """Among the preference pairs, too: the plain answer to a helpful prompt before the revision of another prompt. A
    reward model that is shown revisions as the better answers alone learns that a refusal is always better."""
    device: Device = Device()
    """Where to compute."""

    @model_validator(mode="after")
    def _goes_together(self) -> ReviseConfig:
        if self.critic.by is None and (self.reviser == "critic" or self.critic.model is not None):
            raise ValueError("critic.by: name the critic; without one the target critiques and revises")
        if self.gates.refusals == "judge" and self.judge.by is None:
            raise ValueError("gates.refusals: there is no judge to ask; name one by --judge.by, or take rule or off")
        reviser = self.critic if self.reviser == "critic" else self.target
        if self.openings and reviser.by is not None and is_endpoint(reviser.by):
            raise ValueError(f"openings: an endpoint begins its replies itself; {self.reviser}.by must be a local "
                             "model, or leave --openings away")
        if not self.critiques and self.critic.by is not None and self.reviser == "target":
            raise ValueError("critic.by: the critic has nothing to do without critiques")
        return self

    def input_contents(self) -> dict[str, str]:
        """The constitution's own hash (also where it is the shipped one), and that of a judge's function's file.

        Raises TrivetError for a constitution that does not fit, and a function that can't be imported.
        """
        from trivet.constitution.principles import load_constitution
        from trivet.judge.function import function_sources

        return {"constitution": load_constitution(self.constitution).sha256} | function_sources(judge=self.judge)
