"""Answers that come and go at any time, a token a step for all at work: what a server needs of an engine.

`Engine.generate` is given all its prompts at once. A server's prompts come one after another, and who asked may leave.
So a stepper is an engine taken apart: rows enter with their prompts, all of them take one step, some leave. Which token
follows is its caller's to choose from the logits.

    TorchStepper      a transformers model on the static cache (generate/static_cache.py)
    LlamaCppStepper   a GGUF file
    Waves             what keeps rows of one length alone: OpenVINO's graphs, models that don't bear the static cache
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    from trivet.generate.base import LoadedEngine

ROOM = 16_384
"""Tokens, prompts and answers, that all rows may hold together where nothing else is said."""


class Stepper(Protocol):
    """Rows at work. Used by one thread; after a call has raised, only `clear` and `close` may be called."""

    width: int
    """Rows that may be at work at once."""
    longest: int
    """Tokens that one row may have, its prompt included."""

    def fits(self, totals: Sequence[int]) -> bool:
        """Whether rows of so many tokens, prompt and answer, may enter now, all of them."""

    def enter(self, prompts: Sequence[Sequence[int]], copies: Sequence[int],
              totals: Sequence[int]) -> tuple[list[int], torch.Tensor]:
        """Open `copies[i]` rows that begin with prompt i and will have up to `totals[i]` tokens each.

        Returns the new rows' keys, prompt by prompt, and the logits [N, V] of what follows in each.
        """

    def step(self, tokens: Mapping[int, int]) -> tuple[list[int], torch.Tensor]:
        """One token more for every row at work, by its key: (keys, logits [N, V] in their order), to be overwritten."""

    def leave(self, keys: Collection[int]) -> None:
        """Close rows."""

    def clear(self) -> None:
        """Close all rows, whatever happened before."""

    def close(self) -> None:
        """Give back what the rows held. The model is its engine's to close."""


def make_stepper(loaded: LoadedEngine, *, width: int = 32, room: int = ROOM, longest: int | None = None) -> Stepper:
    """The stepper for a loaded model.

    width: rows at work at once. room: tokens that they may hold together, which bounds the memory of keys and values.
    longest: tokens of one row at most. Default: the model's context. One row may always have all the room there is.
    """
    from trivet.generate.torch_engine import TorchEngine

    most = min(x for x in (longest, loaded.context, room) if x is not None)
    engine: Any = loaded.engine
    if isinstance(engine, TorchEngine):
        from trivet.generate.decoding import decoding
        from trivet.generate.torch_stepper import TorchStepper
        from trivet.generate.waves import TorchPasses, Waves

        road = decoding(engine.model, engine.pad, most)
        if isinstance(road, str):
            return Waves(TorchPasses(engine.model, engine.pad), width=width, longest=most, room=room)
        return TorchStepper(road, width=width, longest=most, room=room)
    if loaded.format == "gguf":
        from trivet.generate.llama_cpp_stepper import LlamaCppStepper

        return LlamaCppStepper(engine, width=width, longest=most, room=room)
    from trivet.generate.waves import OpenVINOPasses, Waves

    return Waves(OpenVINOPasses(engine), width=width, longest=most, room=room)
