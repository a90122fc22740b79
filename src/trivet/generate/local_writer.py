"""A model in this process as a writer of texts, by the in-process engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from trivet.data.chat import context_length, ensure_template, prompt_ids, stop_token_ids
from trivet.errors import TrivetError
from trivet.generate.base import Generated
from trivet.generate.config import Sampling
from trivet.generate.kept import Keeping
from trivet.generate.sample import text_of
from trivet.generate.torch_engine import TorchEngine
from trivet.generate.writing import Ask, Written
from trivet.models.source import load_causal_lm, load_tokenizer, model_identity, resolve

CHUNK = 512
"""Asks that are held as tokens at once: the last of each leave the batch half empty, and memory stays bounded."""


class LocalWriter:
    """Writes with a transformers causal model after its chat template."""

    def __init__(self, model: Any, tokenizer: Any, *, name: str, identity: Mapping[str, Any], field: str,
                 batch_size: int = 32, count: Callable[[str, int], None] | None = None) -> None:
        """model, tokenizer: loaded, perhaps shared with others; they are not changed but for a missing chat template.

        identity: what names weights and template (`models.source.model_identity`). field: the setting, for messages.
        batch_size: texts at work at once. count: told how many tokens were read (`prompt`) and `generated`.
        """
        ensure_template(tokenizer)
        self.model, self.tokenizer, self.name, self.field = model, tokenizer, name, field
        self.batch_size, self.count, self._weights = batch_size, count, identity

    @classmethod
    def load(cls, name: str, compute: Any, loaded: Mapping[str, tuple[Any, Any]], *, field: str,
             count: Callable[[str, int], None] | None = None) -> LocalWriter:
        """The model of that name out of `loaded`, or else with weights of its own.

        Raises TrivetError for one that does not load.
        """
        source = resolve(name)
        if name in loaded:
            model, tokenizer = loaded[name]
        else:
            tokenizer = load_tokenizer(source)
            model = load_causal_lm(source, compute.trunk, compute.device)
        ensure_template(tokenizer)  # it is part of the identity
        return cls(model, tokenizer, name=name, identity=model_identity(source, tokenizer), field=field, count=count)

    @property
    def identity(self) -> Mapping[str, Any]:
        """The weights, the chat template, and how precisely they are computed with."""
        return {"kind": "local", "dtype": str(self.model.dtype), **self._weights}

    @property
    def loaded(self) -> Mapping[str, tuple[Any, Any]]:
        """See Source."""
        return {self.name: (self.model, self.tokenizer)}

    def write(self, asks: Sequence[Ask], seeds: Sequence[int], sampling: Sampling, keep: Keeping[Written]) -> None:
        """See Source. Texts to prompts of like length are written side by side.

        Raises TrivetError, before anything is written, for an ask that leaves no room for its text in the context.
        """
        begun = [tuple(self.tokenizer.encode(ask.begun, add_special_tokens=False)) for ask in asks]
        lengths = [len(prompt_ids(self.tokenizer, ask.messages)) + len(b) for ask, b in zip(asks, begun, strict=True)]
        self._require_room(asks, lengths, sampling.max_new_tokens)
        engine = TorchEngine(self.model, self.tokenizer.pad_token_id, stop_token_ids(self.model, self.tokenizer),
                             batch_size=self.batch_size, tokenizer=self.tokenizer)
        order = sorted(range(len(asks)), key=lambda i: (lengths[i], i))
        for start in range(0, len(order), CHUNK):
            part = order[start : start + CHUNK]

            def take(prompt: int, _: int, generated: Generated, part: Sequence[int] = part) -> None:
                i = part[prompt]
                if self.count is not None:
                    self.count("prompt", lengths[i])
                    self.count("generated", len(generated.token_ids))
                whole = replace(generated, token_ids=begun[i] + generated.token_ids)
                text = text_of(self.tokenizer, whole, sampling.stop)
                keep([(i, Written(text, generated.ended, len(generated.token_ids)))])

            engine.generate([[*prompt_ids(self.tokenizer, asks[i].messages), *begun[i]] for i in part], sampling, n=1,
                            seeds=[seeds[i] for i in part], take=take)

    def _require_room(self, asks: Sequence[Ask], lengths: Sequence[int], new_tokens: int) -> None:
        context = context_length(self.model)
        for ask, length in zip(asks, lengths, strict=True):
            if context is not None and length + new_tokens > context:
                raise TrivetError(
                    f"{ask.id!r} has {length} tokens; with {new_tokens} new ones it is longer than the context of "
                    f"{context} of {self.name}", field=f"{self.field}.by",
                    mend="shorten or drop this prompt, lower --sampling.max-new-tokens, or take a model with a longer "
                    "context")
