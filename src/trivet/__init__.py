"""Trivet: from people's rankings to an aligned language model.

The public face: everything here is imported when first used, so that `import trivet` is quick.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "TrivetError": "trivet.errors",
    "Message": "trivet.artifacts",
    "Prompt": "trivet.artifacts",
    "Preference": "trivet.artifacts",
    "Ranking": "trivet.artifacts",
    "Sample": "trivet.judge.base",
    "Reward": "trivet.judge.base",
    "Sampling": "trivet.generate.config",
    "TorchEngine": "trivet.generate.torch_engine",
    "Run": "trivet.runs",
    "SampleConfig": "trivet.generate.config",
    "PairsConfig": "trivet.feedback.config",
    "SFTConfig": "trivet.policy.config",
    "RewardConfig": "trivet.reward.config",
    "PPOConfig": "trivet.policy.config",
    "run_stage": "trivet.pipeline",
    "run_recipe": "trivet.pipeline",
}

__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'trivet' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
