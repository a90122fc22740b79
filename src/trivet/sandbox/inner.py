"""What runs inside bubblewrap and sandlock: it gives up what is left of its rights, then runs the program.

Its text is handed to `python -I -S -c`, so that no file of ours must be seen in there: nothing but the standard library
is imported. The request is one line of JSON on standard input. The program's output leaves by standard output; what is
said of it (a line of JSON each) by what was standard error. A program could write there, too: what the caller reads is
checked for its form and its size, and says nothing but what became of this program.
"""

from __future__ import annotations

import json
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself is slow to import
    from collections.abc import Callable
    from typing import Any

LONGEST = 10_000
"""Characters of a value's text."""
WRITTEN = 14_000
"""Bits of an integer that Python writes in digits; of a longer one only its length is told."""


def plain(value: Any, budget: int = 20_000, depth: int = 12) -> tuple[Any, str]:
    """(data, text) of a value: numbers, texts, lists and dicts as they are, anything else as its text.

    budget: how many elements are looked at, so that a value that is small in memory and endless to write does no harm.
    """
    left = [budget]

    def data(item: Any, level: int) -> Any:
        left[0] -= 1
        if item is None or item is True or item is False:
            return item
        kind = type(item)
        if kind is int:
            return item if item.bit_length() <= WRITTEN else f"int of {item.bit_length()} bits"
        if kind is float:
            return item if item - item == 0 else str(item)
        if kind is str:
            left[0] -= len(item) // 100
            return item[:LONGEST].encode("utf-8", "replace").decode()
        if left[0] < 0 or level == 0:
            return "…"
        if kind in (list, tuple, set, frozenset):
            if len(item) > left[0]:
                return f"{kind.__name__} of {len(item)}"
            return [data(i, level - 1) for i in item]
        if kind is dict:
            if len(item) > left[0]:
                return f"dict of {len(item)}"
            return {name(k): data(v, level - 1) for k, v in item.items()}
        return told(item)

    def name(key: Any) -> str:
        return key[:LONGEST].encode("utf-8", "replace").decode() if type(key) is str else str(data(key, 1))

    def told(item: Any) -> str:
        try:
            return str(item)[:LONGEST].encode("utf-8", "replace").decode()
        except Exception:
            return f"({type(item).__name__})"

    kept = data(value, depth)
    text = kept if isinstance(kept, str) else repr(kept)
    return kept, "" if value is None else text[:LONGEST]


def main() -> None:
    """Take the request, give up rights, run the program, say what became of it."""
    import os

    request = json.loads(sys.stdin.buffer.readline())
    # nothing that the tier left open comes along
    os.closerange(3, 4096)
    reply = os.fdopen(os.dup(2), "wb", buffering=0)

    def say(**row: Any) -> None:
        reply.write(json.dumps(row).encode() + b"\n")

    fault = confine(request)
    if fault:
        say(kind="unsafe", why=fault)
        os._exit(3)
    os.dup2(1, 2)
    os.close(0)
    say(kind="ready")
    run(request, say)
    # not by way of atexit and threads that the program left behind
    os._exit(0)


def confine(request: dict[str, Any]) -> str | None:
    """Hold this process by limits, another user and a filter of calls; the reason where one of them does not hold."""
    import ctypes
    import os
    import resource

    libc = ctypes.CDLL(None, use_errno=True)
    for name, value in request["limits"].items():
        number = getattr(resource, name, None)
        if number is not None:
            hard = resource.getrlimit(number)[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            # a second between the signal that can be caught and the one that can't
            resource.setrlimit(number, (value, value + 1 if name == "RLIMIT_CPU" and hard < 0 else value))
    if request["uid"] is not None:
        os.setgroups([])
        os.setresgid(request["uid"], request["uid"], request["uid"])
        os.setresuid(request["uid"], request["uid"], request["uid"])
    if os.getuid() == 0 or os.geteuid() == 0:
        return "it would run as root"
    code = bytes.fromhex(request["filter"])
    held = ctypes.create_string_buffer(code, len(code))

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]

    whole = Program(len(code) // 8, ctypes.addressof(held))
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.byref(whole), 0, 0):  # no_new_privs, seccomp filter
        return f"the filter of system calls is not taken: {os.strerror(ctypes.get_errno())}"
    try:
        os.setsid()
    except PermissionError:
        return None
    return "the filter of system calls does not hold"


def run(request: dict[str, Any], say: Callable[..., None]) -> None:
    """Run the program and say its end: kind `end` with status, value, shown, error, steps, memory."""
    import ast
    import io
    import linecache
    import resource
    import sys as system

    system.path[:] = request["path"]
    find_packages(request["packages"])
    # lines leave as they are written: what is ended keeps what it said
    raw = open(1, "wb", closefd=False)  # noqa: SIM115
    system.stdout = io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", line_buffering=True)
    system.stderr = io.StringIO()
    system.stdin = io.StringIO()
    system.argv = ["program.py"]
    names = {"__name__": "__main__", "__builtins__": __builtins__}
    end: dict[str, Any] = {"status": "ok", "value": None, "shown": "", "error": None}
    try:
        if request["prelude"]:
            exec(compile(request["prelude"], "<prelude>", "exec"), names)
        try:
            tree = ast.parse(request["noting"], "<program>")
        except SyntaxError:
            tree = ast.parse(request["code"], "<program>")
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        linecache.cache["<program>"] = (len(request["code"]), None, request["code"].splitlines(True), "<program>")
        exec(compile(tree, "<program>", "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), "<program>", "eval"), names)
            end["value"], end["shown"] = plain(value)
    except SystemExit as stop:
        if stop.code not in (None, 0):
            end |= {"status": "error", "error": told_error(stop)}
    except MemoryError as error:
        end |= {"status": "memory", "error": told_error(error)}
    except BaseException as error:
        end |= {"status": "error", "error": told_error(error)}
    try:
        system.stdout.flush()
    except Exception as error:
        end |= {"status": "error", "error": told_error(error)}
    noted = names.get(request["noted"])
    end["steps"] = plain(noted)[0] if request["prelude"] else []
    end["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    say(kind="end", **end)


def find_packages(folders: dict[str, str]) -> None:
    """Let packages be imported from folders whose parents can't be listed. folders: name to its file."""
    import importlib.util
    import os

    class Finder:
        @staticmethod
        def find_spec(name: str, path: Any = None, target: Any = None) -> Any:
            file = folders.get(name)
            inside = [os.path.dirname(file)] if file and os.path.basename(file) == "__init__.py" else None
            if file is None:
                return None
            return importlib.util.spec_from_file_location(name, file, submodule_search_locations=inside)

    sys.meta_path.append(Finder)


def told_error(error: BaseException) -> dict[str, Any]:
    """type, message and the innermost line of the program's own."""
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<program>":
            line = trace.tb_lineno
        trace = trace.tb_next
    if isinstance(error, SyntaxError) and line is None:
        line = error.lineno
        message = error.msg
    else:
        try:
            message = str(error)
        except Exception:
            message = ""
    return {"type": type(error).__name__, "message": str(message)[:2000].encode("utf-8", "replace").decode(),
            "line": line}


if __name__ == "__main__":
    main()
