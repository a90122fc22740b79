"""One layout of checkpoints for every training stage, and the only way to find the newest whole one.

    checkpoints/step-00000025/   written as .step-00000025.tmp, fsynced, renamed
        tensors/                 weights and the optimizer's state, a file from each rank (training/tensors.py)
        …                        the stage's other files, from rank 0
        MANIFEST.json            sha256 of every file; written last: a folder without it is a torn one
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trivet.artifacts import fsync_folder, read_json, sha256_file, write_error, write_json
from trivet.errors import TrivetError
from trivet.training.ranks import here

MANIFEST = "MANIFEST.json"
_NAME = re.compile(r"step-(\d{8})")


def place(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step stands, or would."""
    return folder / f"step-{step:08d}"


def step_of(folder: Path) -> int:
    """The step that a checkpoint's folder is named after."""
    match = _NAME.fullmatch(folder.name)
    if match is None:
        raise ValueError(f"{folder} is no checkpoint folder")
    return int(match.group(1))


@contextlib.contextmanager
def saving(folder: Path, step: int, *, keep: int, facts: dict[str, Any]) -> Iterator[Path]:
    """A folder to write a checkpoint into; on leaving it is sealed, renamed, and old ones are deleted.

    Every rank comes by and writes into the same folder, which must be on a file system that they share; rank 0
    makes it, and seals it once all have written.
    facts: small JSON values kept in the manifest (offset of metrics.jsonl, threads, …). `needs`: steps of other
    checkpoints, which stay beyond `keep` for as long as this one does.
    """
    ranks = here()
    temporary, final = folder / f".step-{step:08d}.tmp", place(folder, step)
    try:
        if ranks.main:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        ranks.barrier()
        if not temporary.is_dir():
            raise TrivetError(f"rank {ranks.rank} does not see the folder that rank 0 has made", file=temporary,
                              mend="put the run folder (--out) on a file system that all machines share")
        yield temporary
        ranks.barrier()
        if ranks.main:
            seal(temporary, {"step": step, "ranks": ranks.world, **facts})
            if final.exists():
                shutil.rmtree(final)
            os.replace(temporary, final)
            fsync_folder(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise write_error(error, final) from None
    if ranks.main:
        _rotate(folder, keep)


def _rotate(folder: Path, keep: int) -> None:
    """Delete all checkpoints but the newest `keep` and those that these need."""
    known = complete(folder)
    needed = {step for checkpoint in known[-keep:] for step in facts(checkpoint).get("needs", ())}
    for old in known[:-keep]:
        if step_of(old) not in needed:
            shutil.rmtree(old)


def seal(folder: Path, facts: dict[str, Any]) -> None:
    """fsync every file of a folder and write its manifest, last."""
    hashes = {}
    for file in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST):
        with file.open("rb") as f:
            os.fsync(f.fileno())
        hashes[str(file.relative_to(folder))] = sha256_file(file)
    write_json(folder / MANIFEST, {"schema_version": 1, "facts": facts, "files": hashes})


def is_complete(folder: Path) -> bool:
    """Whether every file that the manifest names is there, byte for byte."""
    manifest = folder / MANIFEST
    try:
        files = read_json(manifest)["files"]
    except (TrivetError, KeyError, TypeError):
        return False
    return all((folder / n).is_file() and sha256_file(folder / n) == h for n, h in files.items())


def complete(folder: Path) -> list[Path]:
    """All sealed checkpoints, oldest first, by presence of their manifest (hashes are checked on use)."""
    if not folder.is_dir():
        return []
    found = [p for p in folder.iterdir() if _NAME.fullmatch(p.name) and (p / MANIFEST).is_file()]
    return sorted(found, key=step_of)


def latest(folder: Path) -> Path | None:
    """The newest checkpoint whose files are all whole; a torn or damaged one is passed over."""
    return next((c for c in reversed(complete(folder)) if is_complete(c)), None)


def begin(folder: Path) -> Path | None:
    """The checkpoint to go on from, as rank 0 finds it, on every rank; what interrupted writes left is deleted."""
    ranks = here()
    if ranks.main:
        tidy(folder)
    return ranks.broadcast(latest(folder) if ranks.main else None)


def facts(checkpoint: Path) -> dict[str, Any]:
    """The facts that the checkpoint was sealed with."""
    return dict(read_json(checkpoint / MANIFEST)["facts"])


def tidy(folder: Path) -> None:
    """Delete what interrupted writes left behind."""
    if folder.is_dir():
        for torn in folder.glob(".step-*.tmp"):
            shutil.rmtree(torn, ignore_errors=True)
