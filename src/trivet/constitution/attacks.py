"""Attacks from questions: each by each strategy; the texts that a strategy needs are asked for, checked, counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trivet.artifacts import Message, text_id
from trivet.constitution import strategies
from trivet.constitution.grow import Thrown, Writes
from trivet.constitution.questions import Attack, Question
from trivet.constitution.requests import broken
from trivet.errors import TrivetError
from trivet.text.near import Distinct


def build(questions: Sequence[Question], names: Sequence[str], *, attacker: Writes, target: Writes, distinct: Distinct,
          tries: int, seed: int) -> tuple[list[Attack], dict[str, Thrown]]:
    """The attacks, question by question, and what became of the texts that were asked for, by strategy.

    A question of whose texts none can be used has no attack by that strategy. attacker writes paraphrases, target the
    replies to openings; each is asked `tries` times at most. Raises TrivetError where a strategy gets no attack at all.
    """
    by_name: dict[str, Mapping[str, Attack]] = {}
    told: dict[str, Thrown] = {}
    for name in names:
        if name == "direct":
            by_name[name] = {q.id: strategies.direct(q) for q in questions}
        elif name == "role-play":
            by_name[name] = {q.id: strategies.role_play(q, seed) for q in questions}
        elif name == "paraphrase":
            by_name[name], told[name] = paraphrases(questions, attacker, distinct, tries)
        else:
            by_name[name], told[name] = conversations(questions, target, tries, seed)
    for name, of in told.items():
        if questions and not by_name[name]:
            who, what = ("attacker", "paraphrase") if name == "paraphrase" else ("target", "reply to an opening")
            others = " ".join(n for n in names if n != name) or "direct"
            raise none_left(of, what, who, f"leave it out: --strategies {others}")
    return [by_name[name][q.id] for q in questions for name in names if q.id in by_name[name]], told


def paraphrases(questions: Sequence[Question], write: Writes, distinct: Distinct,
                tries: int) -> tuple[dict[str, Attack], Thrown]:
    """A paraphrase of each question, by its id; none that repeats what is known to `distinct`, which learns them."""
    told, found, left = Thrown(), {}, list(questions)
    for number in range(tries):
        again = []
        asks = [(f"paraphrase/{q.id}", strategies.paraphrase_request(q), number) for q in left]
        for question, (text, ended) in zip(left, write(asks) if asks else (), strict=True):
            told.texts, told.items = told.texts + 1, told.items + 1
            said, fault = strategies.paraphrase(question, text, ended)
            if said is not None and (repeat := distinct.add(said)) is not None:
                fault = f"{repeat.kind} repeat"
            if said is None or fault is not None:
                told.throw(fault or "", text)
                again.append(question)
            else:
                found[question.id] = strategies.attack(question, "paraphrase", strategies.user(said))
        left = again
    return found, told


def conversations(questions: Sequence[Question], write: Writes, tries: int,
                  seed: int) -> tuple[dict[str, Attack], Thrown]:
    """A conversation for each question, by its id: an opening, the target's reply to it, the question.

    The same opening after the same messages is asked once, for all its questions.
    """
    told = Thrown()
    firsts = {q.id: strategies.opening(q, seed) for q in questions}
    asked: dict[str, tuple[Message, ...]] = {}
    key_of: dict[str, str] = {}
    for question in questions:
        messages = (*question.before, firsts[question.id])
        key_of[question.id] = key = text_id([*messages])
        asked[key] = messages
    replies: dict[str, str] = {}
    for number in range(tries):
        left = [key for key in asked if key not in replies]
        asks = [(f"opening/{key}", asked[key], number) for key in left]
        for key, (text, ended) in zip(left, write(asks) if asks else (), strict=True):
            told.texts, told.items = told.texts + 1, told.items + 1
            reply = strategies.whole_sentences(text, ended)
            if any(map(str.isalnum, reply)) and not broken(reply):
                replies[key] = reply
            else:
                told.throw("gibberish" if any(map(str.isalnum, reply)) else "empty", text)
    return {q.id: strategies.multi_turn(q, firsts[q.id], replies[key_of[q.id]], seed)
            for q in questions if key_of[q.id] in replies}, told


def none_left(told: Thrown, what: str, who: str, instead: str) -> TrivetError:
    """That of all the texts that were written none can be used, with the reasons and up to three examples."""
    reasons = ", ".join(f"{reason} {count}" for reason, count in told.thrown.most_common())
    shown = "".join(f"\n  {reason}: {_short(told.examples[reason])}" for reason, _ in told.thrown.most_common(3))
    return TrivetError(f"of {told.texts} texts that the {who} wrote none can be used as a {what} ({reasons}){shown}",
                       field=f"{who}.by", mend=f"take a more able model as the {who} (--{who}.by …), or {instead}")


def _short(text: str, width: int = 100) -> str:
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))
    return (line if len(line) <= width else f"{line[: width - 1]}…") or "(nothing)"
