"""Answers about planted facts with retrieval and without, citations, abstaining, and refresh after an edit.

    python benchmarks/retrieval.py [--model NAME] [--searcher MODULE:FUNCTION] [--limit N] [--judged] [--quick] [--json FILE]

--searcher names a function that takes a folder of Markdown documents and gives a `Searcher`; its attribute `refresh()`
takes changes in. Default: bm25s alone over the sections, which is the peer of every other searcher. An answer is right
where it holds the planted value (and not the value of another time), grounded or not. Citation precision: of the
citations given, the share whose passage holds the value; recall: of the questions that have an answer, the share whose
answer is right and cites a passage that holds it. What the gate and the extraction add is measured apart: `model alone
with passages` is the model's draft, before the gate. Intervals are over questions.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from common import load_average, options, report
from retrieval_corpus import Question, Section, corpus
from trivet.artifacts import Message, text_id
from trivet.config import EMBEDDED, Device
from trivet.generate.config import Sampling
from trivet.intervals import bootstrap_mean, bootstrap_statistic, paired_bootstrap
from trivet.serve.answering import ChatModel, Reply
from trivet.serve.retrieval.answer import Grounded
from trivet.serve.retrieval.config import GroundingSettings
from trivet.serve.retrieval.passages import Filters, Found, Passage, Searcher

K = 4
TOKENS = 48


class Bm25:
    """bm25s (https://github.com/xhluca/bm25s) over sections of Markdown files: the peer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.refresh()

    def refresh(self) -> None:
        """Read all documents anew."""
        import bm25s

        self.passages = [p for path in sorted(self.folder.rglob("*.md")) for p in _sections(path)]
        self.index = bm25s.BM25()
        self.index.index(bm25s.tokenize([f"{p.title} {p.location} {p.text}" for p in self.passages], stopwords="en",
                                        show_progress=False), show_progress=False)

    def search(self, question: str, k: int, filters: Filters | None = None) -> list[Found]:
        """See Searcher."""
        import bm25s

        tokens = bm25s.tokenize([question], stopwords="en", show_progress=False)
        count = len(self.passages)
        numbers, scores = self.index.retrieve(tokens, k=count, show_progress=False)
        found = [Found(self.passages[i], float(s), None) for i, s in zip(numbers[0], scores[0], strict=True) if s > 0]
        if filters is not None:
            found = [f for f in found
                     if (filters.as_of is None or datetime.fromisoformat(f.passage.modified) <= filters.as_of)
                     and (filters.since is None or datetime.fromisoformat(f.passage.modified) >= filters.since)]
        return found[:k]


def _sections(path: Path) -> list[Passage]:
    title, *parts = re.split(r"^#+ (.*)$", path.read_text(), flags=re.MULTILINE)[1:]
    modified = datetime.fromtimestamp(path.stat().st_mtime).astimezone().isoformat()
    return [Passage(text_id([str(path), heading, text]), str(path), title, heading, text.strip(), modified)
            for heading, text in zip(parts[1::2], parts[2::2], strict=True)]


def write(folder: Path, sections: Sequence[Section]) -> None:
    """The sections as Markdown files, changed when their documents were."""
    for name in dict.fromkeys(s.document for s in sections):
        own = [s for s in sections if s.document == name]
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {own[0].title}\n\n" + "\n\n".join(f"## {s.heading}\n\n{s.text}" for s in own) + "\n")
        os.utime(path, (datetime.fromisoformat(own[0].modified).timestamp(),) * 2)


@dataclass(frozen=True)
class Row:
    """What became of a question."""

    question: Question
    bare: str
    """The model's answer without passages."""
    draft: str | None
    """Its first answer with passages, before the gate; None where it was not asked."""
    reply: Reply
    hits: list[bool]
    """Of the passages found, best first: whether each holds the answer's section."""


def holds(text: str, question: Question) -> bool:
    """Whether a text has the right value as words of its own, and none of another time."""
    def has(values: Sequence[str]) -> bool:
        return any(re.search(rf"(?<![\w,.]){re.escape(v)}(?![\w]|[.,]\d)", text, re.IGNORECASE) for v in values)

    return has(question.answers) and not has(question.wrong)


async def ask(question: Question, searcher: Searcher, model: ChatModel, limit: asyncio.Semaphore, seed: int) -> Row:
    """One question both ways."""
    messages, sampling = [Message(role="user", content=question.text)], Sampling(temperature=0, max_new_tokens=TOKENS)
    as_of, since = (None if t is None else datetime.fromisoformat(t) for t in (question.as_of, question.since))
    settings = GroundingSettings(k=K, as_of=as_of, since=since)
    async with limit:
        bare = (await model.draw(messages, sampling, seed=seed))[0].text
        reply = await Grounded(searcher, settings).answer(messages, model, sampling, seed=seed)
    found = searcher.search(question.text, 10, settings.filters())
    hits = [any(f.passage.document.endswith(d) and h in f.passage.location for d, h in question.gold) for f in found]
    draft = next((s.data["draft"] for s in reply.steps if "draft" in s.data), None)
    return Row(question, bare, draft, reply, hits)


def measured(rows: Sequence[Row], seed: int) -> dict[str, Any]:
    """The figures of a run."""
    has = [r for r in rows if r.question.answerable]
    hasnt = [r for r in rows if not r.question.answerable]

    def share(values: Sequence[bool]) -> dict[str, Any] | None:
        return bootstrap_mean(np.array(values, float), np.arange(len(values)), seed=seed, resamples=2000).as_dict() \
            if len(values) else None

    right = [holds(r.reply.text, r.question) for r in has]
    bare = [holds(r.bare, r.question) for r in has]
    drafts = [r.draft is not None and holds(r.draft, r.question) for r in has]
    cited = [(i, any(holds(s.text, r.question) for s in [source])) for i, r in enumerate(rows)
             for source in r.reply.sources]
    columns = np.array([[float(good), 1.0] for _, good in cited])
    ratio: Callable[[np.ndarray], np.ndarray] = lambda s: s[..., 0] / s[..., 1]  # noqa: E731
    own = [holds(r.reply.text, r.question) and r.reply.fell_back is None for r in has]
    kinds = dict.fromkeys(r.question.kind for r in rows)
    return {
        "questions": len(rows), "unanswerable": len(hasnt),
        "accuracy_with": share(right), "accuracy_without": share(bare),
        "gain": paired_bootstrap(np.array(right, float), np.array(bare, float), np.arange(len(has)), seed=seed,
                                 resamples=2000).as_dict(),
        "accuracy_of_drafts": share(drafts), "accuracy_without_extraction": share(own),
        "wrong_answers_given": share([not r.reply.abstained and not holds(r.reply.text, r.question) for r in has]),
        "citation_precision": bootstrap_statistic(columns, [i for i, _ in cited], ratio, seed=seed,
                                                  resamples=2000).as_dict() if cited else None,
        "citation_recall": share([holds(r.reply.text, r.question) and any(holds(s.text, r.question)
                                                                          for s in r.reply.sources) for r in has]),
        "abstained_on_unanswerable": share([r.reply.abstained for r in hasnt]),
        "abstained_wrongly": share([r.reply.abstained for r in has]),
        "extracted": share([r.reply.fell_back is not None for r in rows]),
        "answered_without_passages_on_unanswerable": share([bool(r.bare.strip()) for r in hasnt]),
        "recall_at": {str(k): share([any(r.hits[:k]) for r in has]) for k in (1, K, 10)},
        "by_kind": {kind: {"n": sum(r.question.kind == kind for r in rows),
                           "abstained": share([r.reply.abstained for r in rows if r.question.kind == kind]),
                           "right": share([holds(r.reply.text, r.question) for r in has if r.question.kind == kind])}
                    for kind in kinds},
    }


def refresh(folder: Path, searcher: Any, sections: Sequence[Section], rounds: int) -> dict[str, Any]:
    """Seconds from an edited file to the new fact being found, each round another document."""
    taken = []
    for n in range(rounds):
        one = next(s for s in sections[7 * n :] if s.heading == "School")
        path = folder / one.document
        new = f"The new head of the school is Xenia Marker{n}."
        path.write_text(path.read_text().replace(one.text, new))
        began = time.perf_counter()
        searcher.refresh()
        found = searcher.search(f"Xenia Marker{n}", 1)
        taken.append(time.perf_counter() - began)
        if not found or new not in found[0].passage.text:
            raise SystemExit(f"the edit of {one.document} was not found")
    return {"median_seconds": float(np.median(taken)), "most_seconds": max(taken), "rounds": rounds}


async def entailment(model: ChatModel, most: int) -> dict[str, Any]:
    """What the model's log-probability says of the pairs of tests/claim_pairs.py: AUROC with an interval over pairs."""
    from claim_pairs import PAIRS
    from trivet.serve.retrieval.entail import LogProbability
    from trivet.serve.retrieval.evidence import Checked, check

    pairs = PAIRS[:: max(1, len(PAIRS) // most)]
    told = np.array(await LogProbability(model)([(p.claim, f"{p.heading}\n{p.passage}") for p in pairs]))
    truth = np.array([p.borne_out for p in pairs])
    rules = np.array([check(p.claim, Checked.of(p.passage, p.heading)).supported for p in pairs])
    rng = np.random.default_rng(0)

    def auroc(t: np.ndarray, y: np.ndarray) -> float:
        return float((np.sign(t[y][:, None] - t[~y][None, :]).mean() + 1) / 2)

    drawn = [auroc(told[i], truth[i]) for i in rng.integers(0, len(pairs), (2000, len(pairs)))
             if truth[i].any() and not truth[i].all()]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"pairs": len(pairs), "auroc": {"value": auroc(told, truth), "low": float(low), "high": float(high)},
            "rules": {"precision": float(truth[rules].mean()), "recall": float(rules[truth].mean())},
            "rules_and_logprob": {"recall": float((rules & (told >= 0.5))[truth].mean()),
                                  "precision": float(truth[rules & (told >= 0.5)].mean())}}


async def figures(chosen: argparse.Namespace) -> dict[str, Any]:
    """Everything, on one loaded model."""
    from trivet.serve.local import open_chat
    from trivet.training.device import prepare

    sections, questions = corpus(chosen.seed)
    if chosen.quick or chosen.limit:
        step = max(1, len(questions) // (chosen.limit or 24))
        questions = questions[::step]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, sections)
        peer = Bm25(folder)
        searcher: Any = peer
        if chosen.searcher:
            module, _, function = chosen.searcher.partition(":")
            searcher = getattr(importlib.import_module(module), function)(folder)
        model = await open_chat(chosen.model, prepare(Device(device="cpu")), width=chosen.width)
        try:
            began = time.perf_counter()
            limit = asyncio.Semaphore(chosen.width)
            rows = await asyncio.gather(*(ask(q, searcher, model, limit, chosen.seed) for q in questions))
            seconds = time.perf_counter() - began
            asked = await entailment(model, 16 if chosen.quick else 1000) if model.scores else None
        finally:
            await model.close()
        found = {"model": str(chosen.model), "searcher": chosen.searcher or "bm25s", "documents": len(list(folder.rglob("*.md"))),
                 "sections": len(sections), **measured(rows, chosen.seed), "seconds": round(seconds, 1)}
        if chosen.searcher:
            hits = [[any(f.passage.document.endswith(d) and h in f.passage.location for d, h in q.gold)
                     for f in peer.search(q.text, 10, GroundingSettings(
                         as_of=None if q.as_of is None else datetime.fromisoformat(q.as_of)).filters())]
                    for q in questions if q.answerable]
            found["bm25_recall_at"] = {str(k): float(np.mean([any(h[:k]) for h in hits])) for k in (1, K, 10)}
        found["refresh"] = refresh(folder, searcher, sections, 3 if chosen.quick else 10)
        found["entailment_by_the_same_model"] = asked
    if chosen.show:
        for r in rows:
            print(f"{r.question.kind}: {r.question.text} {r.question.answers}\n   bare: {r.bare!r}\n   draft: {r.draft!r}\n"
                  f"   reply: {r.reply.text!r} {r.reply.fell_back or ''}")
    return found


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=EMBEDDED)
    parser.add_argument("--searcher", help="package.module:function, folder -> Searcher with refresh()")
    parser.add_argument("--limit", type=int, default=0, help="about so many questions")
    parser.add_argument("--width", type=int, default=8, help="questions at work at once")
    parser.add_argument("--show", action="store_true", help="print every answer")


def main() -> None:
    chosen = options(__doc__ or "", _arguments)
    load = load_average()
    report("retrieval", asyncio.run(figures(chosen)), chosen, load=load)


if __name__ == "__main__":
    main()
