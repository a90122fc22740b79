"""What an endpoint's model replied, as a verdict: its word, and the probability of it where tokens carry theirs."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

_FIELD = re.compile(r'"verdict"\s*:\s*"([^"]*)"')
_LEAD = r"[\W_]*(?:(?:so\s+)?(?:the\s+)?(?:better\s+)?(?:verdict|answer)\b(?:\s+is)?[\W_]*)?"
"""What may stand before a bare label: `Verdict:`, `So the better answer is`."""


def read_verdict(text: str, labels: tuple[str, str], *, reasoned: bool = False) -> tuple[str, int] | None:
    """(label, where it stands in the text) of a reply; None where it is none.

    Known are `{"verdict": "A"}`, also with words around it, and the bare label (`A.`, `**Yes**`, `Verdict: B`). Two
    verdicts that differ are none. What stands before a closing `</think>` is not read. reasoned: reasons come before
    the verdict and may weigh both labels or quote an answer: the last verdict counts, or a bare label as last line.
    """
    start = text.rfind("</think>")
    start = 0 if start < 0 else start + len("</think>")
    known = {label.casefold(): label for label in labels}
    found = [(known.get(m[1].strip().casefold()), m.start(1) + len(m[1]) - len(m[1].lstrip()))
             for m in _FIELD.finditer(text, start)]
    if found:
        label, place = found[-1]
        mixed = not reasoned and any(other != label for other, _ in found)
        return None if label is None or mixed else (label, place)
    if reasoned:
        start = max(start, text.rstrip().rfind("\n") + 1)
    bare = re.fullmatch(rf"{_LEAD}({'|'.join(map(re.escape, labels))})[\W_]*", text[start:], re.IGNORECASE)
    return None if bare is None else (known[bare[1].casefold()], start + bare.start(1))


def label_probability(tokens: Any, labels: tuple[str, str], *, reasoned: bool = False) -> float | None:
    """P(labels[0]) against labels[1] at the token in which the verdict begins; None where the tokens don't tell.

    tokens: `choices[0].logprobs.content` of a chat completion: {token, logprob, top_logprobs: [{token, logprob}]}.
    A label that is not among the alternatives counts as of no probability. reasoned: as `read_verdict` has it.
    """
    rows = _rows(tokens)
    if rows is None:
        return None
    text = "".join(token for token, _, _ in rows)
    verdict = read_verdict(text, labels, reasoned=reasoned)
    if verdict is None:
        return None
    start = 0
    for token, logp, others in rows:
        if start <= verdict[1] < start + len(token):
            mass = dict.fromkeys(labels, 0.0)
            for spelled, p in {token: logp, **dict(others)}.items():
                label = _begins(spelled, labels)
                if label is not None:
                    mass[label] += math.exp(min(p, 0.0))
            total = sum(mass.values())
            return mass[labels[0]] / total if total > 0 else None
        start += len(token)
    return None


def _begins(token: str, labels: tuple[str, str]) -> str | None:
    """The label that a token begins, quotes and the like around it left aside; None for neither, or for both."""
    letters = token.strip(" \t\r\n\"'`*_{}:.,").casefold()
    found = [label for label in labels if letters and label.casefold().startswith(letters)]
    return found[0] if len(found) == 1 else None


def _rows(tokens: Any) -> list[tuple[str, float, list[tuple[str, float]]]] | None:
    """(token, log-probability, alternatives) of well-formed entries; None for anything else."""
    if not isinstance(tokens, Sequence) or isinstance(tokens, str) or not tokens:
        return None
    rows = []
    try:
        for entry in tokens:
            others = [(str(o["token"]), float(o["logprob"])) for o in entry.get("top_logprobs") or []]
            rows.append((str(entry["token"]), float(entry["logprob"]), others))
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    return None if any(math.isnan(p) for _, p, others in rows for p in (p, *(q for _, q in others))) else rows
