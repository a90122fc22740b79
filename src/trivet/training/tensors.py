"""What a checkpoint keeps of weights and optimizer: safetensors, a file for each rank, written and read by
torch.distributed.checkpoint, so that another number of ranks can read them, too.

    tensors/shard-0000N-model-00001-of-00001.safetensors   rank N's pieces, with their places in the whole
    optimizer.pt                                            the optimizer's settings (learning rates), no tensors

One process writes one file. No pickle: the safetensors form of torch's library keeps the places in the files' heads.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed import checkpoint as dcp

from trivet.errors import TrivetError
from trivet.training.ranks import here

FOLDER = "tensors"


def save(folder: Path, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    """Write weights and the optimizer's state; every rank must come by, with the same folder."""
    tensors = {f"weights.{n}": p.detach() if p.dim() else p.detach().reshape(1) for n, p in parameters.items()}
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{key}.{name}"] = value if value.dim() else value.reshape(1)
    writer = dcp.HuggingFaceStorageWriter(str(folder / FOLDER), save_distributed=True)
    with _plainly():
        dcp.save({k: v.contiguous() for k, v in tensors.items()}, storage_writer=writer, no_dist=here().world == 1)
    if here().main:
        groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
        torch.save(groups, folder / "optimizer.pt")


def restore(folder: Path, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    """Put weights and optimizer back, in place, as this run's ranks share them.

    Raises TrivetError for a checkpoint of other parameters.
    """
    restore_weights(folder, parameters)
    reader = dcp.HuggingFaceStorageReader(str(folder / FOLDER))
    kept = reader.read_metadata().state_dict_metadata
    tensors: dict[str, Tensor] = {}
    states: dict[str, dict[str, Tensor]] = {}
    for place in kept:
        match = re.fullmatch(r"optimizer\.(\w+)\.(.+)", place)
        if match:
            parameter = parameters[match[2]]
            like = kept[place].size == parameter.shape  # type: ignore[union-attr]
            # moments have their parameter's form and place; the count of steps is a number
            tensors[place] = torch.zeros_like(parameter) if like and match[1] != "step" else torch.zeros(1)
            states.setdefault(match[2], {})[match[1]] = tensors[place]
    if tensors:
        with _plainly():
            dcp.load(tensors, storage_reader=reader, no_dist=here().world == 1)
    for name, found in states.items():
        optimizer.state[parameters[name]] = {
            k: v.reshape(()) if k == "step" else v for k, v in found.items()}
    groups = torch.load(folder / "optimizer.pt", weights_only=True)
    for group, settings in zip(optimizer.param_groups, groups, strict=True):
        # which kernel computes is this run's affair: torch's fused one takes no weights that are spread over ranks
        group.update({k: v for k, v in settings.items() if k != "fused"})


def restore_weights(folder: Path, parameters: Mapping[str, nn.Parameter]) -> None:
    """Put the weights back, in place. Raises TrivetError for a checkpoint of other parameters."""
    if not (folder / FOLDER).is_dir():
        raise TrivetError("another version of Trivet wrote this checkpoint", file=folder,
                          mend="start anew with --overwrite")
    reader = dcp.HuggingFaceStorageReader(str(folder / FOLDER))
    kept = reader.read_metadata().state_dict_metadata
    saved = {n.removeprefix("weights."): tuple(kept[n].size)  # type: ignore[union-attr]
             for n in kept if n.startswith("weights.")}
    if saved != {n: tuple(p.shape) or (1,) for n, p in parameters.items()}:
        raise TrivetError("the checkpoint holds other parameters than this configuration trains", file=folder,
                          mend="start anew with --overwrite")
    live = {f"weights.{n}": p.detach() if p.dim() else p.detach().reshape(1) for n, p in parameters.items()}
    with _plainly():
        dcp.load(live, storage_reader=reader, no_dist=here().world == 1)


@contextlib.contextmanager
def _plainly() -> Iterator[None]:
    """A failure as the error that it is, such as OSError of a full disk, alike on all ranks: torch wraps what failed,
    on whichever rank, in an exception that is no `Exception`. And torch warns, of one process, that there is one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        try:
            yield
        except dcp.CheckpointException as error:
            raise next(iter(error.failures.values()))[0] from None
