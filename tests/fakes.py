"""A subject that answers by a function, so that a suite is tested without a model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from trivet.artifacts import Completion, Completions, Prompt
from trivet.evaluate.base import Measure, Score
from trivet.generate.config import Sampling


class FakeSubject:
    """Answers each prompt with `reply(text of the user's last message)`."""

    name = "fake"
    grader = None

    def __init__(self, reply: Callable[[str], str]) -> None:
        self.reply = reply
        self.asked: list[tuple[str, Sampling]] = []

    def answer(self, suite: str, prompts: Sequence[Prompt], sampling: Sampling, *, n: int = 1) -> list[Completions]:
        self.asked.append((suite, sampling))
        return [Completions(**p.model_dump(), completions=[
            Completion(id=f"{p.id}/{k}", text=self.reply(p.messages[-1].content), ended=True) for k in range(n)])
            for p in prompts]


def shares(scores: Sequence[Score], measures: Sequence[Measure]) -> dict[str, float]:
    """The mean of each measure; checks that scores belong to the measures and that their ids are unique."""
    values = defaultdict(list)
    for score in scores:
        values[score.measure].append(score.value)
    assert set(values) <= {m.key for m in measures}
    assert len({(s.measure, s.id) for s in scores}) == len(scores)
    return {key.split(".")[1]: sum(v) / len(v) for key, v in values.items()}
