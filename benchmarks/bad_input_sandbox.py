"""Malformed input to `trivet sandbox`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def cases(Case: Callable[..., Any]) -> list[Any]:
    """The cases, made by the benchmark's own class."""
    return [
        Case("sandbox", "unknown word", lambda p: ["ruun"], "sandbox --help"),
        Case("sandbox", "no file", lambda p: ["run", "nowhere.py"], "there is no such file"),
        Case("sandbox", "a folder as a program", lambda p: ["run", p.make("x")], "it can't be read"),
        Case("sandbox", "a program that is no text", lambda p: ["run", p.raw("x.py", b"x = '\xff'")], "not UTF-8 text"),
        Case("sandbox", "no time", lambda p: ["run", p.text("x.py", "1"), "--limits.seconds", "0"], "limits.seconds"),
        Case("sandbox", "memory that Python itself needs",
             lambda p: ["run", p.text("x.py", "1"), "--limits.memory", "1"], "limits.memory"),
        Case("sandbox", "seconds that are no number",
             lambda p: ["run", p.text("x.py", "1"), "--limits.seconds", "nan"], "limits.seconds"),
        Case("sandbox", "no tier", lambda p: ["run", "--config", p.text("s.yaml", "file: x.py\ntiers: []\n")], "tiers"),
        Case("sandbox", "a tier that there is not",
             lambda p: ["run", "--config", p.text("s.yaml", "file: x.py\ntiers: [docker]\n")], "tiers"),
        Case("sandbox", "an unknown setting in YAML",
             lambda p: ["run", "--config", p.text("s.yaml", "file: x.py\nlimits: {gpu: 1}\n")], "gpu"),
        Case("sandbox", "a package that is not installed",
             lambda p: ["run", p.text("x.py", "import nosuch"), "--limits.packages", "nosuch"], "is not installed"),
    ]
