"""A process of its own around sandlock: it becomes another user first, and whatever befalls it does not befall ours.

It is started by its path with what to run as JSON; standard streams go straight to the program. It imports nothing of
Trivet. Its exit code is the program's, or 128 and the number of the signal.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import threading
from typing import Any


def main(asked: dict[str, Any]) -> None:
    """Become the user, run, hand on the exit code."""
    sys.path.append(asked["library"])
    import sandlock

    parent = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    if asked["uid"] is not None:
        os.setgroups([])
        os.setresgid(*[asked["uid"]] * 3)
        os.setresuid(*[asked["uid"]] * 3)
        libc.prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: else its own /proc entry, which sandlock writes, is root's
    libc.prctl(1, signal.SIGTERM, 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        sys.exit(1)
    # chroot: every path then goes by way of sandlock, which knows nothing but `seen`. Landlock alone holds what is
    # opened, and lets a file's size, its times and the target of a link be asked
    box = sandlock.Sandbox(
        chroot="/", fs_readable=asked["seen"], fs_denied=asked["hidden"], clean_env=True, cwd="/", no_coredump=True,
        env={"LANG": "C.UTF-8", "OPENBLAS_NUM_THREADS": "1"}, max_processes=asked["processes"])
    process = box.popen(asked["argv"])
    group = process.pid

    def stop(number: int, frame: Any) -> None:
        try:
            os.killpg(group, signal.SIGKILL)
        finally:
            os._exit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    found: list[Any] = []
    waiting = threading.Thread(target=lambda: found.append(process.wait()), daemon=True)
    waiting.start()
    waiting.join()
    # what the program left behind
    with contextlib.suppress(OSError):
        os.killpg(group, signal.SIGKILL)
    result = found[0] if found else None
    code = 1 if result is None else result.exit_code
    if result is not None and result.signal > 0:
        code = 128 + result.signal
    os._exit(code if 0 <= code < 256 else 1)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
