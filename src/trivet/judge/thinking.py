"""A local model as a judge that reasons first: it writes its reasons, and its label is read after them.

Bai et al. 2022, 'Constitutional AI', section 4.1 (chain of thought): the probabilities that come after an argument lie
near 0 or 1, so they are clamped before they become labels (`Judging.clamp`, done where verdicts are handed out:
cache.py). With `votes` above 1 several arguments are drawn, and the mean of what follows them is the verdict (Wang et
al. 2022, 'Self-consistency'). Arguments are kept in the judge's folder, and none is written twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trivet.artifacts import Message
from trivet.generate.config import Sampling
from trivet.generate.writing import Ask, Writer
from trivet.judge.cache import Keep, gather
from trivet.judge.cases import Case
from trivet.judge.criteria import THINKING, closing, labels_of
from trivet.judge.local import LogProbJudge

CHUNK = 256
"""Cases whose arguments are written before their verdicts are read: an interruption costs the reading of so many at
most, since the arguments are kept one by one."""


class ThinkingJudge:
    """P(first label) of the model's next token behind its own argument and the words `So the better answer is`."""

    grades, symmetric, sees_ids, reads_criterion = True, False, False, True

    def __init__(self, reader: LogProbJudge, writer: Writer, *, tokens: int, votes: int = 1) -> None:
        """reader: the model as a judge that does not reason. writer: the same model as a writer. tokens: of an
        argument, at most. votes: arguments a case; one alone is the likeliest (temperature 0), several are drawn at 1.
        """
        self.reader, self.writer, self.tokens, self.votes, self.name = reader, writer, tokens, votes, reader.name

    @property
    def identity(self) -> Mapping[str, Any] | None:
        """What the reader's verdicts depend on, and how arguments are written."""
        known = self.reader.identity
        return None if known is None else {**known, "thinking": THINKING, "tokens": self.tokens, "votes": self.votes}

    def __call__(self, cases: Sequence[Case]) -> list[float]:
        """See Judge."""
        return gather(self, cases)

    def ask(self, cases: Sequence[Case], keep: Keep) -> None:
        """See Asking. Raises TrivetError as LogProbJudge and the writer do."""
        for start in range(0, len(cases), CHUNK):
            self._ask(cases[start : start + CHUNK], keep.shifted(start))

    def _ask(self, cases: Sequence[Case], keep: Keep) -> None:
        labels = [labels_of(case) for case in cases]
        ends = {known: self.reader.ids(f"\n\n{closing(known)}") for known in set(labels)}
        asked = [self.reader.fitted(case, think=True, room=self.tokens + len(ends[known]))
                 for case, known in zip(cases, labels, strict=True)]
        # the model's own closing words end the argument: the label behind them is read, not drawn
        sampling = Sampling(temperature=0.0 if self.votes == 1 else 1.0, max_new_tokens=self.tokens,
                            stop=sorted({closing(known) for known in labels}))
        places = [i for i in range(len(cases)) for _ in range(self.votes)]
        written = self.writer([Ask(cases[i].id, (Message(role="user", content=asked[i][0]),), n % self.votes)
                               for n, i in enumerate(places)], sampling)
        # an argument that was written in so many tokens may be read in more
        rows = [[*asked[i][1], *self.reader.ids(w.text.strip())[: self.tokens], *ends[labels[i]]]
                for i, w in zip(places, written, strict=True)]
        votes: dict[int, list[float]] = {}

        def gathered(part: Sequence[tuple[int, float]]) -> None:
            for n, p in part:
                votes.setdefault(places[n], []).append(p)
            whole = [i for i, said in votes.items() if len(said) == self.votes]
            if whole:
                keep([(i, sum(votes.pop(i)) / self.votes) for i in whole])

        self.reader.read(rows, [labels[i] for i in places], gathered)
