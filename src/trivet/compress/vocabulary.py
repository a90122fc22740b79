"""Whether teacher and student mean the same by a token's number: their distributions are compared number by number."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from trivet.errors import TrivetError


def vocabulary_sha256(tokenizer: Any) -> str:
    """One sha256 over a tokenizer's tokens and their numbers."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()


def require_same_vocabulary(teacher: Any, student: Any, teacher_name: str, student_name: str) -> None:
    """Raise TrivetError where two tokenizers give one number to two tokens, or one of them has more tokens."""
    theirs, ours = ({i: t for t, i in x.get_vocab().items()} for x in (teacher, student))
    differing = [i for i in sorted(theirs.keys() | ours.keys()) if theirs.get(i) != ours.get(i)]
    if not differing:
        return
    first = differing[0]
    said = " and ".join(f"{v.get(first)!r} in {n}" if first in v else f"none in {n}"
                        for v, n in ((theirs, teacher_name), (ours, student_name)))
    raise TrivetError(
        f"teacher and student have different vocabularies: {len(differing):,} of {max(len(theirs), len(ours)):,} "
        f"numbers stand for different tokens, such as {first}: {said}", field="student.by",
        expected="a student of the teacher's tokenizer",
        mend="take a smaller model of the teacher's family, cut one from the teacher (--student.layers N), or let the "
        "teacher answer prompts (`trivet sample`) and train on its answers with `trivet sft`: text has no vocabulary")
