"""Errors that are the user's to mend: shown without a traceback, exit code 2."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class TrivetError(Exception):
    """Something a person can put right.

    what:     what is wrong, in one sentence
    mend:     what to do about it
    file, line, field: where, as far as known
    expected: what should have stood there
    """

    exit_code = 2

    def __init__(
        self,
        what: str,
        *,
        mend: str,
        file: str | Path | None = None,
        line: int | None = None,
        field: str | None = None,
        expected: str | None = None,
    ) -> None:
        self.what, self.mend = what, mend
        self.file, self.line, self.field, self.expected = file, line, field, expected
        super().__init__(str(self))

    @property
    def said(self) -> dict[str, Any]:
        """What it was made of, as keywords: to say the same in another process, or by another class."""
        return {"what": self.what, "mend": self.mend, "file": self.file, "line": self.line, "field": self.field,
                "expected": self.expected}

    def __str__(self) -> str:
        where = str(self.file) if self.file is not None else ""
        if self.line is not None:
            where += f":{self.line}" if where else f"line {self.line}"
        if self.field is not None:
            where += f"{', ' if where else ''}field '{self.field}'"
        text = f"{where}: {self.what}" if where else self.what
        if self.expected is not None:
            text += f"\n  expected: {self.expected}"
        return f"{text}\n  to mend: {self.mend}"
