"""Monty: an interpreter for a part of Python, written so that a program has no way out, in worker processes.

There is nothing to escape with: no file, socket, process or import system behind its names. It starts in under a
millisecond. It knows a part of Python only; where a program fails on what may be Monty's lack, NeedsMore is raised.
https://github.com/pydantic/monty
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import os
import threading
from typing import TYPE_CHECKING, Any

from trivet.sandbox.base import Limits, NeedsMore, ProgramError, Result, Status
from trivet.sandbox.confined import MB, said_of
from trivet.sandbox.inner import plain
from trivet.sandbox.lines import NOTED, noting, prelude, steps_from

if TYPE_CHECKING:
    from pydantic_monty import MontySession

LACKING = {"ModuleNotFoundError", "ImportError", "NotImplementedError", "SyntaxError"}
"""Errors that mean for a fact or in nearly all cases: Monty does not know this."""
FINAL = {"ZeroDivisionError", "ArithmeticError", "IndexError", "KeyError", "LookupError", "AssertionError",
         "RecursionError", "PermissionError", "KeyboardInterrupt"}
"""Errors that Python would raise as well: no other tier is asked. On any other Python itself has the last word."""
SESSIONS = 200
"""Programs that one worker serves before a fresh one takes its place."""
AROUND = 768 * MB
"""Address space of a worker beyond the program's memory: a backstop behind Monty's own count."""


class Monty:
    """The first tier."""

    name = "monty"

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool: Any = None
        self._owner = 0

    def missing(self) -> str | None:
        """What it needs and this machine lacks."""
        if importlib.util.find_spec("pydantic_monty") is None:
            return "pydantic-monty is not installed: pip install 'trivet[sandbox]'"
        return None

    def run(self, code: str, limits: Limits, steps: int) -> Result:
        """Run a program. Raises NeedsMore where CPython may know better, OSError where no worker can be had."""
        import time

        import pydantic_monty as monty

        began = time.monotonic()
        printed = monty.CollectString(max_bytes=limits.output)
        checkout = self._workers().checkout(
            script_name="program.py", assert_message_annotations=False,
            # sleeping is done at once: a program that waits has nothing to wait for
            os_policy={"sleep": "zero"},
            limits={"max_feed_duration_secs": limits.seconds, "max_memory": limits.memory * MB})
        status: Status = "ok"
        value, error, noted, memory = None, None, None, None
        try:
            with checkout as session:
                worker = session.worker_pid
                _bound(worker, limits)
                try:
                    if steps:
                        session.feed_run(prelude(steps))
                    value = self._feed(session, code, steps, printed)
                except (monty.MontySyntaxError, monty.MontyRuntimeError) as raised:
                    status, error = _told(raised, limits)
                memory = _peak(worker)
                if steps and status in ("ok", "error"):
                    with contextlib.suppress(monty.MontyRuntimeError):
                        noted = session.feed_run(NOTED)
        except monty.MontyCrashedError as crashed:
            # killed a second after its time was over, which it spent in one operation; or it broke down
            status = "time" if crashed.timed_out else "killed"
            error = said_of(status, limits)
        data, shown = plain(value)
        result = Result(status, self.name, printed.output, value=data, shown=shown, error=error,
                        steps=steps_from(noted, steps), seconds=time.monotonic() - began, memory=memory)
        if status == "killed" or (status == "error" and error is not None and error.type not in FINAL):
            raise NeedsMore(str(error), result, lacking=error is not None and error.type in LACKING)
        return result

    def _feed(self, session: MontySession, code: str, steps: int, printed: Any) -> Any:
        """The program with its lines noted; as it is where that does not parse."""
        import pydantic_monty as monty

        if steps:
            try:
                return session.feed_run(noting(code), print_callback=printed)
            except monty.MontySyntaxError:
                pass
        return session.feed_run(code, print_callback=printed)

    def _workers(self) -> Any:
        """The pool of this process; a forked child makes its own."""
        import pydantic_monty as monty

        with self._lock:
            if self._pool is None or self._owner != os.getpid():
                self._pool = monty.Monty(max_checkouts_per_worker=SESSIONS).__enter__()
                self._owner = os.getpid()
                atexit.register(self._close)
            return self._pool

    def _close(self) -> None:
        with self._lock:
            if self._pool is not None and self._owner == os.getpid():
                self._pool.__exit__(None, None, None)
            self._pool = None


def _bound(worker: int | None, limits: Limits) -> None:
    """A limit of the kernel's behind Monty's own, and the worker's peak of memory set back."""
    if worker is None:
        return
    try:
        import resource
        size = limits.memory * MB + AROUND
        hard = resource.prlimit(worker, resource.RLIMIT_AS)[1]
        resource.prlimit(worker, resource.RLIMIT_AS, (size if hard < 0 else min(size, hard), hard))
    except (ImportError, AttributeError, OSError):  # not Linux, or it is gone: Monty's own limit stands
        return
    with contextlib.suppress(OSError), open(f"/proc/{worker}/clear_refs", "w") as file:
        file.write("5")


def _peak(worker: int | None) -> float | None:
    """Megabytes that the worker held at its highest."""
    with contextlib.suppress(OSError), open(f"/proc/{worker}/status") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return None


def _told(raised: Any, limits: Limits) -> tuple[Status, ProgramError]:
    """Status and error of what Monty raised."""
    import pydantic_monty as monty

    kind, _, message = raised.display("type-msg").partition(": ")
    if kind == "TimeoutError" and "time limit exceeded" in message:
        return "time", said_of("time", limits)
    if kind == "MemoryError":
        # the bound on what is printed is told as one of memory
        status: Status = "output" if message.endswith(f"> {limits.output} bytes") else "memory"
        return status, said_of(status, limits)
    frames = raised.traceback()
    line = frames[-1].line if frames else None
    if isinstance(raised, monty.MontySyntaxError):
        kind = "SyntaxError" if not kind.isidentifier() else kind
    return "error", ProgramError(kind, message[:2000], line)
