"""Log-probabilities of given continuations, with every shared prefix run once.

What all prompts begin with (few-shot text) is run once, and its keys and values are what every later row looks back
on. A prompt and its continuations are one row: a tree in which continuations that begin alike share their first
tokens, each token sees its ancestors only (4-d mask) and stands at its own depth. The last token of a continuation is
never run, since nothing is read after it. The output layer is applied once to each state that something is read
from. In exact arithmetic all of this is what one pass for each continuation would give.

Whether a model bears it is found out by trying (`shares_prefixes`); one that does not gets a row for each
continuation. Not covered: encoder-decoder models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trivet.data.chat import context_length
from trivet.errors import TrivetError
from trivet.models.output_layer import backbone, plain_output_layer

BATCH_TOKENS = 1024
"""Padded tokens a pass. On a CPU 200 questions of TruthfulQA took 39, 38, 36, 36 and 38 s of one core's time with 256,
512, 768, 1024 and 2048: smaller passes multiply smaller matrices, larger ones leave the cache and pad more."""
ROW_TOKENS = 512
"""A row longer than this is cut in two where it can be: its attention grows with the square of its length."""
CHUNK_LOGITS = 2**24
"""Logits of one product with the output layer: 67 MB in float32."""
READ_ROWS = 8
"""Of these, what is read at a time: rows that stay in the cache."""
LEAST_PREAMBLE = 8  # a shorter common beginning is not worth a cache


@dataclass(frozen=True)
class Fork:
    """A prompt and what may follow it, in token ids."""

    prompt: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Scored:
    """What a model says of one continuation."""

    logp: float
    """Sum of its tokens' log-probabilities, in nats."""
    tokens: int
    greedy: bool
    """Every token of it is the likeliest one in its place."""


def fork_of(tokenizer: Any, prompt: str, continuations: Sequence[str]) -> Fork:
    """A prompt and its continuations as tokens, split as the field does: what the whole text has more than the prompt.

    The tokenizer adds the special tokens that it adds to any text. White space at the prompt's end is counted to the
    continuations, as tokenizers join it with what comes after. Raises TrivetError for a continuation without tokens.
    """
    bare = prompt.rstrip()
    tail = prompt[len(bare):]
    head = tuple(tokenizer(bare)["input_ids"])
    wholes = tokenizer([bare + tail + c for c in continuations])["input_ids"]
    rest = tuple(tuple(whole[len(head):]) for whole in wholes)
    for text, ids in zip(continuations, rest, strict=True):
        if not ids:
            raise TrivetError(f"the continuation {text!r} has no tokens", field="continuations",
                              mend="give each continuation some text")
    return Fork(head, rest)


@torch.no_grad()
def score_forks(model: Any, forks: Sequence[Fork], *, batch_tokens: int = BATCH_TOKENS,
                progress: Callable[[int], Any] | None = None,
                count: Callable[[str, int], Any] | None = None) -> list[list[Scored]]:
    """How likely each continuation of each fork is: [forks][continuations].

    model: a causal transformers model in evaluation mode. batch_tokens: padded tokens of a pass at most (one row may
    be longer). progress: told the number of forks done. count: told how many tokens were run, as `scored`.
    Log-probabilities are at temperature 1, summed in float64, and do not depend on the order of the forks up to the
    arithmetic of another batch. Raises TrivetError for a prompt or continuation without tokens, and for one that is
    longer than the model's context.
    """
    if not forks:
        return []
    _check(forks, context_length(model))
    shared = shares_prefixes(model) and not _window_cuts(model, forks)
    common = _common(forks) if shared else 0
    rows = [row for i, fork in enumerate(forks)
            for row in (_tree_rows(i, fork, common) if shared else _line_rows(i, fork))]
    past = _run(model, torch.tensor([forks[0].prompt[:common]], device=model.device)) if common else None
    if count is not None:
        count("scored", common + sum(len(r.tokens) for r in rows))
    sums = [np.zeros(len(f.continuations)) for f in forks]
    greedy = [np.ones(len(f.continuations), dtype=bool) for f in forks]
    left = np.bincount([r.fork for r in rows], minlength=len(forks))
    for batch in _batches(rows, batch_tokens):
        logps, best = _edges(model, batch, past, common, shared)
        for row, row_logps, row_best in zip(batch, logps, best, strict=True):
            for index, path in row.paths:
                sums[row.fork][index] = row_logps[path].sum()
                greedy[row.fork][index] = row_best[path].all()
            left[row.fork] -= 1
        if progress is not None and (done := sum(left[r] == 0 for r in {row.fork for row in batch})):
            progress(int(done))
    return [[Scored(float(s), len(c), bool(g)) for s, c, g in zip(total, fork.continuations, likeliest, strict=True)]
            for fork, total, likeliest in zip(forks, sums, greedy, strict=True)]


def _check(forks: Sequence[Fork], context: int | None) -> None:
    for fork in forks:
        if not fork.prompt or not fork.continuations or not all(fork.continuations):
            raise TrivetError("a prompt or a continuation has no tokens", field="continuations",
                              mend="give each prompt and continuation some text")
        longest = len(fork.prompt) + max(map(len, fork.continuations)) - 1  # the last token is not run
        if context is not None and longest > context:
            raise TrivetError(f"a prompt with its longest continuation has {longest + 1} tokens, the model's context "
                              f"is {context}", field="model",
                              mend="use a model with a longer context, or leave this out")


def _common(forks: Sequence[Fork]) -> int:
    """How many tokens all prompts begin with, the last token of each left out; 0 where that is too few to matter."""
    if len(forks) < 2:
        return 0
    first, last = min(f.prompt for f in forks), max(f.prompt for f in forks)
    limit = min(len(f.prompt) for f in forks) - 1
    same = next((i for i in range(limit) if first[i] != last[i]), limit)
    return same if same >= LEAST_PREAMBLE else 0


# --- rows ------------------------------------------------------------------------------------------------


@dataclass
class _Row:
    """A tree of tokens. Edge k leads from cell `sources[k]` to token `targets[k]`: a log-probability to read."""

    fork: int
    tokens: list[int]
    parents: list[int]
    """Each cell's parent, -1 for the first."""
    sources: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    paths: list[tuple[int, list[int]]] = field(default_factory=list)
    """(number of the continuation, its edges)."""

    def __len__(self) -> int:
        return len(self.tokens)


def _tree_rows(number: int, fork: Fork, skip: int) -> Iterator[_Row]:
    """A fork as one tree behind its first `skip` tokens, or as several where it would be too long a row."""
    start = list(fork.prompt[skip:])

    def new() -> tuple[_Row, dict[tuple[int, int], int], dict[tuple[int, int], int]]:
        return _Row(number, list(start), list(range(-1, len(start) - 1))), {}, {}

    row, edges, cells = new()
    # neighbours begin alike, so that little is lost where the row is cut
    for index in sorted(range(len(fork.continuations)), key=lambda i: fork.continuations[i]):
        ids = fork.continuations[index]
        if row.paths and len(row) + len(ids) > max(ROW_TOKENS, len(start)):
            yield row
            row, edges, cells = new()
        cell, path = len(start) - 1, []
        for place, token in enumerate(ids):
            key = (cell, token)
            if key not in edges:
                edges[key] = len(row.targets)
                row.sources.append(cell)
                row.targets.append(token)
            path.append(edges[key])
            if place + 1 < len(ids):
                if key not in cells:
                    cells[key] = len(row)
                    row.tokens.append(token)
                    row.parents.append(cell)
                cell = cells[key]
        row.paths.append((index, path))
    yield row


def _line_rows(number: int, fork: Fork) -> Iterator[_Row]:
    """A row for each continuation, nothing shared."""
    for index, ids in enumerate(fork.continuations):
        tokens = [*fork.prompt, *ids[:-1]]
        sources = list(range(len(fork.prompt) - 1, len(tokens)))
        yield _Row(number, tokens, list(range(-1, len(tokens) - 1)), sources, list(ids),
                   [(index, list(range(len(ids))))])


def _batches(rows: Sequence[_Row], limit: int) -> Iterator[list[_Row]]:
    """Rows of like length, longest first, in batches of at most `limit` padded tokens (or one row)."""
    batch: list[_Row] = []
    for row in sorted(rows, key=lambda r: (-len(r), r.fork)):
        if batch and len(batch[0]) * (len(batch) + 1) > limit:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


# --- passes ----------------------------------------------------------------------------------------------


def _edges(model: Any, batch: Sequence[_Row], past: Any, common: int,
           trees: bool) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(log-probabilities, whether it is the likeliest token) of every edge of every row, [rows][edges].

    trees: rows hold trees, which need a mask and positions of their own; otherwise the model makes its own.
    """
    width = len(batch[0])
    ids = np.zeros((len(batch), width), dtype=np.int64)
    for i, row in enumerate(batch):
        ids[i, : len(row)] = row.tokens
    chosen, reads = np.unique(np.concatenate(
        [i * width + np.array(row.sources) for i, row in enumerate(batch)]), return_inverse=True)
    given = {"input_ids": torch.from_numpy(ids).to(model.device), "use_cache": past is not None}
    if trees:
        mask, places = _tree_mask(batch, width, common, model)
        given |= {"attention_mask": mask, "position_ids": places, "past_key_values": past}
    else:
        real = np.arange(width) < np.array([[len(row)] for row in batch])
        given |= {"attention_mask": torch.from_numpy(real.astype(np.int64)).to(model.device)}
    layer, picked = plain_output_layer(model), torch.from_numpy(chosen).to(model.device)
    if layer is None:
        logits = model(**given).logits.flatten(0, 1)[picked]
        logits_of: Callable[[slice], Tensor] = logits.__getitem__
    else:
        hidden = backbone(model)(**given).last_hidden_state.flatten(0, 1)[picked]

        def logits_of(part: slice) -> Tensor:
            return layer(hidden[part])

    targets = np.concatenate([np.array(row.targets) for row in batch])
    logps, best = _read(logits_of, torch.from_numpy(reads), torch.from_numpy(targets))
    cuts = np.cumsum([len(row.targets) for row in batch])[:-1]
    return np.split(logps, cuts), np.split(best, cuts)


def _tree_mask(batch: Sequence[_Row], width: int, common: int, model: Any) -> tuple[Tensor, Tensor]:
    """An additive mask [N, 1, T, common + T] and positions [N, T]: each cell sees the preamble, its ancestors, itself.

    Padding sees itself (a row that sees nothing would be NaN), and nothing sees it.
    """
    places = np.full((len(batch), width), common, dtype=np.int64)
    sees = np.zeros((len(batch), width, width), dtype=bool)
    sees[:, range(width), range(width)] = True
    for place, seen, row in zip(places, sees, batch, strict=True):
        for cell, parent in enumerate(row.parents):
            if parent >= 0:
                place[cell] = place[parent] + 1
                seen[cell] |= seen[parent]
    mask = torch.zeros((len(batch), 1, width, common + width), dtype=model.dtype, device=model.device)
    hidden = torch.from_numpy(~sees).to(model.device)
    mask[:, 0, :, common:].masked_fill_(hidden, torch.finfo(model.dtype).min)
    return mask, torch.from_numpy(places).to(model.device)


def _read(logits_of: Callable[[slice], Tensor], reads: Tensor, targets: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(log-probability, is it the likeliest token) of each target [E] in the distribution of the state reads[e]."""
    order = reads.argsort(stable=True)
    reads, targets = reads[order], targets[order]
    states = int(reads[-1]) + 1
    logps, best = torch.empty(len(reads), dtype=torch.float64), torch.empty(len(reads), dtype=torch.bool)
    starts = torch.searchsorted(reads, torch.arange(states + 1)).tolist()  # the targets of state s: starts[s:s + 1]
    start, rows = 0, READ_ROWS  # the first chunk tells how wide the vocabulary is
    while start < states:
        chunk = logits_of(slice(start, start + rows))
        if chunk.dtype in (torch.bfloat16, torch.float16):
            chunk = chunk.float()
        for first in range(0, len(chunk), READ_ROWS):
            logits = chunk[first : first + READ_ROWS]
            low = start + first
            part = slice(starts[low], starts[low + len(logits)])
            where = (reads[part] - low).to(logits.device)
            value = logits[where, targets[part].to(logits.device)]
            highest = logits.amax(-1)
            total = logits.sub_(highest[:, None]).exp_().sum(-1).log()
            logps[part] = ((value - highest[where]).double() - total[where].double()).cpu()
            best[part] = (value >= highest[where]).cpu()
        start, rows = start + len(chunk), max(READ_ROWS, CHUNK_LOGITS // chunk.shape[-1])
    undo = torch.empty_like(order)
    undo[order] = torch.arange(len(order))
    return logps[undo].numpy(), best[undo].numpy()


def _run(model: Any, ids: Tensor) -> Any:
    """What later rows look back on: the keys and values of `ids` [1, T]."""
    from transformers import DynamicCache

    class Behind(DynamicCache):
        """The same keys and values before those of every batch; keeps nothing of a batch."""

        kept: Any

        def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any,
                   **kwargs: Any) -> tuple[Tensor, Tensor]:
            layer, rows = self.kept.layers[layer_idx], len(key_states)
            return (torch.cat([layer.keys.expand(rows, -1, -1, -1), key_states], -2),
                    torch.cat([layer.values.expand(rows, -1, -1, -1), value_states], -2))

    behind = Behind()
    behind.kept = backbone(model)(input_ids=ids, use_cache=True).past_key_values
    return behind


# --- does a model bear it? ---------------------------------------------------------------------------------


def _window_cuts(model: Any, forks: Sequence[Fork]) -> bool:
    """Whether the model looks back less far than a row is long: a mask of our own would let it see too much."""
    config = model.config.get_text_config()
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    longest = max(len(f.prompt) + max(map(len, f.continuations)) for f in forks)
    return any(window and longest > window for window in windows)


def shares_prefixes(model: Any) -> bool:
    """Whether trees of continuations behind a kept preamble give what single rows give; found out once a model.

    Models that take no 4-d mask, no positions or no cache (recurrent ones, for one) do not.
    """
    known = getattr(model, "_trivet_shares_prefixes", None)
    if known is None:
        known = model._trivet_shares_prefixes = _try_sharing(model)
    return bool(known)


@torch.no_grad()
def _try_sharing(model: Any) -> bool:
    vocabulary = model.get_input_embeddings().weight.shape[0]
    tokens = [(i * 7919 + 11) % vocabulary for i in range(24)]
    forks = [Fork(tuple(tokens[:9 + i]), (tuple(tokens[10:13]), (*tokens[10:12], *tokens[15:18]), (tokens[20],)))
             for i in range(2)]
    found: list[list[float]] = []
    for common in (8, 0):
        try:
            past = _run(model, torch.tensor([tokens[:common]], device=model.device)) if common else None
            rows = [r for i, f in enumerate(forks)
                    for r in (_tree_rows(i, f, common) if common else _line_rows(i, f))]
            values = [_edges(model, [row], past, common, bool(common))[0][0] for row in rows]
        except Exception:  # whatever a model says to it: sharing is a saving and nothing else
            if not common:
                raise
            return False
        found.append([value[path].sum() for row, value in zip(rows, values, strict=True)
                      for _, path in sorted(row.paths)])
    part, whole = (1e-3, 1e-3) if model.dtype in (torch.float32, torch.float64) else (0.02, 0.1)
    return bool(np.allclose(found[0], found[1], rtol=part, atol=whole))
