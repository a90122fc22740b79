"""FLOPs as counted while they are done, against torch's own counter, on every road that models are used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from trivet.artifacts import Message
from trivet.config import Device, LoRA
from trivet.data.chat import stop_token_ids
from trivet.generate.config import Sampling
from trivet.generate.torch_engine import TorchEngine
from trivet.models.output_layer import backbone
from trivet.models.reward_model import Group, as_scorer, head_of, pack, packed_scores, plain, trainable_reward_model
from trivet.models.roles import SeparateModels, SharedTrunk, no_dropout
from trivet.models.source import load_causal_lm, load_tokenizer, resolve
from trivet.policy.config import PPOConfig
from trivet.policy.passes import evaluate_tokens
from trivet.policy.rollout import layout, make_rollout
from trivet.policy.update import make_optimizer, update
from trivet.policy.vocabulary import linear_logps
from trivet.training.device import prepare
from trivet.training.flops import FlopCounter, counting
from trivet.training.written import token_losses


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    prepare(Device(threads=1))


def _attention(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


def torchs() -> FlopCounterMode:
    """torch's counter. It has no formula for the CPU's attention kernel: here it gets the GPU kernels' own."""
    aten = torch.ops.aten
    return FlopCounterMode(display=False, custom_mapping={
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward})


def both(work: Callable[[], Any]) -> tuple[FlopCounter, int]:
    """(what we count, what torch counts) of the same work."""
    with torchs() as theirs, counting() as ours:
        work()
    return ours, theirs.get_total_flops()


def model_of(folder: Any, attention: str = "sdpa") -> Any:
    model = load_causal_lm(resolve(str(folder)), torch.float32, "cpu")
    model.set_attn_implementation(attention)
    no_dropout(model)
    return model


IDS = torch.arange(2 * 24).view(2, 24) % 300
SAMPLING = Sampling(max_new_tokens=9)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_forward_and_backward_of_every_kind(any_tiny_model_folder, attention) -> None:
    """Full fine-tuning: every weight and every state has a gradient."""
    model = model_of(any_tiny_model_folder, attention)
    model.requires_grad_(True)
    batch = {"input_ids": IDS, "position_ids": torch.arange(24).repeat(2, 1), "labels": IDS}
    with torchs() as theirs, counting() as ours:
        loss = token_losses(model, batch)[0]
        forward = theirs.get_total_flops()
        assert ours.forward == pytest.approx(forward, rel=0.005) and ours.backward == 0
        loss.backward()
    assert ours.backward == pytest.approx(theirs.get_total_flops() - forward, rel=0.01)
    assert ours.backward > 1.8 * ours.forward


def test_the_formula_by_hand(tiny_model_folder) -> None:
    """2·tokens·weights of the linear layers, 4·heads·queries·keys·size of attention."""
    model = model_of(tiny_model_folder)
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    with counting() as ours, torch.no_grad():
        model(input_ids=IDS, use_cache=False)
    attention = 2 * 2 * 4 * 24 * 24 * 4 * 8  # blocks · rows · heads · queries · keys · 4 · head size
    assert ours.forward == 2 * IDS.numel() * linear + attention and ours.backward == 0


@pytest.mark.parametrize("n", [1, 3])
def test_prefill_and_cached_decoding(any_tiny_model_folder, n) -> None:
    model, tokenizer = model_of(any_tiny_model_folder), load_tokenizer(resolve(str(any_tiny_model_folder)))
    engine = TorchEngine(model, tokenizer.pad_token_id, stop_token_ids(model, tokenizer))
    ours, theirs = both(lambda: engine.generate([[5, 6, 7, 8], [9, 10]], SAMPLING, n=n, seeds=[1, 2]))
    assert ours.total == pytest.approx(theirs, rel=0.01)
    assert ours.backward == 0


@pytest.mark.parametrize("last", [None, 1])
@pytest.mark.parametrize("checkpointing", [None, False, True])
def test_lora_step_with_gradient_checkpointing(any_tiny_model_folder, last, checkpointing) -> None:
    """Frozen weights have no gradient, blocks below the adapters none at all; what is recomputed is backward's."""
    from peft import get_peft_model

    from trivet.models import lora

    model = get_peft_model(model_of(any_tiny_model_folder), lora.lora_config(
        model_of(any_tiny_model_folder), LoRA(r=4, last_layers=last), "CAUSAL_LM"))
    if checkpointing is not None:
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
        model.enable_input_require_grads()
    model.train()
    batch = {"input_ids": IDS, "position_ids": torch.arange(24).repeat(2, 1), "labels": IDS}
    ours, theirs = both(lambda: token_losses(model, batch)[0].backward())
    assert ours.total == pytest.approx(theirs, rel=0.01)
    if checkpointing is not None:
        assert ours.backward > ours.forward


@pytest.mark.parametrize("adapters", [None, LoRA(r=4)])
@pytest.mark.parametrize("pool", ["last", "mean"])
def test_reward_step_and_scores(any_tiny_model_folder, adapters, pool) -> None:
    source = resolve(str(any_tiny_model_folder))
    model, tokenizer = trainable_reward_model(source, torch.float32, "cpu", adapters)
    torch.nn.init.normal_(head_of(model).weight)
    packed = pack([Group((5, 6, 7), ((8, 9), (10, 11, 12))), Group((5, 6), ((8,), (9, 10)))],
                  tokenizer.pad_token_id, torch.float32, "cpu")
    ours, theirs = both(lambda: packed_scores(
        backbone(plain(model)), head_of(model), packed, pool).square().sum().backward())
    assert ours.total == pytest.approx(theirs, rel=0.01) and ours.backward > ours.forward
    scorer = as_scorer(model, tokenizer, source, pool)
    ours, theirs = both(lambda: scorer.score([([Message(role="user", content="Is it red?")], "yes, red")]))
    assert ours.total == pytest.approx(theirs, rel=0.01) and ours.backward == 0


@pytest.mark.parametrize(("bias", "train"), [(False, False), (True, True)])
def test_logits_that_are_made_again_in_the_backward_pass(bias, train) -> None:
    """An autograd function of our own. A frozen layer's one gradient is made with the logits, in the forward pass; a
    trained one's logits are made again in the backward pass, and there is a product for each gradient."""
    layer = torch.nn.Linear(16, 100, bias=bias)
    layer.requires_grad_(train)
    hidden = torch.randn(7, 16, requires_grad=True)
    ours, theirs = both(lambda: linear_logps(hidden, layer, torch.arange(7), 0.7)[0].sum().backward())
    product = 2 * 7 * 16 * 100
    assert (ours.forward, ours.backward) == ((product, 3 * product) if train else (2 * product, 0))
    assert ours.total == theirs


@pytest.mark.parametrize("entropy", [0.0, 0.01])
@pytest.mark.parametrize("roles", ["shared", "shared and lower blocks", "separate"])
def test_ppo_step(tiny_model_folder, prompt_file, roles, entropy) -> None:
    """Rollout, old and reference log-probabilities, two epochs of two micro-batches, lower blocks shared."""
    config = PPOConfig(prompts=prompt_file, reward=["trivet.judge.maths:exact_answer"], entropy_coef=entropy,
                       epochs=2, minibatches=1, micro_batch=3, critic="separate")
    source = resolve(str(tiny_model_folder))
    made = SeparateModels(source, torch.float32, "cpu", critic="separate") if roles == "separate" else SharedTrunk(
        source, torch.float32, "cpu", LoRA(r=4, last_layers=1 if "lower" in roles else None), critic="separate")
    optimizer = make_optimizer(made, config)
    prompts = [[5, 6, 7, 8], [9, 10]]

    def step() -> None:
        with made.model("policy") as model:
            engine = TorchEngine(model, 0, frozenset({1}))
            answers = [a for g in engine.generate(prompts, SAMPLING, n=3, seeds=[1, 2]) for a in g]
        rollout = make_rollout(_prompts(), [t for t in prompts for _ in range(3)], answers, ["yes"] * 6)
        minibatches = layout(rollout, 1, 3, 0, 0, "cpu")
        micros = [m for minibatch in minibatches for m in minibatch]
        shape = (rollout.mask.shape[0], rollout.mask.shape[1])
        old = evaluate_tokens(made, micros, 0.7, shape, keep_graph=False)
        update(made, optimizer, minibatches, old, torch.randn(shape), torch.randn(shape), config, 1)

    ours, theirs = both(step)
    assert ours.total == pytest.approx(theirs, rel=0.01)
    assert ours.backward > 0


def _prompts() -> list[Any]:
    from trivet.artifacts import Prompt

    return [Prompt(id=f"q{i}", messages=[Message(role="user", content="Is it red?")]) for i in range(6)]


A, B, BATCH = torch.randn(3, 4), torch.randn(4, 5), torch.randn(2, 3, 4)


@pytest.mark.parametrize("work", [
    lambda: A @ B, lambda: A.matmul(B), lambda: torch.mm(A, mat2=B), lambda: A.mm(B),
    lambda: torch.bmm(BATCH, BATCH.mT), lambda: BATCH.bmm(BATCH.mT), lambda: torch.matmul(BATCH, other=B),
    lambda: torch.addmm(torch.zeros(5), A, B), lambda: torch.zeros(3, 5).addmm(A, B),
    lambda: torch.baddbmm(torch.zeros(2, 3, 3), BATCH, BATCH.mT), lambda: functional.linear(BATCH, weight=B.T),
    lambda: torch.einsum("ij,jk->ik", A, B), lambda: torch.einsum("...ij,jk->...ik", BATCH, B),
    lambda: torch.einsum("b i j, b k j -> b i k", [BATCH, BATCH]),
    lambda: torch.nn.functional.scaled_dot_product_attention(BATCH[None], key=BATCH[None], value=BATCH[None]),
])
def test_every_entry_point(work) -> None:
    ours, theirs = both(work)
    assert ours.forward == theirs > 0


def test_counting_changes_no_bit(tiny_model_folder) -> None:
    def gradients() -> list[torch.Tensor]:
        model = model_of(tiny_model_folder)
        model.requires_grad_(True)
        token_losses(model, {"input_ids": IDS, "position_ids": torch.arange(24).repeat(2, 1), "labels": IDS})[
            0].backward()
        return [p.grad for p in model.parameters()]

    plain_ones = gradients()
    with counting() as ours:
        counted = gradients()
    assert ours.backward > 0
    assert all(torch.equal(a, b) for a, b in zip(plain_ones, counted, strict=True))


def test_torch_is_left_as_it_was() -> None:
    def entry_points() -> tuple[Any, ...]:
        return (torch.matmul, torch.addmm, torch.Tensor.__matmul__, functional.linear,
                functional.scaled_dot_product_attention, "matmul" in vars(torch.Tensor))

    before = entry_points()
    outer = FlopCounter()
    outer.start()
    outer.start()
    with pytest.raises(ZeroDivisionError), counting() as inner:
        _ = A @ B
        raise ZeroDivisionError
    assert entry_points() != before
    _ = A @ B
    outer.stop()
    outer.stop()
    assert entry_points() == before
    _ = A @ B
    assert (inner.total, outer.total) == (120, 240)


def test_a_graph_that_is_thrown_away_costs_no_backward_pass() -> None:
    weight = torch.randn(4, 5, requires_grad=True)
    with counting() as ours:
        kept, _ = A @ weight, A @ weight
        kept.sum().backward()
    assert (ours.forward, ours.backward) == (240, 120)


def test_what_python_does_not_hand_over_as_tensors_is_left_alone() -> None:
    with counting() as ours, pytest.raises(TypeError):
        _ = A @ "words"  # type: ignore[operator]
    assert ours.total == 0
