"""bubblewrap: a process in namespaces of its own, in which there is nothing but a Python and its standard library.

No process, network, host file, /proc or /dev is there; the root is read-only. Run by root the program becomes a user
that nobody else is; run by anyone else it is in a user namespace. https://github.com/containers/bubblewrap
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from trivet.sandbox import confined
from trivet.sandbox.base import Limits, Result
from trivet.sandbox.interpreter import own, packages


class Bubblewrap:
    """The tier for programs that want all of Python."""

    name = "bubblewrap"

    def missing(self) -> str | None:
        """What it needs and this machine lacks."""
        if fault := confined.kernel_missing():
            return fault
        return None if shutil.which("bwrap") else "bwrap is not installed: apt-get install bubblewrap"

    def run(self, code: str, limits: Limits, steps: int) -> Result:
        """Run a program. Raises OSError where bwrap itself fails."""
        python = own()
        files, folders = packages(limits.packages, python)
        root = os.geteuid() == 0
        bwrap = shutil.which("bwrap")
        if bwrap is None:
            raise FileNotFoundError("bwrap is not installed")
        rights = ["--cap-drop", "ALL"]
        if root:
            # to become another user, which takes all rights away
            rights += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
        else:
            rights += ["--unshare-user"]
        argv = [bwrap, "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try",
                *rights, "--die-with-parent", "--new-session", "--clearenv", "--setenv", "LANG", "C.UTF-8",
                "--setenv", "OPENBLAS_NUM_THREADS", "1", "--hostname", "program",
                *_links(python.files), *_shown(python.files), *(a for h in python.hidden for a in ("--tmpfs", h)),
                *_shown(folders), *(a for h in python.hidden for a in ("--remount-ro", h)),
                "--remount-ro", "/", "--chdir", "/", "--", python.program, "-I", "-S", "-c", confined.source()]
        # in its own user namespace the init process counts as well
        processes = limits.processes if root or limits.processes == 1 else limits.processes + 1
        return confined.run(self.name, confined.Command(
            argv, confined.fresh_uid() if root else None, python.path, files, processes), code, limits, steps)


def _shown(paths: Sequence[str]) -> Iterator[str]:
    """Arguments that show files at their own paths, read-only."""
    places = list(dict.fromkeys(map(_behind_link, paths)))
    # bwrap makes the folders above a file for their owner alone
    for folder in sorted({str(p) for path in places for p in Path(path).parents if str(p) != "/"}):
        if not any(Path(folder).is_relative_to(p) for p in places):
            yield from ("--perms", "0755", "--dir", folder)
    for path in places:
        yield from ("--ro-bind", path, path)


def _links(paths: Sequence[str]) -> Iterator[str]:
    """Arguments for links such as /lib to usr/lib, by which programs name their libraries."""
    for top in sorted({"/" + path.split("/")[1] for path in paths}):
        if os.path.islink(top):
            yield from ("--symlink", os.readlink(top), top)


def _behind_link(path: str) -> str:
    return os.path.realpath(path) if os.path.islink("/" + path.split("/")[1]) else path
