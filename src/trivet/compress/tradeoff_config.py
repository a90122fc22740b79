"""Settings of the stage `tradeoff`. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field, field_validator, model_validator

from trivet.artifacts import sha256_file
from trivet.compress.choosing import Limits, parse_size
from trivet.config import EMBEDDED, Device, Part, StageConfig
from trivet.generate.config import Sampling

RESULTS, TABLE, PICK = "tradeoff.json", "tradeoff.md", "pick.json"


class Speed(Part):
    """What is timed. Every variant does each of it in every round, in a process of its own."""

    batches: list[Annotated[int, Field(ge=1, le=4096)]] = Field([1, 16], min_length=1)
    """Prompts answered side by side."""
    prompts: list[Annotated[int, Field(ge=1, le=10**6)]] = Field([128, 512], min_length=1)
    """Tokens of a prompt. One that leaves no room for the answer in a model's context is n/a there."""
    new_tokens: int = Field(64, ge=2)
    """Tokens of an answer; end tokens are passed over, so that all do the same work."""
    rounds: int = Field(3, ge=1)
    """Times that each variant has its turn. Shown is the median, with the least and the most."""


class TradeoffConfig(StageConfig):
    """Size, speed, memory and quality of a model and of what was made of it: one table, on this machine."""

    input_fields: ClassVar[tuple[str, ...]] = ("model", "variants", "reward", "prompts", "text")
    #: what is chosen is worked out anew each time: other limits measure nothing again
    not_in_fingerprint: ClassVar[tuple[str, ...]] = (
        "out", "overwrite", "data", "quality", "max_latency", "max_size", "max_quality_loss")

    out: Path = Path("runs/tradeoff")
    """Folder of this stage's run."""
    model: str = EMBEDDED
    """The source that all variants are compared with: a model folder, an adapter folder, a hub id, or the embedded
    default."""
    variants: list[str] = Field(min_length=1)
    """What was made of it: folders that `distill`, `prune` and `quantize` write, other model folders, GGUF files."""
    names: list[Annotated[str, Field(min_length=1, max_length=60, pattern=r"^[^/\x00-\x1f]+$")]] = []
    """What to call them in the table: a name for each variant. Default: as their variant.json or folders say."""
    speed: Speed = Speed()
    """What is timed."""
    prompts: Path | None = None
    """Prompts that are answered, for the reward, as JSON Lines. Default: those of the starter set that its recipe
    holds out."""
    held_out: float | None = Field(None, gt=0, le=1)
    """With `prompts`: answer only this share of them, by the hash of their first turn, as `pairs` and `ppo` hold
    prompts out. Default: all of them."""
    reward: str | None = None
    """What scores the answers: a reward-model folder, best one that the source was not trained on. None: no score."""
    suites: list[str] = ["refusals"]
    """Suites of `trivet evaluate` that are asked, too; those that only need answers, or log-probabilities of text."""
    data: Path | None = None
    """A folder of the field's data sets for the suites, and for the text; see `trivet evaluate`."""
    text: Path | None = None
    """Held-out text for perplexity, as JSON Lines with `text` (or prompts, or conversations), or as plain text in
    which empty lines part documents. Default: Trivet's own prose."""
    kl_tokens: int = Field(1024, ge=0)
    """Tokens of that text at which the whole distribution is compared with the source's (KL). 0: none. Takes four
    bytes a token and word of the vocabulary on the disk, while it runs."""
    limit: int | None = Field(None, ge=1)
    """At most N prompts, texts, and items of each suite, drawn by the seed."""
    sampling: Sampling = Sampling(temperature=0.0, max_new_tokens=64)
    """How answers are drawn. Greedy, so that all differences are the models' own."""
    batch_size: int = Field(16, ge=1)
    """Answers generated side by side where quality is measured."""
    plain_template: bool = False
    """Go on with a model that has no chat template, in a plain User:/Assistant: form."""
    quality: str | None = None
    """The measure by which quality counts when one is chosen, such as capable.perplexity. Default: the reward where
    there is one, else the perplexity."""
    max_latency: float | None = Field(None, gt=0)
    """Choose among those that answer within so many seconds: one answer of `speed.new_tokens`, alone, after the
    shortest prompt."""
    max_size: str | None = None
    """Choose among those of at most this size on the disk, such as 120MB."""
    max_quality_loss: float | None = Field(None, ge=0)
    """Choose among those that lose at most this against the source: of perplexity the share it grows by (0.05: 5%),
    of a share its points (0.05: 5 points), of a reward its deviations."""
    device: Device = Device()
    """Where to compute."""

    @field_validator("reward", "text", "prompts", "data", "names", "max_size", mode="before")
    @classmethod
    def _empty_is_none(cls, value: Any) -> Any:
        """A recipe's variable that was left empty: as if it were not given."""
        return [] if value == [""] else None if value == "" else value

    @field_validator("max_size")
    @classmethod
    def _a_size(cls, value: str | None) -> str | None:
        if value is not None:
            parse_size(value)
        return value

    @model_validator(mode="after")
    def _goes_together(self) -> TradeoffConfig:
        if self.names and len(self.names) != len(self.variants):
            raise ValueError(f"names: {len(self.names)} names for {len(self.variants)} variants")
        if len(set(self.names)) < len(self.names):
            raise ValueError("names: two variants have one name")
        if self.held_out is not None and self.prompts is None:
            raise ValueError("held_out says which of `prompts` are held out, and none are given")
        for name in ("batches", "prompts"):
            values = getattr(self.speed, name)
            if len(set(values)) < len(values):
                raise ValueError(f"speed.{name}: a number stands twice")
        return self

    @property
    def limits(self) -> Limits:
        """What the chosen one must keep within."""
        return Limits(self.max_latency, None if self.max_size is None else parse_size(self.max_size),
                      self.max_quality_loss)

    def input_contents(self) -> dict[str, str]:
        """The hashes of the data files that the suites and the text read. Raises TrivetError as `chosen` does."""
        from trivet.evaluate.catalogue import chosen, data_files

        suites = [*self.suites, *(["text"] if self.text is None else [])]
        return {f"data.{f.name}": sha256_file(f) for f in data_files(chosen(suites, self.data)[0], self.data)}
