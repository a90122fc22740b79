"""Settings of `trivet serve` and `trivet ask`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from trivet.config import EMBEDDED, Device, Part
from trivet.generate.config import Sampling
from trivet.serve.pal.config import PalSettings

DEFAULTS = Sampling(temperature=0.7, top_p=0.95, max_new_tokens=512)
"""How answers are drawn where a request does not say. Small models wander at temperature 1, which OpenAI's clients
leave unsaid."""


class Ways(Part):
    """Beside the model's plain words."""

    pal: bool = False
    """Answer with programs as well: MODEL:programs always, MODEL:auto where the question wants one."""
    programs: PalSettings = PalSettings()
    """How programs are drawn and run."""


class ServeConfig(Ways):
    """A model behind OpenAI's interface, with a chat page."""

    model: str = EMBEDDED
    """A model folder of any format, an adapter folder, a GGUF file, a hub id, or the URL of an OpenAI-compatible server
    (such as vLLM's, http://localhost:8000/v1), to which requests are handed on."""
    model_name: str | None = None
    """What it is called in requests; of a server that requests are handed to, its name there."""
    host: str = "127.0.0.1"
    """Address to listen on. Beyond this machine keys are wanted (--keys), or --open."""
    port: int = Field(8080, ge=0, le=65_535)
    """Port to listen on; 0 takes a free one."""
    hosts: list[str] = []
    """Further names under which the server may be asked for, where it listens on this machine alone."""
    keys: Path | None = None
    """File of API keys, one a line, `NAME:KEY` or `KEY`; TRIVET_SERVE_KEYS holds them, too. None: no key is asked
    for."""
    open: bool = False
    """Listen beyond this machine without keys."""
    rate: int | None = Field(None, ge=1)
    """Requests a minute by one key (or address)."""
    width: int = Field(32, ge=1, le=512)
    """Answers at work at once."""
    room: int = Field(16_384, ge=64)
    """Tokens, prompts and answers, that they may hold together: it bounds memory, and one conversation."""
    queue: int = Field(128, ge=0)
    """Requests that may wait; the next ones get status 429."""
    seconds: float = Field(600.0, gt=0)
    """Longest time for one request, waiting included."""
    most_bytes: int = Field(2_000_000, ge=1000)
    """Longest body of a request."""
    grace: float = Field(30.0, ge=0)
    """Seconds that answers under way have when the server is stopped."""
    sampling: Sampling = DEFAULTS
    """How answers are drawn where a request does not say."""
    key: str = "OPENAI_API_KEY"
    """Environment variable with the key of a server that requests are handed to."""
    log: Path | None = None
    """File for a JSON line about each request; default: standard error. No texts in it."""
    log_texts: bool = False
    """Write the texts of conversations into the log, too."""
    device: Device = Device()
    """Where to compute."""


class AskConfig(Ways):
    """One question, answered here."""

    model: str = EMBEDDED
    """A model folder of any format, an adapter folder, a GGUF file, or a hub id."""
    question: str = Field(min_length=1)
    """What is asked."""
    system: str | None = None
    """A system message before it."""
    seed: int = 0
    """Of what is drawn."""
    steps: bool = True
    """Show what happens on the way."""
    json_output: bool = False
    """Print the reply, its sources and steps as JSON."""
    sampling: Sampling = Sampling(temperature=0.0, max_new_tokens=512)
    """How the answer is drawn."""
    device: Device = Device()
    """Where to compute."""
