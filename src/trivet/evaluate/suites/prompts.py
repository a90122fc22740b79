"""Open prompts, some of two turns: is the answer fluent, how long is it, and, where a judge is given, is it good?

Asked are the starter set's prompts that `trivet run quickstart` holds out (a quarter, by the hash of their first
turn), conversations of our own, and with the data folder those of MT-bench and Vicuna bench (Zheng et al. 2023,
'Judging LLM-as-a-Judge'). A second turn is asked after the model's own answer to the first.

Two models are compared answer by answer where both were asked the very same, which leaves second turns out: what
stands before them differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import trivet
from trivet.artifacts import Completions, Message, Prompt, is_held_out, read_rows
from trivet.errors import TrivetError
from trivet.evaluate import datasets
from trivet.evaluate.base import Measure, Score
from trivet.evaluate.catalogue import SUITES
from trivet.evaluate.config import EvaluateConfig
from trivet.evaluate.datasets import Conversation

if TYPE_CHECKING:
    from trivet.evaluate.subject import Subject
    from trivet.judge.cases import Judge

WIN = Measure("win_rate", "helpful", "answers better than the base's, by the judge", "higher", "win")
LC_WIN = Measure("win_rate_length_controlled", "helpful", "the same at equal length", "higher", "lc_win")
FIRST = Measure("judge_prefers_first", "helpful", "how the judge leans to the answer that stands first (50%: not)",
                "neither", tested=False)
FLIPS = Measure("judge_flips", "helpful", "verdicts of the judge that change with the order", "neither", tested=False)
QUALITY = Measure("quality", "helpful", "good answers, by the grader", "higher")
FLUENT = Measure("fluent", "capable", "answers without a fault (empty, looping, gibberish, off-language)", "higher")
REPETITION = Measure("repetition", "capable", "three-word runs that stood in the answer before", "lower")
LENGTH = Measure("length", "capable", "length of an answer", "neither", share=False, unit="tokens", tested=False)
ENDED = Measure("ended", "capable", "answers that the model ended itself", "higher")
MEASURES = (WIN, LC_WIN, FIRST, FLIPS, QUALITY, FLUENT, REPETITION, LENGTH, ENDED)
PAIRS = (WIN, LC_WIN, FIRST, FLIPS)
"""What `compare` scores: they tell of the model and its base together, or of their judge, not of one model."""
SECOND = "/2"
LONGER = 2
"""An answer may be so many times as long as those of other suites."""
HELD_OUT = 0.25
"""The share of the starter set that its reward models and policy never see (recipes/quickstart.yaml)."""


def read(config: EvaluateConfig) -> list[Conversation]:
    """The starter set's held-out prompts, our own conversations, and the data folder's prompts where it has them.

    Raises TrivetError for a file that does not fit.
    """
    rows = read_rows(Path(trivet.__file__).parent / "starter" / "prompts.jsonl", Prompt)
    items = [Conversation(row.id, row.tags[0], tuple(row.messages)) for row in rows
             if is_held_out(row.messages, HELD_OUT, 0)]
    for file in (datasets.own("open"), *datasets.found(config.data, SUITES["prompts"].data)):
        items += datasets.conversations(file)
    return items


def run(subject: Subject, items: Sequence[Conversation], config: EvaluateConfig) -> list[Score]:
    """Let the model answer, with four times the tokens of other answers; rules, lengths, and the grader if any."""
    from trivet.evaluate.capability import judge_answer
    from trivet.evaluate.grading import graded, score
    from trivet.judge.criteria import GOOD
    from trivet.text.rules import repetition

    longer = config.sampling.model_copy(update={"max_new_tokens": LONGER * config.sampling.max_new_tokens})
    first = subject.answer("prompts", [Prompt(id=item.id, messages=list(item.messages), tags=[item.topic])
                                       for item in items], longer)
    second = subject.answer("prompts", [_second(item, row) for item, row in zip(items, first, strict=True)
                                        if item.then is not None], longer)
    rows = [*first, *second]
    groups = [item.id for item in items] + [item.id for item in items if item.then is not None]
    scores = []
    for row, group in zip(rows, groups, strict=True):
        answer = row.completions[0]
        faults = judge_answer(row.messages[-1].content, answer.text, bool(answer.ended))
        scores += [score(FLUENT, row, not faults, group=group),
                   score(REPETITION, row, repetition(answer.text), group=group),
                   score(LENGTH, row, answer.tokens or 0, group=group),
                   score(ENDED, row, bool(answer.ended), group=group)]
    if subject.grader is not None:
        scores += [score(QUALITY, row, p, group=group)
                   for row, group, p in zip(rows, groups, graded(subject.grader, GOOD, rows), strict=True)]
    return scores


def _second(item: Conversation, answered: Completions) -> Prompt:
    """The user's second turn, after what the model said to the first."""
    said = Message(role="assistant", content=answered.completions[0].text)
    return Prompt(id=item.id + SECOND, tags=[item.topic],
                  messages=[*item.messages, said, Message(role="user", content=item.then or "")])


def compare(model: Sequence[Completions], base: Sequence[Completions], judge: Judge, *,
            swapped: bool = True) -> list[Score]:
    """Which answer is the better one, by a judge: scores of the win rate, plain and controlled for length, and of how
    far the judge heeds the order in which two answers stand.

    model, base: answers to open prompts (answers/prompts.jsonl of two evaluations). Compared are the prompts that both
    were asked in the same words. swapped: ask about each pair in both orders (`Judging.both_orders`). Raises
    TrivetError where there are none, or for a judge that can't compare.
    """
    from trivet.evaluate.grading import score
    from trivet.judge.ask import both_orders
    from trivet.judge.cases import Case
    from trivet.judge.criteria import BETTER

    other = {row.id: row for row in base if not row.id.endswith(SECOND)}  # before a second turn stand other answers
    pairs = [(row, other[row.id]) for row in model if row.id in other and row.messages == other[row.id].messages]
    if not pairs:
        raise TrivetError("the two models were asked no prompt in common", field="against",
                          mend="evaluate both with the same --seed, --limit, --data and suites")
    cases = [Case(mine.id, tuple(mine.messages), (mine.completions[0].text, theirs.completions[0].text), BETTER,
                  mine.reference) for mine, theirs in pairs]
    scores = []
    for (mine, theirs), said in zip(pairs, both_orders(judge, cases, swapped=swapped), strict=True):
        longer = (mine.completions[0].tokens or 0) - (theirs.completions[0].tokens or 0)
        scores += [score(WIN, mine, said.probability), score(LC_WIN, mine, said.probability, other=float(longer))]
        if swapped and not getattr(judge, "symmetric", False):
            scores += [score(FIRST, mine, (said.given + 1.0 - said.swapped) / 2),
                       score(FLIPS, mine, (said.given - 0.5) * (said.swapped - 0.5) < 0)]
    return scores
