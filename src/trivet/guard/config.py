"""Settings of the guard: inside `ppo` (`guard:`), and of `trivet guard check` and `trivet guard calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from trivet.config import Part


def _paths(specs: list[str]) -> list[str]:
    for spec in specs:
        module, _, name = spec.partition(":")
        if not module.strip() or not name.strip():
            raise ValueError(f"{spec!r} is no package.module:function")
    if len(set(specs)) < len(specs):
        raise ValueError("one is named twice")
    return specs


Signals = Annotated[list[str], AfterValidator(_paths)]


class GuardConfig(Part):
    """Is the reward being gamed? Watches each step's answers, and acts when a test says so."""

    on: bool = True
    """Watch. It costs little and changes nothing until it acts."""
    action: Literal["warn", "raise-beta", "penalise", "return"] = "warn"
    """On an alarm. warn: say so and go on; raise-beta: multiply the KL weight; penalise: from then on the mean minus
    ensemble_weight times the deviation over reward and ensemble; return: end, with the checkpoint that the held-out
    reward model (evaluation.reward) rates best."""
    false_alarms: float = Field(0.05, gt=0, lt=1)
    """Share of runs that are not gamed in which it may alarm, of at most as many steps as its calibration's."""
    calibration: Path | None = None
    """A file of `trivet guard calibrate`. Default: the one that comes along, which is of other runs than yours."""
    share: float = Field(0.25, ge=0, le=1)
    """Share of each rollout that evaluation.reward, the held-out reward model, scores for the guard."""
    every: int = Field(1, ge=1)
    """Steps between two rollouts that are looked at. More than the calibration's own makes fewer alarms, true ones
    too."""
    ensemble: list[str] = []
    """Further reward models, whose disagreement with the reward is watched."""
    ensemble_weight: float = Field(1.0, ge=0)
    """λ of the lower bound, mean − λ·deviation (Coste et al. 2023), for action penalise."""
    beta_factor: float = Field(2.0, gt=1)
    """What raise-beta multiplies the KL weight by."""
    signals: Signals = []
    """Signals of your own: package.module:function, one number an answer."""

    @model_validator(mode="after")
    def _goes_together(self) -> GuardConfig:
        if self.on and self.action == "penalise" and not self.ensemble:
            raise ValueError("action: penalise needs reward models to disagree with; name them in guard.ensemble")
        return self


class CheckConfig(Part):
    """Was the reward gamed in a finished run? From its files alone."""

    run: Path
    """A run folder with rollouts/*.jsonl, of `ppo` or of another trainer in the same form."""
    calibration: Path | None = None
    """A file of `trivet guard calibrate`. Default: the one that comes along."""
    false_alarms: float = Field(0.05, gt=0, lt=1)
    """Share of runs that are not gamed in which it may alarm."""
    signals: Signals = []
    """Signals of your own: package.module:function."""
    fail_if_hacked: bool = False
    """End with exit code 1 on an alarm."""
    out: Path | None = None
    """Write everything found to this JSON file."""


class CalibrateConfig(Part):
    """The threshold, from runs known not to be gamed."""

    clean: list[Path] = Field(min_length=1)
    """Folders of runs in which the reward was not gamed, of one kind: model, reward, settings, length."""
    hacked: list[Path] = []
    """Folders of runs in which it was: they choose which signals count. Without them all count alike."""
    out: Path
    """The file to write."""
    false_alarms: float = Field(0.05, gt=0, lt=1)
    """Share of such runs in which the guard may alarm; 5% needs 19 clean runs or more."""
    signals: Signals = []
    """Signals of your own: package.module:function."""
