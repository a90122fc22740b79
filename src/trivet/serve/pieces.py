"""Text as it grows: tokens become pieces that a reader may see; what may yet be a stop string is held back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trivet.generate.stops import cut


class Pieces:
    """The text of one answer, piece by piece. All pieces together are `generate.sample.text_of`'s text.

    A token may hold a part of a character, and what a token's text is may depend on the one before (a space, in
    tokenizers that begin words with it). So tokens are decoded behind a few earlier ones, and a piece that ends inside
    a character waits for the rest of it.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self.tokenizer, self.stop = tokenizer, tuple(stop)
        self.tokens: list[int] = []
        self.text = ""
        """All that was decoded, and nothing that may still change."""
        self.given = 0
        """Characters of it that were given out."""
        self._behind = self._read = 0

    def add(self, token: int) -> str:
        """A token more; the text that may be shown now, often empty."""
        self.tokens.append(token)
        before = self._decode(self.tokens[self._behind : self._read])
        whole = self._decode(self.tokens[self._behind :])
        if len(whole) > len(before) and not whole.endswith("�"):
            self.text += whole[len(before):]
            self._behind, self._read = self._read, len(self.tokens)
        return self._give(len(self.text) - self._held())

    def end(self) -> str:
        """The rest of the text: the answer has ended, or was cut off."""
        self.text = cut(self._decode(self.tokens), self.stop)
        return self._give(len(self.text))

    def _give(self, until: int) -> str:
        place = min([until, *(f for s in self.stop if (f := self.text.find(s)) >= 0)])
        piece = self.text[self.given : place] if place > self.given else ""
        self.given += len(piece)
        return piece

    def _held(self) -> int:
        """Characters at the text's end that a stop string may begin with."""
        return max((k for s in self.stop for k in range(1, len(s)) if self.text.endswith(s[:k])), default=0)

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True)) if tokens else ""
