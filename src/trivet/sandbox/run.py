"""One function: a program goes to the first tier that works here, and on to the next where Monty knows too little."""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from collections.abc import Sequence

from trivet.errors import TrivetError
from trivet.sandbox.base import MAX_CODE, Limits, NeedsMore, ProgramError, Result, Tier
from trivet.sandbox.bubblewrap import Bubblewrap
from trivet.sandbox.monty import Monty
from trivet.sandbox.sandlock import Sandlock

TIERS: dict[str, Tier] = {tier.name: tier for tier in (Monty(), Bubblewrap(), Sandlock())}
"""In the order in which they are asked."""
_trying = threading.Lock()


def run_program(code: str, limits: Limits | None = None, *, steps: int = 0,
                tiers: Sequence[str] = tuple(TIERS)) -> Result:
    """Run a program where it can do no harm.

    code:   Python. The value of its last line, where that is an expression, is the result's
    limits: what it may use
    steps:  of so many lines the values that they wrote are kept, in the order in which they ran
    tiers:  which may be used, in this order

    Safe to call from several threads. What goes wrong inside the program is in the result, never raised; the time it
    takes is at most the limits' in each tier, and a second. Raises TrivetError where none of the tiers works here, or
    `limits.packages` names one that is not installed.
    """
    limits = limits or Limits()
    if unread := _unreadable(code):
        return Result("refused", "", error=unread)
    passed_on: dict[str, str] = {}
    kept: NeedsMore | None = None
    for name in tiers:
        why = availability(name)[name]
        if why is not None:
            passed_on[name] = why
            continue
        try:
            return _with(TIERS[name].run(code, limits, steps), passed_on)
        except NeedsMore as needs:
            passed_on[name], kept = str(needs), needs
        except OSError as fault:
            passed_on[name] = str(fault)
    if kept is None:
        raise _refused(passed_on)
    # only Monty got to run it: where it lacks something for a fact, the program's error is none of the program's
    result = _with(kept.result, passed_on)
    if not kept.lacking or result.error is None:
        return result
    others = "; ".join(f"{name}: {why}" for name, why in passed_on.items() if name != result.tier)
    error = ProgramError(result.error.type, f"{result.error.message} (Monty knows a part of Python, and no tier that "
                         f"knows more works here{': ' + others if others else ''})", result.error.line)
    return Result("refused", result.tier, result.stdout, error=error, seconds=result.seconds, passed_on=passed_on)


async def run_program_async(code: str, limits: Limits | None = None, *, steps: int = 0,
                            tiers: Sequence[str] = tuple(TIERS)) -> Result:
    """`run_program` in a thread: the event loop goes on. A task that is cancelled leaves its program to its limits."""
    return await asyncio.to_thread(run_program, code, limits, steps=steps, tiers=tiers)


def availability(*names: str) -> dict[str, str | None]:
    """Tier to why it can't be used here; None where it can, which is found out by running a program in it, once."""
    unknown = [name for name in names if name not in TIERS]
    if unknown:
        raise TrivetError(f"there is no tier {unknown[0]!r}", field="tiers", expected=" | ".join(TIERS),
                          mend="name one of these")
    with _trying:
        return {name: _tried(name, os.geteuid()) for name in names or TIERS}


@functools.cache
def _tried(name: str, user: int) -> str | None:
    tier = TIERS[name]
    fault = tier.missing()
    if fault is not None:
        return fault
    try:
        result = tier.run("print('out')\n6 * 7", Limits(seconds=20), 0)
    except (OSError, NeedsMore) as error:
        return f"it does not work here: {error}"
    if (result.value, result.stdout) != (42, "out\n"):
        return f"it does not work here: 6 * 7 gave {result.value!r} ({result.error})"
    return None


def _with(result: Result, passed_on: dict[str, str]) -> Result:
    import dataclasses

    return dataclasses.replace(result, passed_on=passed_on)


def _unreadable(code: str) -> ProgramError | None:
    if len(code) > MAX_CODE:
        return ProgramError("ValueError", f"a program of {len(code):,} characters; at most {MAX_CODE:,} are read")
    try:
        code.encode()
    except UnicodeEncodeError as error:
        return ProgramError("SyntaxError", f"the program is not UTF-8 text ({error.reason})")
    return None


def _refused(reasons: dict[str, str]) -> TrivetError:
    told = "; ".join(f"{name}: {why}" for name, why in reasons.items()) or "none was named"
    return TrivetError(f"no sandbox works on this machine, so the program is not run ({told})",
                       mend="pip install 'trivet[sandbox]' and apt-get install bubblewrap; see `trivet sandbox check`")
