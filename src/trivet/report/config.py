"""Settings of `trivet report`."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict


class ReportConfig(BaseModel):
    """The HTML page of a run folder."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    run: Path
    """A run folder, such as runs/demo; or one stage's folder in it."""
    out: Path | None = None
    """The file to write. Default: report.html in the run folder."""


class LedgerConfig(BaseModel):
    """What each stage of a run cost, and what it bought."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    run: Path
    """A run folder, such as runs/demo; or one stage's folder in it."""
    prices: Path | None = None
    """A YAML file of prices: endpoints (by model, input and output per million tokens), machine_hour, gpu_hour,
    person_hour, currency. Without it there is no cost; what it gives no price for is not in the cost."""
    labels: str | None = None
    """The database of `trivet label`, a file or a URL: people's time is read there instead of from the rankings that
    the stages read."""
    evaluations: list[Path] = []
    """Folders of finished evaluations outside of the run, of models that it made or began with."""
    out: Path | None = None
    """The life-cycle chart to write, an SVG file. Default: lifecycle.svg in the run folder."""
