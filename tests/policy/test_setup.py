"""Roles and rewards before the first step of PPO."""

from __future__ import annotations

import pytest
import torch

from trivet.config import Device, LoRA
from trivet.errors import TrivetError
from trivet.judge.base import Sample
from trivet.models import lora
from trivet.models.reward_model import trainable_reward_model
from trivet.models.source import resolve
from trivet.policy.config import PPOConfig
from trivet.policy.passes import value_pass
from trivet.policy.rollout import micro_batch
from trivet.policy.setup import _known_scale, _start_critic, prepare_models, split_prompts
from trivet.training.device import prepare


@pytest.fixture
def reward_folder(tiny_model_folder, tmp_path):
    """A reward model on the tiny trunk whose weights are not zero, with a calibration."""
    import json

    from trivet.models.source import weights_sha256

    source = resolve(str(tiny_model_folder))
    model, tokenizer = trainable_reward_model(source, torch.float32, "cpu", LoRA(r=4))
    torch.manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * 0.2)
    folder = tmp_path / "reward"
    lora.save_adapter(model, "default", folder, source, {"role": "reward"})
    tokenizer.save_pretrained(folder)
    (folder / "calibration.json").write_text(json.dumps({
        "mean": 0.5, "std": 2.0, "reference_scores": [-1.5, 2.5], "reference_sha256": weights_sha256(source.folder),
        "sampling": {"temperature": 0.7}}))
    return folder


def setup(prompt_file, model, **changes):
    config = PPOConfig(prompts=prompt_file, model=str(model), **changes)
    return config, prepare_models(config, prepare(Device(threads=1)), lambda kind, n: None)


def test_a_reward_on_the_same_trunk_shares_it(prompt_file, tiny_model_folder, reward_folder, capsys) -> None:
    _, found = setup(prompt_file, tiny_model_folder, reward=[str(reward_folder)],
                     evaluation={"reward": str(reward_folder)})
    assert "shared by reference (adapters off), policy, reward" in capsys.readouterr().out
    assert found.scale is not None and found.scale.source == "calibration"
    samples = [Sample(p.id, tuple(p.messages), "yes", p.reference) for p in found.train]
    model = found.reward.parts[0][1]
    assert found.reward(samples) == pytest.approx([(r - 0.5) / 2 for r in model.raw(samples)])


def test_shared_and_separate_roles_score_alike(prompt_file, tiny_model_folder, reward_folder) -> None:
    scores = []
    for tune in ("lora", "full"):
        _, found = setup(prompt_file, tiny_model_folder, reward=[str(reward_folder)], tune=tune)
        scores.append(found.reward([Sample(p.id, tuple(p.messages), "yes or no") for p in found.train]))
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)


def test_8_a_critic_from_the_reward_model_speaks_in_its_scale(prompt_file, tiny_model_folder, reward_folder) -> None:
    """At an answer's last token the critic says what the normalised reward is."""
    _, found = setup(prompt_file, tiny_model_folder, reward=[str(reward_folder)], critic="separate")
    model = found.reward.parts[0][1]
    prompt = found.train[0]
    ids, answer = model.model.token_ids(prompt.messages, "yes or no")
    # value_pass reads the state before each token: one more token, and the last state is the whole dialogue
    from types import SimpleNamespace

    rollout = SimpleNamespace(prompts=[ids], answers=[(*answer, 5)])
    with torch.no_grad(), found.roles.model("critic") as critic:
        values = value_pass(critic, micro_batch(rollout, [0], 0, "cpu"), found.roles.value_head)
    expected = found.reward([Sample(prompt.id, tuple(prompt.messages), "yes or no")])[0]
    assert values[0, -1].item() == pytest.approx(expected, abs=1e-4)


def test_a_reward_of_another_tokenizer_is_loaded_apart(prompt_file, tiny_model_folder, make_tiny, tmp_path, capsys):
    other = resolve(str(make_tiny(tmp_path / "gpt2", "gpt2", seed=5, chat=False)))
    model, tokenizer = trainable_reward_model(other, torch.float32, "cpu", LoRA(r=2))
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.05)
    lora.save_adapter(model, "default", tmp_path / "rm", other, {})
    tokenizer.save_pretrained(tmp_path / "rm")
    _, found = setup(prompt_file, tiny_model_folder, reward=[str(tmp_path / "rm")])
    assert "loaded apart" in capsys.readouterr().out
    assert len(found.reward([Sample("a", tuple(found.train[0].messages), "yes")])) == 1
    assert found.scale is None, "no calibration: the first rollout fits the scale"


def test_split_by_first_turn_and_no_overlap(prompt_file, jsonl) -> None:
    train, heldout = split_prompts(PPOConfig(prompts=prompt_file, reward=["a:b"], evaluation={"share": 0.4}))
    assert len(train) + len(heldout) == 12
    assert train and heldout
    with pytest.raises(TrivetError, match="among the evaluation prompts"):
        split_prompts(PPOConfig(prompts=prompt_file, reward=["a:b"], evaluation={"prompts": prompt_file}))
    few = jsonl("few.jsonl", [{"prompt": "one"}])
    with pytest.raises(TrivetError, match="too few"):
        split_prompts(PPOConfig(prompts=few, reward=["a:b"]))


def test_a_weighted_reward_folder_enters_the_fingerprint(prompt_file, reward_folder) -> None:
    from trivet.runs import input_hashes

    def mark(weight: str) -> str:
        return input_hashes(PPOConfig(prompts=prompt_file, reward=[f"{weight}*{reward_folder}"]))["reward.0"]

    first = mark("0.7")
    assert first.startswith("0.7*") and str(reward_folder) not in first
    assert mark("0.3") != first
    (reward_folder / "calibration.json").write_text("{}")
    assert mark("0.7") != first


def test_sharded_full_weights_that_are_not_computed_with_in_bfloat16_are_said(prompt_file, tiny_model_folder, capsys,
                                                                              monkeypatch) -> None:
    monkeypatch.setattr("trivet.policy.setup.shard.wanted", lambda *_: True)
    monkeypatch.setattr("trivet.policy.setup._spread", lambda *_: True)
    config = PPOConfig(prompts=prompt_file, model=str(tiny_model_folder), tune="full", critic="separate",
                       reward=["trivet.judge.maths:exact_answer"])
    prepare_models(config, prepare(Device(threads=1, precision="bfloat16")), lambda kind, n: None)
    assert "note: passes over sharded weights compute in float32, not in bfloat16" in capsys.readouterr().out


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_score_tokens_bound_a_pass_and_leave_the_scores(prompt_file, tiny_model_folder, reward_folder, monkeypatch,
                                                        tune) -> None:
    from trivet.models import reward_model

    passes, scores, real = [], [], reward_model.packed_scores

    def counted(decoder, head, packed, pool):
        passes[-1].append(packed["input_ids"].numel())
        return real(decoder, head, packed, pool)

    monkeypatch.setattr(reward_model, "packed_scores", counted)
    for tokens in (4096, 64):
        _, found = setup(prompt_file, tiny_model_folder, reward=[str(reward_folder)], score_tokens=tokens, tune=tune)
        passes.append([])
        scores.append(found.reward([Sample(p.id, tuple(p.messages), "yes or no") for p in found.train]))
    assert len(passes[0]) == 1 < len(passes[1])
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)


def test_four_bits_do_not_take_a_full_precision_calibration(prompt_file, tiny_model_folder, reward_folder,
                                                            capsys) -> None:
    """A trunk in four bits needs a GPU; what is decided beside it is tried here."""
    config, found = setup(prompt_file, tiny_model_folder, reward=[str(reward_folder)], critic="separate")
    source = resolve(str(tiny_model_folder))
    assert _known_scale(config, found.reward, source).source == "calibration"
    four = config.model_copy(update={"four_bit": True})
    capsys.readouterr()
    assert _known_scale(four, found.reward, source) is None
    assert "first rollout" in capsys.readouterr().out
    head = found.roles.value_head
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    _start_critic(found.roles, found.reward.parts[0][1], four)
    assert not head.weight.any() and not head.bias.any()
    _start_critic(found.roles, found.reward.parts[0][1], config)
    assert head.weight.any()
