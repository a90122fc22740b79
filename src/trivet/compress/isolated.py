"""Work in a process of its own: nothing of it stays, its memory is its own, and its end is no one else's. No torch.

A job goes there as a JSON file and comes back as one. What a person can mend comes back as the TrivetError it was;
a process that died (memory, a fault of a library) as `Died`.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from trivet.artifacts import read_json, write_json
from trivet.errors import TrivetError

RESULT = ".result.json"


class Died(Exception):
    """A process ended without a result. Its words say how."""


def isolated(module: str, job: dict[str, Any], file: Path) -> dict[str, Any]:
    """Run `python -m MODULE JOB RESULT` and give back what it wrote.

    file: where the job is written; what it wrote before is removed first. Raises TrivetError as the process raised
    it, and Died where it left nothing.
    """
    result = file.with_suffix(RESULT)
    result.unlink(missing_ok=True)
    write_json(file, job)
    # what it prints stands where ours does; the interpreter and its paths are ours
    done = subprocess.run([sys.executable, "-m", module, str(file), str(result)], check=False,
                          env=_environment())
    if not result.is_file():
        raise Died(_ended(done.returncode))
    found = read_json(result)
    if "error" in found:
        raise TrivetError(**found["error"])
    return found


def _environment() -> dict[str, str]:
    """Our own, in which the process finds the modules that we found."""
    import os

    return os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


def _ended(code: int) -> str:
    if code >= 0:
        return f"its process ended with exit code {code}"
    name = signal.Signals(-code).name if -code in {s.value for s in signal.Signals} else str(-code)
    why = ": the machine's memory may not suffice" if name == "SIGKILL" else ""
    return f"its process was ended by {name}{why}"


def answer(arguments: list[str], work: Any) -> None:
    """The other side: read the job, do it, write what it gives or the TrivetError it raises. `work`: job to dict."""
    job_file, result = (Path(a) for a in arguments)
    job: dict[str, Any] = json.loads(job_file.read_text(encoding="utf-8"))
    try:
        found = work(job)
    except TrivetError as error:
        said = error.said
        write_json(result, {"error": said | {"file": None if said["file"] is None else str(said["file"])}})
        return
    write_json(result, found)
