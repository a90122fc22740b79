"""Small finished evaluations, written by hand: no model."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from trivet.artifacts import Completion, Completions, Message, write_rows
from trivet.evaluate.base import Measure, Score
from trivet.evaluate.results import Results, SuiteRun, build, write

ATTACKS = Measure("attack_success", "harmless", "harmful requests answered, by rule", "lower")
AGREEMENT = Measure("attack_agreement", "harmless", "rule and grader agree (Cohen's κ)", "neither", "kappa",
                    share=False, tested=False)
RIGHT = Measure("plain_facts", "honest", "plain questions answered rightly", "higher")
SURE = Measure("calibration_error", "honest", "calibration error", "lower", "ece")
LOSS = Measure("perplexity", "capable", "perplexity", "lower", "exp", share=False, unit="per token")
LENGTH = Measure("length", "capable", "length of an answer", "neither", share=False, unit="tokens")
WIN = Measure("win_rate", "helpful", "answers better than the base's", "higher", "win")
LC_WIN = Measure("win_rate_length_controlled", "helpful", "the same at equal length", "higher", "lc_win")
SPEED = Measure("speed", "capable", "speed of answering", "neither", share=False, unit="tokens/s", tested=False,
                paired=False)
MEASURES = (WIN, LC_WIN, RIGHT, SURE, ATTACKS, AGREEMENT, LOSS, LENGTH, SPEED)
N = 40


def scores(seed: int, *, attacks: float = 0.3, right: float = 0.5, nats: float = 2.0, length: float = 40,
           win: float | None = None, n: int = N) -> list[Score]:
    """One model's scores of all measures but the win rates, which take `win`."""
    rng, found = random.Random(seed), []

    def add(measure: Measure, i: int, value: float, other: float | None = None, weight: float = 1.0,
            topic: str | None = None) -> None:
        found.append(Score(measure=measure.key, id=f"{measure.leg}-{i}", group=f"{measure.leg}-{i}", value=value,
                           other=other, weight=weight, topic=topic))

    for i in range(n):
        sure, bad = rng.random(), float(rng.random() < attacks)
        add(RIGHT, i, float(rng.random() < right))
        add(SURE, i, float(rng.random() < sure), sure)
        add(ATTACKS, i, bad, topic=("fraud", "violence <b>")[i % 2])
        add(AGREEMENT, i, bad, bad)
        add(LOSS, i, nats + i % 5 / 5 + rng.gauss(0, 0.02), weight=100)
        add(LENGTH, i, length + rng.gauss(0, 3))
        if win is not None:
            longer = rng.gauss(0, 20)
            add(WIN, i, min(1.0, max(0.0, rng.gauss(win, 0.2))))
            add(LC_WIN, i, min(1.0, max(0.0, rng.gauss(win, 0.2))), longer)
    found.append(Score(measure=SPEED.key, id="0", group="0", value=500.0))
    return found


def made(model: str = "mine", base: str | None = "base", **more: Any) -> Results:
    """Many more attacks than the base, a higher perplexity, and a win rate."""
    return build(model=model, base=base, measures=MEASURES,
                 scores=scores(1, attacks=0.9, nats=2.3, win=0.8 if base else None),
                 base_scores=scores(2) if base else None, seed=0,
                 suites={"attacks": SuiteRun(items=N, seconds=12.5)},
                 command=f"trivet evaluate {model}", settings={"sampling": {"temperature": 0.7}}, seconds=12.5,
                 left_out={"gsm8k": "it reads gsm8k/test.jsonl: give their folder by --data"}, **more)


def rows(suite: str, said: str) -> list[Completions]:
    """Answers to the items of a suite."""
    leg = {"attacks": "harmless", "unknown": "honest"}[suite]
    return [Completions(id=f"{leg}-{i}", messages=[Message(role="user", content=f"Question {i} of {suite}?")],
                        completions=[Completion(id="a", text=f"{said} {i}", ended=True, tokens=9)]) for i in range(N)]


def folder(path: Path, *, seed: int = 1, model: str = "mine", answers: str | None = None, beside: bool = False,
           run_seed: int = 0, data: dict[str, str] | None = None, rename: str = "", **how: Any) -> Path:
    """A finished evaluation, as the stage leaves it. `rename` stands before the items' ids."""
    own = [s.model_copy(update={"id": rename + s.id, "group": rename + s.group}) for s in scores(seed, **how)]
    base = scores(2) if beside else None
    for name, found in (("attacks", [s for s in own if s.measure.startswith("harmless")]),
                        ("unknown", [s for s in own if s.measure.startswith("honest")]),
                        ("text", [s for s in own if s.measure in (LOSS.key, LENGTH.key)]),
                        ("pairs", [s for s in own if s.measure.startswith("helpful")])):
        if found:
            write_rows(path / "scores" / f"{name}.jsonl", found)
    write(path, build(model=model, base="base" if beside else None, measures=MEASURES, scores=own, base_scores=base,
                      seed=run_seed, data=data, command=f"trivet evaluate {model}",
                      settings={"sampling": {"temperature": 0.7}}, suites={"attacks": SuiteRun(items=N)}))
    if answers is not None:
        for suite in ("attacks", "unknown"):
            write_rows(path / "answers" / f"{suite}.jsonl", rows(suite, answers))
            if beside:
                write_rows(path / "base" / "answers" / f"{suite}.jsonl", rows(suite, "the base says"))
    if beside:
        write_rows(path / "base" / "scores" / "attacks.jsonl",
                   [s for s in base or () if s.measure.startswith("harmless")])
    return path
