"""What a program is given, and what is known of it afterwards."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from pydantic import ConfigDict, Field

from trivet.config import Part

Status = Literal["ok", "error", "time", "memory", "output", "killed", "refused"]
"""ok: it ended. error: it raised. time, memory, output: that limit ended it. killed: it ended by a signal or without a
word. refused: it needs what no tier that works here has."""

MAX_CODE = 200_000
"""Characters of a program: one that is longer is no answer of a model's, and is refused unread."""


class Limits(Part):
    """What a program may use. All hold for the whole program, its children included."""

    model_config = ConfigDict(frozen=True)

    seconds: float = Field(5.0, gt=0, le=3600)
    """Wall-clock seconds from the program's first line. CPU seconds are bounded by the same figure, each process."""
    memory: int = Field(256, ge=64, le=65536)
    """Megabytes of memory. Of several processes each gets its share. CPython itself takes about 30."""
    output: int = Field(64_000, ge=1, le=10_000_000)
    """Bytes the program may print; the rest is cut off and the program ended."""
    processes: int = Field(1, ge=1, le=64)
    """Processes and threads at a time. 1: the program can't start any."""
    packages: tuple[str, ...] = ()
    """Installed packages that it may import beyond the standard library, such as sympy and mpmath (name what they need,
    too). Monty has none: a program that imports one runs in the next tier."""


@dataclass(frozen=True)
class Step:
    """A line that was run, and what it left in the names that it wrote."""

    line: int
    values: dict[str, str]
    """Name to the value's text, shortened."""


@dataclass(frozen=True)
class ProgramError:
    """What a program raised."""

    type: str
    message: str
    line: int | None = None
    """In the program, from 1; the innermost line of its own."""

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line is not None else ""
        return f"{where}{self.type}: {self.message}" if self.message else f"{where}{self.type}"


@dataclass(frozen=True)
class Result:
    """What became of a program."""

    status: Status
    tier: str
    """Which tier ran it."""
    stdout: str = ""
    value: Any = None
    """Of its last line, where that is an expression: a number, text, list or dict of these; of anything else its text.
    None where there is none."""
    shown: str = ""
    """The value as text, shortened; empty where there is none."""
    error: ProgramError | None = None
    steps: list[Step] = field(default_factory=list)
    """Line by line, the values written: as many as were asked for."""
    seconds: float = 0.0
    """Wall clock, the tier's own start included."""
    memory: float | None = None
    """Megabytes at its highest, where the tier knows: the process's, so CPython's own are among them."""
    passed_on: dict[str, str] = field(default_factory=dict)
    """Tiers that tried it before, or were asked, and why they don't answer."""

    @property
    def ok(self) -> bool:
        """Whether it ended by itself without an error."""
        return self.status == "ok"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)


class Tier(Protocol):
    """One way to run a program."""

    name: str

    def missing(self) -> str | None:
        """Why it can't work on this machine, found out by trying; None where it does."""
        ...

    def run(self, code: str, limits: Limits, steps: int) -> Result:
        """Run a program. Raises NeedsMore where another tier should be asked, OSError where the tier itself fails."""
        ...


class NeedsMore(Exception):
    """A tier's answer that another tier may know better.

    result: what stands where there is no other tier
    lacking: whether the tier lacks something for certain, rather than that the program may be wrong
    """

    def __init__(self, why: str, result: Result, *, lacking: bool) -> None:
        super().__init__(why)
        self.result, self.lacking = result, lacking
