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
