"""What is counted against torch's own counter, road by road on the embedded model, and what counting costs.

    python benchmarks/metering.py --json benchmarks/results/metering.json

`figures` is a function, for other benchmarks.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from common import load_average, options, report
from trivet.artifacts import Message, Prompt
from trivet.config import EMBEDDED, Device, LoRA
from trivet.data.chat import stop_token_ids
from trivet.generate.config import Sampling
from trivet.generate.torch_engine import TorchEngine
from trivet.models import lora
from trivet.models.output_layer import backbone
from trivet.models.reward_model import Group, head_of, pack, packed_scores, plain, trainable_reward_model
from trivet.models.roles import SharedTrunk
from trivet.models.source import load_causal_lm, load_tokenizer, resolve
from trivet.policy.passes import response_pass
from trivet.policy.rollout import layout, make_rollout
from trivet.training.device import prepare
from trivet.training.flops import counting
from trivet.training.written import token_losses


def torchs() -> FlopCounterMode:
    """torch's counter, with the formula of its GPU attention kernels for the CPU's, for which it has none."""
    aten = torch.ops.aten
    return FlopCounterMode(display=False, custom_mapping={
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        aten._scaled_dot_product_flash_attention_for_cpu_backward:
            lambda g, q, k, v, *_, **__: sdpa_backward_flop_count(g, q, k, v)})


def compared(work: Callable[[], Any]) -> dict[str, float]:
    """FLOPs by both counters, and ours over theirs."""
    with torchs() as theirs, counting() as ours:
        work()
    total = theirs.get_total_flops()
    return {"counted": ours.total, "forward": ours.forward, "backward": ours.backward, "torch": total,
            "ratio": ours.total / total}


def agreement(model_name: str, width: int) -> dict[str, dict[str, float]]:
    """Both counters on each road. width: tokens of a row."""
    prepare(Device())
    source = resolve(model_name)
    model, tokenizer = load_causal_lm(source, torch.float32, "cpu"), load_tokenizer(source)
    ids = torch.arange(2 * width).view(2, width) % 5000 + 20
    batch = {"input_ids": ids, "position_ids": torch.arange(width).repeat(2, 1), "labels": ids}
    prompts = [ids[0, :width // 2].tolist(), ids[1, : width // 3].tolist()]
    engine = TorchEngine(model, tokenizer.pad_token_id, stop_token_ids(model, tokenizer))
    sampling = Sampling(max_new_tokens=12)
    found = {"generate": compared(lambda: engine.generate(prompts, sampling, n=4, seeds=[1, 2]))}
    model.requires_grad_(True)
    found["sft, full"] = compared(lambda: token_losses(model, batch)[0].backward())
    model.requires_grad_(False)
    adapted = _adapted(source, None)
    found["sft, LoRA"] = compared(lambda: token_losses(adapted, batch)[0].backward())
    adapted = _adapted(source, 8)
    adapted.gradient_checkpointing_enable({"use_reentrant": False})
    adapted.enable_input_require_grads()
    adapted.train()
    found["sft, LoRA on 8 blocks, checkpointed"] = compared(lambda: token_losses(adapted, batch)[0].backward())
    judge, _ = trainable_reward_model(source, torch.float32, "cpu", LoRA())
    packed = pack([Group(tuple(p), tuple(tuple(r[: width // 2].tolist()) for r in ids)) for p in prompts],
                  tokenizer.pad_token_id, torch.float32, "cpu")
    found["reward step"] = compared(lambda: packed_scores(
        backbone(plain(judge)), head_of(judge), packed, "last").sum().backward())
    roles = SharedTrunk(source, torch.float32, "cpu", LoRA(last_layers=8))
    asked = [Prompt(id=str(i), messages=[Message(role="user", content="?")]) for i in range(2)]
    rollout = make_rollout(asked, prompts, [a for g in engine.generate(prompts, sampling, n=1, seeds=[1, 2])
                                            for a in g], ["", ""])
    (micros,) = layout(rollout, 1, 2, 0, tokenizer.pad_token_id, "cpu")

    def passes() -> None:
        below = roles.lower_blocks()
        with torch.no_grad(), roles.model("reference", below) as reference:
            response_pass(reference, micros[0], 0.7)
        with roles.model("policy", below) as policy:
            seen = response_pass(policy, micros[0], 0.7, value_head=roles.value_head, entropy=True)
        assert seen.values is not None
        (seen.logps.sum() + seen.values.sum()).backward()

    found["ppo passes, lower blocks shared"] = compared(passes)
    return found


def _adapted(source: Any, last: int | None) -> Any:
    from peft import get_peft_model

    model = load_causal_lm(source, torch.float32, "cpu")
    return get_peft_model(model, lora.lora_config(model, LoRA(last_layers=last), "CAUSAL_LM"))


@torch.no_grad()
def overhead(model_name: str, rounds: int, steps: int, batch: int) -> dict[str, float]:
    """Milliseconds of a cached decode step, with and without counting; one right after the other, so that what else
    the machine does meets both alike."""
    prepare(Device())
    model = load_causal_lm(resolve(model_name), torch.float32, "cpu")
    ids = torch.arange(batch * 48).view(batch, 48) % 5000 + 20
    times: dict[bool, list[float]] = {True: [], False: []}
    ratios = []
    for _ in range(rounds):
        out = model(input_ids=ids, use_cache=True, logits_to_keep=1)
        for _ in range(steps):
            pair = {}
            for counted in (True, False):
                with counting() if counted else contextlib.nullcontext():
                    began = time.perf_counter()
                    model(input_ids=ids[:, :1], past_key_values=out.past_key_values, use_cache=True)
                    pair[counted] = time.perf_counter() - began
                times[counted].append(pair[counted])
            ratios.append(pair[True] / pair[False])
    return {"counted_ms": 1e3 * statistics.median(times[True]), "plain_ms": 1e3 * statistics.median(times[False]),
            "ratio": statistics.median(ratios)}


def figures(quick: bool = False, model: str = EMBEDDED) -> dict[str, Any]:
    """Agreement by road, the largest deviation, and the overhead for one and for 32 rows."""
    roads = agreement(model, 48 if quick else 192)
    rounds = 1 if quick else 6
    return {"roads": roads, "largest_deviation": max(abs(r["ratio"] - 1) for r in roads.values()),
            "decode_step": {f"batch {b}": overhead(model, rounds, 20, b) for b in (1, 32)}}


def main() -> None:
    chosen = options(__doc__ or "")
    load = load_average()
    report("metering", figures(chosen.quick), chosen, load=load)


if __name__ == "__main__":
    main()
