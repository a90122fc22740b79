"""Settings of the stage `pairs`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar, Literal, get_args

from pydantic import Field, field_serializer, model_validator

from trivet.config import StageConfig
from trivet.feedback.labels import database_file, read_labels

Method = Literal["votes", "majority", "dawid-skene", "mace", "bradley-terry", "davidson", "plackett-luce"]
METHODS: tuple[Method, ...] = get_args(Method)


class PairsConfig(StageConfig):
    """Rankings, or pairs in a form the field uses, become preference pairs, split by prompt."""

    input_fields: ClassVar[tuple[str, ...]] = ("input",)
    # what the database says enters the fingerprint by `input_contents`, wherever it stands
    not_in_fingerprint: ClassVar[tuple[str, ...]] = ("out", "overwrite", "report_to", "from_labels")

    out: Path = Path("runs/pairs")
    """Folder of this stage's run."""
    input: Path | None = None
    """Rankings or pairs, as JSON Lines or Parquet."""
    from_labels: str | None = None
    """In place of `input`: the database of `trivet label`, a file or a URL such as postgresql+psycopg://host/name."""
    format: Literal["auto", "ranked", "hh", "preference"] = "auto"
    """ranked: answers with ranks; hh: whole dialogues (`chosen`, `rejected`) in Human:/Assistant: form;
    preference: `prompt`, `chosen`, `rejected` as text or messages. auto: told by the first row."""
    method: Method = "votes"
    """How several labelers' rankings of a prompt become one. votes: every vote a soft label; majority: the choice of
    most, with its margin; dawid-skene, mace: labelers weighed by reliability; bradley-terry, davidson (ties),
    plackett-luce (whole rankings, ties): strengths of the answers."""
    adjudications: bool = False
    """Of a database: an admin's adjudication of a prompt decides it, whatever the labelers said."""
    rounds: list[int] | None = None
    """Of a database: only items of these rounds. Default: all."""
    heldout: float = Field(0.2, ge=0, lt=1)
    """Share of the prompts kept apart for evaluation, chosen by a hash of the first turn; 0 keeps none."""
    keep_ties: bool = False
    """Write ties as pairs with label 0.5 and tie=true, for a loss that knows ties (Davidson)."""
    seed: int = Field(0, ge=0)
    """Seed of the split (another one keeps other prompts apart), and of mace."""

    @model_validator(mode="after")
    def _one_source(self) -> PairsConfig:
        if (self.input is None) == (self.from_labels is None):
            raise ValueError("give --input FILE or --from-labels DATABASE, one of the two")
        if self.from_labels is None and (self.adjudications or self.rounds is not None):
            raise ValueError("adjudications and rounds are a database's: they go with --from-labels")
        if self.from_labels is not None and self.format not in ("auto", "ranked"):
            raise ValueError("format says how --input is written; a database of labels holds rankings")
        if self.from_labels is not None and (file := database_file(self.from_labels)) is not None \
                and file.resolve().is_relative_to(self.out.resolve()):
            raise ValueError("from_labels: the database stands in the run folder, which the stage may clear")
        return self

    @field_serializer("from_labels", when_used="json")
    def _without_password(self, value: str | None) -> str | None:
        """config.yaml is shown to people: a password in the URL does not enter it (PGPASSWORD, ~/.pgpass)."""
        return value and re.sub(r"(://[^:/@]*):[^/]*@", r"\1:***@", value)

    def input_contents(self) -> dict[str, str]:
        """The hash of what the database says now: its file's bytes change without that, and it without its file's."""
        if self.from_labels is None:
            return {}
        return {"from_labels": read_labels(self.from_labels, self.rounds).digest(self.adjudications)}
