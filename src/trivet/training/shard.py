"""FSDP2: a model's blocks spread over the ranks, each of which holds a share of every weight and of what belongs to it.

What is spread (torch.distributed.fsdp.fully_shard, a group for each block): the weights of the transformer blocks;
where they are trained also their gradients and the optimizer's state. What every rank holds whole: embeddings, final
norm and output layer, since the passes read the output layer's weight outside of the model's forward (logits are made
a chunk at a time); adapters and heads, which are small, float32 in a trunk that may be bfloat16, and so stay plain
tensors for everything that saves, loads or switches them. Their gradients are summed with one message a step.

Every pass of a spread model is a conversation: all ranks must make the same number. Where they can't know it (decoding,
scoring), `whole` keeps the model together on each rank for a while.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from trivet.config import Device
from trivet.models.lower import blocks
from trivet.models.output_layer import backbone
from trivet.training.ranks import here, sum_gradients


def wanted(config: Device, device: str) -> bool:
    """Whether models are to be spread. auto: on GPUs; on CPUs each rank holds all, which is faster."""
    return here().world > 1 and (config.shard == "full" or (config.shard == "auto" and device == "cuda"))


def shard(model: Any, device: str) -> bool:
    """Spread a causal model's (or classifier's) blocks over the ranks, in place; False where it has no list of blocks.

    After this its weights are DTensors: make the optimizer then. Gradients are summed over the ranks, not averaged.
    """
    found = blocks(model)
    if found is None:
        return False
    mesh = init_device_mesh("cuda" if device.startswith("cuda") else "cpu", (here().world,))
    for block in found:
        kept = {p for n, p in block.named_parameters() if "lora_" in n}
        fully_shard(block, mesh=mesh, ignored_params=kept)
    decoder = backbone(model)
    # one root, so that blocks fetch ahead of their turn; it has no weights of its own
    fully_shard(decoder, mesh=mesh, ignored_params={p for p in decoder.parameters() if not isinstance(p, DTensor)})
    for module in _spread(decoder):
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    return True


def _spread(*models: nn.Module) -> list[FSDPModule]:
    return [m for model in models for m in model.modules() if isinstance(m, FSDPModule)]


def is_spread(models: Iterable[nn.Module]) -> bool:
    """Whether `shard` has spread these models."""
    return here().world > 1 and bool(_spread(*models))


@contextlib.contextmanager
def whole(*models: nn.Module) -> Iterator[None]:
    """Inside, each rank holds these models whole, and passes without gradients send nothing.

    All ranks must come by. Costs the memory of the models' weights on each rank while it lasts, and one message for
    each block; without it each token decoded would send the whole model once.
    """
    parts = _spread(*models) if here().world > 1 else []
    for part in parts:
        part.unshard()
        part.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()


def full(tensor: Tensor) -> Tensor:
    """A tensor that is spread over the ranks, put together on each; all ranks must ask. Any other as it is."""
    found: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return found


def local_part(tensor: Tensor) -> Tensor:
    """What of a tensor stands on this rank."""
    found: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return found


def full_state(model: nn.Module) -> dict[str, Tensor] | None:
    """A spread model's whole state on the CPU, for saving, on rank 0 alone; None for a model that is not spread."""
    if not is_spread([model]):
        return None
    found = {}
    for name, tensor in model.state_dict().items():
        gathered = full(tensor)
        if here().main:
            # what is tied stays tied: save_pretrained tells it by the storage
            found[name] = gathered.cpu()
    return found


def rebuilt(model: Any, build: Callable[[], Any]) -> Any:
    """The trained model as one process holds it: itself, or, where it was spread, a new one with its trained weights.

    All ranks must come by; only rank 0's is filled.
    """
    if not is_spread([model]):
        return model
    trained = {n: full(p.detach()).cpu() for n, p in model.named_parameters() if p.requires_grad}
    if not here().main:
        return model
    fresh = build()
    with torch.no_grad():
        for name, parameter in fresh.named_parameters():
            if name in trained:
                parameter.copy_(trained[name])
    return fresh


def idle_passes(made: int, one: Callable[[], Tensor]) -> Tensor:
    """Passes of a spread model that count for nothing, until this rank has made as many as the one that made most.

    one: a pass; returns 0, with a graph that must be part of the loss.
    """
    missing = int(here().largest(float(made))) - made
    return sum((one().sum() * 0.0 for _ in range(missing)), torch.zeros(()))


def clip_gradients(parameters: Iterable[nn.Parameter], largest: float) -> Tensor:
    """Sum the gradients over the ranks and scale them down to the norm `largest`; their norm before.

    The gradients of spread weights were summed as they were made.
    """
    known = list(parameters)
    if here().world == 1:
        return nn.utils.clip_grad_norm_(known, largest)
    spread = [p for p in known if isinstance(p, DTensor)]
    alike = [p for p in known if not isinstance(p, DTensor)]
    sum_gradients(alike)
    kinds = [[p for p in kind if p.grad is not None] for kind in (spread, alike)]
    norms = [full(nn.utils.get_total_norm([p.grad for p in kind if p.grad is not None])) for kind in kinds if kind]
    norm = torch.linalg.vector_norm(torch.stack(norms))
    for kind in kinds:
        if kind:
            nn.utils.clip_grads_with_norm_(kind, largest, norm)
    return norm
