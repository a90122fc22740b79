"""Activation checkpointing: the same bits, less kept."""

from __future__ import annotations

import pytest
import torch

from models.test_lower import gpt_neo
from policy.test_ppo_details import PAD, roles_of, rollout_of
from trivet.errors import TrivetError
from trivet.generate.config import Sampling
from trivet.generate.torch_engine import TorchEngine
from trivet.models import checkpointing
from trivet.models.checkpointing import checkpoint_blocks
from trivet.policy.passes import response_pass
from trivet.policy.rollout import micro_batch


@pytest.mark.parametrize("kind", ["shared", "upper", "separate"])
def test_gradients_keep_every_bit_and_less_is_kept(any_tiny_model_folder, kind) -> None:
    roles = roles_of(any_tiny_model_folder, kind)
    micro = micro_batch(rollout_of(roles, any_tiny_model_folder), range(6), PAD, "cpu")
    found, kept = [], []
    for again in (False, True):
        if again:
            for model in roles.models().values():
                checkpoint_blocks(model)
                checkpoint_blocks(model)  # twice is once
        sizes: dict[int, int] = {}

        def keep(x: torch.Tensor, sizes: dict[int, int] = sizes) -> torch.Tensor:
            sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        below = roles.lower_blocks()
        for _ in range(2):  # the second takes up the lower blocks' states
            with roles.model("policy", below) as model, torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
                logps = response_pass(model, micro, 0.7, value_head=roles.value_head).logps
                own = {p.untyped_storage().data_ptr() for p in model.parameters()}
                kept.append(sum(n for p, n in sizes.items() if p not in own))
                logps.sum().backward()
        found.append({n: p.grad.clone() for n, p in roles.trainable().items() if p.grad is not None})
        for parameter in roles.trainable().values():
            parameter.grad = None
    assert found[0] and all(torch.equal(g, found[1][n]) for n, g in found[0].items())
    assert kept[2] < 0.6 * kept[0]


def test_rollouts_run_nothing_twice(tiny_model_folder, monkeypatch) -> None:
    roles = roles_of(tiny_model_folder)
    with roles.model("policy") as model:
        engine = TorchEngine(model, PAD, frozenset())
        settings = Sampling(temperature=0.7, max_new_tokens=6)
        before = engine.generate([[5, 6]], settings, n=2, seeds=[1])
        checkpoint_blocks(model)
        monkeypatch.setattr(checkpointing, "checkpoint", None)
        assert engine.generate([[5, 6]], settings, n=2, seeds=[1]) == before


def test_blocks_in_no_list_are_an_error() -> None:
    class Odd(torch.nn.Module):
        base_model_prefix = "inner"

        def __init__(self) -> None:
            super().__init__()
            from transformers import LlamaConfig

            self.config, self.inner = LlamaConfig(num_hidden_layers=3), torch.nn.Linear(1, 1)

    with pytest.raises(TrivetError, match="no list"):
        checkpoint_blocks(Odd())


def test_blocks_that_give_tuples_bear_it(tmp_path) -> None:
    roles = roles_of(gpt_neo(tmp_path / "neo"), "separate")
    micro = micro_batch(rollout_of(roles, tmp_path / "neo"), range(6), PAD, "cpu")
    found = []
    for again in (False, True):
        with roles.model("policy") as model:
            if again:
                checkpoint_blocks(model)
            response_pass(model, micro, 0.7).logps.sum().backward()
            found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
            model.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
