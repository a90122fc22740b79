"""The in-process engine against `generate` and against the distribution it should draw from."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trivet.artifacts import Message
from trivet.data.chat import ensure_template, prompt_ids, stop_token_ids
from trivet.errors import TrivetError
from trivet.generate.config import Sampling
from trivet.generate.torch_engine import TorchEngine, draw, left_padded, positions, sampling_logps

QUESTIONS = ["What should I cook tonight?", "Count to five.", "Is the moon made of cheese, and if so of which?"]


@pytest.fixture
def loaded(any_tiny_model_folder):
    tokenizer = AutoTokenizer.from_pretrained(any_tiny_model_folder)
    model = AutoModelForCausalLM.from_pretrained(any_tiny_model_folder, dtype=torch.float32).eval()
    ensure_template(tokenizer)
    prompts = [prompt_ids(tokenizer, [Message(role="user", content=q)]) for q in QUESTIONS]
    return model, tokenizer, prompts


def test_greedy_equals_generate_token_for_token(loaded) -> None:
    model, tokenizer, prompts = loaded
    engine = TorchEngine(model, tokenizer.pad_token_id, stop_token_ids(model, tokenizer))
    ours = engine.generate(prompts, Sampling(temperature=0, max_new_tokens=24), n=2, seeds=[1, 2, 3])
    for prompt, answers in zip(prompts, ours, strict=True):
        out = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=24,
                             attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                             pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
        expected = tuple(out[0, len(prompt):].tolist())
        assert answers[0].token_ids == expected
        assert answers[1].token_ids == expected


def test_logps_are_those_of_a_full_pass(loaded) -> None:
    model, tokenizer, prompts = loaded
    engine = TorchEngine(model, tokenizer.pad_token_id, stop_token_ids(model, tokenizer))
    answers = engine.generate(prompts, Sampling(temperature=0.7, max_new_tokens=12), n=2, seeds=[5, 6, 7])
    flat_prompts = [p for p in prompts for _ in range(2)]
    flat = [g for group in answers for g in group]
    again = engine.score(flat_prompts, [g.token_ids for g in flat], temperature=0.7)
    for g, logps in zip(flat, again, strict=True):
        assert g.logps == pytest.approx(logps, abs=2e-4)


def test_an_answer_depends_on_its_seed_alone(loaded) -> None:
    model, tokenizer, prompts = loaded
    engine = TorchEngine(model, tokenizer.pad_token_id, stop_token_ids(model, tokenizer))
    sampling = Sampling(max_new_tokens=16)
    together = engine.generate(prompts, sampling, n=2, seeds=[1, 2, 3])
    alone = engine.generate(prompts[1:2], sampling, n=2, seeds=[2])
    assert together[1] == alone[0] or [g.token_ids for g in together[1]] == [g.token_ids for g in alone[0]]
    assert together[0][0].token_ids != together[0][1].token_ids
    other = engine.generate(prompts[1:2], sampling, n=2, seeds=[99])
    assert other[0][0].token_ids != alone[0][0].token_ids


def test_stop_token_is_kept_and_nothing_after_it(loaded) -> None:
    model, tokenizer, prompts = loaded
    # many stop tokens, so that answers end at different times and rows leave the batch
    stops = frozenset(range(0, len(tokenizer), 9)) | {tokenizer.eos_token_id}
    engine = TorchEngine(model, tokenizer.pad_token_id, stops)
    answers = [g for a in engine.generate(prompts, Sampling(max_new_tokens=40), n=8, seeds=[1, 2, 3]) for g in a]
    assert len({len(g.token_ids) for g in answers}) > 3
    for g in answers:
        assert not set(g.token_ids[:-1]) & stops
        assert g.ended == (g.token_ids[-1] in stops)
        assert len(g.logps) == len(g.token_ids)
    # the answers are the same when no row may leave: one prompt and one answer at a time
    single = [engine.generate([p], Sampling(max_new_tokens=40), n=8, seeds=[s])[0]
              for p, s in zip(prompts, (1, 2, 3), strict=True)]
    assert [g.token_ids for a in single for g in a] == [g.token_ids for g in answers]


def test_draw_follows_the_distribution() -> None:
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(0)) * 2
    logps = sampling_logps(logits, Sampling(temperature=0.7))
    uniform = torch.rand(200_000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    drawn = draw(logps.expand(200_000, -1), uniform)
    frequency = torch.bincount(drawn, minlength=12) / 200_000
    expected = torch.softmax(logits[0] / 0.7, -1)
    # chi-square with 11 degrees of freedom: 31.3 is the 99.9th percentile
    chi = (200_000 * (frequency - expected) ** 2 / expected).sum()
    assert chi < 31.3
    assert draw(torch.tensor([[0.0, -torch.inf]]), torch.tensor([0.999999])).tolist() == [0]


def test_top_k_and_top_p_keep_what_they_say() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))
    kept = sampling_logps(logits, Sampling(top_k=2)).exp()
    assert kept[0].tolist() == pytest.approx([0.625, 0.375, 0, 0])
    kept = sampling_logps(logits, Sampling(top_p=0.7)).exp()
    assert kept[0].tolist() == pytest.approx([0.625, 0.375, 0, 0])


def test_positions_come_from_the_mask() -> None:
    """Detail 3: left padding does not move positions."""
    _, mask = left_padded([[5, 6, 7], [5]], pad=0, device="cpu")
    assert positions(mask).tolist() == [[0, 1, 2], [0, 0, 0]]


def test_an_empty_prompt_is_refused(loaded) -> None:
    model, tokenizer, _ = loaded
    engine = TorchEngine(model, tokenizer.pad_token_id, frozenset({1}))
    with pytest.raises(TrivetError, match="no tokens"):
        engine.generate([[]], Sampling(), n=1, seeds=[0])
