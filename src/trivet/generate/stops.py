"""Stop strings: an answer ends where one of them is complete, and its text is cut before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trivet.errors import TrivetError

_MARGIN = 16  # tokens beyond a string's bytes: some (special ones, parts of a character) have no text of their own


def cut(text: str, stop: Sequence[str]) -> str:
    """The text before the first stop string in it."""
    found = [place for s in stop if (place := text.find(s)) >= 0]
    return text[: min(found)] if found else text


class StopStrings:
    """Tells when an answer's text holds a stop string, which may span tokens."""

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        """Raises TrivetError where there are stop strings and no tokenizer to read text with."""
        if stop and tokenizer is None:
            raise TrivetError("stop strings need a tokenizer, and this engine has none", field="sampling.stop",
                              mend="give TorchEngine(…, tokenizer=…)")
        self.tokenizer, self.stop = tokenizer, tuple(stop)
        self._tail = max((len(s.encode()) for s in self.stop), default=0) + _MARGIN

    def complete(self, ids: Sequence[int]) -> bool:
        """Whether the last token completed a stop string.

        Looked for in the last tokens' text first, so that a long answer isn't decoded whole for every token.
        """
        if not self.stop:
            return False
        return self._holds(ids[-self._tail:]) and (len(ids) <= self._tail or self._holds(ids))

    def _holds(self, ids: Sequence[int]) -> bool:
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        return any(s in text for s in self.stop)
