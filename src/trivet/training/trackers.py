"""`--report-to tensorboard|wandb`, through accelerate. That the tracker is installed was seen to by config.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class Trackers:
    """Sends figures to the trackers that were asked for; without any it does nothing."""

    def __init__(self, names: list[Any], folder: Path, config: dict[str, Any]) -> None:
        self._accelerator: Any = None
        if not names:
            return
        from accelerate import Accelerator

        self._accelerator = Accelerator(log_with=list(names), project_dir=str(folder), cpu=True)
        self._accelerator.init_trackers("tensorboard" if names == ["tensorboard"] else "trivet",
                                        config=_flat(config))

    def log(self, row: dict[str, Any], step: int) -> None:
        """Figures of a step."""
        if self._accelerator is not None:
            self._accelerator.log({k: v for k, v in row.items() if isinstance(v, int | float)}, step=step)

    def close(self) -> None:
        """Flush what was logged."""
        if self._accelerator is not None:
            self._accelerator.end_training()


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value if isinstance(value, int | float | str | bool) else str(value)
    return found
