"""What a variant still can: the part of `tradeoff` that runs in a variant's own process, on any engine.

Scores are per item, so that the differences from the source are paired. How far the next token's distribution is from
the source's (KL) takes the source's whole distributions: its process writes them down, float32 [N, V], for the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trivet.artifacts import write_error, write_json, write_rows
from trivet.compress.compared import token_kl
from trivet.compress.tradeoff_config import TradeoffConfig
from trivet.compress.tradeoff_plan import Plan
from trivet.compress.tradeoff_results import KL, SAME_TOKEN
from trivet.errors import TrivetError
from trivet.evaluate.base import Score
from trivet.evaluate.config import EvaluateConfig
from trivet.evaluate.suites import text
from trivet.evaluate.suites.text import Document
from trivet.generate.base import LoadedEngine

if TYPE_CHECKING:
    from trivet.evaluate.subject import Subject

ANSWERS = "tradeoff"
"""The file of the answers that the reward scores: answers/tradeoff.jsonl."""
SCORES, ABSENT = "scores.jsonl", "absent.json"


def measure(subject: Subject, loaded: LoadedEngine, config: TradeoffConfig, plan: Plan, *, distributions: Path | None,
            source: bool) -> None:
    """Ask everything of one model, and write scores.jsonl (last), absent.json and answers/ into its folder.

    distributions: where the source's distributions are, which it writes and the variants read; None: no KL. What a
    variant can't do is absent, with the reason. Raises TrivetError where the source can't.
    """
    asked = EvaluateConfig(model=config.model, data=config.data, sampling=config.sampling, seed=config.seed,
                           plain_template=config.plain_template)
    scores: list[Score] = []
    absent: dict[str, str] = {}

    def part(name: str, work: Callable[[], list[Score]]) -> None:
        try:
            scores.extend(work())
        except TrivetError as error:
            if source:
                raise
            absent[name] = error.what

    def answers() -> list[Score]:
        subject.answer(ANSWERS, plan.prompts, config.sampling)
        return []  # the reward model scores them, when all have answered

    if plan.documents:
        part("perplexity", lambda: text.run(subject, plan.documents, asked))
    if distributions is not None:
        part("KL", lambda: _distance(loaded, plan.documents, config.kl_tokens, distributions, source))
    for suite, items in plan.suites.items():
        part(suite.name, partial(suite.load().run, subject, items, asked))
    if plan.prompts:
        part("answers", answers)
    write_json(subject.folder / ABSENT, absent)
    write_rows(subject.folder / SCORES, scores)


# --- how far from the source ---------------------------------------------------------------------------


def _distance(loaded: LoadedEngine, documents: Sequence[Document], tokens: int, file: Path, source: bool
              ) -> list[Score]:
    """Write the source's distributions (no scores), or compare with them: two scores a document."""
    if not loaded.engine.capabilities.distribution:
        raise TrivetError("this engine does not tell the whole distribution of the next token", field="kl_tokens",
                          mend="compare without it: --kl-tokens 0")
    cut = _places(loaded, documents, tokens)
    if source:
        _write(loaded, [ids for _, ids in cut], file)
        return []
    kept: Any = np.load(file, mmap_mode="r")
    wanted = sum(len(ids) - 1 for _, ids in cut)
    scores: list[Score] = []
    start = 0
    for document, ids in cut:
        mine = loaded.engine.distribution(ids[:-1])
        if len(kept) != wanted or mine.shape[-1] != kept.shape[-1]:
            raise TrivetError(f"its vocabulary is another one: {mine.shape[-1]} words and {wanted} tokens of the text, "
                              f"the source's {kept.shape[-1]} and {len(kept)}", field="variants",
                              mend="compare their distributions with a model of one vocabulary")
        theirs = kept[start : start + len(mine)]
        start += len(mine)
        for measure, values in ((KL, token_kl(theirs, mine)),
                                (SAME_TOKEN, (theirs.argmax(-1) == mine.argmax(-1)).astype(np.float64))):
            scores.append(Score(measure=measure.key, id=document.id, group=document.id, value=float(values.mean()),
                                weight=float(len(values))))
    return scores


def _places(loaded: LoadedEngine, documents: Sequence[Document], tokens: int) -> list[tuple[Document, list[int]]]:
    """(document, its tokens behind the one that stands before it), until `tokens` are to be foretold.

    A long document is cut off at a window's end.
    """
    tokenizer = loaded.tokenizer
    first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    width = min(text.WINDOW, loaded.context or text.WINDOW)
    found: list[tuple[Document, list[int]]] = []
    for document in documents:
        ids = tokenizer(document.text, add_special_tokens=False)["input_ids"][: min(width - 1, tokens)]
        if ids:
            found.append((document, [first, *ids]))
        tokens -= len(ids)
        if tokens <= 0:
            break
    return found


def _write(loaded: LoadedEngine, texts: Sequence[Sequence[int]], file: Path) -> None:
    """The distributions over the texts' next tokens into one .npy file, text after text."""
    kept: Any = None
    start, total = 0, sum(len(ids) - 1 for ids in texts)
    try:
        for ids in texts:
            found = loaded.engine.distribution(ids[:-1])
            if kept is None:
                kept = np.lib.format.open_memmap(file, "w+", np.float32, (total, found.shape[-1]))
            kept[start : start + len(found)] = found
            start += len(found)
        if kept is not None:
            kept.flush()
    except OSError as error:
        raise write_error(error, file) from None
