"""Figures in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trivet.report.read import StageRun


def number(value: Any, digits: int = 2, *, sign: bool = False) -> str:
    """A figure with a true minus sign; thousands apart; `–` for what is not known."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:+,}" if sign else f"{value:,}"
    text = f"{value:+,.{digits}f}" if sign else f"{value:,.{digits}f}"
    return (text if float(text.replace(",", "")) else text.lstrip("+-")).replace("-", "−")


def percent(value: float | None) -> str:
    """A share, in whole percent."""
    return "–" if value is None else f"{100 * value:.0f}%"


def span(found: Mapping[str, Any], digits: int = 2, *, share: bool = False) -> str:
    """A 95% interval in words."""
    if found.get("low") is None or found.get("high") is None:
        return "no interval: it rests on one prompt"
    low, high = ((percent(v) if share else number(v, digits)) for v in (found["low"], found["high"]))
    return f"95% interval {low} to {high}"


def duration(seconds: float) -> str:
    """A time for people: 1.5 s, 4 min 14 s, 2 h 5 min."""
    if seconds < 0.1:
        return f"{1000 * seconds:.1f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def direction(gain: Mapping[str, Any] | None) -> str:
    """up, down, or none where the interval includes zero; unknown where there is no interval."""
    if not gain or gain.get("low") is None or gain.get("high") is None:
        return "unknown"
    return "up" if gain["low"] > 0 else "down" if gain["high"] < 0 else "none"


def unit(ppo: StageRun) -> str:
    """What rewards are measured in."""
    return "points" if ppo.setting("normalise") is False else "deviations"
