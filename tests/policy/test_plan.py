"""`trivet ppo --plan`: parameters against the model itself, memory against what a pass keeps, time against counting."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from trivet.artifacts import read_json
from trivet.cli import main
from trivet.config import LoRA
from trivet.errors import TrivetError
from trivet.policy.config import PlanConfig
from trivet.policy.plan import FOUR_BIT, SERVED, Rates, Shape, read_rates, read_shape, step_time
from trivet.policy.plan_memory import kept_bytes, memory, peak

RATES = Rates("test", "bfloat16", matmul=1e12, bandwidth=1e11, forward=0.5, update=0.5, head=0.5, decode_block=1e-4,
              decode_step=1e-3)
SEVEN = Shape("llama", 32, 4096, 32, 32, 128, 11008, 32000, False, 4096)


def question(**changes) -> PlanConfig:
    return PlanConfig(**changes)


def test_parameters_are_those_of_the_model(any_tiny_model_folder) -> None:
    from trivet.models.source import load_causal_lm, resolve

    model = load_causal_lm(resolve(str(any_tiny_model_folder)), torch.float32, "cpu")
    shape = read_shape(str(any_tiny_model_folder))
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    inside = model.transformer.h[0] if shape.kind == "gpt2" else model.model.layers[0]
    assert shape.block == sum(p.numel() for p in inside.parameters())


@pytest.mark.parametrize("targets", ["all-linear", "attention", ["q_proj", "down_proj"]])
def test_adapters_are_those_of_peft(tiny_model_folder, targets) -> None:
    from peft import get_peft_model

    from trivet.models import lora
    from trivet.models.source import load_causal_lm, resolve

    config = LoRA(r=4, targets=targets)
    model = load_causal_lm(resolve(str(tiny_model_folder)), torch.float32, "cpu")
    adapted = get_peft_model(model, lora.lora_config(model, config, "CAUSAL_LM"))
    made = sum(p.numel() for n, p in adapted.named_parameters() if "lora_" in n)
    shape = read_shape(str(tiny_model_folder))
    assert shape.adapter(config) * shape.layers == made


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("rank", [4, None])
def test_what_backward_keeps_is_counted(precision, rank) -> None:
    """Against the tensors that autograd saves, storage by storage, in 2 and in 4 blocks."""
    from peft import get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    from trivet.artifacts import Message, Prompt
    from trivet.generate.base import Generated
    from trivet.models import lora
    from trivet.models.packed import bears_packing, packed_states
    from trivet.policy.rollout import make_rollout, micro_batch

    rows, length = 8, 40
    asked = [Prompt(id=str(i), messages=[Message(role="user", content="?")]) for i in range(rows)]
    rollout = make_rollout(asked, [[i] * 30 for i in range(rows)], [Generated((9,) * 10, (0.0,) * 10, False)] * rows,
                           [""] * rows)
    packed = micro_batch(rollout, range(rows), 0, "cpu").packed
    shape = Shape("llama", 2, 32, 4, 2, 8, 64, 100, True, None)

    def saved(layers: int) -> int:
        model = LlamaForCausalLM(LlamaConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, vocab_size=100)).to(getattr(torch, precision))
        if rank:
            model = get_peft_model(model, lora.lora_config(model, LoRA(r=rank), "CAUSAL_LM")).get_base_model()
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.data = parameter.data.float()
        known = {p.untyped_storage().data_ptr() for p in model.parameters()}
        kept: dict[int, tuple[int, torch.Tensor]] = {}  # the tensor too: else its place is given to another

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                kept[storage.data_ptr()] = (storage.nbytes(), tensor)
            return tensor

        assert bears_packing(model)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            out = packed_states(model, packed.ids, packed.position_ids, packed.lines)
        size = sum(s for s, _ in kept.values())
        del out
        return size

    counted = (saved(4) - saved(2)) / 2 / (rows * length)
    # a mask is shared by all rows
    assert kept_bytes(shape, precision, rank, cpu=True) == pytest.approx(counted, rel=0.03)


def needs_of(**changes) -> dict:
    found = memory(SEVEN, question(**changes), "bfloat16", 64, 64, None)
    return {n.what.split(":")[0].split(",")[0].split(" of ")[0]: n for n in found}


def test_sharding_divides_blocks_and_nothing_else() -> None:
    """As training/shard.py spreads them: embeddings, norm and output layer stand whole on each device."""
    needs = needs_of(tune="full", plan={"gpus": 8}, rollout=64)
    assert SEVEN.parameters == 6_738_415_616
    blocks = SEVEN.layers * SEVEN.block
    rest = 2 * 32000 * 4096 + 4096
    each = blocks / 8 + rest
    assert SEVEN.rest == rest == SEVEN.parameters - blocks
    assert needs["policy"].whole == SEVEN.parameters * 4 and needs["policy"].sharded == each * 4
    assert needs["reference"].whole == SEVEN.parameters * 2
    assert needs["reference"].sharded == each * 4, "weights that are spread compute in float32"
    assert needs["gradients"].sharded == each * 4 and needs["optimizer's moments"].sharded == each * 8
    assert needs["copies that compute"].whole == SEVEN.parameters * 2 and needs["copies that compute"].sharded == 0
    assert needs["reward"].sharded == needs["reward"].whole == SEVEN.parameters * 2
    gathered = needs["the whole policy"]
    assert (gathered.whole, gathered.sharded, gathered.when) == (0, blocks * 4, "rollout")
    assert needs["activations"].sharded > needs["activations"].whole > 0, "float32 beside bfloat16"
    adapted = needs_of(plan={"gpus": 8}, rollout=64)
    assert adapted["policy"].what.startswith("policy: adapter")
    for name in ("policy", "gradients", "optimizer's moments", "reward", "activations", "keys and values"):
        assert adapted[name].sharded == adapted[name].whole > 0, name
    assert adapted["the whole policy"].sharded == blocks * 2
    alone = memory(SEVEN, question(tune="full"), "bfloat16", 64, 64, None)
    assert peak(alone, True) == peak(alone, False), "one device shards nothing"


def test_shares_are_those_of_the_module_that_spreads(tiny_model_folder) -> None:
    from trivet.models.lower import blocks
    from trivet.models.source import load_causal_lm, resolve

    model = load_causal_lm(resolve(str(tiny_model_folder)), torch.float32, "cpu")
    spread = sum(p.numel() for block in blocks(model) for p in block.parameters())
    shape = read_shape(str(tiny_model_folder))
    assert shape.rest == sum(p.numel() for p in model.parameters()) - spread


def test_full_fine_tuning_in_bfloat16_counts_its_copies() -> None:
    assert needs_of(tune="full")["copies that compute"].whole == SEVEN.parameters * 2
    assert needs_of(tune="full", critic="separate")["copies that compute"].whole == SEVEN.parameters * 4
    floats = [n.what for n in memory(SEVEN, question(tune="full"), "float32", 64, 64, None)]
    assert not any("copies" in what for what in floats)
    kept = kept_bytes(SEVEN, "bfloat16", None, cpu=True)
    assert needs_of(tune="full")["activations"].whole == 8 * 128 * 32 * kept


def test_checkpointing_keeps_inputs_and_one_block() -> None:
    plain, checkpointed = needs_of()["activations"], needs_of(checkpoint_activations=True)["activations"]
    kept = kept_bytes(SEVEN, "bfloat16", question().lora.r, cpu=True)
    assert plain.whole == 8 * 128 * 32 * kept
    assert checkpointed.whole == 8 * 128 * (32 * 4096 * 2 + kept)
    more = {p.name: p.flops for p in step_time(SEVEN, question(checkpoint_activations=True), RATES, 64, 64)}
    less = {p.name: p.flops for p in step_time(SEVEN, question(), RATES, 64, 64)}
    assert more["update"] > less["update"] and more["evaluate"] == less["evaluate"]


def test_four_bits_and_servers() -> None:
    trunk = next(n for n in memory(SEVEN, question(four_bit=True, plan={"gpus": 8}), "bfloat16", 64, 64, None))
    matrices = SEVEN.layers * SEVEN.matrices
    assert trunk.whole == trunk.sharded == matrices * FOUR_BIT + (SEVEN.parameters - matrices) * 2
    assert all(p.bound for p in step_time(SEVEN, question(four_bit=True), RATES, 64, 64))
    served = question(generate="vllm", url="http://127.0.0.1:1", plan={"gpus": 8})
    needs = {n.what: n for n in memory(SEVEN, served, "bfloat16", 64, 64, None)}
    assert needs["keys and values of rollouts: the server's, not covered"].whole == 0
    assert all(n.whole == n.sharded for n in needs.values()), "what a server is handed is not spread"
    phases = step_time(SEVEN, served, RATES, 64, 64)
    assert phases[0].name == SERVED and phases[0].bound and not phases[0].seconds


def test_rates_are_measured_on_what_a_run_computes_with(monkeypatch) -> None:
    """Adapters stand in the decode step, too; all weights are trained through copies in the precision of the passes."""
    from trivet.policy import rates
    from trivet.training.device import Compute

    seen = []

    class Engine:
        def __init__(self, model, *args, **options) -> None:
            seen.append({(n.split(".")[-2] if "lora_" in n else "trunk", p.dtype) for n, p in model.named_parameters()
                         if "norm" not in n})

        def generate(self, *args, **options) -> None: ...

    monkeypatch.setattr(rates, "TorchEngine", Engine)
    shape = Shape("llama", 2, 32, 4, 2, 8, 64, 256, True, None)
    compute = Compute("cpu", torch.bfloat16, 1)
    rates._decode(shape, compute, LoRA(r=4), 2, 4)
    assert seen[0] == seen[1] == {("trunk", torch.bfloat16), ("default", torch.float32)}
    model, low_rank = rates._learning(shape, 1, compute, None)
    assert low_rank == 0 and {p.dtype for p in model.parameters()} == {torch.bfloat16}
    model(torch.tensor([[1, 2, 3]])).logits.float().sum().backward()
    assert all(p.grad is None for p in model.parameters()), "handed on to the float32 weights"


def test_roles_follow_the_settings() -> None:
    def total(**changes) -> float:
        return peak(memory(SEVEN, question(**changes), "bfloat16", 64, 64, None), False)

    assert total() < total(critic="separate") < total(tune="full") < total(tune="full", critic="separate")
    assert total(lora={"last_layers": 8}) < total()
    assert total(micro_batch=4) < total()
    words = [n.what for n in memory(SEVEN, question(advantage="rloo", answers=2), "bfloat16", 64, 64, None)]
    assert "critic: none (rloo)" in words


@pytest.mark.parametrize("checkpointed", [False, True])
def test_flops_of_a_plan_are_those_that_are_counted(tiny_model_folder, checkpointed) -> None:
    """Evaluate and update of a real step, by the counter of training/flops.py."""
    from trivet.artifacts import Message, Prompt
    from trivet.generate.base import Generated
    from trivet.models.checkpointing import checkpoint_blocks
    from trivet.models.roles import SharedTrunk
    from trivet.models.source import resolve
    from trivet.policy.advantage import whiten
    from trivet.policy.passes import evaluate_tokens
    from trivet.policy.rollout import layout, make_rollout
    from trivet.policy.update import make_optimizer, update
    from trivet.training.flops import counting

    rows, prompt, response = 4, 12, 20
    config = question(rollout=rows, micro_batch=2, prompts="x", reward=["a.b:c"], lora={"r": 4},
                      checkpoint_activations=checkpointed)
    roles = SharedTrunk(resolve(str(tiny_model_folder)), torch.float32, "cpu", config.lora)
    if checkpointed:
        for model in roles.models().values():
            checkpoint_blocks(model)
    asked = [Prompt(id=str(i), messages=[Message(role="user", content="?")]) for i in range(rows)]
    answers = [Generated(tuple(range(10, 10 + response)), (0.0,) * response, False) for _ in range(rows)]
    rollout = make_rollout(asked, [[20 + i] * prompt for i in range(rows)], answers, [""] * rows)
    batches = layout(rollout, 1, 2, 0, 0, "cpu")
    with counting() as evaluated:
        old = evaluate_tokens(roles, batches[0], 0.7, (rows, response), keep_graph=False)
    noise = torch.randn(rows, response)
    with counting() as updated:
        update(roles, make_optimizer(roles, config), batches, old, whiten(noise, rollout.mask), noise, config, 1)
    planned = {p.name: p.flops for p in step_time(
        replace(read_shape(str(tiny_model_folder))), config, RATES, prompt, response)}
    assert planned["evaluate"] == pytest.approx(evaluated.total, rel=0.05)
    assert planned["update"] == pytest.approx(updated.total, rel=0.05)


def test_missing_rates_make_a_lower_bound() -> None:
    few = Rates("test", "bfloat16", matmul=1e12)
    for whole, least in zip(step_time(SEVEN, question(), RATES, 64, 64), step_time(SEVEN, question(), few, 64, 64),
                            strict=True):
        assert least.bound and not whole.bound
        assert least.seconds < whole.seconds
        assert least.flops == whole.flops


def test_machines_that_were_measured_are_there() -> None:
    found = read_rates("h100-sxm", None)
    assert found.matmul == 792.1e12 and found.update is None
    with pytest.raises(TrivetError, match="h100-sxm"):
        read_rates("abacus", None)


def test_the_command_prints_and_leaves_nothing(tiny_model_folder, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ["ppo", "--plan", "--model", str(tiny_model_folder), "--rollout", "4", "--device.threads", "1",
             "--plan.prompt-tokens", "8", "--sampling.max-new-tokens", "8"]
    main([*asked, "--plan.as-json", "--plan.save-rates", "rates.yaml"])
    said = json.loads(capsys.readouterr().out)
    assert said["step_seconds"] == pytest.approx(sum(p["seconds"] for p in said["phases"])) and said["step_seconds"] > 0
    assert not said["lower_bound"]
    assert [f.name for f in tmp_path.iterdir()] == ["rates.yaml"]
    main([*asked, "--plan.machine", "measured", "--plan.rates", "rates.yaml", "--plan.as-json"])
    again = json.loads(capsys.readouterr().out)
    assert again["step_seconds"] == said["step_seconds"] and again["peak_bytes"] == said["peak_bytes"]
    main([*asked, "--plan.gpus", "8", "--plan.machine", "h100-sxm"])
    text = capsys.readouterr().out
    assert "FSDP" in text and "≥" in text and "rollout" in text
    assert [f.name for f in tmp_path.iterdir()] == ["rates.yaml"]


def test_a_configuration_alone_is_enough(tiny_model_folder, tmp_path, capsys) -> None:
    (tmp_path / "config.json").write_text(json.dumps(read_json(tiny_model_folder / "config.json")))
    main(["ppo", "--plan", "--model", str(tmp_path), "--plan.machine", "a100-sxm", "--plan.gpus", "2",
          "--plan.as-json"])
    assert json.loads(capsys.readouterr().out)["parameters"] == read_shape(str(tiny_model_folder)).parameters
