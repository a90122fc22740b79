"""Reward models: packing that changes nothing, saving, loading apart and on a shared trunk."""

from __future__ import annotations

import pytest
import torch

from trivet.artifacts import Message
from trivet.config import LoRA
from trivet.errors import TrivetError
from trivet.models import lora
from trivet.models.output_layer import backbone
from trivet.models.reward_model import (
    Group,
    as_scorer,
    head_of,
    load_reward_model,
    pack,
    packed_scores,
    plain,
    reward_on_trunk,
    trainable_reward_model,
)
from trivet.models.roles import SharedTrunk
from trivet.models.source import resolve

USER = [Message(role="user", content="Is the moon made of cheese?")]
ANSWERS = ["No.", "Yes, it is made of cheese, and of rock too.", "It is made of rock and dust."]


def trained_like(folder, adapters=None):
    """A reward model whose adapter and head are not zero any more."""
    source = resolve(str(folder))
    model, tokenizer = trainable_reward_model(source, torch.float32, "cpu", adapters or LoRA(r=4, alpha=8))
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * 0.1)
    return model, tokenizer, source


@pytest.mark.parametrize("pool", ["last", "mean"])
def test_packing_changes_no_score(any_tiny_model_folder, pool) -> None:
    model, tokenizer, _ = trained_like(any_tiny_model_folder)
    groups = [Group((5, 6, 7), ((8, 9), (10,), (11, 12, 13, 14))), Group((5, 9), ((20, 21),))]
    decoder, head = backbone(plain(model)), head_of(model)
    together = packed_scores(decoder, head, pack(groups, tokenizer.pad_token_id, torch.float32, "cpu"), pool)
    apart = []
    for group in groups:
        for answer in group.answers:
            hidden = decoder(torch.tensor([[*group.prompt, *answer]])).last_hidden_state
            apart.append(head(hidden[0, -1] if pool == "last" else hidden[0, len(group.prompt):].mean(0)))
    assert together.tolist() == pytest.approx(torch.cat(apart).tolist(), abs=1e-5)


def test_packing_changes_no_gradient(tiny_model_folder) -> None:
    model, _, _ = trained_like(tiny_model_folder)
    decoder, head = backbone(plain(model)), head_of(model)
    weights = torch.tensor([1.0, -2.0, 0.5])
    groups = [Group((5, 6, 7), ((8, 9), (10,), (11, 12)))]
    packed = packed_scores(decoder, head, pack(groups, 0, torch.float32, "cpu"), "last")
    (packed * weights).sum().backward()
    learned = [p for p in model.parameters() if p.requires_grad]
    one = [p.grad.clone() for p in learned]
    model.zero_grad()
    for answer, weight in zip(((8, 9), (10,), (11, 12)), weights, strict=True):
        (head(decoder(torch.tensor([[5, 6, 7, *answer]])).last_hidden_state[0, -1]) * weight).sum().backward()
    for a, p in zip(one, learned, strict=True):
        assert torch.allclose(a, p.grad, atol=1e-5)


def test_an_empty_answer_has_a_finite_mean(tiny_model_folder) -> None:
    model, tokenizer, _ = trained_like(tiny_model_folder)
    packed = pack([Group((5, 6), ((), (7,)))], tokenizer.pad_token_id, torch.float32, "cpu")
    scores = packed_scores(backbone(plain(model)), head_of(model), packed, "mean")
    assert scores[0] == 0 and scores[1] != 0


@pytest.mark.parametrize("pool", ["last", "mean"])
def test_saved_and_loaded_apart_and_on_a_trunk(any_tiny_model_folder, tmp_path, pool) -> None:
    model, tokenizer, source = trained_like(any_tiny_model_folder)
    dialogues = [(USER, a) for a in ANSWERS]
    expected = as_scorer(model, tokenizer, source, pool).score(dialogues)
    assert len(set(expected)) == 3
    lora.save_adapter(model, "default", tmp_path / "rm", source, {"role": "reward", "trivet_pool": pool})
    tokenizer.save_pretrained(tmp_path / "rm")
    saved = resolve(str(tmp_path / "rm"))
    assert load_reward_model(saved, torch.float32, "cpu").score(dialogues) == pytest.approx(expected, abs=1e-5)
    assert lora.stands_on(saved.folder, source)
    roles = SharedTrunk(source, torch.float32, "cpu", LoRA(r=2), rewards={"reward": saved.folder})
    shared = reward_on_trunk(roles, "reward", saved, "cpu")
    assert shared.score(dialogues) == pytest.approx(expected, abs=1e-5)


def test_plain_peft_loads_the_folder(tiny_model_folder, tmp_path) -> None:
    """The folder is the field's own form: another program gets the same score from it."""
    from peft import AutoPeftModelForSequenceClassification

    model, tokenizer, source = trained_like(tiny_model_folder)
    lora.save_adapter(model, "default", tmp_path / "rm", source, {})
    scorer = as_scorer(model, tokenizer, source, "last")
    prompt, answer = scorer.token_ids(USER, ANSWERS[0])
    theirs = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "rm", num_labels=1)
    theirs.config.pad_token_id = tokenizer.pad_token_id
    logits = theirs(torch.tensor([[*prompt, *answer]])).logits
    assert float(logits) == pytest.approx(scorer.score([(USER, ANSWERS[0])])[0], abs=1e-5)


def test_a_changed_base_is_found_out(tiny_model_folder, tmp_path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    base = tmp_path / "base"
    shutil.copytree(tiny_model_folder, base)
    model, tokenizer, source = trained_like(base)
    lora.save_adapter(model, "default", tmp_path / "rm", source, {})
    tokenizer.save_pretrained(tmp_path / "rm")
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrivetError, match="other weights"):
        load_reward_model(resolve(str(tmp_path / "rm")), torch.float32, "cpu")
    assert not lora.stands_on(tmp_path / "rm", resolve(str(base)))


def test_a_causal_model_is_no_reward_model(tiny_model_folder) -> None:
    with pytest.raises(TrivetError, match="no reward model"):
        load_reward_model(resolve(str(tiny_model_folder)), torch.float32, "cpu")


def test_a_reward_model_of_another_tokenizer_reads_text(make_tiny, tmp_path) -> None:
    """Detail 7: it gets text and tokenizes it in its own vocabulary."""
    other = make_tiny(tmp_path / "other", "gpt2", seed=3, chat=False)
    model, tokenizer, source = trained_like(other)
    scores = as_scorer(model, tokenizer, source, "last").score([(USER, a) for a in ANSWERS])
    assert len(set(scores)) == 3


def test_a_dialogue_longer_than_the_context_is_refused(tiny_model_folder) -> None:
    model, tokenizer, source = trained_like(tiny_model_folder)
    with pytest.raises(TrivetError, match="longer than the reward model's context"):
        as_scorer(model, tokenizer, source, "last").score([(USER, "word " * 400)])


def test_targets_that_fit_nothing_are_refused(tiny_model_folder) -> None:
    with pytest.raises(TrivetError, match="fits no linear layer"):
        trained_like(tiny_model_folder, LoRA(targets=["no_such_layer"]))


def test_a_pool_that_nobody_knows_is_refused(tiny_model_folder, tmp_path) -> None:
    model, tokenizer, source = trained_like(tiny_model_folder)
    lora.save_adapter(model, "default", tmp_path / "rm", source, {"trivet_pool": "median"})
    tokenizer.save_pretrained(tmp_path / "rm")
    with pytest.raises(TrivetError, match="'median' is no way to read an answer"):
        load_reward_model(resolve(str(tmp_path / "rm")), torch.float32, "cpu")
