"""The files that stages hand on: their schemas, reading, writing and validation.

Every row says its `schema_version`. Writing is atomic: temporary file, fsync, rename, so that a file is
either whole or absent. A bad row is reported with file, line, field and what was expected.
No torch, no numpy: any program can read and write these files with this module.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from trivet.errors import TrivetError

SCHEMA_VERSION = 1


class Row(BaseModel):
    """What every row of every artifact shares."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    schema_version: int = SCHEMA_VERSION

    @field_validator("schema_version")
    @classmethod
    def _known_version(cls, value: int) -> int:
        if value != SCHEMA_VERSION:
            raise ValueError(f"this Trivet reads schema_version {SCHEMA_VERSION}, the row says {value}")
        return value


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "user", "assistant"]
    content: str


class Prompt(Row):
    """A conversation that ends with the user's turn, waiting for an answer."""

    id: str = Field(min_length=1)
    messages: list[Message] = Field(min_length=1)
    reference: str | None = None
    tags: list[str] = []

    @model_validator(mode="before")
    @classmethod
    def _lift_text(cls, data: Any) -> Any:
        """Plain text (`prompt` or `text`) becomes one user message; an absent id the hash of the text."""
        if isinstance(data, dict):
            data = dict(data)
            for key in ("prompt", "text"):
                if "messages" not in data and isinstance(data.get(key), str):
                    data["messages"] = [{"role": "user", "content": data.pop(key)}]
            if "id" not in data and "messages" in data:
                data["id"] = text_id(data["messages"])
        return data

    @field_validator("messages")
    @classmethod
    def _ends_with_user(cls, messages: list[Message]) -> list[Message]:
        if messages[-1].role != "user":
            raise ValueError(f"the last message must be the user's, not the {messages[-1].role}'s")
        if not messages[-1].content.strip():
            raise ValueError("the user's last message is empty")
        return messages


class Completion(BaseModel):
    """One answer. `ended`: the model ended it itself (a stop token), it was not cut off."""

    model_config = ConfigDict(extra="forbid")
    id: str
    text: str
    model: str | None = None
    sampling: dict[str, Any] | None = None
    ended: bool | None = None
    tokens: int | None = None


class Completions(Prompt):
    """A prompt with several answers."""

    completions: list[Completion] = Field(min_length=1)

    @field_validator("completions")
    @classmethod
    def _unique_ids(cls, completions: list[Completion]) -> list[Completion]:
        if len({c.id for c in completions}) != len(completions):
            raise ValueError("two completions share one id")
        return completions


class Ranking(Completions):
    """One labeler's ranks of the completions: 1 is best, equal ranks are a tie, null is F (fail)."""

    ranks: list[int | None]
    labeler: str
    seconds: float | None = None
    note: str | None = None

    @model_validator(mode="after")
    def _one_rank_each(self) -> Ranking:
        if len(self.ranks) != len(self.completions):
            raise ValueError(f"{len(self.completions)} completions but {len(self.ranks)} ranks")
        if any(r is not None and r < 1 for r in self.ranks):
            raise ValueError("ranks are integers from 1 (best), or null for F")
        return self


class Preference(Row):
    """One pair. `label` is the probability that chosen wins, `tie` a declared tie (for the Davidson loss)."""

    id: str
    prompt_id: str
    prompt: list[Message] = Field(min_length=1)
    chosen: str
    rejected: str
    label: float = Field(1.0, ge=0.0, le=1.0)
    weight: float = Field(1.0, gt=0.0)
    margin: float = 0.0
    tie: bool = False
    source: str | None = None


class RolloutRow(Row):
    """One sampled answer of a PPO step with what it earned. kl in nats, summed over the answer."""

    id: str
    step: int
    messages: list[Message]
    completion: str
    score: float
    """By the reward trained on, in the run's scale, before any penalty."""
    kl: float
    ref_logp: float
    ended: bool
    tokens: int | None = None
    held_out: float | None = None
    """By the held-out reward model; None where it was not asked, or there is none."""
    spread: float | None = None
    """Standard deviation over the reward and an ensemble of others; None where they were not asked."""


R = TypeVar("R", bound=Row)
T = TypeVar("T")


def text_digest(text: str) -> bytes:
    """The sha256 of a text, be it half a surrogate pair: what seeded draws and orders go by."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def drawn_order(rows: Iterable[T], seed: int, name: Callable[[T], str]) -> list[T]:
    """Rows in an order drawn by the seed; where a row stands depends on its name and the others', on nothing else."""
    return sorted(rows, key=lambda row: text_digest(f"{seed}\0{name(row)}"))


def text_id(value: Any) -> str:
    """A short stable id of any JSON value."""
    data = json.dumps(value, sort_keys=True, ensure_ascii=False, default=lambda m: m.model_dump())
    return hashlib.sha256(data.encode()).hexdigest()[:16]


def first_turn(messages: Sequence[Message]) -> str:
    """The text by which data are split: two conversations with one first turn stay on one side."""
    return next((m.content for m in messages if m.role == "user"), messages[0].content)


def is_held_out(messages: Sequence[Message], fraction: float, seed: int = 0) -> bool:
    """Whether a conversation falls into the held-out part: a hash of its first turn, nothing else."""
    digest = hashlib.sha256(f"{seed}:{first_turn(messages).strip()}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


# --- reading -----------------------------------------------------------------------------------------


def _open_text(path: Path) -> IO[str]:
    try:
        return path.open(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise read_error(error, path) from None


def read_error(error: Exception, path: Path) -> TrivetError:
    """What opening a file for reading raised, in words."""
    match error:
        case IsADirectoryError():
            return TrivetError("this is a folder, not a file", file=path, mend="give the path of the file in it")
        case PermissionError():
            return TrivetError("this file may not be read", file=path, mend="check its permissions")
        case OSError(errno=code) if code not in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
            return TrivetError(f"this file can't be read: {error.strerror}", file=path, mend="see the reason given")
        case _:  # ValueError: a path with a NUL in it
            return TrivetError("no such file", file=path,
                               mend="check the path; it is taken relative to the current folder")


def json_lines(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of each line that is not blank.

    Raises TrivetError for a missing file, text that is not UTF-8, broken JSON, a line that is no object.
    """
    path = Path(path)
    with _open_text(path) as file:
        number = 0
        try:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    value = json.loads(line)
                except (ValueError, RecursionError) as error:
                    over_lines = number == 1 and line.strip() in {"[", "{", "[{"}
                    raise TrivetError(
                        f"broken JSON: {_json_fault(error)}", file=path, line=number,
                        expected="one JSON object a line",
                        mend="write JSON Lines, not one document over several lines: jq -c '.[]' IN > OUT" if over_lines
                        else "mend or delete this line (a torn last line means an interrupted write)",
                    ) from None
                if "\\ud" in line.lower() and _has_lone_surrogate(value):
                    raise TrivetError(
                        "half a surrogate pair (\\\\ud800 … \\\\udfff) is no character", file=path, line=number,
                        mend="mend or delete this line: a character was cut in two where it was written",
                    )
                if not isinstance(value, dict):
                    raise TrivetError(
                        f"a line holds {type(value).__name__}, not an object",
                        file=path, line=number, expected='one JSON object a line, such as {"id": "p1", …}',
                        mend="write JSON Lines, not one JSON array",
                    )
                yield number, value
        except UnicodeDecodeError:
            raise TrivetError(
                "this is not UTF-8 text", file=path, line=number + 1,
                mend="convert it: iconv -f WINDOWS-1252 -t UTF-8 IN > OUT",
            ) from None


def _json_fault(error: Exception) -> str:
    """What json.loads raised, in words."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _has_lone_surrogate(value: Any) -> bool:
    """Whether a text in a JSON value can't be written as UTF-8."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def row_error(error: ValidationError, row: type[BaseModel], path: Path, line: int) -> TrivetError:
    """The first fault of a row as an error a person can mend."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"]) or None
    known = ", ".join(row.model_fields)
    if first["type"] == "missing":
        what, mend = "this field is missing", f"add it; the fields of a {row.__name__} are: {known}"
    elif first["type"] == "extra_forbidden":
        what, mend = "this field is not known", f"remove or rename it; known are: {known}"
    else:
        what = first["msg"].removeprefix("Value error, ")
        mend = f"correct this row; the fields of a {row.__name__} are: {known}"
    name = field.split(".")[0] if field else None
    annotation = row.model_fields[name].annotation if name in row.model_fields else None
    expected = None if annotation is None else str(getattr(annotation, "__name__", annotation)) \
        if not str(annotation).startswith(("list", "typing")) \
        else str(annotation).replace("trivet.artifacts.", "").replace("typing.", "")
    return TrivetError(what, file=path, line=line, field=field, expected=expected, mend=mend)


def read_rows(path: str | Path, row: type[R], *, limit: int | None = None) -> list[R]:
    """All rows of a JSONL (or, by its ending, Parquet) file, validated.

    Raises TrivetError naming file, line, field and what was expected; also for a file without rows.
    """
    path = Path(path)
    rows: list[R] = []
    for number, value in parquet_rows(path) if path.suffix == ".parquet" else json_lines(path):
        try:
            rows.append(row.model_validate(value))
        except ValidationError as error:
            raise row_error(error, row, path, number) from None
        if limit is not None and len(rows) >= limit:
            break
    if not rows:
        raise TrivetError("this file holds no rows", file=path, mend=f"give a file of {row.__name__} rows")
    _refuse_doubled_ids(rows, path)
    return rows


def _refuse_doubled_ids(rows: Sequence[Row], path: Path) -> None:
    # Rankings repeat a prompt's id, once for each labeler; the id pair must be unique there.
    seen: set[Any] = set()
    prompts: dict[str, list[Message]] = {}
    for index, r in enumerate(rows, 1):
        key = (r.id, r.labeler) if isinstance(r, Ranking) else getattr(r, "id", index)
        if key in seen:
            raise TrivetError(
                f"the id {key!r} stands twice", file=path, field="id",
                mend="give each row an id of its own (leave `id` out and one is made from the text)",
            )
        seen.add(key)
        if isinstance(r, Preference) and prompts.setdefault(r.prompt_id, r.prompt) != r.prompt:
            raise TrivetError(f"the prompt_id {r.prompt_id!r} stands for two prompts (pair {r.id!r})", file=path,
                              field="prompt_id", mend="give each prompt an id of its own")


def parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise TrivetError(
            "reading Parquet needs pyarrow", file=path, mend="pip install 'trivet[parquet]'"
        ) from None
    if not path.is_file():
        raise TrivetError("no such file", file=path, mend="check the path")
    try:
        table = parquet.read_table(path)
    except Exception as error:
        raise TrivetError(
            f"not a Parquet file: {error}", file=path, mend="write it anew, or give JSONL"
        ) from None
    for number, value in enumerate(table.to_pylist(), 1):
        yield number, {k: v for k, v in value.items() if v is not None}


# --- writing -----------------------------------------------------------------------------------------


def fsync_folder(folder: Path) -> None:
    """Make a rename in this folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """A file that appears whole or not at all: temporary name, fsync, rename.

    Raises TrivetError when there is no space or no permission; nothing is left behind then.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open(mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        fsync_folder(path.parent)
    except OSError as error:
        raise write_error(error, path) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """A folder that appears whole or not at all, for what libraries save: temporary name, fsync, rename."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        for file in (p for p in temporary.rglob("*") if p.is_file()):
            with file.open("rb") as f:
                os.fsync(f.fileno())
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
        fsync_folder(path.parent)
    except OSError as error:
        raise write_error(error, path) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_error(error: OSError, path: Path) -> TrivetError:
    """An OSError on writing, in words."""
    reasons = {
        28: ("no space left on the device", "free some space, or write elsewhere with --out"),
        122: ("the disk quota is used up", "free some space, or write elsewhere with --out"),
        27: ("the file would be larger than this account may write", "raise the limit (ulimit -f)"),
        13: ("this place may not be written", "check permissions, or write elsewhere with --out"),
        30: ("this place is read-only", "write elsewhere with --out"),
        17: ("a file stands where a folder is needed", "move it, or write elsewhere with --out"),
        20: ("a part of this path is a file, not a folder", "write elsewhere with --out"),
        21: ("a folder stands where a file should be", "write elsewhere with --out"),
        1: ("this place may not be written", "check permissions, or write elsewhere with --out"),
        2: ("nothing can be made in this place", "write elsewhere with --out"),
        36: ("this name is too long", "write elsewhere with --out"),
    }
    what, mend = reasons.get(error.errno or 0, (f"could not be written: {error}", "see the reason given"))
    return TrivetError(what, file=path, mend=mend)


def library_error(error: Exception, path: Path) -> TrivetError | None:
    """What an exception of a library means for the user: a full disk or memory, a strange token. None: a fault of ours.

    path: the run folder, where the exception names no file.
    """
    text = str(error)
    if isinstance(error, IndexError) and "index out of range in self" in text:  # torch's embedding
        return TrivetError("the model was given a token or a position that it has no place for", field="model",
                           mend="put the model's own tokenizer into its folder: this one knows more tokens than the "
                           "model (--debug shows where it happened)")
    if isinstance(error, MemoryError) or re.search("out of memory|allocate memory|not enough memory", text, re.I):
        return TrivetError("the memory does not suffice", mend="lower --micro-batch, --batch or --batch-size, use a "
                           "smaller model, or a machine with more memory")
    if isinstance(error, OSError):
        code, path = error.errno, Path(error.filename or path)
    elif found := re.search(r"os error (\d+)|\[Errno (\d+)\]", text):  # safetensors
        code = int(found[1] or found[2])
    elif "PytorchStreamWriter failed" in text:  # torch.save, which does not say why
        return TrivetError("a file could not be written whole", file=path,
                           mend="free some space, or write elsewhere with --out")
    else:
        return None
    return write_error(OSError(code, os.strerror(code)), path) if code in DISK_FULL else None


DISK_FULL = (errno.EFBIG, errno.ENOSPC, errno.EROFS, errno.EDQUOT)


def write_rows(path: str | Path, rows: Iterable[BaseModel]) -> None:
    """Rows as JSON Lines (or, by its ending, Parquet), atomically."""
    path = Path(path)
    if path.suffix == ".parquet":
        try:
            import pyarrow
            import pyarrow.parquet as parquet
        except ImportError:
            raise TrivetError(
                "writing Parquet needs pyarrow", file=path, mend="pip install 'trivet[parquet]'"
            ) from None
        table = pyarrow.Table.from_pylist([row.model_dump(mode="json") for row in rows])
        with atomic_write(path, "wb") as file:
            parquet.write_table(table, file)
        return
    with atomic_write(path) as file:
        for row in rows:
            file.write(row.model_dump_json() + "\n")


def write_json(path: str | Path, value: Any) -> None:
    """A JSON document, atomically, in a form people can read."""
    with atomic_write(path) as file:
        json.dump(value, file, indent=2, ensure_ascii=False, allow_nan=False)
        file.write("\n")


def read_json(path: str | Path, *needed: str) -> dict[str, Any]:
    """A JSON object; TrivetError when it is missing, broken, something else, or lacks a field of `needed`."""
    path, mend = Path(path), "the file was damaged: make it anew by the stage that wrote it"
    with _open_text(path) as file:
        try:
            value = json.load(file)
        except (ValueError, RecursionError) as error:
            raise TrivetError(f"broken JSON: {_json_fault(error)}", file=path, line=getattr(error, "lineno", None),
                              mend=mend) from None
    if not isinstance(value, dict):
        raise TrivetError(f"this holds a {type(value).__name__}, not an object", file=path, mend=mend)
    for name in needed:
        if name not in value:
            raise TrivetError("this field is missing", file=path, field=name, mend=mend)
    return value


# --- hashes ------------------------------------------------------------------------------------------


def sha256_file(path: str | Path) -> str:
    """The sha256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_path(path: str | Path) -> str:
    """The sha256 of a file, or of a folder: names and contents of its files, in order of name."""
    path = Path(path)
    if path.is_file():
        return sha256_file(path)
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(f"{file.relative_to(path)}\0{sha256_file(file)}\n".encode())
    return digest.hexdigest()
