"""How one model is decoded: its prompts read side by side, then one token a row at a time on a static cache.

Models differ in what they make of a cache that is not their own, and no list of names would stay true. So each
is tried once, on a few tokens, against its own forward pass over whole sequences.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from trivet.generate.lean import LeanStep, OtherForm
from trivet.generate.static_cache import Prefix, SlotCache, prefixes
from trivet.models.output_layer import backbone, plain_output_layer
from trivet.models.packed import OTHER_WINDOWS

SHARED = 4  # tokens that all prompts begin with: from here on they are read once


class StaticDecoding:
    """Prompts and decode steps of one model on a SlotCache."""

    def __init__(self, model: Any, pad: int, lean: bool) -> None:
        """lean: steps by `LeanStep`, else by the model's own forward. Raises ValueError where a model isn't for it."""
        self.model, self.pad = model, pad
        self.lean = LeanStep(model) if lean else None
        self.refused: str | None = None
        """Why the lean step is not for a model that looks as if it were."""
        self._shared: tuple[int, ...] = ()
        self._shared_layers: list[tuple[Tensor, Tensor]] = []

    def share(self, prompts: Sequence[Sequence[int]]) -> None:
        """Read once what all of these prompts begin with, such as a system prompt, if that is worth a pass."""
        self._shared, count = (), shared_prefix(prompts)
        if count:
            ids = torch.tensor([prompts[0][:count]], device=self.model.device)
            cache = backbone(self.model)(input_ids=ids, use_cache=True).past_key_values
            self._shared = tuple(prompts[0][:count])
            self._shared_layers = [(layer.keys, layer.values) for layer in cache.layers]

    def read(self, prompts: Sequence[Sequence[int]]) -> list[Prefix]:
        """Read prompts. They are padded on the right, where a causal model does not look: no mask is needed."""
        device, lengths, skip = self.model.device, [len(p) for p in prompts], len(self._shared)
        ids = torch.full((len(prompts), max(lengths) - skip), self.pad)
        for row, prompt in zip(ids, prompts, strict=True):
            row[: len(prompt) - skip] = torch.tensor(prompt[skip:])
        ids, last = ids.to(device), torch.tensor(lengths, device=device) - skip - 1
        rows = torch.arange(len(prompts), device=device)
        cache = DynamicCache(config=self.model.config)
        if skip:
            for layer, (keys, values) in enumerate(self._shared_layers):
                cache.update(keys.expand(len(prompts), -1, -1, -1), values.expand(len(prompts), -1, -1, -1), layer)
        output = plain_output_layer(self.model)
        if output is not None:
            out = backbone(self.model)(input_ids=ids, past_key_values=cache, use_cache=True)
            logits = output(out.last_hidden_state[rows, last])
        else:
            kept, place = last.unique(return_inverse=True)
            out = self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=kept)
            logits = out.logits[rows, place]
        return prefixes(out.past_key_values, lengths, logits)

    def step(self, cache: SlotCache, tokens: Sequence[int]) -> Tensor:
        """Logits [N, V] after one more token in each row of the cache."""
        if self.lean is not None:
            return self.lean(cache, tokens)
        positions, mask = cache.begin()
        ids = torch.tensor(tokens, device=positions.device)
        out = self.model(input_ids=ids.unsqueeze(-1), attention_mask=mask, position_ids=positions.unsqueeze(-1),
                         past_key_values=cache, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1]


def shared_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens, from the first, are read once for all prompts; 0 where that isn't worth a pass."""
    if len(prompts) < 2:
        return 0
    first, last = min(map(tuple, prompts)), max(map(tuple, prompts))  # in their tokens' order: these two differ most
    count = next((k for k, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    count = min(count, min(map(len, prompts)) - 1)  # each prompt's last token must be read to go on from it
    return count if count >= SHARED else 0


def longest_row(model: Any) -> int | None:
    """Tokens up to which each layer of this model looks at everything before; None: without an end.

    Raises ValueError for a model whose layers keep something other than keys and values.
    """
    config = model.config.get_text_config()
    # some models (GPT-Neo) look back no further than this, and their cache doesn't show it
    windows = [found for name in ("sliding_window", *OTHER_WINDOWS)
               if isinstance(found := getattr(config, name, None), int)]
    for layer in DynamicCache(config=model.config).layers:
        if type(layer) is DynamicSlidingWindowLayer:
            windows.append(layer.sliding_window)
        elif type(layer) is not DynamicLayer:
            raise ValueError(f"its layers keep a {type(layer).__name__}, not keys and values alone")
    return min(windows, default=None)


def decoding(model: Any, pad: int, longest: int) -> StaticDecoding | str:
    """How to decode rows of up to `longest` tokens with this model, or why it is not for the static cache.

    Tried once a model for each set of adapters that may be at work (the policy's, none for the reference); what was
    found is kept on it. Adapters have fixed weights meanwhile, so that a new adapter, which adds nothing yet, is tried
    too, and a resumed run decides as the uninterrupted one did.
    """
    known = model.__dict__.setdefault("_trivet_decoding", {})
    adapters = at_work(model)
    why = refused = None
    for lean in (True, False):
        try:
            road = StaticDecoding(model, pad, lean)
        except OtherForm:
            continue  # its own forward makes the steps
        except (ValueError, AttributeError) as error:
            refused = _words(error)
            continue
        if (lean, adapters) not in known:
            known[lean, adapters] = _why_not(model, pad, lean)
        why = known[lean, adapters]
        if why is None:
            break
        if lean:
            refused = why
    if why is not None:
        return str(why)
    road.refused = refused
    window = longest_row(model)
    if window is not None and longest > window:
        return f"its layers look back {window} tokens and rows may have {longest}"
    return road


def _adapted(model: Any) -> Iterator[tuple[Any, str]]:
    """Layers with an adapter that is at work, and its name."""
    for module in model.modules():
        if getattr(module, "disable_adapters", None) is False:  # of PEFT's layers; a method of transformers' models
            for name in module.active_adapters:
                if name in getattr(module, "lora_A", ()):
                    yield module, name


def at_work(model: Any) -> tuple[str, ...]:
    """The names of the LoRA adapters that are at work in this model."""
    return tuple(sorted({name for _, name in _adapted(model)}))


@contextlib.contextmanager
def _fixed_adapters(model: Any) -> Iterator[None]:
    """Random weights, always the same, in the adapters at work: they add some tenth of what their layers say."""
    generator, kept = torch.Generator().manual_seed(0), []
    try:
        for module, name in _adapted(model):
            for weight in (module.lora_A[name].weight, module.lora_B[name].weight):
                kept.append((weight, weight.data))
                size = weight.shape[1] ** -0.5 * (1.0 if weight is module.lora_A[name].weight else 0.05)
                weight.data = (torch.randn(weight.shape, generator=generator) * size).to(weight.data)
        yield
    finally:
        for weight, data in kept:
            weight.data = data


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


def _why_not(model: Any, pad: int, lean: bool) -> str | None:
    """Why this road is not for the model; None: it is."""
    try:
        longest_row(model)
        with _fixed_adapters(model):
            deviation, noise = _deviation(StaticDecoding(model, pad, lean))
    except Exception as error:
        # whatever a model says to a cache that it does not know: the plain road is there, and the reason is told
        return _words(error)
    # norms and rotations are float32 in a float64 model, too
    allowed = 4 * noise + max(torch.finfo(model.dtype).eps, torch.finfo(torch.float32).eps) ** 0.5
    if deviation > allowed:
        return f"its logits are {deviation:.1e} deviations off on it, where {allowed:.1e} would be rounding"
    return None


_TRIAL = ((5, 3), (23, 6), (12, 4))  # tokens of a prompt, steps after it: ragged, and rows leave


@torch.no_grad()
def _deviation(road: StaticDecoding) -> tuple[float, float]:
    """How far logits are from those of whole passes without a cache, on this road and on the model's own cache, in
    deviations of a token's logits."""
    model = road.model
    vocabulary = model.get_input_embeddings().weight.shape[0]
    rows = [[((7919 * (k + 1) if i > 3 else 0) + 31 * i) % vocabulary for i in range(p + s)]
            for k, (p, s) in enumerate(_TRIAL)]
    expected: list[Tensor] = []
    noise = deviation = 0.0
    for row, (prompt, steps) in zip(rows, _TRIAL, strict=True):
        ids = torch.tensor([row], device=model.device)
        whole = model(input_ids=ids, use_cache=False).logits[0].float()
        expected.append(whole)
        own = DynamicCache(config=model.config)
        parts = [model(input_ids=ids[:, :prompt], past_key_values=own, use_cache=True).logits[0, -1]]
        parts += [model(input_ids=ids[:, k : k + 1], past_key_values=own, use_cache=True).logits[0, -1]
                  for k in range(prompt, prompt + steps)]
        noise = max(noise, max(_off(a, b) for a, b in zip(parts, whole[prompt - 1:], strict=True)))
    prompts = [row[:p] for row, (p, _) in zip(rows, _TRIAL, strict=True)]
    road.share(prompts)
    read = road.read(prompts)
    cache = SlotCache(read[0], len(rows), 8)
    cache.require(max(map(len, rows)))
    at_work = list(range(len(rows)))
    for k, prefix in enumerate(read):
        cache.enter(prefix)
        deviation = max(deviation, _off(prefix.logits, expected[k][prefix.length - 1]))
    while at_work:
        places = list(cache.lengths)
        logits = road.step(cache, [rows[k][n] for k, n in zip(at_work, places, strict=True)])
        for slot in reversed(range(len(at_work))):
            k, n = at_work[slot], places[slot]
            deviation = max(deviation, _off(logits[slot], expected[k][n]))
            if n + 1 == len(rows[k]):
                cache.leave(slot)
                at_work[slot] = at_work[-1]
                at_work.pop()
    return deviation, noise


def _off(logits: Tensor, expected: Tensor) -> float:
    off = float((logits.float() - expected).abs().max() / expected.std())
    return off if math.isfinite(off) else math.inf
