"""Two programs that measure turn about: each a process of its own, which works when it is told to and else sleeps.

The line protocol: the worker says on its standard output `TURN {json}` and waits for a line; what it was told then is
its next turn. Everything else that it prints (libraries like to) goes to a log. Standard library only: peers import it
from environments in which Trivet is not installed.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

MARK = "TURN "


# --- in the worker ------------------------------------------------------------------------------------------


def hand_over(said: dict[str, Any]) -> str:
    """Say what the turn gave and sleep until the next one; returns what was told. Raises EOFError when nobody asks."""
    print(MARK + json.dumps(said), flush=True)
    told = sys.stdin.readline()
    if not told:
        raise EOFError("the benchmark that asked for these turns is gone")
    return told.strip()


def last_words(said: dict[str, Any]) -> None:
    """Say what the last turn gave."""
    print(MARK + json.dumps(said), flush=True)


class Stopwatch:
    """Seconds between `start` and `stop`, of the clock and of this process's processors."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def stop(self) -> dict[str, float]:
        return {"seconds": time.perf_counter() - self._wall, "cpu_seconds": time.process_time() - self._cpu}


class Phases:
    """Seconds of a turn by phase. On a GPU what was asked of it is waited for at each reading of the clock."""

    def __init__(self, device: str) -> None:
        self._cuda = device == "cuda"
        self.seconds: dict[str, float] = {}

    def now(self) -> float:
        if self._cuda:
            import torch

            torch.cuda.synchronize()
        return time.perf_counter()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        began = self.now()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self.now() - began


def forget_peak() -> None:
    """Count the peak of memory from here on; what loading has left behind is given back first."""
    if (torch := sys.modules.get("torch")) and torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with suppress(AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: str = "cpu") -> int:
    """Peak bytes since this process began, or since `forget_peak`: resident ones, or those of the GPU."""
    if device == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not tell a process's peak memory")


# --- in the benchmark ---------------------------------------------------------------------------------------


class WorkerEnded(RuntimeError):
    """A worker died in its turn. `out_of_memory`: for want of its device's memory."""

    def __init__(self, name: str, code: int, log: str) -> None:
        killed = code == -9  # by the system, which kills where memory ends
        self.out_of_memory = killed or "OutOfMemoryError" in log or "DefaultCPUAllocator" in log
        guess = " (killed: out of memory?)" if killed else ""
        super().__init__(f"{name} ended with code {code}{guess}:\n{log[-4000:]}")


class Worker:
    """A process that takes turns. `with Worker(…) as worker: first = worker.listen(); second = worker.turn()`."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self.name = Path(command[1]).name if len(command) > 1 else command[0]
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # open as long as the worker lives
        self._process = subprocess.Popen(list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         stderr=self._log, text=True, env=environment and dict(environment))

    def listen(self) -> dict[str, Any]:
        """What the worker says at the end of its turn. Raises WorkerEnded, with its last words, if it died."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(MARK):
                said: dict[str, Any] = json.loads(line.removeprefix(MARK))
                return said
            self._log.write(line)
        self._process.wait()
        self._log.seek(0)
        raise WorkerEnded(self.name, self._process.returncode, self._log.read())

    def turn(self, told: str = "go") -> dict[str, Any]:
        """Give it a turn and wait for what it says."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has died: listening says why
            self._process.stdin.write(told + "\n")
            self._process.stdin.flush()
        return self.listen()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        """It ends by itself once nobody asks for a turn; one that does not is ended."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(timeout=60 if kind is None else 1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
