"""What a stage that uses torch spends: FLOPs, and on a GPU its time, memory and energy.

A GPU's energy is NVIDIA's own counter since the driver was loaded (NVML, Volta and later), taken at the beginning
and at the end; the library of the driver is asked directly. What a machine does not tell is None.
"""

from __future__ import annotations

import ctypes
import time
from typing import Any

import torch

from trivet.ledger import Spent
from trivet.training.flops import FlopCounter

NVML = "libnvidia-ml.so.1"


class TorchProbe:
    """Counts from its making on. See ledger.Probe."""

    def __init__(self, device: str) -> None:
        self._cuda = device.startswith("cuda")
        self._began = time.monotonic()
        self._energy: dict[int, GpuEnergy] = {}
        if self._cuda:
            for i in range(torch.cuda.device_count()):
                torch.cuda.reset_peak_memory_stats(i)
                self._energy[i] = GpuEnergy(str(torch.cuda.get_device_properties(i).uuid))
        self._flops = FlopCounter()
        self._flops.start()

    def read(self) -> Spent:
        """See ledger.Probe."""
        flops = {"forward": self._flops.forward, "backward": self._flops.backward}
        if not self._cuda:
            return Spent(flops=flops)
        peaks = {i: torch.cuda.max_memory_allocated(i) for i in self._energy}
        used = [i for i, peak in peaks.items() if peak] or [torch.cuda.current_device()]
        joules = [self._energy[i].joules() for i in used]
        told = [j for j in joules if j is not None]
        whole = len(told) == len(used)
        return Spent(flops=flops, gpu_seconds=len(used) * (time.monotonic() - self._began),
                     gpu_peak_memory_bytes=sum(peaks.values()), energy_joules=sum(told) if whole else None,
                     energy_sources=["GPU"] if whole else [])

    def close(self) -> None:
        """See ledger.Probe."""
        self._flops.stop()


class GpuEnergy:
    """The energy of one GPU since this was made, by NVML's counter; None where there is none."""

    def __init__(self, uuid: str, library: str = NVML) -> None:
        """uuid: as torch gives it, without `GPU-`."""
        self._library: Any = None
        self._start: int | None = None
        self._handle = ctypes.c_void_p()
        try:
            found = ctypes.CDLL(library)
        except OSError:
            return
        name = f"GPU-{uuid.removeprefix('GPU-')}".encode()
        if found.nvmlInit_v2() == 0 and found.nvmlDeviceGetHandleByUUID(
                ctypes.c_char_p(name), ctypes.byref(self._handle)) == 0:
            self._library = found
        self._start = self._now()

    def _now(self) -> int | None:
        """Millijoules since the driver was loaded."""
        if self._library is None:
            return None
        value = ctypes.c_ulonglong()
        code = self._library.nvmlDeviceGetTotalEnergyConsumption(self._handle, ctypes.byref(value))
        return int(value.value) if code == 0 else None

    def joules(self) -> float | None:
        """Since the beginning."""
        now = self._now()
        return None if now is None or self._start is None else (now - self._start) / 1000
