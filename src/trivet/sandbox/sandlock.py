"""sandlock: Landlock and seccomp around a process, without namespaces, so that it works inside most containers.

The process sees the host's process numbers and clock, and no file but a Python and its standard library. Run by root it
becomes a user that nobody else is, which must be able to read that Python; run by anyone else it stays that user, and
what reaches other processes of theirs is taken away by Landlock's scopes and by our filter.
https://github.com/multikernel/sandlock
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

from trivet.sandbox import confined
from trivet.sandbox.base import Limits, Result
from trivet.sandbox.interpreter import Interpreter, own, packages, readable_by_all

SUPERVISOR = Path(__file__).with_name("sandlock_supervisor.py")


class Sandlock:
    """The tier for machines without bubblewrap or its namespaces."""

    name = "sandlock"

    def missing(self) -> str | None:
        """What it needs and this machine lacks."""
        if fault := confined.kernel_missing():
            return fault
        if importlib.util.find_spec("sandlock") is None:
            return "sandlock is not installed: pip install 'trivet[sandbox]'"
        if self._python() is None:
            return ("a program run by root becomes another user, who can't read this Python "
                    f"({own().program}); there is none at /usr/bin/python3 either: apt-get install python3")
        return None

    def run(self, code: str, limits: Limits, steps: int) -> Result:
        """Run a program. Raises OSError where sandlock itself fails."""
        python = self._python()
        if python is None:
            raise FileNotFoundError("there is no Python that another user can read")
        files, folders = packages(limits.packages, python)
        seen = list(dict.fromkeys(os.path.realpath(f) for f in [*python.files, *folders]))
        found = importlib.util.find_spec("sandlock")
        if found is None or found.origin is None:
            raise FileNotFoundError("sandlock is not installed")
        asked = {"library": str(Path(found.origin).parents[1]), "seen": seen,
                 "uid": confined.fresh_uid() if os.geteuid() == 0 else None,
                 "hidden": [h for h in python.hidden if not any(f.startswith(h) for f in folders)],
                 "processes": limits.processes,
                 "argv": [python.program, "-I", "-S", "-c", confined.source()]}
        argv = [sys.executable, "-I", str(SUPERVISOR), json.dumps(asked)]
        # RLIMIT_NPROC counts all of a user's processes, the supervisor's among them: only "none at all" is sure
        return confined.run(self.name, confined.Command(
            argv, None, python.path, files, 1 if limits.processes == 1 else None), code, limits, steps)

    def _python(self) -> Interpreter | None:
        return readable_by_all() if os.geteuid() == 0 else own()
