"""A verifiable reward: does the answer's last number equal the known one?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

from trivet.errors import TrivetError
from trivet.judge.base import Sample

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")
_MARKED = re.compile(r"####\s*(-?[\d,.]+)")


def final_number(text: str) -> Decimal | None:
    """The number after `####` (GSM8K's mark), else the last number in the text; None where there is none."""
    marked = _MARKED.findall(text)
    found = marked or _NUMBER.findall(text)
    if not found:
        return None
    try:
        return Decimal(found[-1].replace(",", "").rstrip("."))
    except InvalidOperation:
        return None


def exact_answer(samples: Sequence[Sample]) -> list[float]:
    """1.0 where the answer's final number equals the reference's, else 0.0.

    Raises TrivetError for a sample without a reference that holds a number.
    """
    scores = []
    for sample in samples:
        wanted = final_number(sample.reference or "")
        if wanted is None:
            raise TrivetError(f"prompt {sample.id!r} has no known answer with a number in it",
                              field="reference", mend="give every prompt its `reference`, such as \"42\"")
        scores.append(float(final_number(sample.completion) == wanted))
    return scores
