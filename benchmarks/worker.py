"""Sides of a benchmark in processes of their own: loaded once, then one timed step whenever it is asked for.

So the rounds of several sides alternate, memory is counted apart, and a side that waits burns no processor time: it
stands in a blocking read. Lines of JSON go both ways: `{"ready": …}` once, then for each "step" its figures. What a
side's libraries print goes to its log.

This file is imported in the peers' environments, too: nothing of Trivet, nothing but the standard library.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn


class Asked:
    """The side's end of the pipe. Make it before anything else prints."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)  # what libraries print must not come between the answers
        self._steps = 0

    def tell(self, **figures: Any) -> None:
        self._answers.write(json.dumps(figures) + "\n")

    def wait(self, **facts: Any) -> None:
        """Wait for the next step; the first time say that all is loaded. Ends the process where none is wanted."""
        if not self._steps:
            forget_peak()
            self.tell(ready=facts)
        self._steps += 1
        if sys.stdin.readline().strip() != "step":
            self.leave()

    def leave(self) -> NoReturn:
        """End this process at once: there is nothing to be tidied that the parent's temporary folder doesn't hold."""
        self._answers.flush()
        os._exit(0)


class Stopwatch:
    """Seconds of a step by phase. On a GPU what was asked for is waited for at each reading."""

    def __init__(self, device: str) -> None:
        self._cuda = device == "cuda"
        self.seconds: dict[str, float] = {}

    def now(self) -> float:
        if self._cuda:
            import torch

            torch.cuda.synchronize()
        return time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        began = self.now()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self.now() - began


def forget_peak() -> None:
    """Count the peak of memory from here on, with what loading left behind given back."""
    if (torch := sys.modules.get("torch")) and torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: str) -> int:
    """Most memory since `forget_peak`: of the GPU where that is the device, else resident memory of this process."""
    if device == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # since the start, in bytes on a Mac


class SideError(RuntimeError):
    """A side ended where a step was expected. `out_of_memory`: of its device."""

    def __init__(self, name: str, log: Path) -> None:
        self.text = log.read_text(errors="replace") if log.exists() else ""
        self.out_of_memory = "OutOfMemoryError" in self.text or "DefaultCPUAllocator" in self.text
        super().__init__(f"{name} ended:\n" + "\n".join(self.text.splitlines()[-25:]))


class Side:
    """The parent's end: a process that makes one step whenever it is asked to."""

    def __init__(self, name: str, command: list[str], log: Path, *, threads: int, path: list[Path]) -> None:
        """command: a python and its arguments. log: takes what the process prints. path: its PYTHONPATH."""
        self.name, self.log = name, log
        with log.open("w") as file:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "OMP_NUM_THREADS": str(threads),
                     "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"})
        self.facts: dict[str, Any] = self._read()["ready"]

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            raise SideError(self.name, self.log)
        found: dict[str, Any] = json.loads(line)
        return found

    def step(self) -> dict[str, Any]:
        """The figures of one step. Raises SideError where the process ended in it."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended: reading says why
            self._process.stdin.write("step\n")
            self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """Let it end; it has nothing to save."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None and not pipe.closed:
                with suppress(BrokenPipeError):
                    pipe.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
