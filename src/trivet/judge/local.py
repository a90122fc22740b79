"""A local model as a judge: asked for one letter or word, and read by the log-probabilities of what it might reply."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from trivet.artifacts import Message
from trivet.data.chat import context_length, ensure_template, prompt_ids
from trivet.errors import TrivetError
from trivet.generate.torch_engine import left_padded, positions
from trivet.judge.cache import Keep, gather
from trivet.judge.cases import Case
from trivet.judge.criteria import CHAT_MARKS, LONGEST, WORDING, broken_up, labels_of, word
from trivet.models.source import load_causal_lm, load_tokenizer, model_identity, resolve

SHORTEST = 100
"""Characters of each text below which a case is not cut any further to fit the model's context."""
WINDOW = 1024
"""Cases whose tokens are held at once, and sorted by length."""


class LogProbJudge:
    """P(first label) / (P(first label) + P(second label)) of the model's next token after its chat template.

    The labels are A and B for two answers, yes and no for one; spellings of one token each are added up (` A`, `Yes`).
    """

    grades, symmetric, sees_ids, reads_criterion = True, False, False, True

    def __init__(self, model: Any, tokenizer: Any, *, name: str, identity: Mapping[str, Any] | None = None,
                 longest: int = LONGEST, batch_tokens: int = 8192,
                 count: Callable[[str, int], None] | None = None) -> None:
        """model, tokenizer: loaded, perhaps shared with others; they are not changed but for a missing chat template.

        identity: what names weights and template (`models.source.model_identity`); None: verdicts are not kept.
        longest: characters of the conversation and of each answer. batch_tokens: padded tokens a pass at most.
        count: told how many tokens were `judged`.
        """
        ensure_template(tokenizer)
        self.model, self.tokenizer, self.name, self.longest = model, tokenizer, name, longest
        self.batch_tokens, self.count, self._weights = batch_tokens, count, identity
        self.context = context_length(model)
        self._marks = tuple({*CHAT_MARKS, *tokenizer.all_special_tokens,
                             *(str(t) for t in tokenizer.added_tokens_decoder.values() if t.special)})
        self._spellings: dict[tuple[str, str], tuple[list[int], list[int]]] = {}

    @classmethod
    def load(cls, name: str, compute: Any, count: Callable[[str, int], None] | None = None, *,
             longest: int = LONGEST) -> LogProbJudge:
        """A model with weights of its own. Raises TrivetError for one that does not load."""
        source = resolve(name)
        tokenizer = load_tokenizer(source)
        ensure_template(tokenizer)
        model = load_causal_lm(source, compute.trunk, compute.device)
        return cls(model, tokenizer, name=name, identity=model_identity(source, tokenizer), longest=longest,
                   count=count)

    @property
    def identity(self) -> Mapping[str, Any] | None:
        """The weights, the chat template, the wording, and how precisely they are computed with."""
        if self._weights is None:
            return None
        return {"kind": "log-probability", "wording": WORDING, "longest": self.longest,
                "dtype": str(self.model.dtype), **self._weights}

    def ask(self, cases: Sequence[Case], keep: Keep) -> None:
        """See Asking. Cases of like length are asked side by side.

        Raises TrivetError for a case without one answer or two, and one that can't be cut to fit the context.
        """
        for start in range(0, len(cases), WINDOW):
            part = cases[start : start + WINDOW]
            self.read([self.prompt(case) for case in part], [labels_of(case) for case in part], keep.shifted(start))

    def read(self, ids: Sequence[list[int]], labels: Sequence[tuple[str, str]],
             keep: Callable[[Sequence[tuple[int, float]]], None]) -> None:
        """P(first label) behind each of these rows of tokens, handed on as passes are done, in any order."""
        batch: list[int] = []
        for i in sorted(range(len(ids)), key=lambda i: (len(ids[i]), i)):
            if batch and len(ids[i]) * (len(batch) + 1) > self.batch_tokens:
                self._pass(ids, labels, batch, keep)
                batch = []
            batch.append(i)
        if batch:
            self._pass(ids, labels, batch, keep)

    def __call__(self, cases: Sequence[Case]) -> list[float]:
        """See Judge."""
        return gather(self, cases)

    def prompt(self, case: Case) -> list[int]:
        """Token ids of what the model is asked, cut until they fit into its context. Raises TrivetError as `ask`."""
        return self.fitted(case)[1]

    def fitted(self, case: Case, *, think: bool = False, room: int = 0) -> tuple[str, list[int]]:
        """What the model is asked, and its token ids in the chat template, cut until they fit into its context.

        think: reasons are asked for first (`criteria.word`). room: tokens that must have room behind them. Raises
        TrivetError as `ask`.
        """
        longest = self.longest
        while True:
            text = word(case, longest=longest, think=think, marks=self._marks).text
            ids = prompt_ids(self.tokenizer, [Message(role="user", content=text)])
            if self.context is None or len(ids) + room <= self.context:
                return text, ids
            if longest <= SHORTEST:
                more = f" and wants {room} more for its reasons" if room else ""
                raise TrivetError(
                    f"case {case.id!r} has {len(ids)} tokens even when cut{more}; the judge {self.name} reads "
                    f"{self.context}", field="judge.by", mend="take a judge with a longer context")
            longest = max(SHORTEST, longest * 3 // 4)

    def ids(self, text: str) -> list[int]:
        """Token ids of a text that some model wrote: nothing in it is a mark of the chat template."""
        return list(self.tokenizer(broken_up(text, self._marks), add_special_tokens=False)["input_ids"])

    @torch.no_grad()
    def _pass(self, ids: Sequence[list[int]], labels: Sequence[tuple[str, str]], batch: Sequence[int],
              keep: Callable[[Sequence[tuple[int, float]]], None]) -> None:
        tokens, mask = left_padded([ids[i] for i in batch], self.tokenizer.pad_token_id, self.model.device)
        logits = self.model(input_ids=tokens, attention_mask=mask, position_ids=positions(mask), use_cache=False,
                            logits_to_keep=1).logits[:, -1].float().cpu()
        if self.count is not None:
            self.count("judged", sum(len(ids[i]) for i in batch))
        rows = []
        for i, row in zip(batch, logits, strict=True):
            first, second = self.spellings(labels[i])
            rows.append((i, float(torch.sigmoid(row[first].double().logsumexp(0) - row[second].double().logsumexp(0)))))
        keep(rows)

    def spellings(self, labels: tuple[str, str]) -> tuple[list[int], list[int]]:
        """The tokens by which the model may begin either label.

        Spellings of one token, where there are any; else the first tokens. Raises TrivetError where those of both
        labels are the same.
        """
        if labels not in self._spellings:
            found = [self._first_tokens(label) for label in labels]
            both = found[0] & found[1]
            if not (found[0] - both and found[1] - both):
                raise TrivetError(f"the tokenizer of {self.name} can't tell {labels[0]!r} from {labels[1]!r}",
                                  field="judge.by", mend="take another model as the judge")
            self._spellings[labels] = (sorted(found[0] - both), sorted(found[1] - both))
        return self._spellings[labels]

    def _first_tokens(self, label: str) -> set[int]:
        words = {label} if len(label) == 1 else {label, label.capitalize(), label.upper()}
        ids = [self.tokenizer(space + w, add_special_tokens=False)["input_ids"] for w in words for space in ("", " ")]
        whole = {i[0] for i in ids if len(i) == 1}
        return whole or {i[0] for i in ids if i}
