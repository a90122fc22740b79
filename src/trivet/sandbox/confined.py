"""Tiers that hold a CPython process by the kernel: starting it, listening to it, ending it with all its children."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import random
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trivet.sandbox import inner, seccomp
from trivet.sandbox.base import Limits, ProgramError, Result, Status
from trivet.sandbox.lines import LONGEST, NOTED, noting, prelude, steps_from

START = 30.0
"""Seconds that a tier may take until the program's first line; far more than it needs, for a machine that is busy."""
MB = 2**20


@dataclass(frozen=True)
class Command:
    """How a tier starts the inner Python."""

    argv: Sequence[str]
    uid: int | None
    """The user that the inner Python becomes; None where it is another one already."""
    path: tuple[str, ...]
    packages: dict[str, str]
    processes: int | None
    """RLIMIT_NPROC; None where the tier counts processes itself."""


def source() -> str:
    """The text of the inner program."""
    return Path(inner.__file__).read_text()


def fresh_uid() -> int:
    """A user that nobody is: no two programs share one, so that neither can reach the other."""
    return random.SystemRandom().randrange(0x10000000, 0x60000000)


def kernel_missing() -> str | None:
    """What both tiers need of the machine."""
    if sys.platform != "linux":
        return "needs Linux"
    return seccomp.missing()


def rlimits(limits: Limits, processes: int | None) -> dict[str, int]:
    """Names of `resource` to their values."""
    found = {
        "RLIMIT_AS": limits.memory * MB // limits.processes, "RLIMIT_CPU": math.ceil(limits.seconds),
        "RLIMIT_FSIZE": 0, "RLIMIT_CORE": 0, "RLIMIT_NOFILE": 64, "RLIMIT_MEMLOCK": 0, "RLIMIT_MSGQUEUE": 0,
        "RLIMIT_SIGPENDING": 64, "RLIMIT_RTPRIO": 0, "RLIMIT_NICE": 0,
    }
    return found if processes is None else found | {"RLIMIT_NPROC": processes}


def run(name: str, command: Command, code: str, limits: Limits, steps: int) -> Result:
    """Run a program behind a tier's command.

    Raises OSError where the tier itself fails: it can't be started, or it does not hold the program.
    """
    request = {
        "code": code, "noting": noting(code) if steps else code, "prelude": prelude(steps) if steps else "",
        "noted": NOTED, "limits": rlimits(limits, command.processes), "uid": command.uid,
        "filter": seccomp.program(platform.machine()).hex(), "path": command.path, "packages": command.packages}
    began = time.monotonic()
    process = subprocess.Popen(command.argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               start_new_session=True, env={"LANG": "C.UTF-8"}, cwd="/")
    try:
        heard = _listen(process, (json.dumps(request) + "\n").encode(), limits, _reply_limit(steps))
    finally:
        end(process)
    return _result(name, heard, limits, steps, time.monotonic() - began, process.returncode)


def _reply_limit(steps: int) -> int:
    return 4 * MB + steps * 60 * LONGEST


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a tier's process with its group, having asked it first: it then kills what it started."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            process.wait(2)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with contextlib.suppress(BrokenPipeError):
                stream.close()


@dataclass
class Heard:
    """What came out of a tier's process."""

    stdout: bytes = b""
    reply: bytes = b""
    ready: float | None = None
    """When the program began."""
    cut: Status | None = None
    """Which limit was reached."""


def _listen(process: subprocess.Popen[bytes], request: bytes, limits: Limits, reply_limit: int) -> Heard:
    """Hand the request over and read until the program ends or reaches a limit."""
    assert process.stdin and process.stdout and process.stderr
    heard = Heard()
    deadline = time.monotonic() + START
    with selectors.DefaultSelector() as selector:
        for stream in (process.stdin, process.stdout, process.stderr):
            os.set_blocking(stream.fileno(), False)
        selector.register(process.stdin, selectors.EVENT_WRITE)
        selector.register(process.stdout, selectors.EVENT_READ)
        selector.register(process.stderr, selectors.EVENT_READ)
        while selector.get_map():
            left = deadline - time.monotonic()
            if left <= 0:
                heard.cut = "time"
                break
            for key, _ in selector.select(left):
                if key.fileobj is process.stdin:
                    try:
                        request = request[os.write(key.fd, request):]
                    except BrokenPipeError:
                        request = b""
                    if not request:
                        selector.unregister(process.stdin)
                        process.stdin.close()
                    continue
                piece = os.read(key.fd, 65536)
                if not piece:
                    selector.unregister(key.fileobj)
                elif key.fileobj is process.stdout:
                    heard.stdout += piece
                else:
                    heard.reply += piece
                    if heard.ready is None and b"\n" in heard.reply:
                        heard.ready = time.monotonic()
                        deadline = heard.ready + limits.seconds
            if len(heard.stdout) > limits.output or len(heard.reply) > reply_limit:
                heard.stdout, heard.cut = heard.stdout[:limits.output], "output"
                break
    return heard


def _result(name: str, heard: Heard, limits: Limits, steps: int, seconds: float, code: int | None) -> Result:
    rows = _rows(heard.reply)
    first = rows[0] if rows else {}
    if first.get("kind") != "ready":
        said = heard.reply[-400:].decode("utf-8", "replace").strip()
        why = first.get("why") if first.get("kind") == "unsafe" else said
        raise OSError(f"{name} did not start the program: {why or f'exit code {code}'}")
    last = rows[-1] if rows[-1].get("kind") == "end" else {}
    stdout = heard.stdout.decode("utf-8", "replace")
    if heard.cut or not last:
        status: Status = heard.cut or _ended_by(code)
        return Result(status, name, stdout, error=said_of(status, limits), seconds=seconds)
    error = last.get("error")
    status = last["status"] if last.get("status") in ("ok", "error", "memory") else "error"
    # the program may have said this itself, in any form
    value, _ = inner.plain(last.get("value"))
    return Result(
        status, name, stdout, value=value, shown=str(last.get("shown", ""))[:inner.LONGEST],
        error=_error(error) if isinstance(error, dict) else None, steps=steps_from(last.get("steps"), steps),
        seconds=seconds, memory=_number(last.get("memory")))


def _ended_by(code: int | None) -> Status:
    """bubblewrap and our supervisor of sandlock hand on a signal as 128 and its number."""
    return "time" if code is not None and signal.SIGXCPU in (-code, code - 128) else "killed"


def said_of(status: Status, limits: Limits) -> ProgramError:
    """A limit, in words."""
    return ProgramError(*{
        "time": ("TimeoutError", f"it was ended after {limits.seconds:g} s"),
        "memory": ("MemoryError", f"it wanted more than {limits.memory} MB"),
        "output": ("OutputError", f"it printed more than {limits.output:,} bytes"),
    }.get(status, ("Killed", "it ended without a word: by a signal, by its own exit, or by a fault of Python itself")))


def _rows(reply: bytes) -> list[dict[str, Any]]:
    """The whole lines of JSON objects in what was said."""
    found = []
    for line in reply.split(b"\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            found.append(row)
    return found


def _error(row: dict[str, Any]) -> ProgramError:
    line = row.get("line")
    return ProgramError(str(row.get("type", ""))[:200], str(row.get("message", ""))[:2000],
                        line if type(line) is int else None)


def _number(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) and 0 <= value < 1e9 else None
