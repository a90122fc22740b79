"""What each stage cost: time, tokens, arithmetic, memory, energy, people's time, endpoints. One line a stage in
`ledger.jsonl`; docs/ledger.md says how each figure is measured. Nothing here is estimated: what the machine does
not tell is None.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import resource
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trivet.errors import TrivetError

SCHEMA = 2
TOKENS_IN = ("prompt", "scored", "judged", "trained")
"""Kinds of tokens that a model reads: prompts before an answer, dialogues to be scored or judged, and what is trained
on, once an epoch. Every other kind is written: `generated`."""
KEEP_EVERY = 5.0
"""Seconds between two writings of what was spent: what `kill -9` takes from the ledger at most, beside the time of the
step it comes in."""


class Calls(BaseModel):
    """What was asked of one model at an endpoint."""

    model_config = ConfigDict(extra="forbid")
    requests: int = Field(0, ge=0)
    input_tokens: int = Field(0, ge=0)
    output_tokens: int = Field(0, ge=0)

    @property
    def tokens(self) -> int:
        """In and out. An endpoint that tells none leaves it at 0, however much it was asked."""
        return self.input_tokens + self.output_tokens

    def plus(self, other: Calls) -> Calls:
        """Both together."""
        return Calls(requests=self.requests + other.requests, input_tokens=self.input_tokens + other.input_tokens,
                     output_tokens=self.output_tokens + other.output_tokens)


class Labelling(BaseModel):
    """The time that rankings took, as the labellers' pages measured it."""

    model_config = ConfigDict(extra="forbid")
    people_seconds: float = Field(0.0, ge=0)
    people_rankings: int = Field(0, ge=0)
    ai_seconds: float = Field(0.0, ge=0)
    ai_rankings: int = Field(0, ge=0)
    untimed: int = Field(0, ge=0)
    """Rankings, of either, that say no time: what is said of the seconds leaves them out."""
    source: str = ""
    """Equal for equal rankings: two stages that read the same ones do not cost the time twice."""


class Spent(BaseModel):
    """What adds up over interruptions; peaks are the largest. Read as in `Entry`."""

    model_config = ConfigDict(extra="forbid")
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    gpu_seconds: float = 0.0
    tokens: dict[str, int] = {}
    flops: dict[str, int] = {}
    peak_memory_bytes: int = 0
    gpu_peak_memory_bytes: int = 0
    energy_joules: float | None = None
    energy_sources: list[str] = []
    endpoints: dict[str, Calls] = {}

    def plus(self, other: Spent) -> Spent:
        """Both together. Energy is known where both know it, from the same sources."""
        known = self.energy_joules is not None and other.energy_joules is not None \
            and self.energy_sources == other.energy_sources
        return Spent(
            seconds=self.seconds + other.seconds, cpu_seconds=self.cpu_seconds + other.cpu_seconds,
            gpu_seconds=self.gpu_seconds + other.gpu_seconds, tokens=_sum(self.tokens, other.tokens),
            flops=_sum(self.flops, other.flops),
            peak_memory_bytes=max(self.peak_memory_bytes, other.peak_memory_bytes),
            gpu_peak_memory_bytes=max(self.gpu_peak_memory_bytes, other.gpu_peak_memory_bytes),
            energy_joules=(self.energy_joules or 0.0) + (other.energy_joules or 0.0) if known else None,
            energy_sources=self.energy_sources if known else [],
            endpoints={name: self.endpoints.get(name, Calls()).plus(other.endpoints.get(name, Calls()))
                       for name in dict.fromkeys([*self.endpoints, *other.endpoints])})


def _sum(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    return {k: one.get(k, 0) + other.get(k, 0) for k in dict.fromkeys([*one, *other])}


class Entry(BaseModel):
    """One stage's cost, summed over interruptions. A line of an older ledger lacks what was not measured then."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), use_attribute_docstrings=True)
    schema_version: int = SCHEMA
    name: str
    stage: str
    started: str
    """Of the last attempt, UTC."""
    seconds: float = Field(ge=0)
    """Wall clock."""
    cpu_seconds: float = Field(ge=0)
    """Of this process, all threads; of several processes that share a stage (torchrun), all of them."""
    gpu_seconds: float = Field(0.0, ge=0)
    """Wall clock since the device was taken, times the CUDA devices used; 0 on a CPU."""
    tokens: dict[str, int] = {}
    """By kind, see TOKENS_IN."""
    flops: dict[str, int] | None = None
    """`forward` and `backward`, counted (training/flops.py). None: a stage without a model, or an old line."""
    peak_memory_bytes: int = Field(ge=0)
    """Resident memory of the process, in the stage on Linux, up to its end elsewhere; of several, their peaks' sum."""
    gpu_peak_memory_bytes: int = Field(0, ge=0)
    """Held by torch on all CUDA devices."""
    energy_joules: float | None = None
    """Of all that `energy_sources` names, other programs on the machine included. None: it does not tell."""
    energy_sources: list[str] = []
    labelling: Labelling | None = None
    """Of the rankings that the stage read."""
    endpoints: dict[str, Calls] = {}
    """By the model's name at its endpoint."""
    attempts: int = 1
    machine: str

    @property
    def people_seconds(self) -> float:
        """People's time in the rankings that the stage read."""
        return self.labelling.people_seconds if self.labelling else 0.0

    @property
    def total_flops(self) -> int | None:
        """Forward and backward."""
        return None if self.flops is None else sum(self.flops.values())

    @property
    def tokens_in(self) -> int:
        """Tokens read."""
        return sum(n for kind, n in self.tokens.items() if kind in TOKENS_IN)

    @property
    def tokens_out(self) -> int:
        """Tokens written."""
        return sum(n for kind, n in self.tokens.items() if kind not in TOKENS_IN)


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


class Probe(Protocol):
    """Measures what only a library can: torch's arithmetic, a GPU's memory and energy."""

    def read(self) -> Spent:
        """What was spent since it began: gpu_seconds, flops, gpu_peak_memory_bytes, energy."""

    def close(self) -> None:
        """Leave everything as it was."""


class PackageEnergy:
    """Energy of the processor packages by Intel's and AMD's counters (RAPL), as Linux shows them.

    `joules` is None where there are none, or where they may not be read (most systems let only root).
    """

    source = "processor packages"

    def __init__(self, folder: Path = Path("/sys/class/powercap")) -> None:
        self._zones: dict[Path, int] | None = None
        self._last: dict[Path, int] = {}
        self._joules = 0.0
        with contextlib.suppress(OSError, ValueError):  # may not be read: then it is not known
            # N:M is a part of N; `psys`, beside them, is the whole platform, and holds the packages
            found = sorted(p for p in folder.glob("intel-rapl:*")
                           if p.name.count(":") == 1 and (p / "name").read_text().startswith("package"))
            self._last = {zone: int((zone / "energy_uj").read_text()) for zone in found}
            self._zones = {zone: int((zone / "max_energy_range_uj").read_text()) for zone in found}

    def joules(self) -> float | None:
        """Since the beginning. Must be asked at least once while a counter runs round (most of an hour)."""
        if not self._zones:
            return None
        try:
            for zone, span in self._zones.items():
                now = int((zone / "energy_uj").read_text())
                self._joules += (now - self._last[zone] if now >= self._last[zone]
                                 else now + span - self._last[zone]) / 1e6
                self._last[zone] = now
        except (OSError, ValueError):
            self._zones = None
            return None
        return self._joules


class Meter:
    """Measures one stage while it runs."""

    def __init__(self, *, beside: bool = False) -> None:
        """beside: in a process beside the one that counts for all; it counts its own shares alone."""
        self._beside = beside
        self.started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._wall, self._cpu = time.monotonic(), time.process_time()
        with contextlib.suppress(OSError):  # Linux: count this stage's peak from here, not the process's
            Path("/proc/self/clear_refs").write_text("5")
        self.tokens: dict[str, int] = {}
        self.endpoints: dict[str, Calls] = {}
        self.labelling: Labelling | None = None
        self.earlier: Spent | None = None
        """What earlier attempts at this stage spent, as far as they came to write it down."""
        self._energy = PackageEnergy()
        self._others: list[Spent] = []
        self._probe: Probe | None = None
        self._measured: Spent | None = None
        self._keep: Callable[[Spent], None] | None = None
        self._kept = self._wall
        self._lock = threading.RLock()  # an endpoint is asked by several threads

    def count(self, kind: str, tokens: int, *, share: bool = False) -> None:
        """Add tokens of a kind: `prompt`, `generated`, `scored`, `trained`.

        share: of work that is shared out, what this process did; else one process counts for all.
        """
        if self._beside and not share:
            return
        with self._lock:
            self.tokens[kind] = self.tokens.get(kind, 0) + int(tokens)
            self.tick()

    def endpoint(self, model: str, *, requests: int, input_tokens: int = 0, output_tokens: int = 0) -> None:
        """Add what was asked of a model at an endpoint."""
        asked = Calls(requests=requests, input_tokens=input_tokens, output_tokens=output_tokens)
        with self._lock:
            self.endpoints[model] = self.endpoints.get(model, Calls()).plus(asked)
            self.tick()

    def probe(self, make: Callable[[], Probe]) -> None:
        """Measure by a probe, too; the first one stays. It is closed with the meter, or when the meter is gone."""
        if self._probe is None:
            self._probe = make()
            weakref.finalize(self, self._probe.close)

    def keep(self, write: Callable[[Spent], None]) -> None:
        """Have what this attempt spent written down every KEEP_EVERY seconds or so, at the next count or log."""
        self._keep = write

    def tick(self) -> None:
        """Something was done: write down what was spent, if it is time to."""
        with self._lock:
            if self._keep is not None and time.monotonic() - self._kept >= KEEP_EVERY:
                self._keep(self.spent())
                self._kept = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._wall

    def spent(self) -> Spent:
        """What this attempt spent; after `close`, up to then."""
        if self._measured is not None:
            return self._measured
        measured = self._probe.read() if self._probe is not None else Spent()
        package = self._energy.joules()
        known = [(e, s) for e, s in ((package, [PackageEnergy.source]),
                                     (measured.energy_joules, measured.energy_sources)) if e is not None]
        others, tokens = self._others, dict(self.tokens)
        if others:
            known = []
            flops = measured.flops
            for other in others:
                flops = _sum(flops, other.flops)
                for kind, more in other.tokens.items():
                    tokens[kind] = tokens.get(kind, 0) + more
            measured = measured.model_copy(update={
                "gpu_seconds": measured.gpu_seconds + sum(o.gpu_seconds for o in others), "flops": flops,
                "gpu_peak_memory_bytes": measured.gpu_peak_memory_bytes + sum(o.gpu_peak_memory_bytes for o in others)})
        return measured.model_copy(update={
            "seconds": self.seconds, "tokens": tokens, "endpoints": dict(self.endpoints),
            "cpu_seconds": time.process_time() - self._cpu + sum(o.cpu_seconds for o in others),
            "peak_memory_bytes": peak_memory() + sum(o.peak_memory_bytes for o in others),
            "energy_joules": sum(e for e, _ in known) if known else None,
            "energy_sources": [s for _, sources in known for s in sources]})

    def beside(self, others: Sequence[Spent]) -> None:
        """Add what the other processes of this stage spent of processors, devices, FLOPs and memory.

        Of tokens they have counted their shares alone. Energy is not known any more: which of it the processes share
        (a machine's package), and which is each one's, nobody tells.
        """
        self._others = list(others)

    def close(self) -> None:
        """End of the attempt: the figures stand, and the probe is taken off."""
        if self._measured is None:
            self._measured = self.spent()
            if self._probe is not None:
                self._probe.close()

    def entry(self, name: str, stage: str, *, earlier: Spent | None = None, attempts: int = 1) -> Entry:
        """The entry, with what `earlier` attempts spent."""
        whole = self.spent() if earlier is None else earlier.plus(self.spent())
        return Entry(
            name=name, stage=stage, started=self.started, seconds=round(whole.seconds, 3),
            cpu_seconds=round(whole.cpu_seconds, 3), gpu_seconds=round(whole.gpu_seconds, 3), tokens=whole.tokens,
            flops=whole.flops or None, peak_memory_bytes=whole.peak_memory_bytes,
            gpu_peak_memory_bytes=whole.gpu_peak_memory_bytes,
            energy_joules=None if whole.energy_joules is None else round(whole.energy_joules, 3),
            energy_sources=whole.energy_sources, labelling=self.labelling, endpoints=whole.endpoints,
            attempts=attempts, machine=machine())


def append(path: Path, entry: Entry) -> None:
    """Add one line; the write is one call, so that two stages never mix their lines."""
    with path.open("ab+") as file:
        torn = file.tell() > 0 and file.seek(-1, os.SEEK_END) is not None and file.read(1) != b"\n"
        # a line torn by a power cut ends here, and does not swallow this one
        file.write(b"\n" * torn + json.dumps(entry.model_dump()).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> list[Entry]:
    """All entries, a stage's last one winning; an absent file is an empty ledger.

    Raises TrivetError for a line that is no entry of this or an older version.
    """
    found: dict[str, Entry] = {}
    if not path.exists():
        return []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        try:
            entry = Entry.model_validate(json.loads(line))
        except json.JSONDecodeError:
            continue  # a line torn by a power cut: the stage that wrote it was not finished
        except ValidationError as error:
            fault = error.errors()[0]
            raise TrivetError(f"this line is no entry of a ledger: {fault['msg']}", file=path, line=number,
                              field=".".join(map(str, fault["loc"])) or None,
                              mend="delete this line (the stage's cost is then not known), or use the version of "
                              "Trivet that wrote it") from None
        found[entry.name] = entry
    return list(found.values())
