"""The way of grounded answers: search, answer from the passages, check every claim, or say that there is no answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from trivet.artifacts import Message
from trivet.errors import TrivetError
from trivet.generate.config import Sampling
from trivet.judge.cases import Judge
from trivet.serve.answering import ChatModel, Drawn, Reply, Say, Source, Step
from trivet.serve.pal.answer import Tally
from trivet.serve.retrieval import gate
from trivet.serve.retrieval.claims import rewritten
from trivet.serve.retrieval.config import GroundingSettings
from trivet.serve.retrieval.entail import Entails, Judged, LogProbability
from trivet.serve.retrieval.failures import Failure, Failures
from trivet.serve.retrieval.gate import Ruled, Shown
from trivet.serve.retrieval.passages import Filters, Found, Passage, Searcher
from trivet.serve.retrieval.prompt import REPAIR, conversation, heading, question_of, shown, sought
from trivet.serve.retrieval.wants import Want, covered, named, relevant, want

NOTHING = "I can't answer that: the documents say nothing about it."
OLDER = "I can't answer that: what the documents say about it is older than asked, the newest of {date}."
NOT_BORNE_OUT = "I can't answer that: I found no answer that the documents bear out."
EXTRACTED = "the model's own answer was not borne out; this is a sentence of the documents"


@dataclass(frozen=True)
class _Attempt:
    """An answer of the model behind the gate."""

    draft: str
    ruled: list[Ruled]
    kept: list[Ruled]
    """Empty also where what is borne out does not answer the question."""


class Grounded:
    """Answers by what documents say, citing them; abstains where they say nothing, or nothing new enough."""

    def __init__(self, searcher: Searcher, settings: GroundingSettings | None = None, *, judge: Judge | None = None,
                 failures: Failures | None = None) -> None:
        """judge: for the gate `judge`. failures: where answers that failed are kept; None: nowhere.

        Raises TrivetError for the gate `judge` without a judge that grades.
        """
        self.searcher, self.settings, self.failures = searcher, settings or GroundingSettings(), failures
        if self.settings.gate == "judge" and judge is None:
            raise TrivetError("the gate `judge` has no judge", field="grounding.gate",
                              mend="name a judge, or take the gate `rules`")
        self._judged = Judged(judge) if self.settings.gate == "judge" and judge is not None else None

    async def answer(self, messages: Sequence[Message], model: ChatModel, sampling: Sampling, *, seed: int = 0,
                     say: Say = lambda step: None) -> Reply:
        """See Way. Raises TrivetError for a conversation that does not end with a question or does not fit the context
        even with one passage, for the gate `logprob` with a model that does not score, and as the search does."""
        tally, query = Tally(say), sought(messages)
        entails: Entails | None = LogProbability(model) if self.settings.gate == "logprob" else self._judged
        asked = replace(want(query), kind=(own := want(question_of(messages))).kind, dimensions=own.dimensions)
        found = await self._search(tally, query, self.settings.filters())
        evidence = self._evidence(found, asked)
        if not evidence:
            text = await self._no_evidence(query, asked)
            tally.step(Step("check", "no passage speaks of it", text, {"abstained": True}))
            return await self._ended(tally, messages, Failure("abstained", list(messages), None, text),
                                     replace(tally.reply(text), abstained=True))
        turns, drawn, evidence = await self._first(tally, messages, evidence, model, sampling, seed)
        tried = attempt = await self._ruled(tally, drawn.text, evidence, asked, entails)
        for repair in range(1, self.settings.repairs + 1):
            if attempt.kept or not attempt.ruled or gate.declines(attempt.draft):
                break
            again = [*turns, Message(role="assistant", content=attempt.draft), Message(role="user", content=REPAIR)]
            try:
                drawn = (await tally.draw(model, again, sampling, seed=seed + repair))[0]
            except TrivetError as error:  # no room for another turn
                tally.step(Step("note", "not asked again", error.what))
                break
            attempt = await self._ruled(tally, drawn.text, evidence, asked, entails, f"answer {repair + 1}: ")
        fell_back = None
        if not attempt.kept and self.settings.extract and (found_there := gate.extract(evidence, asked, self.settings)):
            attempt = await self._ruled(tally, found_there, evidence, asked, entails, "a sentence of the documents: ")
            fell_back = EXTRACTED
        if not attempt.kept:
            given_up = Failure("abstained", turns, tried.draft, NOT_BORNE_OUT)
            return await self._ended(tally, messages, given_up, replace(tally.reply(NOT_BORNE_OUT), abstained=True))
        text, sources = _told(attempt, evidence)
        failure = None
        if len(tried.kept) < len(tried.ruled):
            known = {n: n for r in attempt.kept for n in r.cites}
            chosen = rewritten(attempt.draft, [(r.claim, r.cites) for r in attempt.kept], known)
            failure = Failure("removed", turns, tried.draft, chosen)
        reply = replace(tally.reply(text, fell_back=fell_back), sources=sources)
        return await self._ended(tally, messages, failure, reply)

    # --- evidence ----------------------------------------------------------------------------------------

    async def _search(self, tally: Tally, query: str, filters: Filters | None) -> list[Found]:
        found = await asyncio.to_thread(self.searcher.search, query, self.settings.k, filters)
        found = [f for f in found if _allowed(f.passage, filters)]
        lines = [f"[{n}] {heading(f.passage)} ({f.passage.modified[:10]})" for n, f in enumerate(found, 1)]
        rows = [{"number": n, "id": f.passage.id, "document": f.passage.document, "title": f.passage.title,
                 "location": f.passage.location, "modified": f.passage.modified, "score": f.score,
                 "similarity": f.similarity} for n, f in enumerate(found, 1)]
        count = len(found)
        tally.step(Step("search", f"{count or 'no'} passage{'' if count == 1 else 's'} found", "\n".join(lines),
                        {"query": query, "passages": rows}))
        return found

    def _evidence(self, found: Sequence[Found], asked: Want) -> list[Shown]:
        """The passages that may answer the question; empty where none of them has its names and enough of its words."""
        left = [f for f in found if f.similarity is None or f.similarity >= self.settings.least_similarity]
        texts = [f"{heading(f.passage)}. {shown(f.passage, self.settings.longest)}" for f in left]
        if not any(self._speaks(asked, t) for t in texts):
            return []
        return [Shown.of(f.passage, self.settings.longest) for f in left]

    def _speaks(self, asked: Want, text: str) -> bool:
        """Whether a text has the question's names, enough of its words, and something of what it asks of the names."""
        return covered(asked, text) >= self.settings.least_coverage and named(asked, text) and relevant(asked, text) > 0

    async def _no_evidence(self, query: str, asked: Want) -> str:
        """What is said without evidence: whether there would be some, were it not too old."""
        if self.settings.since is None:
            return NOTHING
        filters = self.settings.filters()
        assert filters is not None
        filters = replace(filters, since=None)
        found = await asyncio.to_thread(self.searcher.search, query, self.settings.k, filters)
        older = [e for e in self._evidence([f for f in found if _allowed(f.passage, filters)], asked)
                 if self._speaks(asked, f"{e.checked.heading}. {' '.join(e.checked.sentences)}")]
        return OLDER.format(date=max(one.modified for one in older).date().isoformat()) if older else NOTHING

    # --- drawing and checking ------------------------------------------------------------------------------

    async def _first(self, tally: Tally, messages: Sequence[Message], evidence: list[Shown], model: ChatModel,
                     sampling: Sampling, seed: int) -> tuple[list[Message], Drawn, list[Shown]]:
        """The model's first answer, to as many passages as have room in its context: the best of them."""
        while True:
            turns = conversation(messages, [e.passage for e in evidence], self.settings.longest)
            try:
                return turns, (await tally.draw(model, turns, sampling, seed=seed))[0], evidence
            except TrivetError as error:
                if len(evidence) == 1:
                    raise
                evidence = evidence[: (len(evidence) + 1) // 2]
                tally.step(Step("note", f"{len(evidence)} passages have room", error.what))

    async def _ruled(self, tally: Tally, draft: str, evidence: Sequence[Shown], asked: Want, entails: Entails | None,
                     whose: str = "") -> _Attempt:
        ruled = await gate.rule(draft, evidence, self.settings, asked, entails)
        left = gate.kept(ruled)
        off = bool(left) and not gate.answers(left, evidence, asked, self.settings.least_relevance)
        lines = [f"{'kept' if r in left else 'removed'}: {r.claim.text}"
                 + (f" ({r.verdict.fault}: {r.verdict.detail})" if r.verdict.fault and r not in left else "")
                 for r in ruled]
        title = f"{whose}{len(left)} of {len(ruled)} claim{'' if len(ruled) == 1 else 's'} borne out"
        tally.step(Step("check", f"{title}; none of them answers the question" if off else title, "\n".join(lines), {
            "draft": draft, "off_the_question": off,
            "claims": [{"text": r.claim.text, "cited": list(r.claim.cites), "borne_out_by": list(r.cites),
                        "moved": r.moved, "fault": r.verdict.fault, "detail": r.verdict.detail,
                        "overlap": round(r.verdict.overlap, 3), "probability": r.verdict.probability} for r in ruled]}))
        return _Attempt(draft, ruled, [] if off else left)

    async def _ended(self, tally: Tally, messages: Sequence[Message], failure: Failure | None, reply: Reply) -> Reply:
        if failure is None or self.failures is None:
            return reply
        try:
            await asyncio.to_thread(self.failures.add, list(messages), failure)
        except TrivetError as error:  # the answer stands, whatever the disk says
            tally.step(Step("note", "not kept for the next round", error.what))
            return replace(reply, steps=tuple(tally.steps))
        return reply


def _told(attempt: _Attempt, evidence: Sequence[Shown]) -> tuple[str, tuple[Source, ...]]:
    """The text of the claims that stay, its citations counted anew by first mention, and what they cite."""
    order = list(dict.fromkeys(n for r in attempt.kept for n in r.cites))
    numbers = {n: i for i, n in enumerate(order, 1)}
    text = rewritten(attempt.draft, [(r.claim, r.cites) for r in attempt.kept], numbers)
    sources = []
    for n in order:
        passage = evidence[n - 1].passage
        location = " › ".join(part for part in (passage.document, passage.location) if part)
        sources.append(Source(numbers[n], passage.title, location, passage.text, passage.modified))
    return text, tuple(sources)


def _allowed(passage: Passage, filters: Filters | None) -> bool:
    """Whether a passage is one that may be found: a searcher's word is not taken for it."""
    if filters is None:
        return True
    modified = datetime.fromisoformat(passage.modified)
    return ((filters.as_of is None or modified <= filters.as_of)
            and (filters.since is None or modified >= filters.since)
            and set(filters.tags) <= set(passage.tags)
            and (filters.under is None or passage.document.startswith(filters.under)))
