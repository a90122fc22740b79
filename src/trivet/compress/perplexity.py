"""How well a model predicts windows of text, in nats a token, and calibration and held-out text from their settings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trivet.compress.calibration_config import Calibration, HeldOut
from trivet.data.chat import context_length
from trivet.data.corpus import Part, default_text, read_windows
from trivet.errors import TrivetError


@torch.no_grad()
def window_losses(model: Any, windows: Sequence[Tensor]) -> Tensor:
    """The mean negative log-likelihood of each window's tokens but its first, in nats: [len(windows)] float64.

    windows: token ids, [T] each, T at least 2. One window a pass: its logits over the vocabulary are what costs memory.
    """
    found = []
    for window in windows:
        ids = window[None].to(model.device)
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
        found.append(torch.nn.functional.cross_entropy(logits, ids[0, 1:]).double().cpu())
    return torch.stack(found)


def perplexity(model: Any, windows: Sequence[Tensor]) -> float:
    """exp of the mean negative log-likelihood a token; every window's tokens but its first are predicted."""
    tokens = torch.tensor([len(w) - 1.0 for w in windows], dtype=torch.float64)
    nats = float((window_losses(model, windows) * tokens).sum() / tokens.sum())
    return math.exp(nats) if nats < 700 else math.inf


class Texts:
    """Calibration and held-out text for a model. One file given for both is parted by a hash of each text."""

    def __init__(self, calibration: Calibration, held_out: HeldOut, model: Any, tokenizer: Any, seed: int) -> None:
        self._calibration, self._held_out = calibration, held_out
        self._context, self._tokenizer, self._seed = context_length(model), tokenizer, seed
        self._paths = (calibration.data or default_text("calibration"), held_out.data or default_text("held-out"))
        self._parted = self._paths[0].resolve() == self._paths[1].resolve()

    def calibration(self) -> list[Tensor]:
        """Windows of token ids, [length] each, drawn by the seed.

        Raises TrivetError for windows longer than the model's context, and for a file that holds too little.
        """
        return self._read(self._paths[0], self._calibration, "train", "calibration")

    def held_out(self) -> list[Tensor]:
        """Windows to measure on; the same whatever the seed. Raises as `calibration` does."""
        return self._read(self._paths[1], self._held_out, "held-out", "held-out")

    def _read(self, path: Path, asked: Calibration | HeldOut, part: Part, setting: str) -> list[Tensor]:
        if self._context is not None and asked.length > self._context:
            raise TrivetError(f"windows of {asked.length} tokens are longer than the model's context of "
                              f"{self._context}", field=f"{setting}.length",
                              mend=f"--{setting}.length {self._context} at most")
        return read_windows(path, self._tokenizer, asked.length, asked.windows, self._seed if part == "train" else 0,
                            part=part if self._parted else "all", setting=setting)
