"""llama.cpp as an engine: GGUF files on the CPU.

Batching is continuous, as the in-process engine's: an answer that is finished leaves, and the next prompt's enters; a
prompt is read once, and its answers start from the places of that one reading. Logits come back from every step and
tokens are drawn here, so that seeds, top-k, top-p and log-probabilities mean what they mean everywhere else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from trivet.errors import TrivetError
from trivet.generate import llama_cpp
from trivet.generate.base import Capabilities, Generated, LoadedEngine
from trivet.generate.config import Sampling
from trivet.generate.rows import Row, begin, by_prompt, draw_rows
from trivet.generate.stops import StopStrings
from trivet.models.formats import configured_ends
from trivet.models.source import ModelSource, load_tokenizer

if TYPE_CHECKING:
    from trivet.training.device import Compute


class LlamaCppEngine:
    """Generates with a GGUF file through llama.cpp."""

    capabilities = Capabilities(logps=True, score=True, distribution=True)

    def __init__(self, model: llama_cpp.Model, stops: frozenset[int], *, threads: int = 1, batch_size: int = 32,
                 exact: bool = False, tokenizer: Any = None, progress: Callable[[int], None] | None = None) -> None:
        """stops: tokens that end an answer. exact: keep keys and values in float32, as a float32 file wants it, not in
        float16. tokenizer: needed for stop strings only.
        """
        self.model, self.stops, self.threads, self.batch_size = model, stops, threads, batch_size
        self.kept = llama_cpp.F32 if exact else llama_cpp.F16
        self.tokenizer, self.progress = tokenizer, progress
        self._context: llama_cpp.Context | None = None
        self._room = (0, 0)

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, *, n: int, seeds: Sequence[int],
        limits: Sequence[int] | None = None,
    ) -> list[list[Generated]]:
        """See Engine.generate. limits: for each prompt, in place of sampling.max_new_tokens.

        Raises TrivetError for an empty prompt, and for stop strings without a tokenizer.
        """
        strings = StopStrings(self.tokenizer, sampling.stop)
        limits = [sampling.max_new_tokens] * len(prompts) if limits is None else limits
        rows = begin(prompts, n, seeds, limits)
        for done in self._continuous(prompts, rows, limits, sampling, strings):
            if self.progress is not None and done:
                self.progress(len(done))
        return by_prompt(rows, len(prompts))

    def _continuous(self, prompts: Sequence[Sequence[int]], rows: Sequence[Row], limits: Sequence[int],
                    sampling: Sampling, strings: StopStrings) -> Iterator[list[Row]]:
        """Make all rows, at most `batch_size` at once; tells after each step which were finished in it."""
        if not rows:
            return
        width = min(self.batch_size, len(rows))
        longest = max(len(p) + k for p, k in zip(prompts, limits, strict=True))
        # one sequence more than rows: it holds the prompt that rows enter from
        context = self._with_room((width + 1) * longest, width + 1)
        waiting, active, free = deque(rows), dict[int, Row](), list(range(width))
        entering, first = -1, np.empty(0)
        while waiting or active:
            done = []
            while waiting and free:
                row = waiting.popleft()
                if row.prompt != entering:
                    context.remove(width)
                    entering = row.prompt
                    (last,) = context.read(prompts[entering], width, len(prompts[entering]) - 1)
                    first = last
                draw_rows([row], torch.from_numpy(first.copy()), sampling, self.stops, strings)
                if row.finished:
                    done.append(row)
                else:
                    slot = free.pop()
                    context.copy(width, slot)
                    active[slot] = row
            if active:
                slots = list(active)
                logits = context.decode(
                    [active[s].tokens[-1] for s in slots],
                    [len(prompts[active[s].prompt]) + len(active[s].tokens) - 1 for s in slots], slots,
                    [True] * len(slots))
                draw_rows([active[s] for s in slots], torch.from_numpy(logits), sampling, self.stops, strings)
                for slot in [s for s in slots if active[s].finished]:
                    done.append(active.pop(slot))
                    context.remove(slot)
                    free.append(slot)
            yield done

    def score(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]],
              temperature: float = 1.0) -> list[list[float]]:
        """See Engine.score."""
        found = []
        for prompt, answer in zip(prompts, answers, strict=True):
            logps = self._read([*prompt, *answer][:-1], len(prompt) - 1, temperature)
            places = torch.tensor(list(answer), dtype=torch.long).unsqueeze(-1)
            scored: list[float] = torch.from_numpy(logps).gather(-1, places).squeeze(-1).tolist()
            found.append(scored)
        return found

    def distribution(self, text: Sequence[int]) -> np.ndarray:
        """See LocalEngine.distribution."""
        return self._read(text, 0, 1.0)

    def _read(self, text: Sequence[int], wanted_from: int, temperature: float) -> np.ndarray:
        """Log-probabilities [K, V] after each token from number `wanted_from` on."""
        context = self._with_room(len(text), 1)
        parts = [torch.log_softmax(torch.from_numpy(part) / temperature, -1)
                 for part in context.read(text, 0, wanted_from)]
        found: np.ndarray = torch.cat(parts).numpy()
        return found

    def _with_room(self, places: int, sequences: int) -> llama_cpp.Context:
        """An empty context with that much room: the one at hand, or a larger one in its place."""
        if self._context is None or places > self._room[0] or sequences > self._room[1]:
            if self._context is not None:
                self._context.close()
                self._context = None
            room = (-(-max(places, self._room[0]) // 256) * 256, max(sequences, self._room[1]))
            self._context = llama_cpp.Context(self.model, *room, threads=self.threads, kept=self.kept)
            self._room = room
        self._context.clear()
        return self._context

    def close(self) -> None:
        """See LocalEngine.close."""
        if self._context is not None:
            self._context.close()
            self._context = None
        self.model.close()


def load_gguf(file: Path, compute: Compute, batch_size: int) -> LoadedEngine:
    """The engine for a GGUF file. Its tokenizer is the folder's, or else the one inside the file.

    Raises TrivetError where another device than the CPU was named, a file that does not load, a tokenizer of
    another vocabulary.
    """
    compute = compute.on_cpu("llama.cpp")
    model = llama_cpp.Model(file)
    try:
        tokenizer = _tokenizer(file)
        if max(tokenizer.vocab_size, tokenizer.eos_token_id + 1) > model.tokens:
            raise TrivetError(f"its tokenizer has {tokenizer.vocab_size} tokens, its embeddings {model.tokens}",
                              file=file, field="model", mend="put the tokenizer that belongs to the file beside it")
    except TrivetError:
        model.close()
        raise
    configured = configured_ends(file.parent)
    stops = frozenset({int(tokenizer.eos_token_id)}) | (model.ends if configured is None else configured)
    engine = LlamaCppEngine(model, stops, threads=compute.threads, batch_size=batch_size, exact=model.is_float32,
                            tokenizer=tokenizer)
    return LoadedEngine(engine, tokenizer, "gguf", model.context, stops)


def _tokenizer(file: Path) -> Any:
    beside = (file.parent / "tokenizer.json").is_file()
    return load_tokenizer(ModelSource(str(file), file.parent), inside=None if beside else file.name)
