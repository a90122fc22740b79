"""The router: questions of our own, which it was not fitted on; its weights; the way that uses it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest

import router as benchmark
from scripted_chat import ScriptedChat
from trivet.artifacts import Message
from trivet.errors import TrivetError
from trivet.generate.config import Sampling
from trivet.serve.pal.answer import ProgramAided, Words
from trivet.serve.pal.router import FEATURES, Routed, decide, features, weights

WANTS = [
    "What is 17 * 23 + 4?",
    "Mira has 14 marbles and gives 5 to Jo. How many marbles does she have left?",
    "A car drives 240 km in 3 hours. What is its average speed?",
    "If today is 03/14/2023, what is the date 10 days from now?",
    "A shirt costs $40 and is discounted by 15%. How much do I pay?",
    "What is the probability of two sixes with two dice?",
    "How many ways are there to seat 5 people on 3 chairs?",
]
WORDS = [
    "Why is the sky blue?",
    "Write a poem of 12 lines about the sea.",
    "Explain the 3 laws of thermodynamics.",
    "Who was the president of France in 1995?",
    "How do I cook rice?",
    "Translate 'good morning' into French.",
    "Hello!",
    "",
    "Summarize this article about 2 companies that merged in 2019.",
]


@pytest.mark.parametrize("question", WANTS)
def test_wants_a_program(question: str) -> None:
    decision = decide(question)
    assert decision.wants and decision.probability > 0.5 and decision.because


@pytest.mark.parametrize("question", WORDS)
def test_wants_words(question: str) -> None:
    assert not decide(question).wants


def test_features_are_bounded_and_long_questions_take_no_time() -> None:
    for text in ("1 " * 100_000, "how many " * 50_000, "a" * 200_000, "$" * 100_000 + "1", "1/" * 100_000):
        values = features(text)
        assert set(values) == set(FEATURES) == set(weights())
        assert all(0 <= v <= 1 for v in values.values())


def test_a_file_that_is_not_the_routers_is_named(tmp_path: Path) -> None:
    for content in ("{", '{"weights": {"bias": 1}}', '{"weights": 3}'):
        file = tmp_path / f"{abs(hash(content))}.json"
        file.write_text(content)
        with pytest.raises(TrivetError, match="router's weights"):
            weights(file)


def test_fitting_finds_a_direction_and_its_gradient_is_zero() -> None:
    random = np.random.default_rng(0)
    x = np.column_stack([np.ones(400), random.normal(size=(400, 2))])
    y = (random.uniform(size=400) < 1 / (1 + np.exp(-(x @ [0.5, 2.0, -1.0])))).astype(float)
    w = benchmark.fit(x, y, penalty=0.1)
    assert w[1] > 1 > 0 > w[2]
    share = np.where(y == 1, 0.5 / y.mean(), 0.5 / (1 - y.mean()))

    def loss(v: np.ndarray) -> float:
        z = x @ v
        return float((share * (np.logaddexp(0, z) - y * z)).sum() + 0.05 * (v[1:] ** 2).sum())

    for k in range(3):  # by differences
        step = np.eye(3)[k] * 1e-5
        assert abs(loss(w + step) - loss(w - step)) / 2e-5 < 1e-4


def test_held_out_questions_are_never_fitted_on(tmp_path: Path) -> None:
    rows = [("svamp", f"question {i}", True) for i in range(200)]
    held = [r for r in rows if benchmark.held_out(r)]
    assert 30 < len(held) < 90
    # a copy in another source stands on the same side
    assert [benchmark.held_out(("koala", q.upper(), False)) for _, q, _ in rows] == [r in held for r in rows]
    assert not benchmark.held_out(("gsm8k/train", "x", True)) and benchmark.held_out(("gsm8k/test", "x", True))


def test_the_way_asks_the_program_or_the_words() -> None:
    way = Routed(ProgramAided(), Words())
    greedy = Sampling(temperature=0)
    reply = asyncio.run(way.answer([Message(role="user", content=WANTS[1])], ScriptedChat(["answer = 14 - 5"]), greedy))
    assert reply.text == "The answer is 9." and reply.steps[0].kind == "note" and reply.steps[1].kind == "program"
    json.dumps([s.data for s in reply.steps])
    reply = asyncio.run(way.answer([Message(role="user", content=WORDS[0])], ScriptedChat(["Because."]), greedy))
    assert reply.text == "Because." and reply.steps == ()
