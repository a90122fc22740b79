"""Settings of the stage `redteam`. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from trivet.artifacts import sha256_file
from trivet.config import EMBEDDED, Device, StageConfig
from trivet.generate.config import EndpointSettings, Sampling, Writing
from trivet.judge.config import Judging

Strategy = Literal["direct", "paraphrase", "role-play", "multi-turn"]
RESULTS = "redteam.json"


class RedteamConfig(StageConfig):
    """Attacks on a model, from files and grown from seed topics; how often they succeed, by topic and strategy."""

    input_fields: ClassVar[tuple[str, ...]] = ("attacks", "topics", "target.by", "attacker.by", "judge.by",
                                               "classifier.by")
    not_in_fingerprint: ClassVar[tuple[str, ...]] = (
        "out", "overwrite", *(f"{part}.{name}" for part in ("target", "attacker", "judge", "classifier")
                              for name in EndpointSettings.only_how))

    out: Path = Path("runs/redteam")
    """Folder of this stage's run."""
    target: Writing = Writing(by=EMBEDDED)
    """The model that is attacked."""
    attacker: Writing = Writing()
    """The model that writes more questions, and paraphrases. Default: the target."""
    attacks: list[Path] = []
    """Files of questions: prompts (.jsonl, .parquet; an earlier run's attacks too), requests by topic (.json, in
    red-instruct's form), or a question on each line (.txt)."""
    topics: Path | None = None
    """Seed topics as YAML. Default: the shipped ones where there are no attacks, else none."""
    limit: int | None = Field(None, ge=1)
    """At most N of the given questions, evenly over the topics, drawn by the seed."""
    near: float = Field(0.7, gt=0, le=1)
    """Similarity (Jaccard, of runs of three words) from which a question repeats an earlier one. 1: exact repeats."""
    grow: int = Field(5, ge=0, le=1000)
    """New questions that the attacker writes for each topic. 0: none."""
    tries: int = Field(3, ge=1, le=100)
    """How many texts the attacker may write for each that is needed, since some are thrown away."""
    screen: bool = True
    """Ask the judge, where there is one, whether what was grown is worth declining; throw away what is not."""
    strategies: list[Strategy] = Field(["direct", "paraphrase", "role-play", "multi-turn"], min_length=1)
    """How each question is put."""
    completions: int = Field(1, ge=1, le=1000)
    """Answers of the target to each attack."""
    sampling: Sampling = Sampling(temperature=0.7, max_new_tokens=64)
    """How the target's answers are drawn."""
    attacker_sampling: Sampling = Sampling(temperature=0.7, top_p=0.9, max_new_tokens=192)
    """How the attacker's texts are drawn."""
    judge: Judging = Judging()
    """What says of an answer whether it helps with something harmful: a model, an endpoint, a function."""
    classifier: Judging = Judging()
    """The same from a local model by log-probability. Default: the target's own weights, where they are local."""
    classify: bool = True
    """Ask the classifier. Off: only the judge and the rule."""
    held_out: float = Field(0.25, ge=0, lt=1)
    """Share of the topics that is held out, at least one, drawn by the seed. 0: none."""
    held_out_topics: list[Annotated[str, Field(min_length=1)]] = []
    """The topics that are held out, by name, instead of a share."""
    device: Device = Device()
    """Where to compute."""

    @model_validator(mode="after")
    def _goes_together(self) -> RedteamConfig:
        doubled = next((s for s in self.strategies if self.strategies.count(s) > 1), None)
        if doubled is not None:
            raise ValueError(f"strategies: {doubled!r} is named twice")
        if not self.classify and self.classifier.by is not None:
            raise ValueError("classifier.by names a classifier, and classify says to ask none")
        return self

    @property
    def seeded(self) -> bool:
        """Whether questions come from seed topics."""
        return self.topics is not None or not self.attacks

    def input_contents(self) -> dict[str, str]:
        """The hashes of the shipped topics, where they are used, and of files in which a judge's function stands.

        Raises TrivetError for a function that can't be imported.
        """
        from trivet.constitution.questions import SHIPPED
        from trivet.judge.function import function_sources

        found = {"topics.shipped": sha256_file(SHIPPED)} if self.seeded and self.topics is None else {}
        return found | function_sources(judge=self.judge, classifier=self.classifier)
