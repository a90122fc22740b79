"""The way of program-aided answers: programs are drawn, run, repaired where none works, and outvote one another."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from trivet.artifacts import Message
from trivet.errors import TrivetError
from trivet.generate.config import Sampling
from trivet.serve.answering import ChatModel, Drawn, Reply, Say, Step
from trivet.serve.pal import program
from trivet.serve.pal.config import PalSettings
from trivet.serve.pal.program import Ran
from trivet.serve.pal.prompt import conversation, repair


@dataclass
class Tally:
    """What was said and spent on the way to one reply."""

    say: Say
    steps: list[Step] = field(default_factory=list)
    prompt_tokens: int = 0
    tokens: int = 0

    def step(self, step: Step) -> None:
        """Keep a step and tell it."""
        self.steps.append(step)
        self.say(step)

    async def draw(self, model: ChatModel, messages: Sequence[Message], sampling: Sampling, *, n: int = 1,
                   seed: int) -> list[Drawn]:
        """Draw, and count: the n answers share one prompt."""
        drawn = await model.draw(messages, sampling, n=n, seed=seed)
        self.prompt_tokens += drawn[0].prompt_tokens if drawn else 0
        self.tokens += sum(d.tokens for d in drawn)
        return drawn

    def reply(self, text: str, *, fell_back: str | None = None) -> Reply:
        """The reply with all that was kept."""
        return Reply(text, steps=tuple(self.steps), fell_back=fell_back, prompt_tokens=self.prompt_tokens,
                     tokens=self.tokens)


class Words:
    """The plain way: one answer of the model, as it stands."""

    async def answer(self, messages: Sequence[Message], model: ChatModel, sampling: Sampling, *, seed: int = 0,
                     say: Say = lambda step: None) -> Reply:
        """See Way."""
        tally = Tally(say)
        drawn = await tally.draw(model, messages, sampling, seed=seed)
        return tally.reply(drawn[0].text)


class ProgramAided:
    """Answers by a program's result; by words where no program works, and says so."""

    def __init__(self, settings: PalSettings | None = None) -> None:
        self.settings = settings or PalSettings()

    async def answer(self, messages: Sequence[Message], model: ChatModel, sampling: Sampling, *, seed: int = 0,
                     say: Say = lambda step: None) -> Reply:
        """See Way. Draw k of a seed, and each repair, has a seed of its own.

        Raises TrivetError for a conversation that does not end with a question, or does not fit the context.
        """
        settings, tally = self.settings, Tally(say)
        turns = conversation(messages)
        chosen = sampling
        if settings.samples > 1 and sampling.temperature == 0:
            chosen = sampling.model_copy(update={"temperature": settings.temperature})
        try:
            drawn = await tally.draw(model, turns, chosen, n=settings.samples, seed=seed)
        except TrivetError as error:
            return await self._words(tally, messages, model, sampling, seed,
                                     f"the model could not be asked for a program: {error.what}")
        try:
            ran = list(await asyncio.gather(*(program.run(d.text, settings) for d in drawn)))
            for number, one in enumerate(ran, 1):
                tally.step(_told(one, f"program {number} of {len(ran)}" if len(ran) > 1 else "program"))
            working = [(d, r) for d, r in zip(drawn, ran, strict=True) if r.failed is None]
            if not working:
                working = await self._repair(tally, turns, model, sampling, seed, drawn[0], ran[0])
        except TrivetError as error:  # no sandbox works here; what the model wrote is not run without one
            return await self._words(tally, messages, model, sampling, seed, error.what)
        if not working:
            last = next(s.data["failed"] for s in reversed(tally.steps) if s.kind == "program")
            tries = len([s for s in tally.steps if s.kind == "program"])
            return await self._words(tally, messages, model, sampling, seed,
                                     f"no program gave a value in {tries} tr{'ies' if tries > 1 else 'y'}; "
                                     f"the last: {last}")
        winner = await self._vote(tally, turns, model, working)
        return tally.reply(f"The answer is {program.told(winner.value)}.")

    async def _repair(self, tally: Tally, turns: list[Message], model: ChatModel, sampling: Sampling, seed: int,
                      drawn: Drawn, ran: Ran) -> list[tuple[Drawn, Ran]]:
        """A program sent back with its error until it works, at most `repairs` times."""
        for attempt in range(1, self.settings.repairs + 1):
            turns = [*turns, Message(role="assistant", content=drawn.text),
                     Message(role="user", content=repair(ran.failed or ""))]
            try:
                drawn = (await tally.draw(model, turns, sampling, seed=seed + attempt))[0]
            except TrivetError as error:
                tally.step(Step("note", "no repair", f"the repair could not be asked for: {error.what}"))
                return []
            ran = await program.run(drawn.text, self.settings)
            tally.step(_told(ran, f"repair {attempt} of {self.settings.repairs}"))
            if ran.failed is None:
                return [(drawn, ran)]
        return []

    async def _vote(self, tally: Tally, turns: Sequence[Message], model: ChatModel,
                    working: Sequence[tuple[Drawn, Ran]]) -> Ran:
        """The value that most programs give. A tie goes to the value whose programs the model holds the likeliest (the
        sum of their probabilities, Wang et al. 2022, 'Self-Consistency'), or to the first where it does not score."""
        votes: dict[Hashable, list[tuple[Drawn, Ran]]] = {}
        for drawn, ran in working:
            votes.setdefault(program.normalised(ran.value), []).append((drawn, ran))
        most = max(map(len, votes.values()))
        tied = [group for group in votes.values() if len(group) == most]
        winner = tied[0]
        how: str | None = None
        if len(tied) > 1:
            how = "first"
            if model.scores:
                texts = list(dict.fromkeys(d.text for group in tied for d, _ in group))
                logps = dict(zip(texts, await model.score(turns, texts), strict=True))
                weights = [_log_sum([logps[d.text] for d, _ in group]) for group in tied]
                winner, how = tied[weights.index(max(weights))], "probability"
        if self.settings.samples > 1:
            by = {None: "", "first": "; a tie: the first is taken", "probability": "; a tie: the likelier is"}[how]
            tally.step(Step("check", f"{len(winner)} of {len(working)} programs that worked say "
                            f"{program.told(winner[0][1].value)}{by}", data={
                                "votes": [{"value": g[0][1].value, "programs": len(g)} for g in votes.values()],
                                "tie": how}))
        return winner[0][1]

    async def _words(self, tally: Tally, messages: Sequence[Message], model: ChatModel, sampling: Sampling, seed: int,
                     why: str) -> Reply:
        tally.step(Step("note", "answered in words", why, {"fell_back": why}))
        drawn = await tally.draw(model, messages, sampling, seed=seed)
        return tally.reply(drawn[0].text, fell_back=why)


def _log_sum(logps: Sequence[float]) -> float:
    """log of the summed probabilities."""
    top = max(logps)
    return top if math.isinf(top) else top + math.log(sum(math.exp(p - top) for p in logps))


def _told(ran: Ran, name: str) -> Step:
    """A program that was run, for people and machines."""
    outcome = program.told(ran.value) if ran.failed is None else f"failed: {ran.failed}"
    result = ran.result
    data = {"program": ran.program, "failed": ran.failed, "value": ran.value}
    if result is not None:
        data |= {"status": result.status, "tier": result.tier, "seconds": round(result.seconds, 4),
                 "stdout": result.stdout[:program.LONGEST],
                 "lines": [{"line": s.line, "values": s.values} for s in result.steps]}
    return Step("program", f"{name}: {outcome}", program.annotated(ran), data)
