"""A subject that says what the test tells it, and a judge likewise."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from trivet.artifacts import Completion, Completions, Prompt
from trivet.generate.config import Sampling
from trivet.judge.cases import Case

DECLINES = "I'm sorry, but I can't help with that."
TELLS = "First you take the red box, then you carry it over to the window and open it slowly."


class Saying:
    """Answers each prompt by a function of its last message. Remembers what it was asked for."""

    def __init__(self, say: Callable[[str], str] | str, grader: object = None, ended: bool = True) -> None:
        self.say = say if callable(say) else lambda _: say
        self.grader, self.ended = grader, ended
        self.asked: list[tuple[str, Prompt, int]] = []

    def answer(self, suite: str, prompts: Sequence[Prompt], sampling: Sampling, *, n: int = 1) -> list[Completions]:
        self.asked += [(suite, p, sampling.max_new_tokens) for p in prompts]
        return [completions(p, self.say(p.messages[-1].content), self.ended) for p in prompts]


def completions(prompt: Prompt, text: str, ended: bool = True) -> Completions:
    """A prompt with one answer; a word is a token."""
    answer = Completion(id=f"{prompt.id}/0", text=text, ended=ended, tokens=len(text.split()))
    return Completions(id=prompt.id, messages=prompt.messages, reference=prompt.reference, tags=prompt.tags,
                       completions=[answer])


class Grading:
    """Gives each case the value of a function of its answers. Remembers the cases."""

    def __init__(self, say: Callable[..., float]) -> None:
        self.say = say
        self.cases: list[Case] = []

    def __call__(self, cases: Sequence[Case]) -> list[float]:
        self.cases += cases
        return [self.say(*case.answers) for case in cases]
