"""Devices, precision, threads, and the seeds of every random generator."""

from __future__ import annotations

import os
import random
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import transformers

from trivet.config import Device
from trivet.errors import TrivetError
from trivet.ledger import Meter
from trivet.training.probe import TorchProbe
from trivet.training.ranks import here


@dataclass(frozen=True)
class Compute:
    """What `auto` came to. `trunk` is the dtype of frozen weights; trained weights are float32."""

    device: str
    trunk: torch.dtype
    threads: int
    chosen: bool = False
    """The device was named, not found."""

    def on_cpu(self, runtime: str) -> Compute:
        """The same for a runtime that computes on the CPU alone. Raises TrivetError where another device was named."""
        if self.device == "cpu":
            return self
        if self.chosen:
            raise TrivetError(f"{runtime} answers on the CPU here, this asks for {self.device}", field="device.device",
                              mend="use --device.device cpu, or leave it at auto")
        return replace(self, device="cpu", trunk=torch.float32)

    @property
    def words(self) -> str:
        return f"{self.device}, {str(self.trunk).removeprefix('torch.')} trunk, {self.threads} threads"


def prepare(config: Device, meter: Meter | None = None) -> Compute:
    """Choose device and precision, set the number of threads, ask for deterministic algorithms.

    meter: of the stage that will use the device: from here on it counts FLOPs and, on a GPU, its time, memory and
    energy.

    float32 is the CPU's default: there it keeps the ratio at exactly 1, and on machines without AMX it is
    also the faster one (docs/decisions.md has the figures).
    """
    transformers.utils.logging.disable_progress_bar()  # our own progress says what is going on
    transformers.utils.logging.set_verbosity_error()
    # of its own code to its own developers; a user can do nothing about it
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise TrivetError("no CUDA GPU is visible to torch", field="device.device",
                          mend="use --device.device cpu, or install a CUDA build of torch")
    if device == "mps" and not torch.backends.mps.is_available():
        raise TrivetError("no Apple GPU is visible to torch", field="device.device",
                          mend="use --device.device cpu")
    if here().world > 1 and device == "mps":
        raise TrivetError("several processes can't share work on Apple GPUs: torch has no way for them to talk",
                          field="device.device", mend="use --device.device cpu, or one process")
    precision = config.precision
    if precision == "auto":
        precision = "float32" if device == "cpu" else "bfloat16"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # the ranks on one machine share its cores; and each has a GPU of its own, chosen when they met
    threads = config.threads or max(1, cores // here().local_world)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=device != "cpu")
    # filling memory that is written anyway cost a tenth of a training step
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if meter is not None:
        meter.probe(lambda: TorchProbe(device))
    return Compute(device, getattr(torch, precision), threads, chosen=config.device != "auto")


def seed_all(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def generator_states() -> dict[str, Any]:
    """The state of every random generator, in types that load with weights_only=True."""
    version, internal, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(internal), gauss],
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_generators(states: dict[str, Any]) -> None:
    """Put every random generator back to a saved state."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states["torch"])
    if states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])
