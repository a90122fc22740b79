"""The update: clipped policy and value losses over a rollout, in minibatches and micro-batches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from trivet.errors import TrivetError
from trivet.models.roles import Roles
from trivet.policy.config import PPOConfig
from trivet.policy.loss import PolicyStats, kl_loss, policy_loss, value_loss
from trivet.policy.passes import Evaluated, TokenPass, response_pass, value_pass
from trivet.policy.ptx import EarlierData, summed_loss
from trivet.policy.rollout import MicroBatch
from trivet.training import shard
from trivet.training.ranks import here


@dataclass(frozen=True)
class UpdateStats:
    """Means over the minibatches of a step; `ratio_first` is the largest |ratio - 1| of its first inner step."""

    policy_loss: float
    entropy: float
    kl_loss: float
    clip_fraction: float
    approx_kl: float
    ratio_first: float
    grad_norm: float
    value_loss: float | None = None
    """None, like the next, where the estimator has no critic."""
    value_clip_fraction: float | None = None
    ptx_loss: float | None = None
    """Mean loss a token of earlier data, in nats; None without such data."""


def make_optimizer(roles: Roles, config: PPOConfig) -> torch.optim.AdamW:
    """AdamW over policy and critic; the value head has a rate of its own. Reference and reward are absent."""
    named = roles.trainable()
    head = [p for n, p in named.items() if n.startswith("value_head.")]
    rest = [p for n, p in named.items() if not n.startswith("value_head.")]
    settings = config.optimizer
    groups = [{"params": rest, "lr": settings.lr, "base": settings.lr}]
    if head:
        rate = config.value_lr or 10 * settings.lr
        groups.append({"params": head, "lr": rate, "base": rate})
    # torch's fused kernel takes no weights of which some are spread over ranks and others whole
    fused = not any(isinstance(p, DTensor) for p in named.values())
    return torch.optim.AdamW(groups, weight_decay=settings.weight_decay, eps=1e-5, fused=fused)


def lr_factor(step: int, config: PPOConfig) -> float:
    """Share of the peak rate at `step` (from 1)."""
    settings, total = config.optimizer, config.stop.steps
    warm = settings.warmup * total if total else 0.0
    if step <= warm:
        return step / max(warm, 1.0)
    if settings.schedule == "constant" or not total:
        return 1.0
    done = (step - 1 - warm) / max(1.0, total - warm)
    return max(0.0, 1 - done) if settings.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def update(
    roles: Roles, optimizer: torch.optim.Optimizer, minibatches: list[list[MicroBatch]], old: Evaluated,
    advantages: torch.Tensor, returns: torch.Tensor | None, config: PPOConfig, step: int,
    earlier: EarlierData | None = None, kl_coef: float | None = None,
) -> UpdateStats:
    """`config.epochs` passes over the rollout. advantages: [B, R], already scaled over the whole batch; returns:
    [B, R], what the critic is to learn, None where there is none.

    earlier: data whose loss is added to every optimizer step (PPO-ptx).
    kl_coef: weight of the KL where it stands in the loss. Default: the configuration's.
    minibatches: of each, this rank's micro-batches; gradients and figures are summed over the ranks.

    Raises TrivetError where the loss is no finite number.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["base"] * lr_factor(step, config)
    totals: dict[str, float] = {}
    first: float | None = None
    inner = 0
    before = (step - 1) * config.epochs * len(minibatches)
    live = old.live
    for epoch in range(config.epochs):
        generator = torch.Generator().manual_seed((config.seed * 1_000_003 + step) * 101 + epoch)
        for index in torch.randperm(len(minibatches), generator=generator).tolist():
            figures, deviation = _minibatch(roles, optimizer, minibatches[index], old, advantages, returns, config,
                                            live, earlier, before + inner,
                                            config.kl.coef if kl_coef is None else kl_coef)
            live = None
            inner += 1
            if first is None:
                first = deviation
            for key, value in figures.items():
                totals[key] = totals.get(key, 0.0) + value
    return UpdateStats(ratio_first=first or 0.0, **{k: v / inner for k, v in totals.items()})


def _minibatch(
    roles: Roles, optimizer: torch.optim.Optimizer, micros: list[MicroBatch], old: Evaluated,
    advantages: torch.Tensor, returns: torch.Tensor | None, config: PPOConfig, live: TokenPass | None,
    earlier: EarlierData | None, number: int, kl_coef: float,
) -> tuple[dict[str, float], float]:
    """Optimizer step `number` of the run: its figures and the largest |ratio - 1|.

    Every loss is a sum over tokens by the minibatch's token count, that of all ranks (detail 10).
    """
    (denominator,) = here().total(float(sum(int(m.response_mask.sum()) for m in micros if m.rows)))
    figures = dict.fromkeys(("policy_loss", "entropy", "kl_loss"), 0.0)
    if returns is not None:
        figures |= {"value_loss": 0.0, "value_clip_fraction": 0.0}
    merged: PolicyStats | None = None  # so it stays on a rank that has no micro-batch of this minibatch
    for micro in micros:
        if not micro.rows:
            _idle(roles, micro, config)
            continue
        rows, width = list(micro.rows), micro.width
        device = micro.ids.device

        def part(whole: torch.Tensor | None, rows: list[int] = rows, width: int = width, device: Any = device) -> Any:
            assert whole is not None
            return whole[rows, :width].to(device)

        def criticised(values: torch.Tensor, part: Any = part, micro: MicroBatch = micro) -> torch.Tensor:
            worth, clipped = value_loss(values, part(old.values), part(returns), micro.response_mask,
                                        config.value_clip, denominator)
            figures["value_loss"] += float(worth.detach())
            figures["value_clip_fraction"] += float(clipped)
            return config.value_coef * worth

        head = None if roles.has_critic else roles.value_head
        with roles.model("policy", old.lower[micro.rows]) as model:
            found = live or response_pass(model, micro, config.sampling.temperature, value_head=head, entropy=True,
                                          entropy_gradient=config.entropy_coef > 0)
            loss, stats = policy_loss(found.logps, part(old.logps), part(advantages), micro.response_mask,
                                      config.clip, denominator)
            assert found.entropy is not None
            entropy = (found.entropy * micro.response_mask).sum() / denominator
            total = loss - config.entropy_coef * entropy
            if config.kl.where == "loss":
                term = kl_loss(found.logps, part(old.ref_logps), micro.response_mask, config.kl.chosen, denominator)
                total = total + kl_coef * term
                figures["kl_loss"] += float(term.detach())
            if found.values is not None:
                total = total + criticised(found.values)
            _backward(total)
        if roles.has_critic:
            assert roles.value_head is not None
            with roles.model("critic", old.lower[micro.rows]) as model:
                _backward(criticised(value_pass(model, micro, roles.value_head)))
        figures["policy_loss"] += float(loss.detach())
        figures["entropy"] += float(entropy.detach())
        merged = stats if merged is None else merged.merge(stats)
    if earlier is not None:
        figures["ptx_loss"] = 0.0
        for batch, learned in earlier.parts(number, even=shard.is_spread(roles.models().values())):
            with roles.model("policy") as model:
                loss = summed_loss(model, batch) / learned
                _backward(earlier.coef * loss)
            figures["ptx_loss"] += float(loss.detach())
    norm = shard.clip_gradients(roles.trainable().values(), config.optimizer.max_grad_norm)
    optimizer.step()
    roles.refresh()
    optimizer.zero_grad(set_to_none=True)
    figures["clip_fraction"] = float(merged.clip_fraction) if merged else 0.0
    figures["approx_kl"] = float(merged.approx_kl) if merged else 0.0
    figures = dict(zip(figures, here().total(*figures.values()), strict=True))
    deviation = here().largest(float(merged.ratio_max_deviation) if merged else 0.0)
    return figures | {"grad_norm": float(norm)}, deviation


def _idle(roles: Roles, micro: MicroBatch, config: PPOConfig) -> None:
    """Passes that change nothing, for the ranks that have one micro-batch more and fetch weights from this one."""
    head = None if roles.has_critic else roles.value_head
    with roles.model("policy", roles.lower_blocks()) as model:
        found = response_pass(model, micro, config.sampling.temperature, value_head=head, entropy=True,
                              entropy_gradient=config.entropy_coef > 0)
        total = found.logps.sum() if found.values is None else found.logps.sum() + found.values.sum()
        _backward(total * 0.0)
    if roles.has_critic:
        assert roles.value_head is not None
        with roles.model("critic", roles.lower_blocks()) as model:
            _backward(value_pass(model, micro, roles.value_head).sum() * 0.0)


def _backward(loss: torch.Tensor) -> None:
    if not torch.isfinite(loss):
        raise TrivetError(f"the loss is {float(loss.detach())}: training has diverged", field="optimizer.lr",
                          mend="lower the learning rate or raise kl.coef, and go on from the last checkpoint with "
                          "--overwrite in another folder")
    loss.backward()
