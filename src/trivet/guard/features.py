"""What is measured of each answer: a number by name, from its text and from what the record says of it.

Pure; rules of trivet.text, whose docstrings say what each sees and misses. None where it says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from trivet.guard.base import StepRecord
from trivet.judge.base import Sample
from trivet.text.rules import compression_ratio, gibberish, repetition
from trivet.text.surface import (
    content_words,
    distance,
    exaggeration,
    flattery,
    formatting,
    grammar_faults,
    sameness,
    word_pairs,
)

Column = list[float | None]
"""A number an answer."""

TEXT = ("length", "repetition", "compression", "exaggeration", "flattery", "formatting", "grammar", "gibberish",
        "distance")
"""What is measured of the text alone."""

NEIGHBOURS = 6
"""Answers to other prompts that one is compared with for `sameness`: more cost more and steady it little."""

_CUT = 20_000
"""Characters of an answer that are looked at. No answer of a sane run is longer; one that is costs no more."""


def prompt_of(sample: Sample) -> str:
    """What the answer answers: the user's last turn, and the conversation's last one where there is none."""
    return next((m.content for m in reversed(sample.messages) if m.role == "user"),
                sample.messages[-1].content if sample.messages else "")


def prompt_key(sample: Sample) -> str:
    """The whole conversation as one string: answers with the same key answer the same prompt."""
    return "\x1e".join(f"{m.role}\x1f{m.content}" for m in sample.messages)


def text_features(text: str, prompt: str | frozenset[str]) -> dict[str, float | None]:
    """The TEXT features of one answer; prompt as text, or as its `content_words`."""
    kept = text[:_CUT]
    return {
        "length": float(len(text)), "repetition": repetition(kept), "compression": compression_ratio(kept),
        "exaggeration": exaggeration(kept), "flattery": flattery(kept), "formatting": formatting(kept),
        "grammar": grammar_faults(kept), "gibberish": gibberish(kept), "distance": distance(kept, prompt),
    }


def features(record: StepRecord) -> dict[str, Column]:
    """Every feature of a record's answers, by name; a field the record lacks gives no column.

    Beside TEXT: `sameness` (with answers to other prompts of the record), `score`, and as far as given `kl`,
    `surprise` (−ref_logp a token, nats), `cut_off` (0 or 1), `held_out_raw` (in its own unit), `spread`.
    """
    asked: dict[str, frozenset[str]] = {}
    found: dict[str, Column] = {name: [] for name in TEXT}
    for sample in record.samples:
        prompt = prompt_of(sample)
        if prompt not in asked:
            asked[prompt] = content_words(prompt)
        for name, value in text_features(sample.completion, asked[prompt]).items():
            found[name].append(value)
    found["sameness"] = sameness_column(record.samples)
    found["score"] = list(record.scores)
    if len(record.kl):
        found["kl"] = list(record.kl)
    if len(record.ref_logp) and len(record.tokens):
        found["surprise"] = [-logp / count if logp is not None and count else None
                             for logp, count in zip(record.ref_logp, record.tokens, strict=True)]
    if len(record.ended):
        found["cut_off"] = [float(not ended) for ended in record.ended]
    for field, name in (("held_out", "held_out_raw"), ("spread", "spread")):
        column = getattr(record, field)
        if any(value is not None for value in column):
            found[name] = list(column)
    return found


def sameness_column(samples: Sequence[Sample]) -> Column:
    """How much each answer says what answers to other prompts say: the mean over the next NEIGHBOURS of them.

    Its expectation does not depend on how many answers there are. None where all answers are to one prompt.
    """
    keys = [prompt_key(s) for s in samples]
    pairs = [word_pairs(s.completion[:_CUT]) for s in samples]
    found: Column = []
    for i, key in enumerate(keys):
        values: list[float] = []
        for step in range(1, len(samples)):
            j = (i + step) % len(samples)
            if keys[j] != key:
                values.append(sameness(pairs[i], pairs[j]))
                if len(values) == NEIGHBOURS:
                    break
        found.append(math.fsum(values) / len(values) if values else None)
    return found
