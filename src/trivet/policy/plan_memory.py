"""What a PPO step needs in memory, by arithmetic on a model's shape.

What backward keeps of a block was counted tensor by tensor (tests/policy/test_plan.py holds it).

What FSDP spreads and what each device keeps whole is training/shard.py's doing: blocks with their gradients and moments
are spread; embeddings, norm, output layer, adapters and reward models that are loaded apart are not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from trivet.policy.config import PlanConfig
from trivet.policy.plan import FOUR_BIT, ROLLOUT_ROWS, Shape, can_spread

CHUNK_LOGITS = 2**23
"""As policy/vocabulary.py has it, which needs torch."""


@dataclass(frozen=True)
class Need:
    """Memory of one role or purpose, in bytes, on one device."""

    what: str
    whole: float
    """Where each device holds a copy."""
    sharded: float
    """Where FSDP spreads the blocks over the devices."""
    when: str
    """always, or the phase that needs it."""


def memory(shape: Shape, config: PlanConfig, precision: str, prompt: float, response: float,
           runtime: float | None) -> list[Need]:
    """Needs of each role on each of `config.plan.gpus` devices (one for none). precision: of the frozen trunk, or that
    in which passes compute where all weights are trained (spread: float32). Where nothing can be spread both columns
    are the same."""
    devices, spread = max(1, config.plan.gpus), can_spread(config)
    width = 2 if precision == "bfloat16" else 4
    lora = config.tune == "lora"
    # weights that are spread are trained as they are, and the reference is like them
    wide = width if lora else 4
    adapted = min(config.lora.last_layers or shape.layers, shape.layers) if lora else shape.layers
    adapter = shape.adapter(config.lora) * adapted if lora else 0
    models = 2 if config.has_critic and config.critic == "separate" else 1
    blocks = shape.layers * shape.block
    shared = blocks / devices + shape.rest  # parameters of a model that stand on each device, where it is spread
    found: list[Need] = []

    def need(what: str, whole: float, sharded: float | None = None, when: str = "always") -> None:
        found.append(Need(what, whole, sharded if spread and sharded is not None else whole, when))

    if lora:
        if config.four_bit:
            quantized = shape.layers * shape.matrices
            need("policy: frozen trunk, blocks in four bits",
                 quantized * FOUR_BIT + (shape.parameters - quantized) * width)
        else:
            need(f"policy: frozen trunk, {precision}", shape.parameters * width, shared * width)
        need("policy: adapter, float32", adapter * 4)
        need("reference: the trunk, adapters off", 0)
        need("critic: adapter, float32" if models == 2 else _critic(config), adapter * 4 * (models - 1))
        learned, learned_shared = adapter * models, adapter * models * 1.0
    else:
        need("policy: all weights, float32", shape.parameters * 4, shared * 4)
        need(f"reference: a model of its own, {precision}" + (" (spread: float32)" if spread and width == 2 else ""),
             shape.parameters * width, shared * 4)
        need("critic: a model of its own, float32" if models == 2 else _critic(config),
             shape.parameters * 4 * (models - 1), shared * 4 * (models - 1))
        if width == 2:
            need(f"copies that compute, bfloat16: policy{' and critic' if models == 2 else ''}",
                 shape.parameters * width * models, 0.0)
        learned, learned_shared = shape.parameters * models, shared * models
    size, how = _reward(config, shape, adapter, width)
    need(f"reward: {how}", size)
    need("gradients, float32", learned * 4, learned_shared * 4, when="update")
    need("optimizer's moments, float32", learned * 8, learned_shared * 8)
    if spread:
        found.append(Need("the whole policy, gathered", 0.0, blocks * wide, "rollout"))
        # what is computed and what is fetched meanwhile; a trained block's gradient is whole before it is shared out
        found.append(Need("gathered blocks of FSDP", 0.0, shape.block * (2 * wide + (0 if lora else 4)), "update"))
    if config.generate == "torch":
        rows = min(ROLLOUT_ROWS, math.ceil(config.rollout / devices))
        cached = rows * (prompt + response) * 2 * shape.layers * shape.kv_heads * shape.head_dim
        need(f"keys and values of {rows} rollouts", cached * width, cached * wide, when="rollout")
    else:
        need("keys and values of rollouts: the server's, not covered", 0, when="rollout")
    micro = min(config.micro_batch, math.ceil(config.rollout / devices))
    # answers to one prompt share it
    tokens = micro * (prompt / min(config.answers, micro) + response)

    def activations(width: int) -> float:
        kept = kept_bytes(shape, "bfloat16" if width == 2 else "float32", config.lora.r if lora else None)
        if config.checkpoint_activations:  # the inputs of all blocks, and one block as it is computed again
            return tokens * (adapted * shape.hidden * width + kept)
        return tokens * adapted * kept

    need(f"activations of a micro-batch of {micro}" + (", checkpointed" if config.checkpoint_activations else ""),
         activations(width), activations(wide), when="update")
    # made, turned to probabilities and multiplied at once; policy/vocabulary.py
    need("logits of a chunk", 3 * 4 * min(CHUNK_LOGITS, micro * response * shape.vocabulary), when="update")
    if runtime is not None:
        need("the program itself", runtime)
    return found


def peak(needs: list[Need], sharded: bool) -> float:
    """The most that is needed at once: what is always there, and the hungrier of rollout and update."""
    def size(when: str) -> float:
        return sum(n.sharded if sharded else n.whole for n in needs if n.when == when)

    return size("always") + max(size("rollout"), size("update"))


def kept_bytes(shape: Shape, precision: str, rank: int | None) -> float:
    """What a block keeps for the backward pass, a token, without activation checkpointing; rank: of LoRA, or None.

    Counted on a Llama block in a packed row: queries, keys, values and the result of attention; the inputs of the
    linear layers (in float32, too, where float32 adapters read a bfloat16 trunk); two norms in float32; the four
    products of the MLP. `precision` is that of the passes.
    """
    width = 2 if precision == "bfloat16" else 4
    h, i, q, kv = shape.hidden, shape.intermediate, shape.query, shape.kv_heads * shape.head_dim
    hidden = (32 if width == 2 else 16) * h if rank else (16 if width == 2 else 24) * h
    mlp = 3 * i * width + i * (4 if rank else width)
    return hidden + mlp + 2 * (q + kv) * width + 4 * len(shape.linears()) * (rank or 0) + 4 * shape.heads + 8


def _critic(config: PlanConfig) -> str:
    return "critic: a head on the policy's pass" if config.has_critic else f"critic: none ({config.advantage})"


def _reward(config: PlanConfig, shape: Shape, adapter: int, width: int) -> tuple[float, str]:
    """Bytes of the reward models, and what was taken for granted."""
    from trivet.judge.rewards import parse_terms

    if not config.reward:
        if config.tune == "lora":
            return adapter * 4, "an adapter on the trunk (none named)"
        return shape.parameters * width, "a model of the policy's size (none named)"
    watching = config.guard.ensemble if config.guard.on else []
    models = [t.spec for t in parse_terms([*config.reward, *watching]) if t.kind == "model"]
    size = sum(f.stat().st_size for m in models for f in Path(m).expanduser().glob("*.safetensors"))
    return size, f"{len(models)} models, by their files" if models else "no model"
