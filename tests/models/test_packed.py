"""Packed rows against padded ones: the same log-probabilities, values and gradients, prompts shared or not."""

from __future__ import annotations

import pytest
import torch

from models.test_lower import gpt_neo
from trivet.artifacts import Message, Prompt
from trivet.generate.base import Generated
from trivet.models import packed
from trivet.models.packed import Lines, attention, bears_packing
from trivet.models.roles import SeparateModels
from trivet.models.source import load_causal_lm, resolve
from trivet.policy import passes
from trivet.policy.rollout import layout, make_rollout, micro_batch

PROMPTS = [(5, 6, 7), (8, 9), (5, 6, 7), (5, 6), (8, 9), (5, 6, 7)]
ANSWERS = [(10, 11), (12,), (13, 14, 15, 16), (10,) * 9, (17, 18), (19,)]


def rollout(prompts=PROMPTS, answers=ANSWERS):
    rows = [Prompt(id=str(i), messages=[Message(role="user", content="x")]) for i in range(len(prompts))]
    return make_rollout(rows, prompts, [Generated(a, (0.0,) * len(a), True) for a in answers], [""] * len(prompts))


def double(folder):
    """A model in float64, which shows every difference that is not rounding."""
    return load_causal_lm(resolve(str(folder)), torch.float64, "cpu")


def seen(model, micro, head, packs: bool):
    """Log-probabilities, values and gradients of one pass, packed or padded."""
    model._trivet_packs = packs
    found = passes.response_pass(model, micro, 0.7, value_head=head, entropy=True)
    weights = torch.randn(micro.response_mask.shape, generator=torch.Generator().manual_seed(0))
    gradients = torch.autograd.grad(((found.logps + found.values) * weights)[micro.response_mask].sum(),
                                    list(model.parameters()))
    return found, gradients


@pytest.mark.parametrize("rows", [range(6), [1, 4], [3], [0, 1]])
@pytest.mark.parametrize("by_logits", [False, True])
@pytest.mark.parametrize("kernel", [0, 256])
def test_a_packed_row_says_what_padded_rows_say(any_tiny_model_folder, monkeypatch, rows, by_logits, kernel) -> None:
    monkeypatch.setattr(packed, "CAUSAL_KERNEL", kernel)
    model = double(any_tiny_model_folder)
    assert bears_packing(model)
    if by_logits:
        monkeypatch.setattr(passes, "plain_output_layer", lambda model: None)
    head = torch.nn.Linear(32, 1)
    (one, ours), (other, theirs) = (seen(model, micro_batch(rollout(), rows, 0, "cpu"), head, p)
                                    for p in (True, False))
    for name in ("logps", "values", "entropy"):
        assert torch.allclose(getattr(one, name), getattr(other, name), atol=1e-6), name
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-6 * float(b.abs().max()) + 1e-9)


def test_a_shared_prompt_is_run_once() -> None:
    micro = micro_batch(rollout(), range(6), 0, "cpu")
    assert micro.packed.ids.shape[1] == 3 + 2 + 2 + sum(map(len, ANSWERS))
    assert len(micro.packed.predicts) == sum(map(len, ANSWERS))
    assert not micro_batch(rollout([(5, 6)] * 2, [(7, 8), (9, 10)]), [0, 1], 0, "cpu").packed.lines.plain
    assert micro_batch(rollout([(5, 6), (6, 5)], [(7, 8), (9, 10)]), [0, 1], 0, "cpu").packed.lines.plain


def test_answers_to_one_prompt_stand_together() -> None:
    (micros,) = layout(rollout(), 1, 3, 0, 0, "cpu")
    assert [[PROMPTS[i] for i in m.rows] for m in micros] == [[(8, 9), (8, 9), (5, 6, 7)], [(5, 6, 7)] * 2 + [(5, 6)]]


def test_a_sliding_window_is_kept() -> None:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=4, max_position_embeddings=64)).double().eval()
    assert bears_packing(model)
    head = torch.nn.Linear(32, 1)
    (one, ours), (other, theirs) = (seen(model, micro_batch(rollout(), range(6), 0, "cpu"), head, p)
                                    for p in (True, False))
    assert torch.allclose(one.logps, other.logps, atol=1e-6)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours, theirs, strict=True))


def test_a_model_that_does_not_bear_it_is_padded_and_that_is_said(tmp_path) -> None:
    roles = SeparateModels(resolve(str(gpt_neo(tmp_path / "neo"))), torch.float32, "cpu")
    with roles.model("policy") as model:
        assert not bears_packing(model)
        assert passes.response_pass(model, micro_batch(rollout(), range(6), 0, "cpu"), 0.7).logps.isfinite().all()
    assert any("padded" in line for line in roles.plan())


@pytest.mark.parametrize("setting", ["attention_chunk_size", "window_size", "attention_window"])
def test_a_window_that_attention_is_not_told_is_not_packed(tiny_model_folder, setting) -> None:
    """Longer than the trial, so that trying does not show it."""
    model = double(tiny_model_folder)
    setattr(model.config, setting, 8)
    assert not bears_packing(model)


def test_attention_that_is_capped_is_not_packed() -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    model = Gemma2ForCausalLM(Gemma2Config(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=64)).eval()
    assert not bears_packing(model)
    lines = packed.Lines(torch.zeros((1, 1), dtype=torch.long), *[torch.zeros(1, dtype=torch.long)] * 3)
    with pytest.raises(NotImplementedError, match="softcap"):
        packed.attention(None, *[torch.zeros(1, 1, 1, 8)] * 3, None, lines=lines, softcap=50.0)


def test_in_bfloat16_a_cpu_attends_in_float32() -> None:
    """Its kernel for bfloat16 is slower and less exact: what comes out is the float32 result, rounded once."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, heads, 5, 8, dtype=torch.bfloat16) for heads in (4, 2, 2))
    lines = Lines(places=torch.tensor([[0, 1, 2], [3, 4, 0]]), home=torch.tensor([0, 1, 2, 3, 4]),
                  again=torch.tensor([], dtype=torch.long), to=torch.tensor([], dtype=torch.long))
    found, _ = attention(None, query, key, value, None, lines=lines)
    exact, _ = attention(None, query.float(), key.float(), value.float(), None, lines=lines)
    assert found.dtype == torch.bfloat16 and torch.equal(found, exact.bfloat16())
