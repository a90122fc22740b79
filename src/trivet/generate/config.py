"""Settings of sampling, and of the stage `sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from trivet.config import EMBEDDED, Device, Part, StageConfig


class Sampling(Part):
    """How answers are drawn."""

    temperature: float = Field(1.0, ge=0, le=10)
    """Logits are divided by it; 0 is greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Keep the fewest tokens whose probabilities add up to this. 1: all."""
    top_k: int = Field(0, ge=0)
    """Keep the K most probable tokens. 0: all."""
    max_new_tokens: int = Field(128, ge=1)
    """An answer longer than this is cut off."""
    stop: list[Annotated[str, Field(min_length=1)]] = []
    """Texts that end an answer; its text is cut before them."""


def is_endpoint(by: str) -> bool:
    """Whether a setting names an endpoint, by its URL."""
    return by.startswith(("http://", "https://"))


class EndpointSettings(Part):
    """How an OpenAI-compatible endpoint is asked, and what may be spent there."""

    #: settings of how an endpoint is asked and what may be spent, not of what it is asked
    only_how: ClassVar[tuple[str, ...]] = ("key", "retries", "timeout", "concurrency", "requests", "tokens")

    key: str = "OPENAI_API_KEY"
    """The environment variable that holds the endpoint's key."""
    retries: int = Field(4, ge=0)
    """How often an endpoint is asked again, ever more slowly, when it fails."""
    timeout: float = Field(60.0, gt=0)
    """Seconds to wait for an endpoint's answer."""
    concurrency: int = Field(8, ge=1)
    """Requests in flight at an endpoint."""
    requests: int | None = Field(None, ge=1)
    """Budget: at most this many requests to an endpoint; then the run stops, and goes on with a larger one."""
    tokens: int | None = Field(None, ge=1)
    """Budget: at most this many tokens in and out, as the endpoint counts them."""


class Writing(EndpointSettings):
    """What writes texts: answers, critiques, revisions, prompts."""

    by: str | None = None
    """A model (a folder, an adapter folder, a hub id, or the embedded one), or the URL of an OpenAI-compatible
    endpoint, such as http://localhost:8000/v1."""
    model: str | None = None
    """The model's name at the endpoint."""


class VLLM(Part):
    """Answers from a running vLLM server."""

    in_flight: int = Field(64, ge=1, le=1024)
    """Prompts that the server works on at a time."""
    timeout: float = Field(600.0, gt=0, le=86_400)
    """Seconds one request may take."""
    retries: int = Field(3, ge=0, le=20)
    """Times a request is sent again, with growing pauses, before the server counts as gone."""
    wait: float = Field(600.0, ge=0, le=7 * 86_400)
    """Seconds to wait for a server that is gone; then the run stops, its state saved."""
    adapters: Path | None = None
    """Folder through which weights are handed over; the server must see it. Default: `handed` in the run folder."""
    seen_as: str | None = None
    """The same folder by the server's own path, where it is mounted elsewhere."""
    tolerance: float = Field(0.15, gt=0)
    """Nats a token, in the mean, by which the server's log-probabilities may differ from the trainer's."""
    cap: float = Field(2.0, ge=1)
    """Truncates the importance weights that correct for what differs below the tolerance."""
    key: str = "VLLM_API_KEY"
    """Environment variable that holds the server's key, where it wants one."""


class SampleConfig(StageConfig):
    """Several answers to each prompt, from one model."""

    input_fields: ClassVar[tuple[str, ...]] = ("prompts", "model")
    not_in_fingerprint: ClassVar[tuple[str, ...]] = ("out", "overwrite", "batch_size")

    out: Path = Path("runs/sample")
    """Folder of this stage's run."""
    prompts: Path
    """Prompts as JSON Lines: `messages`, or plain `prompt`; optional `id`, `reference`, `tags`."""
    model: str = EMBEDDED
    """A model folder, an adapter folder, a hub id, or the embedded default."""
    completions: int = Field(4, ge=1)
    """Answers to each prompt."""
    limit: int | None = Field(None, ge=1)
    """Take only the first N prompts."""
    sampling: Sampling = Sampling(temperature=1.0)
    """How answers are drawn."""
    batch_size: int = Field(32, ge=1)
    """Answers generated side by side."""
    device: Device = Device()
    """Where to compute."""
