"""Settings of `trivet label …`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from trivet.config import Device, Part
from trivet.generate.config import Sampling

DB = "labels.db"


class Database(Part):
    """Which labelling project."""

    db: str = DB
    """The label store: a SQLite file, or postgresql+psycopg://USER@HOST/NAME. Made when it is not there."""


class LabelServeConfig(Database):
    """A web app in which a team ranks completions."""

    completions: Path | None = None
    """Completions to rank, as `trivet sample` writes them; those already in the store are not added twice."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in (put TLS before it, see --url)."""
    port: int = Field(8000, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    url: str | None = None
    """The address people use, where a proxy stands before the app: https://label.example.org. Stands in invitation
    links; with https the cookies are sent over https only."""
    title: str | None = None
    """Name of the project, shown on every page."""
    round: int = Field(1, ge=1)
    """Which round of sampling and labelling these completions belong to."""
    overlap: int | None = Field(None, ge=1)
    """Judgments that each item gets, by different people. Default: what the store says, at first 3."""
    gold: Path | None = None
    """Rankings known to be right; shown among the others, they measure each labeler's accuracy."""
    gold_rate: float | None = Field(None, ge=0, le=0.5)
    """Share of gold items among what a labeler gets."""
    repeat_rate: float | None = Field(None, ge=0, le=0.5)
    """Share of a labeler's own earlier items shown again; it measures self-consistency."""
    model: str | None = None
    """Live mode: the model under test. A model folder, a hub id, the embedded smollm2-135m-instruct, or the URL of an
    OpenAI-compatible endpoint (http://host:8000/v1; its key is read from TRIVET_API_KEY)."""
    model_name: str | None = None
    """Live mode with a URL: the model's name there. Default: the first that the endpoint lists."""
    answers: int = Field(4, ge=2, le=8)
    """Live mode: answers to each turn."""
    sampling: Sampling = Sampling(temperature=1.0, max_new_tokens=200)
    """Live mode: how answers are drawn."""
    device: Device = Device()
    """Live mode: where to compute."""

    @field_validator("url")
    @classmethod
    def _whole_url(cls, value: str | None) -> str | None:
        if value is not None and (urlsplit(value).scheme not in {"http", "https"} or not urlsplit(value).netloc):
            raise ValueError("an address such as https://label.example.org is wanted")
        return value.rstrip("/") if value else value


class LabelAgreementConfig(Database):
    """How far labelers agree, with intervals."""

    json_file: Path | None = None
    """Write the figures to this file as JSON, too."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of the bootstrap."""


class LabelInviteConfig(Database):
    """A link by which one person gets an account."""

    role: Literal["labeler", "admin"] = "labeler"
    """Labelers rank; admins also see progress, people and settings."""
    name: str | None = None
    """The name the account will have. Default: the person chooses."""
    hours: int = Field(168, ge=1, le=8760)
    """The link works once, within so many hours."""
    url: str = "http://127.0.0.1:8000"
    """Where the app runs; stands at the beginning of the link."""


class LabelImportConfig(Database):
    """Completions, gold items or rankings into the store."""

    file: Path
    """JSON Lines of Trivet's own, or an export of Argilla or Label Studio."""
    format: Literal["completions", "rankings", "gold", "preference", "argilla", "label-studio"] = "completions"
    """completions: to be ranked; rankings: judgments already made; gold: rankings known to be right; preference:
    pairs in the field's form; argilla, label-studio: their exports of rankings."""
    round: int = Field(1, ge=1)
    """Which round the items belong to."""


class LabelExportConfig(Database):
    """Judgments out of the store."""

    out: Path
    """File to write."""
    format: Literal["rankings", "preference", "argilla", "label-studio"] = "rankings"
    """rankings: Trivet's own, input of `trivet pairs`; preference: the field's prompt, chosen, rejected; argilla,
    label-studio: files that these import."""
