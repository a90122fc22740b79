"""The interface of text generation: generate, score, capabilities. What an engine lacks it says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from trivet.generate.config import Sampling


@dataclass(frozen=True)
class Capabilities:
    """What an engine can do; what it can't is refused by its caller, never estimated."""

    logps: bool
    """Log-probabilities of what it generated."""
    score: bool
    """Log-probabilities of given answers."""


@dataclass(frozen=True)
class Generated:
    """One answer. token_ids include the stop token where there was one, and the tokens of a stop string."""

    token_ids: tuple[int, ...]
    logps: tuple[float, ...]
    """Log-probability of each token under the distribution it was drawn from (temperature, top-p, top-k)."""
    ended: bool
    """A stop token was drawn or a stop string completed; False: cut off at max_new_tokens."""


class Engine(Protocol):
    """Several answers to each prompt, in token ids."""

    capabilities: Capabilities

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, *, n: int, seeds: Sequence[int]
    ) -> list[list[Generated]]:
        """n answers to each prompt; answer j of prompt i depends on seeds[i] and j alone."""

    def score(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]],
              temperature: float = 1.0) -> list[list[float]]:
        """Log-probability of each answer's tokens after its prompt, at a temperature."""
