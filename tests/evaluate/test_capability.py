"""The capability check: what can't speak is refused with evidence, the embedded model passes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from trivet.artifacts import Prompt, read_rows
from trivet.errors import TrivetError
from trivet.evaluate.capability import (
    Assessment,
    CheckSummary,
    Evidence,
    assess,
    draw_prompts,
    judge_answer,
    refuse,
    run,
)
from trivet.evaluate.config import CheckConfig
from trivet.generate.base import Capabilities, Generated
from trivet.generate.config import Sampling
from trivet.runs import execute

GOOD = "Salt melts ice because salty water freezes at a lower temperature than pure water does."
QUESTION = "Why does salt melt ice?"


@pytest.mark.parametrize(("answer", "reasons"), [
    (GOOD, []),
    ("Yes.", []),
    ("42", []),
    ("", ["empty"]),
    (" \n…", ["empty"]),
    ("." * 64, ["looping"]),
    ("I am sorry, I am a model. " * 6, ["looping"]),
    ("xkcdq bcdfg arkClIent doesYes thePqr", ["gibberish"]),
    ("Соль понижает температуру замерзания воды", ["off-language"]),
])
def test_judge_answer(answer, reasons):
    assert judge_answer(QUESTION, answer, ended=True) == reasons


def test_a_torn_last_word_is_not_held_against_a_cut_off_answer():
    answer = "It does not qwrtz\ufffd"
    assert judge_answer(QUESTION, answer, ended=True) == ["gibberish"]
    assert judge_answer(QUESTION, answer, ended=False) == []


class Words:
    """A tokenizer of whole words, for engines that say what the test tells them."""

    def __init__(self) -> None:
        self.known: list[str] = []

    def ids(self, text: str) -> list[int]:
        self.known += text.split()
        return list(range(len(self.known) - len(text.split()), len(self.known)))

    def apply_chat_template(self, messages, tokenize, add_generation_prompt) -> str:
        return " ".join(m["content"] for m in messages)

    def __call__(self, text, add_special_tokens):
        return {"input_ids": self.ids(text)}

    def decode(self, ids, skip_special_tokens) -> str:
        return " ".join(self.known[i] for i in ids)


class Fake:
    """Answers in turn with (text, ended); to a greedy request with `greedy`. Remembers what was asked for."""

    capabilities = Capabilities(logps=False, score=False)

    def __init__(self, tokenizer: Words, answers: Sequence[tuple[str, bool]], greedy: tuple[str, bool] = ("", False)):
        self.tokenizer, self.answers, self.greedy = tokenizer, answers, greedy
        self.asked: list[tuple[int, int]] = []

    def generate(self, prompts, sampling, *, n, seeds):
        if sampling.temperature == 0:
            self.asked.append((len(prompts), sampling.max_new_tokens))
        picked = [self.greedy if sampling.temperature == 0 else self.answers[i % len(self.answers)]
                  for i in range(len(prompts))]
        return [[Generated(tuple(self.tokenizer.ids(text)), (), ended)] for text, ended in picked]

    def score(self, prompts, answers, temperature=1.0):
        raise NotImplementedError


def check(answers, greedy=("", False), max_fail=0.34, tokens=64, context=None, count=6) -> tuple[Assessment, Fake]:
    tokenizer = Words()
    engine = Fake(tokenizer, answers, greedy)
    prompts = [Prompt(id=f"q{i}", messages=[{"role": "user", "content": QUESTION}]) for i in range(count)]
    found = assess(engine, tokenizer, prompts, Sampling(temperature=0.7, max_new_tokens=tokens), 0, max_fail,
                   context=context)
    return found, engine


def test_a_capable_model_passes_without_long_answers():
    found, engine = check([(GOOD, True), (GOOD, False), ("", True)])
    assert found.verdict and not found.never_stops and engine.asked == []
    assert found.share_failed == pytest.approx(1 / 3) and found.reasons == {"empty": 2}
    assert found.words == "2 of 6 answers fail (empty 2)"


def test_too_many_failures_are_refused():
    found, _ = check([(GOOD, True), ("", True)])
    assert not found.verdict and found.share_failed == 0.5
    assert check([(GOOD, True), ("", True)], max_fail=0.5)[0].verdict


def test_never_stopping_is_decided_by_long_greedy_answers():
    found, engine = check([(GOOD, False)], greedy=(GOOD, False))
    assert found.never_stops and not found.verdict and found.share_failed == 0.0
    assert engine.asked == [(4, 256)]
    assert [row.reasons for row in found.evidence if row.stop_test] == [["never stopping"]] * 4
    assert found.words == "0 of 6 answers fail, and it never stops"
    assert check([(GOOD, False)], greedy=(GOOD, True))[0].verdict
    # an answer that ended but fails shows nothing
    assert check([("", True)], greedy=(GOOD, False))[0].never_stops


@pytest.mark.parametrize(("tokens", "context", "budget"), [(16, None, 64), (100, None, 256), (300, None, 300),
                                                           (64, 100, 95)])
def test_the_budget_of_long_answers(tokens, context, budget):
    _, engine = check([(GOOD, False)], tokens=tokens, context=context, count=2)
    assert engine.asked == [(2, budget)]


def test_no_room_and_no_prompts_are_errors():
    with pytest.raises(TrivetError, match="longer than the model's context"):
        check([(GOOD, True)], context=64)
    with pytest.raises(TrivetError, match="no prompt"):
        check([(GOOD, True)], count=0)


def test_refuse_shows_the_evidence():
    rows = [Evidence(id=str(i), prompt="Why\x1b[31m?", answer="no " * 60, reasons=["looping"], ended=False, tokens=60)
            for i in range(9)]
    rows.append(Evidence(id="s", prompt="Why?", answer="on and on", reasons=["never stopping"], ended=False, tokens=9,
                         stop_test=True))
    with pytest.raises(TrivetError) as caught:
        refuse(Assessment(False, 1.0, True, 0.34, tuple(rows)))
    text = str(caught.value)
    assert "9 of 9 answers fail (looping 9), and it never stops" in text
    assert text.count("prompt:") == 4 and text.count("looping") >= 3 and "↑ never stopping" in text
    assert "\x1b" not in text and "no no …" in text and max(map(len, text.splitlines())) < 260
    assert "--force" in caught.value.mend and "--sampling.max-new-tokens" not in caught.value.mend


def test_draw_prompts():
    prompts = [Prompt(id=str(i), messages=[{"role": "user", "content": "Hm?"}]) for i in range(30)]
    drawn = draw_prompts(prompts, 12, seed=3)
    assert len({p.id for p in drawn}) == 12 and drawn == draw_prompts(prompts, 12, seed=3)
    assert drawn != draw_prompts(prompts, 12, seed=4)
    assert len(draw_prompts(prompts[:5], 12, seed=3)) == 5


# --- real models ---------------------------------------------------------------------------------------


def config(tmp_path: Path, prompts: Path, model: Path, **more) -> CheckConfig:
    return CheckConfig(out=tmp_path / "check", prompts=prompts, model=str(model), **more)


def go(settings: CheckConfig) -> CheckSummary:
    return execute("check", settings, run, CheckSummary)


def test_a_random_model_is_refused_and_force_goes_on(tmp_path, prompt_file, any_tiny_model_folder, capsys):
    settings = config(tmp_path, prompt_file, any_tiny_model_folder)
    with pytest.raises(TrivetError, match="can't answer such prompts"):
        go(settings)
    evidence = read_rows(tmp_path / "check" / "evidence.jsonl", Evidence)
    assert sum(not row.stop_test for row in evidence) == 12 and any(row.reasons for row in evidence)
    assert not (tmp_path / "check" / "summary.json").exists()
    summary = go(settings.model_copy(update={"force": True}))
    assert not summary.capable and summary.forced and summary.answers == 12 and summary.share_failed > 0.34
    assert "--force" in capsys.readouterr().out
    assert "evidence" in summary.artifacts


def test_a_prompt_without_room(tmp_path, jsonl, tiny_model_folder):
    prompts = jsonl("long.jsonl", [{"id": "long", "prompt": "too long " * 400}])
    with pytest.raises(TrivetError, match=r"'long' has \d+ tokens"):
        go(config(tmp_path, prompts, tiny_model_folder))


@pytest.mark.real_weights
def test_the_embedded_model_passes():
    import torch

    from trivet.data.chat import context_length, stop_token_ids
    from trivet.generate.torch_engine import TorchEngine
    from trivet.models.source import load_causal_lm, load_tokenizer, resolve
    from trivet.pipeline import starter

    defaults = CheckConfig(prompts=starter("prompts"))
    source = resolve(defaults.model)
    tokenizer, model = load_tokenizer(source), load_causal_lm(source, torch.float32, "cpu")
    engine = TorchEngine(model, tokenizer.pad_token_id, stop_token_ids(model, tokenizer))
    for seed in range(2):
        prompts = draw_prompts(read_rows(defaults.prompts, Prompt), defaults.count, seed)
        found = assess(engine, tokenizer, prompts, defaults.sampling, seed, defaults.max_fail,
                       context=context_length(model))
        assert found.verdict, found.words
