"""The in-process engine: any decoder-only transformers model.

Batching is continuous: an answer that is finished leaves at once and the next prompt's enters; the completions of
one prompt share its prefill; keys and values stand in one static cache. Every row draws from a random generator of
its own, so that an answer depends on its seed and not on its neighbours (up to the arithmetic of another batch
width). Weights are the caller's: nothing is copied.

A model that does not bear the static cache is decoded in fixed batches on its own cache, and that is said once; so is
why one that looks like Llama does not take the lean step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from trivet.generate.base import Capabilities, Generated
from trivet.generate.config import Sampling
from trivet.generate.decoding import StaticDecoding, decoding
from trivet.generate.rows import Row, begin, by_prompt, draw_rows
from trivet.generate.sampling import draw, row_uniforms, sampling_logps
from trivet.generate.static_cache import Prefix, SlotCache
from trivet.generate.stops import StopStrings

if TYPE_CHECKING:
    import numpy as np

__all__ = ["TorchEngine", "draw", "left_padded", "positions", "row_uniforms", "sampling_logps"]

PREFILL = 1024  # tokens of prompts that are read side by side: products are efficient from some 256 on


def left_padded(rows: Sequence[Sequence[int]], pad: int, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """ids [N, T] and mask [N, T] (1 = real) of token rows, padded on the left."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, width - len(row):] = torch.tensor(row, dtype=torch.long)
        mask[i, width - len(row):] = 1
    return ids.to(device), mask.to(device)


def positions(mask: torch.Tensor) -> torch.Tensor:
    """Position ids from a mask (detail 3): the first real token stands at 0 however much padding is left of it."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


class TorchEngine:
    """Generates with a transformers causal model in this process."""

    capabilities = Capabilities(logps=True, score=True, distribution=True)

    def __init__(self, model: Any, pad: int, stops: frozenset[int], *, batch_size: int = 32,
                 progress: Callable[[int], None] | None = None, tokenizer: Any = None) -> None:
        """pad: a padding id (never used to find masks). stops: tokens that end an answer; none: each is as long as
        its limit. batch_size: rows at work at once. progress: told how many more answers are finished. tokenizer:
        needed for stop strings only.
        """
        self.model, self.pad, self.stops = model, pad, stops
        self.batch_size, self.progress, self.tokenizer = batch_size, progress, tokenizer

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, *, n: int, seeds: Sequence[int],
        limits: Sequence[int] | None = None, take: Callable[[int, int, Generated], None] | None = None,
    ) -> list[list[Generated]]:
        """See Engine.generate. limits: for each prompt, in place of sampling.max_new_tokens. take: given the prompt's
        number, the answer's number and the answer as soon as it is finished, in any order.

        Raises TrivetError for an empty prompt, and for stop strings without a tokenizer.
        """
        strings = StopStrings(self.tokenizer, sampling.stop)
        limits = [sampling.max_new_tokens] * len(prompts) if limits is None else limits
        rows = begin(prompts, n, seeds, limits)
        longest = max((len(p) + k for p, k in zip(prompts, limits, strict=True)), default=0)
        road = decoding(self.model, self.pad, longest)
        finished: Iterator[list[Row]]
        if isinstance(road, str):
            self._say(f"is decoded on its own cache, which is slower: {road}")
            batches = [rows[k : k + self.batch_size] for k in range(0, len(rows), self.batch_size)]
            finished = (done for batch in batches for done in self._batch(prompts, batch, sampling, strings))
        else:
            if road.refused is not None:
                self._say(f"looks like Llama but is decoded by its own modules, which is slower: {road.refused}")
            road.share(prompts)
            finished = self._continuous(road, prompts, rows, sampling, strings)
        for done in finished:
            if self.progress is not None and done:
                self.progress(len(done))
            if take is not None:
                for row in done:
                    take(row.prompt, row.answer, row.generated)
        return by_prompt(rows, len(prompts))

    def _say(self, note: str) -> None:
        said = self.model.__dict__.setdefault("_trivet_said", set())
        if note not in said:
            said.add(note)
            print(f"{type(self.model).__name__} {note}", flush=True)

    def _draw(self, rows: Sequence[Row], logits: torch.Tensor, sampling: Sampling, strings: StopStrings) -> None:
        draw_rows(rows, logits, sampling, self.stops, strings)

    def _continuous(self, road: StaticDecoding, prompts: Sequence[Sequence[int]], rows: Sequence[Row],
                    sampling: Sampling, strings: StopStrings) -> Iterator[list[Row]]:
        """Make all rows, at most `batch_size` at once; tells after each step which were finished in it."""
        waiting, active = deque(rows), list[Row]()
        read: dict[int, Prefix] = {}
        cache: SlotCache | None = None
        while waiting or active:
            entering = [waiting.popleft() for _ in range(min(len(waiting), self.batch_size - len(active)))]
            for k, row in enumerate(entering):
                if row.prompt not in read:
                    read |= self._read(road, prompts, [*entering[k:], *waiting])
            if entering:
                self._draw(entering, torch.stack([read[r.prompt].logits for r in entering]), sampling, strings)
            for row in entering:
                if not row.finished:
                    room = read[row.prompt].length + len(row.uniforms)
                    if cache is None:
                        cache = SlotCache(read[row.prompt], min(self.batch_size, len(rows)), room)
                    cache.require(room)
                    cache.enter(read[row.prompt])
                    active.append(row)
            needed = {r.prompt for r in waiting}
            read = {i: prefix for i, prefix in read.items() if i in needed}
            yield [r for r in entering if r.finished]
            if not active or cache is None:
                continue
            logits = road.step(cache, [r.tokens[-1] for r in active])
            self._draw(active, logits, sampling, strings)
            finished = [r for r in active if r.finished]
            for k in reversed([k for k, r in enumerate(active) if r.finished]):
                cache.leave(k)
                active[k] = active[-1]
                active.pop()
            yield finished

    def _read(self, road: StaticDecoding, prompts: Sequence[Sequence[int]],
              rows: Sequence[Row]) -> dict[int, Prefix]:
        """Read the next prompts, as many as fit PREFILL tokens with their padding; the first in any case."""
        chosen: list[int] = []
        for i in dict.fromkeys(r.prompt for r in rows):
            if chosen and (len(chosen) + 1) * len(prompts[i]) > PREFILL:
                break  # they come by length: this one is the longest
            chosen.append(i)
        return dict(zip(chosen, road.read([prompts[i] for i in chosen]), strict=True))

    def _batch(self, prompts: Sequence[Sequence[int]], rows: list[Row], sampling: Sampling,
               strings: StopStrings) -> Iterator[list[Row]]:
        """Make rows side by side on the model's own cache; finished ones leave where that pays."""
        device = self.model.device
        chosen = list(dict.fromkeys(r.prompt for r in rows))
        ids, mask = left_padded([prompts[i] for i in chosen], self.pad, device)
        out = self.model(input_ids=ids, attention_mask=mask, position_ids=positions(mask), use_cache=True,
                         logits_to_keep=1)
        cache, logits = out.past_key_values, out.logits[:, -1]
        if len(rows) > len(chosen):
            places = torch.tensor([chosen.index(r.prompt) for r in rows], device=device)
            cache.batch_select_indices(places)
            logits, mask = logits[places], mask[places]
        next_position = mask.sum(-1, keepdim=True)
        alive = rows  # rows still in the batch; those that are finished draw on, into nothing
        while True:
            running = [k for k, r in enumerate(alive) if not r.finished]
            self._draw([alive[k] for k in running], logits[torch.tensor(running, device=device)], sampling, strings)
            yield [alive[k] for k in running if alive[k].finished]
            still = [k for k in running if not alive[k].finished]
            if not still:
                return
            if len(still) <= 0.75 * len(alive):  # dropping copies the cache: only when it pays
                keep = torch.tensor(still, device=device)
                alive = [alive[k] for k in still]
                cache.batch_select_indices(keep)
                mask, next_position = mask[keep], next_position[keep]
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], -1)
            token = torch.tensor([r.tokens[-1] for r in alive], device=device)
            out = self.model(input_ids=token.unsqueeze(-1), attention_mask=mask, position_ids=next_position,
                             past_key_values=cache, use_cache=True, logits_to_keep=1)
            logits, next_position = out.logits[:, -1], next_position + 1

    @torch.no_grad()
    def score(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]],
              temperature: float = 1.0) -> list[list[float]]:
        """See Engine.score. Answers are padded on the right, prompts on the left."""
        results: list[list[float]] = [[] for _ in prompts]
        order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]) + len(answers[i]), i))
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            width = max(len(answers[i]) for i in chosen)
            left, left_mask = left_padded([prompts[i] for i in chosen], self.pad, self.model.device)
            right = torch.full((len(chosen), width), self.pad, device=self.model.device)
            right_mask = torch.zeros_like(right)
            for k, i in enumerate(chosen):
                right[k, : len(answers[i])] = torch.tensor(list(answers[i]), device=right.device)
                right_mask[k, : len(answers[i])] = 1
            mask = torch.cat([left_mask, right_mask], -1)
            logits = self.model(input_ids=torch.cat([left, right], -1), attention_mask=mask,
                                position_ids=positions(mask), use_cache=False,
                                logits_to_keep=width + 1).logits[:, :-1]
            logps = torch.log_softmax(logits.float() / temperature, -1)
            chosen_logps = logps.gather(-1, right.unsqueeze(-1)).squeeze(-1)
            for k, i in enumerate(chosen):
                results[i] = chosen_logps[k, : len(answers[i])].tolist()
        return results

    @torch.no_grad()
    def distribution(self, text: Sequence[int]) -> np.ndarray:
        """See LocalEngine.distribution."""
        ids = torch.tensor([list(text)], device=self.model.device)
        logits = self.model(input_ids=ids, use_cache=False).logits[0]
        found: np.ndarray = torch.log_softmax(logits.float(), -1).cpu().numpy()
        return found

    def close(self) -> None:
        """Let go of the model: its memory is free when the caller has let go of it, too."""
        self.model = None
