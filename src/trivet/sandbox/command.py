"""`trivet sandbox run FILE` and `trivet sandbox check`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from trivet.errors import TrivetError
from trivet.sandbox.base import Limits, Result
from trivet.sandbox.config import SandboxRunConfig
from trivet.sandbox.run import TIERS, availability, run_program

USAGE = """\
usage: trivet sandbox run FILE.py [--steps 50] [--limits.seconds 5] [--limits.memory 256] [--json-output]
                                       run a program where it can do no harm; exit code 1 where it fails
       trivet sandbox check            which tiers work on this machine, and why the others don't

The tiers are monty, bubblewrap and sandlock, asked in this order; where none works nothing is run. `trivet sandbox run
--help` shows every setting; docs/guides/sandbox.md says what holds a program and what was tried against it.
"""
Parse = Callable[[type[Any], list[str], str, str], Any]


def sandbox_command(arguments: list[str], parse: Parse) -> None:
    """Run a `sandbox` command; prints its answer.

    parse: the command line's own reader of configurations (cli.parse). Raises TrivetError; SystemExit(1) where the
    program fails, or no tier works.
    """
    match arguments:
        case [] | ["-h"] | ["--help"]:
            print(USAGE, end="")
        case ["run", *rest]:
            rest = ["--file", *rest] if rest and not rest[0].startswith("-") else rest
            config = parse(SandboxRunConfig, rest, "sandbox run", "run a program where it can do no harm")
            result = run_file(config)
            print(json.dumps(result.as_dict()) if config.json_output else told(result))
            if not result.ok:
                raise SystemExit(1)
        case ["check"]:
            lines, works = checked()
            print("\n".join(lines))
            if not works:
                raise SystemExit(1)
        case _:
            raise TrivetError(f"`trivet sandbox {' '.join(arguments)}` is not understood",
                              mend="see `trivet sandbox --help`")


def run_file(config: SandboxRunConfig) -> Result:
    """Run the program in a file. Raises TrivetError where it can't be read, or no tier works."""
    try:
        code = config.file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise TrivetError("there is no such file", file=config.file, mend="name a file with a Python program") from None
    except UnicodeDecodeError as error:
        raise TrivetError(f"not UTF-8 text ({error.reason} at byte {error.start})", file=config.file,
                          expected="a Python program", mend="save it as UTF-8") from None
    except OSError as error:
        raise TrivetError(f"it can't be read ({error.strerror})", file=config.file,
                          mend="name a file with a Python program") from None
    return run_program(code, config.limits, steps=config.steps, tiers=config.tiers)


def told(result: Result) -> str:
    """A result for people."""
    lines = [result.stdout.rstrip("\n")] if result.stdout else []
    lines += [f"{f'line {s.line}':>9}  {', '.join(f'{n} = {v}' for n, v in s.values.items())}" for s in result.steps]
    if result.shown:
        lines.append(f"= {result.shown}")
    if result.error is not None:
        lines.append(f"{result.status}: {result.error}")
    memory = "" if result.memory is None else f", {result.memory:.0f} MB"
    lines.append(f"({result.tier or 'no tier'}, {result.seconds * 1000:.1f} ms{memory})")
    lines += [f"({name} passed it on: {why})" for name, why in result.passed_on.items()]
    return "\n".join(lines)


def checked() -> tuple[list[str], bool]:
    """Lines about each tier, and whether any works."""
    found = availability()
    lines = []
    for name, why in found.items():
        if why is None:
            began = time.perf_counter()
            run_program("6 * 7", Limits(seconds=20), tiers=[name])
            lines.append(f"{name:<11} works ({(time.perf_counter() - began) * 1000:.1f} ms a program)")
        else:
            lines.append(f"{name:<11} no: {why}")
    works = [name for name in TIERS if found[name] is None]
    if works == ["monty"]:
        lines.append("only Monty works: programs that want more of Python are refused")
    elif not works:
        lines.append("none works: no program is run")
    return lines, bool(works)
