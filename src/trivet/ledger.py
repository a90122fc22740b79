"""What each stage cost: wall and CPU time, tokens, peak memory. One line a stage in `ledger.jsonl`."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import resource
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict


class Entry(BaseModel):
    """One stage's cost. Seconds are wall clock summed over interruptions; bytes are the process's peak."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())
    schema_version: int = 1
    name: str
    stage: str
    started: str
    seconds: float
    cpu_seconds: float
    peak_memory_bytes: int
    tokens: dict[str, int] = {}
    attempts: int = 1
    machine: str


def machine() -> str:
    """The machine in words: processor and cores."""
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass  # not Linux: the short name stands
    return f"{name}, {os.cpu_count()} cores, {platform.system()}"


def peak_memory() -> int:
    """Peak resident bytes of this process: since the meter began on Linux, since its start elsewhere."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux: the figure of getrusage stands
    scale = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


class Meter:
    """Measures one stage while it runs."""

    def __init__(self) -> None:
        self.started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._wall, self._cpu = time.monotonic(), time.process_time()
        with contextlib.suppress(OSError):  # Linux: count this stage's peak from here, not the process's
            Path("/proc/self/clear_refs").write_text("5")
        self.tokens: dict[str, int] = {}

    def count(self, kind: str, tokens: int) -> None:
        """Add tokens of a kind, such as `generated`, `scored`, `trained`."""
        self.tokens[kind] = self.tokens.get(kind, 0) + int(tokens)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._wall

    def entry(self, name: str, stage: str, *, earlier: float = 0.0, attempts: int = 1) -> Entry:
        """The entry, with `earlier` seconds spent before interruptions."""
        return Entry(
            name=name, stage=stage, started=self.started,
            seconds=round(self.seconds + earlier, 3),
            cpu_seconds=round(time.process_time() - self._cpu, 3),
            peak_memory_bytes=peak_memory(), tokens=self.tokens, attempts=attempts,
            machine=machine(),
        )


def append(path: Path, entry: Entry) -> None:
    """Add one line; the write is one call, so that two stages never mix their lines."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry.model_dump()) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> list[dict[str, Any]]:
    """All entries, a stage's last one winning; an absent file is an empty ledger."""
    if not path.exists():
        return []
    entries: dict[str, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            value = json.loads(line)
        except json.JSONDecodeError:
            continue  # a line torn by a power cut: the stage that wrote it was not finished
        entries[value["name"]] = value
    return list(entries.values())
