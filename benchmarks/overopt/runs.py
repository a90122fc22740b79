"""Making the runs: several worker processes, each on a core of its own, take them from one list.

A run is a folder. A worker holds a lock while it makes one, and the lock goes with the process: whoever is killed at
any moment, `kill -9` included, loses that one run at most, and the next start goes on.
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from overopt.plan import RunSpec, plan, settings
from overopt.world import World
from trivet.artifacts import read_json, write_json
from trivet.errors import TrivetError

Job = Callable[[RunSpec], None]


def run_folder(world: World, spec: RunSpec) -> Path:
    return world.folder / "runs" / spec.name


def is_made(world: World, spec: RunSpec) -> bool:
    """Whether the run is finished, or is known to have burst."""
    return (run_folder(world, spec) / "summary.json").exists() or burst(world, spec) is not None


def has_answers(world: World, spec: RunSpec) -> bool:
    """Whether the run is finished, and gold can look at it."""
    return (run_folder(world, spec) / "summary.json").exists()


def burst(world: World, spec: RunSpec) -> str | None:
    """Why the run ended before its time, where training diverged: such a run is a result, too."""
    file = world.folder / "burst" / f"{spec.name}.json"
    return str(read_json(file)["error"]) if file.exists() else None


def make(world: World, spec: RunSpec) -> None:
    """One run through Trivet's own stage; its checkpoints, of no use any more, are let go."""
    from trivet.stages import STAGES, run_stage

    began = time.monotonic()
    try:
        run_stage(STAGES["ppo"], settings(spec, world))
    except TrivetError as error:
        if error.field != "optimizer.lr":  # what `ppo` names where a figure is no longer finite
            raise
        write_json(world.folder / "burst" / f"{spec.name}.json", {"error": str(error)})
        return
    shutil.rmtree(run_folder(world, spec) / "checkpoints", ignore_errors=True)
    write_json(world.folder / "seconds" / f"{spec.name}.json", {"seconds": time.monotonic() - began})
    gc.collect()


@contextmanager
def claimed(world: World, name: str) -> Iterator[bool]:
    """Whether this process alone now works on `name`."""
    file = world.folder / "claims" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def work_off(world: World, specs: Sequence[RunSpec], done: Callable[[RunSpec], bool], job: Job) -> None:
    """A worker's life: the next thing that is not done and nobody has, until there is none."""
    for spec in specs:
        if done(spec):
            continue
        with claimed(world, spec.name) as mine:
            if mine and not done(spec):
                job(spec)


def pin(core: int | None) -> None:
    """Bind this process to a core: two of torch's processes that share cores slow each other many times over."""
    if core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    os.environ["OMP_NUM_THREADS"] = "1"


def cores() -> list[int]:
    """The cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def workers(command: Sequence[str], world: World, count: int, what: str, left: Callable[[], int]) -> None:
    """Start `count` workers and say now and then how far they are, until they end.

    command: what a worker is started by; its core is added. left: how many jobs are not done.
    Raises TrivetError where one ended badly, with the end of its log.
    """
    logs = world.folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    places = cores() if world.scale.device == "cpu" else [None] * count
    total, began = left(), time.monotonic()
    if total == 0:
        return
    started = []
    try:
        for k in range(min(count, total)):
            core = places[k % len(places)]
            log = (logs / f"{what}-{k}.log").open("a")
            extra = [] if core is None else ["--core", str(core)]
            started.append((k, log, subprocess.Popen(
                [sys.executable, *command, *extra], stdout=log, stderr=subprocess.STDOUT,
                env=os.environ | ({"OMP_NUM_THREADS": "1"} if core is not None else {}))))
        last = total
        while any(process.poll() is None for _, _, process in started):
            time.sleep(1.0)
            now = left()
            if now < last:
                last = now
                each = (time.monotonic() - began) / (total - now)
                print(f"{what}: {total - now} of {total} done, about {_clock(each * now)} left", flush=True)
    finally:
        for _, log, process in started:
            if process.poll() is None:
                process.terminate()
                process.wait()
            log.close()
    for k, log, process in started:
        if process.returncode != 0:
            tail = Path(log.name).read_text(errors="replace").splitlines()[-15:]
            raise TrivetError(f"worker {k} of {what} ended with code {process.returncode}:\n" + "\n".join(tail),
                              file=log.name, mend="see its log; the same command goes on where it was")


def _clock(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"


def keep_plan(world: World) -> None:
    """Write the plan, or see that the folder holds this very one. Raises TrivetError for another's."""
    file = world.folder / "plan.json"
    mine: dict[str, Any] = {"scale": asdict(world.scale), "seed": world.seed,
                            "runs": [s.to_dict() for s in plan(world.scale, world.seed)]}
    if file.exists():
        if read_json(file) != json.loads(json.dumps(mine)):
            raise TrivetError("this folder holds a study of another plan", file=file,
                              mend="choose another folder with --folder, or delete this one")
        return
    write_json(file, mine)
