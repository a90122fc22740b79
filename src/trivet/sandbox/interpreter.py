"""Which CPython runs a program inside bubblewrap and sandlock, and which files of this machine it needs to see."""

from __future__ import annotations

import functools
import glob
import importlib.util
import os
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from trivet.errors import TrivetError


@dataclass(frozen=True)
class Interpreter:
    """A Python and what it reads."""

    program: str
    """The executable, links resolved."""
    path: tuple[str, ...]
    """sys.path: the standard library alone."""
    files: tuple[str, ...]
    """Files and folders to be seen, at these very paths."""
    hidden: tuple[str, ...]
    """Folders among them that hold installed packages."""
    version: tuple[int, int]


_ASK = ("import sys, sysconfig, json; p = sysconfig.get_paths(); print(json.dumps([sys.executable, p['stdlib'], "
        "p['platstdlib'], sysconfig.get_config_var('MULTIARCH'), sys.base_prefix, sys.version_info[:2]]))")


@functools.cache
def own() -> Interpreter:
    """The Python that this process runs on, without its virtual environment."""
    program = os.path.realpath(sys.executable)
    return _described(program, sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix}),
                      sysconfig.get_path("platstdlib", vars={"platbase": sys.base_prefix}),
                      sysconfig.get_config_var("MULTIARCH"), sys.base_prefix, sys.version_info[:2])


@functools.cache
def readable_by_all() -> Interpreter | None:
    """A Python that any user can read: this process's own or the system's; None where there is none."""
    if not _unreadable(own()):
        return own()
    program = os.path.realpath("/usr/bin/python3")
    if not os.access(program, os.X_OK):
        return None
    import json

    told = subprocess.run([program, "-I", "-S", "-c", _ASK], capture_output=True, text=True, timeout=30, check=True)
    _, stdlib, platform_stdlib, multiarch, prefix, version = json.loads(told.stdout)
    if tuple(version) < (3, 9):
        return None
    found = _described(program, stdlib, platform_stdlib, multiarch, prefix, (version[0], version[1]))
    return None if _unreadable(found) else found


def _described(program: str, stdlib: str, platform_stdlib: str, multiarch: str | None, prefix: str,
               version: tuple[int, int]) -> Interpreter:
    folders = [stdlib, platform_stdlib]
    libraries = [f"/usr/lib/{multiarch}", f"/lib/{multiarch}"] if multiarch else []
    libraries += ["/usr/lib64", "/lib64"]
    if not multiarch and not any(map(os.path.isdir, libraries)):
        libraries = ["/usr/lib", "/lib"]
    libraries += glob.glob(f"{prefix}/lib/libpython*.so*")
    if os.path.exists("/etc/ld.so.cache"):
        libraries.append("/etc/ld.so.cache")
    files = dict.fromkeys([program, *folders, *(f for f in libraries if os.path.exists(f))])
    hidden = tuple(h for f in dict.fromkeys(folders) for n in ("site-packages", "dist-packages")
                   if os.path.isdir(h := f"{f}/{n}"))
    path = tuple(dict.fromkeys([*folders, f"{platform_stdlib}/lib-dynload"]))
    return Interpreter(program, path, tuple(files), hidden, version)


def _unreadable(interpreter: Interpreter) -> list[str]:
    """Its files that another user can't read."""
    return [f for f in interpreter.files if not _open_to_all(Path(f))]


def _open_to_all(path: Path) -> bool:
    path = path.resolve()
    return all(p.stat().st_mode & 0o001 for p in path.parents) and bool(path.stat().st_mode & 0o004)


def packages(names: tuple[str, ...], interpreter: Interpreter) -> tuple[dict[str, str], list[str]]:
    """(name to the file that is imported, folders that must be seen) of installed packages; nothing is imported here.

    Raises TrivetError for one that is not installed, or that belongs to another version of Python.
    """
    files: dict[str, str] = {}
    folders: list[str] = []
    for name in names:
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
        if spec is None or spec.origin is None or not os.path.isfile(spec.origin):
            raise TrivetError(f"the package {name!r} is not installed, so that no program can import it",
                              field="packages", expected="names as they are imported, such as sympy",
                              mend="install it where Trivet is, or leave it out")
        if interpreter.version != sys.version_info[:2]:
            other = ".".join(map(str, interpreter.version))
            raise TrivetError(f"{interpreter.program} is Python {other}, and {name!r} is installed for "
                              f"{sys.version_info.major}.{sys.version_info.minor}", field="packages",
                              mend="install bubblewrap, which can show a program this very Python, or leave it out")
        files[name] = spec.origin
        folder = os.path.dirname(spec.origin) if os.path.basename(spec.origin) == "__init__.py" else spec.origin
        folders += [f for f in (folder, f"{folder}.libs") if os.path.exists(f)]
    return files, folders
