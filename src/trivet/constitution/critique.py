"""One round of critique and revision over many prompts at once: what is asked, what the gates say, what goes on.

Bai et al. 2022, section 3.1: the model's answer, a request to critique it by a principle, the critique, a request to
revise, the revision; then the same again with the revision in the answer's place. The requests are turns of the user
after the conversation itself, and few-shot dialogues in the same form stand before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from trivet.artifacts import Message, Prompt
from trivet.constitution import gates
from trivet.constitution.gates import Gate
from trivet.constitution.principles import Constitution, Principle
from trivet.constitution.revise_config import Gates, ReviseConfig
from trivet.constitution.traces import Revision, Round
from trivet.evaluate.capability import judge_answer
from trivet.generate.config import Sampling
from trivet.generate.writing import Ask, Written
from trivet.judge.ask import both_orders, call, name_of
from trivet.judge.cases import Case, Judge
from trivet.judge.criteria import REFUSES

Write = Callable[[Sequence[Ask], Sampling], Sequence[Written]]


@dataclass
class Item:
    """A prompt on its way through the rounds."""

    prompt: Prompt
    first: Written
    rounds: list[Round] = field(default_factory=list)

    @property
    def texts(self) -> list[str]:
        """The first answer, and each revision that went on: the last of them is what is revised next."""
        taken = [r.revisions[r.taken].text for r in self.rounds if r.taken is not None]
        return [self.first.text, *taken]

    @property
    def final(self) -> str | None:
        """The last revision that passed the gates; None where none did."""
        return self.texts[-1] if len(self.texts) > 1 else None


# --- what is asked ----------------------------------------------------------------------------------------


def critique_turns(shown: Sequence[Message], prompt: Sequence[Message], answer: str,
                   principle: Principle) -> tuple[Message, ...]:
    """The conversation that asks for a critique. shown: few-shot turns, which stand after the prompt's system turns."""
    opening = next((i for i, m in enumerate(prompt) if m.role != "system"), len(prompt))
    return (*prompt[:opening], *shown, *prompt[opening:], Message(role="assistant", content=answer),
            Message(role="user", content=principle.critique))


def revision_turns(shown: Sequence[Message], prompt: Sequence[Message], answer: str, principle: Principle,
                   critique: str | None) -> tuple[Message, ...]:
    """The conversation that asks for a revision; critique None: right after the answer."""
    asked = Message(role="user", content=principle.revision)
    turns = critique_turns(shown, prompt, answer, principle)
    if critique is None:
        return (*turns[:-1], asked)
    return (*turns, Message(role="assistant", content=critique), asked)


# --- one round --------------------------------------------------------------------------------------------


class Rounds:
    """Takes items through rounds. What it is given decides all of it: asked twice, it asks the same."""

    def __init__(self, config: ReviseConfig, constitution: Constitution, *, critic: Write, reviser: Write,
                 judge: Judge | None = None) -> None:
        """critic, reviser: writers. judge: compares two answers, and grades one where `gates.refusals` is judge."""
        self.config, self.constitution, self.judge = config, constitution, judge
        self.critic, self.reviser = critic, reviser
        self.shown = constitution.shots(config.few_shot)
        self.critique_sampling = config.sampling.model_copy(update={"max_new_tokens": config.critique_tokens})

    def take(self, items: Sequence[Item], number: int) -> None:
        """Add round `number` (from 1) to each item. Raises TrivetError as writers and judge do."""
        drawn = [self.constitution.draw(self.config.seed, i.prompt.id, number - 1) for i in items]
        critiques = self._critiques(items, drawn, number)
        asks = [Ask(f"{item.prompt.id}/revision-{number}",
                    revision_turns(self.shown, item.prompt.messages, item.texts[-1], principle, critique), k,
                    self._opening(principle, k))
                for item, principle, critique in zip(items, drawn, critiques, strict=True)
                for k in range(self.config.samples)]
        written = self.reviser(asks, self.config.sampling)
        n = self.config.samples
        found = [[self._weigh(item, w, principle, critique) for w in written[i * n : (i + 1) * n]]
                 for i, (item, principle, critique) in enumerate(zip(items, drawn, critiques, strict=True))]
        self._ask_judge(items, drawn, found, number)
        for item, principle, critique, revisions in zip(items, drawn, critiques, found, strict=True):
            item.rounds.append(Round(round=number, principle=principle.name, critique=critique, revisions=revisions,
                                     taken=best(revisions)))

    def _critiques(self, items: Sequence[Item], drawn: Sequence[Principle], number: int) -> list[str | None]:
        if not self.config.critiques:
            return [None] * len(items)
        written = self.critic([
            Ask(f"{item.prompt.id}/critique-{number}",
                critique_turns(self.shown, item.prompt.messages, item.texts[-1], principle))
            for item, principle in zip(items, drawn, strict=True)], self.critique_sampling)
        return [None if gates.empty(w.text) else w.text for w in written]

    def _opening(self, principle: Principle, number: int) -> str:
        words = principle.openings if self.config.openings else []
        return words[number % len(words)] if words else ""

    def _weigh(self, item: Item, written: Written, principle: Principle, critique: str | None) -> Revision:
        shown = [principle.critique, principle.revision, *([critique] if critique else []),
                 *(m.content for m in self.shown)]
        return weigh(written, item.prompt, self.config.gates, earlier=item.texts, shown=shown, safe=self._safe(item))

    def _safe(self, item: Item) -> bool:
        return self.config.gates.safe_tag in item.prompt.tags

    def _ask_judge(self, items: Sequence[Item], drawn: Sequence[Principle], found: Sequence[Sequence[Revision]],
                   number: int) -> None:
        """The gates that a judge decides, for the revisions that all others let through."""
        if self.judge is None:
            return
        if self.config.gates.refusals == "judge":
            refused(self.judge, [(f"{item.prompt.id}/{number}/{k}", item.prompt, revision)
                                 for item, revisions in zip(items, found, strict=True) if self._safe(item)
                                 for k, revision in enumerate(revisions)])
        left = [(item, principle, revision, k) for item, principle, revisions in zip(items, drawn, found, strict=True)
                for k, revision in enumerate(revisions) if not revision.stopped_by]
        cases = [Case(f"{item.prompt.id}/{number}/{k}", tuple(item.prompt.messages), (revision.text, item.texts[-1]),
                      principle.criterion) for item, principle, revision, k in left]
        if not cases:
            return
        said = both_orders(self.judge, cases, swapped=self.config.judge.both_orders)
        for (_, _, revision, _), both in zip(left, said, strict=True):
            revision.better = both.probability
            if self.config.judge.both_orders:
                revision.given, revision.swapped = both.given, both.swapped
            if gates.worse(both.probability, self.config.gates.better):
                revision.stopped_by.append("worse")


# --- gates on one text ------------------------------------------------------------------------------------


def weigh(written: Written, prompt: Prompt, settings: Gates, *, earlier: Sequence[str], shown: Sequence[str],
          safe: bool) -> Revision:
    """What the gates that need no judge say of a text.

    earlier: texts that it should improve on. shown: what the model read beside the conversation itself. safe:
    nothing is wrong with the prompt, so that it must not be refused.
    """
    text = gates.bare(written.text)
    asked = prompt.messages[-1].content
    similarity, echo = gates.copied(text, earlier), gates.echo(text, shown)
    stopped: list[Gate] = []
    if gates.empty(text):
        stopped.append("empty")
    if not written.ended:
        stopped.append("cut_off")
    if gates.broken(text, judge_answer(asked, text, written.ended)):
        stopped.append("broken")
    if similarity >= settings.similarity:
        stopped.append("copy")
    if echo >= settings.echo or gates.echo(text, [asked]) >= settings.parrot:
        stopped.append("echo")
    if gates.talks_of_itself(text, "\n".join(m.content for m in prompt.messages)):
        stopped.append("talks_of_itself")
    if safe and settings.refusals == "rule" and _refuses_by_rule(text):
        stopped.append("refusal")
    return Revision(text=text, written=None if text == written.text else written.text, ended=written.ended,
                    similarity=round(similarity, 4), echo=round(echo, 4), stopped_by=stopped)


def _refuses_by_rule(text: str) -> bool:
    # only where it is asked for: the same rule measures refusals in `evaluate`
    from trivet.text.manner import refuses

    return refuses(text)


def refused(judge: Judge, rows: Sequence[tuple[str, Prompt, Revision]]) -> None:
    """Stop those texts of (id, safe prompt, text) of which a judge says that they refuse. Raises as `call` does."""
    left = [row for row in rows if not row[2].stopped_by]
    if not left:
        return
    cases = [Case(f"{id}/refuses", tuple(prompt.messages), (revision.text,), REFUSES) for id, prompt, revision in left]
    for (_, _, revision), p in zip(left, call(judge, cases, name_of(judge)), strict=True):
        if p >= 0.5:
            revision.stopped_by.append("refusal")


def best(revisions: Sequence[Revision]) -> int | None:
    """Which revision goes on: of those that passed, the first, or the first that the judge finds best; None: none."""
    passed = [k for k, r in enumerate(revisions) if not r.stopped_by]
    return max(passed, key=lambda k: (revisions[k].better or 0.0, -k)) if passed else None
