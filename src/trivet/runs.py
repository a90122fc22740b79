"""A stage's folder, and how a stage is started, skipped, resumed and finished.

    runs/RUN/NAME/config.yaml     as resolved
                  metrics.jsonl   one line a step; cut back to the checkpoint on resume
                  timing.jsonl    seconds by phase; outside the comparison of two runs
                  summary.json    written last: its presence says that the stage is finished
                  checkpoints/    step-N/ with MANIFEST.json
    runs/RUN/ledger.jsonl         what each stage cost
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from trivet import ledger
from trivet.artifacts import (
    atomic_write,
    library_error,
    read_error,
    read_json,
    sha256_path,
    write_error,
    write_json,
)
from trivet.config import StageConfig, dump_yaml, fingerprint
from trivet.errors import TrivetError

MODEL_FILES = ("config.json", "adapter_config.json", "variant.json", "openvino_model.xml")


class Artifact(BaseModel):
    """A file or folder that a stage wrote, relative to its run folder."""

    path: str
    sha256: str


class Summary(BaseModel):
    """What a stage says at its end. Stages add their figures in subclasses."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())
    schema_version: int = 1
    stage: str = ""
    fingerprint: str = ""
    seconds: float = 0.0
    artifacts: dict[str, Artifact] = {}

    @classmethod
    def of_rank_0(cls) -> Self:
        """What a stage gives back on a process that leaves the rest to rank 0, whose summary replaces this one."""
        found: Self = cls.model_construct()  # type: ignore[assignment]
        return found


S = TypeVar("S", bound=Summary)


class Run:
    """The folder of one stage's run, open for writing. Made by `execute`, or `Run.scratch` in a notebook."""

    def __init__(self, folder: Path, *, writes: bool = True) -> None:
        """writes: False on all processes of a run but one, which share the work and leave the files to it."""
        self.folder, self.writes = Path(folder), writes
        self.meter = ledger.Meter(beside=not writes)
        self.artifacts: dict[str, Artifact] = {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(error, self.folder) from None

    def path(self, *parts: str) -> Path:
        """A path inside the run folder."""
        return self.folder.joinpath(*parts)

    def log(self, name: str, row: dict[str, Any]) -> None:
        """Append a row to NAME.jsonl, flushed to the operating system: kill -9 does not lose it.

        Raises TrivetError for a figure that is not finite: training has burst.
        """
        for key, value in row.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise TrivetError(f"{key} is {value} at step {row.get('step')}", field="optimizer.lr",
                                  mend="lower the learning rate, or use --device.precision float32")
        if not self.writes:
            return
        try:
            with self.path(f"{name}.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")
        except OSError as error:
            raise write_error(error, self.path(f"{name}.jsonl")) from None
        self.meter.tick()

    def offset(self, name: str) -> int:
        """Bytes of NAME.jsonl so far: kept in a checkpoint."""
        path = self.path(f"{name}.jsonl")
        return path.stat().st_size if path.exists() else 0

    def cut(self, name: str, offset: int) -> None:
        """Cut NAME.jsonl back to `offset` bytes: what came after the checkpoint is done again."""
        path = self.path(f"{name}.jsonl")
        if self.writes and path.exists() and path.stat().st_size > offset:
            os.truncate(path, offset)

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The rows of NAME.jsonl."""
        path = self.path(f"{name}.jsonl")
        return [json.loads(x) for x in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []

    def artifact(self, kind: str, path: Path) -> None:
        """Declare a finished file or folder as an output of this stage."""
        if not self.writes:
            return
        self.artifacts[kind] = Artifact(path=str(path.relative_to(self.folder)), sha256=sha256_path(path))


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this process alone; the lock goes with the process, `kill -9` included."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
    except OSError as error:
        raise write_error(error, folder) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TrivetError(
                "another process works in this run folder", file=folder,
                mend="wait for it, or choose another folder with --out",
            ) from None
        yield


def input_hashes(config: StageConfig) -> dict[str, str]:
    """The content hash of each input that is a path; names that are no path stand for themselves."""
    return {f"{field}.{index}": _input_hash(item, field) for field, index, item in _inputs(config)} \
        | config.input_contents()


def _inputs(config: StageConfig) -> Iterator[tuple[str, int, str | Path]]:
    """(field, its place in a list, value) of each input that is given."""
    for field in config.input_fields:
        value: Any = config
        for part in field.split("."):
            value = getattr(value, part, None)
        if value is not None:
            for index, item in enumerate(value if isinstance(value, list) else [value]):
                yield field, index, item


def _refuse_own_input(config: StageConfig) -> None:
    """Raise TrivetError where an input stands in the folder that the stage may clear."""
    home = config.out.resolve()
    for field, _, item in _inputs(config):
        if os.path.exists(item) and Path(item).resolve().is_relative_to(home):
            raise TrivetError(f"this input stands in the run folder {config.out}, which the stage would fill or clear",
                              file=item, field=field, mend="choose another folder with --out")


def _input_hash(item: str | Path, field: str) -> str:
    """The hash of one input. Raises TrivetError for a data file that can't be read: before anything is done."""
    weighted = re.fullmatch(r"([\d.]+\*)(.+)", str(item)) if isinstance(item, str) else None
    if weighted and os.path.exists(weighted[2]):  # a reward with its weight, such as 0.7*runs/reward/reward
        return weighted[1] + _input_hash(weighted[2], field)
    path = Path(item)
    if os.path.isdir(path):
        if isinstance(item, Path):
            raise TrivetError("this is a folder, not a file", file=path, field=field,
                              mend="give the path of the file in it")
        # any other folder is no model, which the stage says: hashing a home folder would take hours
        model = any((path / f).is_file() for f in MODEL_FILES) or any(path.glob("*.gguf"))
        return sha256_path(path) if model else str(item)
    if not os.path.exists(path):
        if isinstance(item, Path):
            raise TrivetError("no such file", file=path, field=field,
                              mend="check the path; it is taken relative to the current folder")
        return str(item)
    try:
        return sha256_path(path)
    except OSError as error:
        raise read_error(error, path) from None


def finished(folder: Path) -> dict[str, Any] | None:
    """The summary of a finished stage, else None. Raises TrivetError for a damaged one."""
    path = folder / "summary.json"
    return _own_record(path) if path.is_file() else None


def _own_record(path: Path, *needed: str) -> dict[str, Any]:
    """A record that a run keeps of itself. Raises TrivetError that says how to get rid of a damaged one."""
    try:
        return read_json(path, *needed)
    except TrivetError as error:
        raise TrivetError(error.what, file=path, line=error.line, field=error.field,
                          mend="this run's own record was damaged: do it anew with --overwrite") from None


def intact(folder: Path, summary: dict[str, Any]) -> bool:
    """Whether the artifacts that a summary names are still there, byte for byte."""
    return all(
        (folder / a["path"]).exists() and sha256_path(folder / a["path"]) == a["sha256"]
        for a in summary.get("artifacts", {}).values()
    )


def execute(
    stage: str,
    config: StageConfig,
    work: Callable[[Any, Run], S],
    summary_type: type[S],
    *,
    say: Callable[[str], None] = print,
) -> S:
    """Run a stage in its folder: skip it if finished, resume it if interrupted, refuse another's folder.

    Raises TrivetError when the folder holds a run of another configuration and `overwrite` is off.
    """
    folder = config.out
    if os.path.exists(folder) and not folder.is_dir():
        raise TrivetError("a file stands where the run folder should be", file=folder,
                          mend="choose another folder with --out")
    with locked(folder):
        mark = fingerprint(stage, config, input_hashes(config))
        _refuse_own_input(config)
        _make_room(folder, stage, config, mark)
        done = finished(folder)
        if done is not None and intact(folder, done):
            say(f"{stage}: finished before in {folder}, nothing to do (--overwrite does it again)")
            try:
                return summary_type.model_validate(done)
            except ValidationError as error:
                raise TrivetError(f"another version of Trivet wrote this: {error.errors()[0]['msg']}",
                                  file=folder / "summary.json", field=".".join(map(str, error.errors()[0]["loc"])),
                                  mend="do it anew with --overwrite") from None
        (folder / "summary.json").unlink(missing_ok=True)  # what it tells of is no longer there
        run = Run(folder)
        with atomic_write(folder / "config.yaml") as file:
            file.write(f"# trivet {stage}, as resolved\n{dump_yaml(config)}")
        state: dict[str, Any] = {"stage": stage, "fingerprint": mark, "seconds": 0.0, "attempts": 0}
        if (folder / ".state.json").exists():
            state = _own_record(folder / ".state.json", "seconds", "attempts")
        earlier, attempts = _spent_before(state, folder / ".state.json"), int(state["attempts"]) + 1
        run.meter.earlier = earlier
        write_json(folder / ".state.json", state | {"attempts": attempts})

        def keep(spent: ledger.Spent) -> None:
            """Write down what was spent; a full disk loses the figure, and nothing else."""
            whole = spent if earlier is None else earlier.plus(spent)
            if folder.is_dir():
                with contextlib.suppress(TrivetError):
                    write_json(folder / ".state.json", state | {
                        "attempts": attempts, "seconds": whole.seconds, "spent": whole.model_dump()})

        run.meter.keep(keep)
        try:
            summary = work(config, run)
        except Exception as error:
            # each library has its own way of saying, for one, that the disk is full
            known = library_error(error, folder)
            if known is None:
                raise
            raise known from error
        finally:
            # after an exception or Ctrl-C what was spent is still counted; kill -9 loses what came since the last keep
            run.meter.close()
            keep(run.meter.spent())
        entry = run.meter.entry(folder.name, stage, earlier=earlier, attempts=attempts)
        summary = summary.model_copy(update={
            "stage": stage, "fingerprint": mark, "seconds": entry.seconds, "artifacts": run.artifacts})
        try:
            ledger.append(folder.parent / "ledger.jsonl", entry)
        except OSError as error:
            raise write_error(error, folder.parent / "ledger.jsonl") from None
        write_json(folder / "summary.json", summary.model_dump(mode="json"))
        return summary


def _spent_before(state: dict[str, Any], file: Path) -> ledger.Spent | None:
    """What earlier attempts spent, None where there were none. Raises TrivetError for a damaged record."""
    if "spent" not in state and not state["seconds"]:
        return None
    try:  # an older version kept the time alone
        return ledger.Spent.model_validate(state.get("spent", {"seconds": state["seconds"]}))
    except ValidationError as error:
        raise TrivetError(f"what earlier attempts spent can't be read: {error.errors()[0]['msg']}", file=file,
                          field="spent", mend="this run's own record was damaged: do it anew with --overwrite"
                          ) from None


def _make_room(folder: Path, stage: str, config: StageConfig, mark: str) -> None:
    """Check that the folder is empty or holds this very run; clear it when told to."""
    state_file = folder / ".state.json"
    others = [p for p in folder.iterdir() if p.name != ".lock"]
    # a start that failed at once (a missing file, say) leaves these two and must not block the mended command
    if {p.name for p in others} <= {"config.yaml", ".state.json"} and (state_file in others or _is_ours(folder)):
        for path in others:
            path.unlink()
        return
    if not state_file.exists():
        raise TrivetError(
            "this folder is not empty and holds no run of Trivet", file=folder,
            mend="choose another folder with --out (it is never cleared, not with --overwrite either)")
    try:
        state = _own_record(state_file, "fingerprint", "stage")
    except TrivetError:
        if not config.overwrite:
            raise
        state = {"stage": stage}  # damaged, and to be cleared anyway
    if state["stage"] != stage:
        raise TrivetError(f"this folder holds a run of `{state['stage']}`, not of `{stage}`", file=folder,
                          mend="choose another folder with --out (--overwrite clears only runs of its own stage)")
    if config.overwrite:
        try:
            for path in others:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        except OSError as error:
            raise write_error(error, folder) from None
        return
    if state["fingerprint"] != mark:
        raise TrivetError(
            f"this folder holds a run of `{stage}` with other settings or inputs{_difference(folder, config)}",
            file=folder,
            mend="choose another folder with --out, or do it anew with --overwrite")


def _is_ours(folder: Path) -> bool:
    """Whether the folder is empty but for a config.yaml that a stage wrote, not somebody else's."""
    path = folder / "config.yaml"
    return not path.exists() or path.read_bytes().startswith(b"# trivet ")


def _difference(folder: Path, config: StageConfig) -> str:
    """The settings that differ from those in the folder's config.yaml, in words."""
    try:
        old = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return ""
    new = config.model_dump(mode="json")
    skip = set(config.not_in_fingerprint)
    names = [k for k in new if k not in skip and isinstance(old, dict) and old.get(k) != new[k]]
    return f" ({', '.join(names)} differ{'s' if len(names) == 1 else ''})" if names else \
        " (an input file changed)"


def recorded_fingerprint(folder: Path) -> str | None:
    """The fingerprint of the run that a folder holds, None where it holds none."""
    path = folder / ".state.json"
    return str(_own_record(path, "fingerprint")["fingerprint"]) if path.is_file() else None
