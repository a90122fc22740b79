"""Several processes that train one model, as `torchrun` or `accelerate launch` start them; one process is the identity.

Every rank reads the same files, knows the whole batch and takes the same decisions; it computes the share that
`deal` gives it, and what comes of it is gathered or summed. So nothing depends on which rank computed what, and
a run may go on with another number of processes. Rank 0 alone writes and speaks.

torch.distributed does the talking: gloo between CPUs, NCCL between GPUs.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from trivet.errors import TrivetError

T = TypeVar("T")
PATIENCE = datetime.timedelta(hours=12)
"""How long a rank waits for a message of the others (gloo), who may be waiting for an endpoint. A process that dies is
noticed at once: its connections close, and torchrun ends the rest. Of a machine without power nothing closes."""
GPU_PATIENCE = datetime.timedelta(minutes=30)
"""How long between GPUs (NCCL): there ranks meet in the midst of passes, and are at most a share of a rollout apart."""


class Ranks:
    """One process's place among those that share the work. This class is one process alone: nothing is sent."""

    rank = 0
    world = 1
    local = 0
    """Its number on its own machine: which GPU is its."""
    local_world = 1

    @property
    def main(self) -> bool:
        """Whether this is the rank that writes files and speaks."""
        return self.rank == 0

    def deal(self, items: Sequence[T]) -> list[T]:
        """This rank's share: every world-th item. Of few items, some ranks get none."""
        return list(items[self.rank :: self.world])

    def gather(self, share: Sequence[T]) -> list[T]:
        """The shares of all ranks in the order that the items had before `deal`."""
        return list(share)

    def sum_(self, *tensors: Tensor) -> None:
        """Each tensor becomes its sum over all ranks, in place; the bits are the same on each."""

    def total(self, *values: float) -> list[float]:
        """Sums of plain numbers over all ranks, in float64."""
        return list(values)

    def largest(self, value: float) -> float:
        """The largest of all ranks' values."""
        return value

    def any(self, flag: bool) -> bool:
        """Whether it is true on one rank or more: for what ranks must decide alike."""
        return self.largest(float(flag)) > 0

    def broadcast(self, value: T) -> T:
        """Rank 0's value, on every rank."""
        return value

    def barrier(self) -> None:
        """Wait until all ranks are here."""

    @contextlib.contextmanager
    def failing_together(self) -> Iterator[None]:
        """An error inside ends every rank with one message. Alone: nothing is changed."""
        yield


class Several(Ranks):
    """A rank among others, over torch.distributed's default group."""

    def __init__(self, store: Any, *, local: int = 0, local_world: int = 1) -> None:
        """store: that of the rendezvous; with torchrun it outlives every rank."""
        self.rank, self.world = distributed.get_rank(), distributed.get_world_size()
        self.local, self.local_world = local, local_world
        self._store = store

    def gather(self, share: Sequence[T]) -> list[T]:
        """See Ranks.gather."""
        shares: list[Any] = [None] * self.world
        distributed.all_gather_object(shares, list(share))
        found = [shares[i % self.world][i // self.world] for i in range(sum(map(len, shares)))]
        return found

    def sum_(self, *tensors: Tensor) -> None:
        """See Ranks.sum_. Tensors of one kind travel together."""
        kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for tensor in tensors:
            kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
        for members in kinds.values():
            whole = torch.cat([t.reshape(-1) for t in members])
            distributed.all_reduce(whole)
            for tensor, part in zip(members, whole.split([t.numel() for t in members]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def total(self, *values: float) -> list[float]:
        """See Ranks.total."""
        whole = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(whole)
        return [float(v) for v in whole]

    def largest(self, value: float) -> float:
        """See Ranks.largest."""
        found = torch.tensor(value, dtype=torch.float64)
        distributed.all_reduce(found, distributed.ReduceOp.MAX)
        return float(found)

    def broadcast(self, value: T) -> T:
        """See Ranks.broadcast."""
        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def barrier(self) -> None:
        """See Ranks.barrier. Not distributed.barrier: on GPUs that would wait for kernels, too."""
        self.largest(0.0)

    @contextlib.contextmanager
    def failing_together(self) -> Iterator[None]:
        """See Ranks; for a program's outermost place.

        The first rank that fails says why and the others leave in silence, all with exit code 2.

        Ranks that wait for a message of the failed one get torch's error of a closed connection. Where nobody has
        said why (kill -9), the first to notice says that.
        """
        try:
            yield
        except KeyboardInterrupt:  # asked of all, and the step has been saved by all
            if self.main:
                raise
            raise SystemExit(130) from None
        except Exception as error:
            if not self._first_to_fail():
                raise SystemExit(2) from None
            if _of_a_lost_rank(error):
                raise TrivetError(f"rank {self.rank} has lost the other processes of this run: one was ended from "
                                  "outside, or the network failed", mend="run the same command again to go on from "
                                  "the last checkpoint") from error
            raise

    def _first_to_fail(self) -> bool:
        try:
            return int(self._store.add("trivet-failed", 1)) == 1
        except RuntimeError:  # rank 0 kept the store (no torchrun), and is gone without a word
            return True


def _of_a_lost_rank(error: Exception) -> bool:
    return isinstance(error, distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


_here = Ranks()


def here() -> Ranks:
    """This process's place: alone, or what `join` found."""
    return _here


def started_together() -> bool:
    """Whether torchrun, or what does as it does, started this process beside others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def join() -> Ranks:
    """Meet the other processes that torchrun started; from here on only rank 0 speaks.

    Environment variables that tell accelerate of the others are taken away: the work is shared here, in one way for
    all stages, and transformers' Trainer must not share it a second time.
    """
    global _here
    if _here.world == 1 and started_together():
        local, local_world = (int(os.environ.get(k, "0")) for k in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
        backend, patience = "gloo", PATIENCE
        if torch.cuda.is_available():
            backend, patience = "cpu:gloo,cuda:nccl", GPU_PATIENCE
            torch.cuda.set_device(local % torch.cuda.device_count())
        store, rank, world = next(iter(distributed.rendezvous("env://", timeout=PATIENCE)))
        distributed.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=patience)
        messages: Any = distributed.distributed_c10d._get_default_group()._get_backend(torch.device("cpu"))
        messages._set_default_timeout(PATIENCE)  # one time-out is taken for both kinds above
        for name in [n for n in os.environ if n in {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"}
                     or n.startswith(("ACCELERATE_", "FSDP_"))]:
            del os.environ[name]
        _here = Several(store, local=local, local_world=max(1, local_world))
        if not _here.main:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # for as long as the process lives
    return _here


def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """The gradients of parameters that every rank holds whole become their sums over the ranks."""
    if _here.world == 1:
        return
    kept = list(parameters)
    for parameter in kept:
        if parameter.grad is None:  # this rank had no share that reaches it
            parameter.grad = torch.zeros_like(parameter)
    _here.sum_(*[p.grad for p in kept if p.grad is not None])
