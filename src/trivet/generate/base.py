"""The interface of text generation: generate, score, capabilities. What an engine lacks it says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from trivet.generate.config import Sampling

if TYPE_CHECKING:
    from types import TracebackType

    import numpy as np


@dataclass(frozen=True)
class Capabilities:
    """What an engine can do; what it can't is refused by its caller, never estimated."""

    logps: bool
    """Log-probabilities of what it generated."""
    score: bool
    """Log-probabilities of given answers."""
    distribution: bool = False
    """The whole next-token distribution after each token of a given text, which the KL between two models needs."""


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


class LocalEngine(Engine, Protocol):
    """An engine in this process. It holds the weights, can tell whole distributions, and is closed when done with."""

    stops: frozenset[int]
    """Tokens that end an answer. The caller may empty it: each answer is then as long as its limit, as timing wants."""
    batch_size: int
    """Answers at work at once."""
    progress: Callable[[int], None] | None
    """Told how many more answers are finished."""

    def distribution(self, text: Sequence[int]) -> np.ndarray:
        """Log-probabilities [T, V], float32, of the token that follows each of the T tokens, at temperature 1."""

    def close(self) -> None:
        """Give the memory back; the engine can't be used any more. Closing twice does nothing."""


@dataclass
class LoadedEngine:
    """A model that is ready to answer. Use it in a `with` block, or close it."""

    engine: LocalEngine
    tokenizer: Any
    """With a chat template: the plain one, where the model has none."""
    format: str
    """What its weights are stored as: safetensors, compressed-tensors (or another library's name), gguf, openvino."""
    context: int | None
    """The longest sequence it can work on; None where nothing says so."""
    stops: frozenset[int]
    """Tokens that end an answer."""
    plain_template: bool = False
    """The model has no chat template of its own."""

    def close(self) -> None:
        """Give the memory back."""
        self.engine.close()

    def __enter__(self) -> LoadedEngine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()
