"""What `tradeoff` asks of every variant: found out, and checked, before anything is measured."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trivet
from trivet.artifacts import Prompt, is_held_out, read_rows, text_id
from trivet.compress.tradeoff_config import TradeoffConfig
from trivet.compress.variant import Variant, read_variant
from trivet.errors import TrivetError
from trivet.evaluate.catalogue import SUITES, Suite, chosen, draw, notes
from trivet.evaluate.config import EvaluateConfig
from trivet.evaluate.suites import prompts as open_prompts
from trivet.evaluate.suites import text
from trivet.evaluate.suites.text import Document

OWN_TEXT, ITS_PROMPTS = "text", "prompts"
"""Suites of `evaluate` whose text, and whose starter prompts, are asked here by other means."""
_COMMON = {"model", "policy", "variant", "reward", "adapter"}
"""Folders that many stages write: a name for none of them."""


@dataclass(frozen=True)
class Plan:
    """The items; the same for every variant."""

    documents: list[Document]
    """Held-out text."""
    prompts: list[Prompt]
    """Those whose answers the reward scores."""
    suites: dict[Suite, list[Any]]
    notes: list[str]


def plan(config: TradeoffConfig, tokenizer: Any = None) -> Plan:
    """What is asked. tokenizer: its chat template writes out the conversations of `text`; without it they stand bare.

    Raises TrivetError for files, suites and data that do not fit; loads no model."""
    if OWN_TEXT in config.suites:
        raise TrivetError("the suite 'text' is what perplexity comes from anyway", field="suites",
                          mend="leave it out; --text gives other text")
    asked = EvaluateConfig(model=config.model, data=config.data, suites=config.suites)
    suites, left_out = chosen(config.suites, config.data) if config.suites else ([], {})
    items = {suite: draw(suite.load().read(asked), suite.standard if config.limit is None else config.limit,
                         config.seed) for suite in suites}
    said = [f"The suite {name} is left out: {why}" for name, why in left_out.items()]
    said += notes([*suites, *([SUITES[OWN_TEXT]] if config.text is None else [])], config.data)
    found = text.read(asked) if config.text is None else _documents(config.text, tokenizer)
    return Plan(draw(found, config.limit, config.seed), _prompts(config), items, said)


def _prompts(config: TradeoffConfig) -> list[Prompt]:
    """The prompts to be answered: none where nothing scores the answers."""
    if config.reward is None:
        return []
    if config.prompts is None:
        rows = read_rows(Path(trivet.__file__).parent / "starter" / "prompts.jsonl", Prompt)
        share: float | None = open_prompts.HELD_OUT
    else:
        rows, share = read_rows(config.prompts, Prompt), config.held_out
    held = [row for row in rows if share is None or is_held_out(row.messages, share)]
    if not held:
        raise TrivetError(f"of these {len(rows)} prompts none falls into the held-out share of {share}",
                          file=config.prompts, field="held_out", mend="raise --held-out, or give more prompts")
    kept = held if config.limit is None or config.limit >= len(held) else draw_rows(held, config.limit, config.seed)
    return [Prompt(id=row.id, messages=row.messages, reference=row.reference, tags=row.tags) for row in kept]


def draw_rows(rows: Sequence[Prompt], count: int, seed: int) -> list[Prompt]:
    """`count` prompts by the seed, in their order."""
    kept = set(random.Random(seed).sample(range(len(rows)), count))
    return [row for i, row in enumerate(rows) if i in kept]


def _documents(path: Path, tokenizer: Any) -> list[Document]:
    """The texts of a file, each once; a plain text file is parted at its empty lines."""
    from trivet.data.chat import chat_text
    from trivet.data.corpus import read_texts

    found: dict[str, Document] = {}
    for each in read_texts(path):
        if each.messages is None:
            parts = re.split(r"\n\s*\n", each.words) if path.suffix == ".txt" else [each.words]
            found |= {text_id(p.strip()): Document(text_id(p.strip()), p.strip()) for p in parts if p.strip()}
        else:
            words = "\n\n".join(m.content for m in each.messages) if tokenizer is None else \
                chat_text(tokenizer, each.messages, open_answer=each.messages[-1].role != "assistant")
            name = text_id(each.messages)
            found[name] = Document(name, words)
    return list(found.values())


# --- names ---------------------------------------------------------------------------------------------


def described(config: TradeoffConfig, model: str) -> list[tuple[str, str, Variant]]:
    """(name, path, what is known of it) of the source (`model`: where its whole weights are) and of each variant.

    Raises TrivetError for what is no model, a damaged variant.json, and a variant that is named twice.
    """
    found = [(config.model if i == 0 else path, path, _read(path, "variants" if i else "model"))
             for i, path in enumerate([model, *config.variants])]
    seen: dict[str, str] = {}
    for _, path, _ in found[1:]:
        place = str(Path(path).resolve())
        if place in seen:
            raise TrivetError(f"{path} stands twice among the variants", field="variants", mend="name it once")
        seen[place] = path
    known = [config.names[i - 1] if i and config.names else _called(said, variant)
             for i, (said, _, variant) in enumerate(found)]
    names = distinct(known, [said for said, _, _ in found])
    return [(name, path, variant) for name, (_, path, variant) in zip(names, found, strict=True)]


def _read(path: str, field: str) -> Variant:
    try:
        return read_variant(path)
    except TrivetError as error:
        raise TrivetError(**error.said | {"field": field if error.field in (None, "model") else error.field}) from None


def _called(path: str, variant: Variant) -> str:
    """What a variant calls itself; a source by the last part of its path that says something."""
    if variant.method != "source":
        return variant.name
    parts = [p for p in Path(path).parts if p not in _COMMON] or list(Path(path).parts)
    return parts[-1] if parts else path


def distinct(names: Sequence[str], paths: Sequence[str]) -> list[str]:
    """The names; of several equal ones each gets as much of its path before it as tells them apart, else a number."""
    found = list(names)
    for name in dict.fromkeys(n for n in names if names.count(n) > 1):
        places = [i for i, n in enumerate(names) if n == name]
        ends = [[p for p in Path(paths[i]).parts if p not in _COMMON] for i in places]
        tails = [parts[-1] if parts else "" for parts in ends]
        told = len(set(tails)) == len(tails) and all(tails)
        for number, (i, tail) in enumerate(zip(places, tails, strict=True), 1):
            found[i] = (name if tail == name else f"{name} ({tail})") if told else f"{name} {number}"
    return found
