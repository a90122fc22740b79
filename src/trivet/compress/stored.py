"""A teacher's top-k logits on disk: computed once, on whatever machine holds the teacher, and learned from often.

    logits/logits.json          what they are of: vocabulary, teacher, k, temperatures; the files with their hashes
    logits/shard-00000.safetensors
        keys [R, 32]    sha256 of each row's tokens: a row is found by what it says, not by its place
        starts [R + 1]  where each row's positions begin
        ids [P, k]      uint16, or uint32 for a vocabulary of more than 65,536
        logps [P, k]    float16, at temperature 1; minus infinity: no token in this place
        tails [P, T]    float32, for each temperature (see `soft_labels.Top`)

A position takes k · (2 or 4 + 2) + 4 · T bytes. float16 rounds a log-probability by up to 1 part in 2048.
Shards hold a fixed number of rows in order, and are written whole: an interrupted run goes on with the next.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from trivet.artifacts import Row, atomic_write, read_json, row_error, sha256_file, write_json
from trivet.compress.distill_config import LOGITS
from trivet.compress.soft_labels import Tail, Top
from trivet.data.supervised import Example
from trivet.errors import TrivetError

ROWS = 256
"""Rows of a shard."""


class StoredRow(NamedTuple):
    """A row's soft labels: those of its P learned positions. See the head of this file."""

    ids: NDArray[Any]
    logps: NDArray[Any]
    tails: NDArray[Any]


class Index(Row):
    """logits.json."""

    teacher: str
    teacher_sha256: str | None = None
    vocabulary_sha256: str
    vocabulary: int = Field(ge=1)
    top_k: int = Field(ge=1)
    temperatures: list[float] = Field(min_length=1)
    positions: int
    bytes_per_position: int
    shards: dict[str, str]
    """File names and their sha256."""


def key_of(example: Example) -> bytes:
    """The sha256 of a row's tokens, and of which of them are to learn."""
    digest = hashlib.sha256(np.asarray(example.ids, "<i8").tobytes())
    digest.update(np.asarray(example.written, bool).tobytes())
    return digest.digest()


def learned(example: Example) -> int:
    """Positions of an example that have soft labels: its written tokens, but for one that nothing stands before."""
    return sum(example.written[1:])


def bytes_per_position(vocabulary: int, k: int, temperatures: int) -> int:
    """Of the stored arrays, keys and headers not counted."""
    return k * (_id_type(vocabulary).itemsize + 2) + 4 * temperatures


def _id_type(vocabulary: int) -> np.dtype[Any]:
    return np.dtype("<u2" if vocabulary <= 65_536 else "<u4")


def store(folder: Path, examples: Sequence[Example], soft: Callable[[Sequence[Example]], list[StoredRow]], *,
          teacher: str, teacher_sha256: str | None, vocabulary: int, vocabulary_sha256: str, top_k: int,
          temperatures: Sequence[float], progress: Callable[[int], None]) -> Index:
    """Write the soft labels of all examples; whole shards that an interrupted run left are kept.

    soft: the soft labels of some examples. progress: told how many more examples are done. Raises TrivetError where the
    disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards: dict[str, str] = {}
    positions = 0
    for number, start in enumerate(range(0, len(examples), ROWS)):
        part = examples[start : start + ROWS]
        path = folder / f"shard-{number:05d}.safetensors"
        positions += sum(map(learned, part))
        if not path.is_file():  # it is renamed into place whole, and this run's settings and data are those of before
            rows = soft(part)
            starts = np.cumsum([0, *(len(r.ids) for r in rows)])
            tensors = {
                "keys": np.stack([np.frombuffer(key_of(e), np.uint8) for e in part]), "starts": starts.astype("<i8"),
                "ids": np.concatenate([r.ids for r in rows]).astype(_id_type(vocabulary)),
                "logps": np.concatenate([r.logps for r in rows]).astype("<f2"),
                "tails": np.concatenate([r.tails for r in rows]).astype("<f4")}
            with atomic_write(path, "wb") as file:
                file.write(save(tensors))
        shards[path.name] = sha256_file(path)
        progress(len(part))
    index = Index(teacher=teacher, teacher_sha256=teacher_sha256, vocabulary_sha256=vocabulary_sha256,
                  vocabulary=vocabulary, top_k=top_k, temperatures=list(temperatures), positions=positions,
                  bytes_per_position=bytes_per_position(vocabulary, top_k, len(temperatures)), shards=shards)
    write_json(folder / LOGITS, index.model_dump(mode="json"))
    return index


class StoredLogits:
    """Such a folder, open for reading: rows are read from the files when they are wanted."""

    def __init__(self, folder: Path) -> None:
        """Raises TrivetError for a folder without stored logits, and for damaged ones."""
        self.folder = folder
        value = read_json(folder / LOGITS)
        try:
            self.index = Index.model_validate(value)
        except ValidationError as error:
            raise row_error(error, Index, folder / LOGITS, 1) from None
        self._shards: list[Any] = []
        self._places: dict[bytes, tuple[int, int, int]] = {}
        for number, (name, sha256) in enumerate(sorted(self.index.shards.items())):
            path = folder / name
            if not path.is_file() or sha256_file(path) != sha256:
                raise TrivetError("these stored logits are not what logits.json says of them", file=path,
                                  field="teacher.stored", mend="copy the folder whole, or store them anew")
            try:
                shard = safe_open(path, framework="numpy")
                keys, starts = shard.get_tensor("keys"), shard.get_tensor("starts").tolist()
            except SafetensorError as error:
                raise TrivetError(f"these stored logits don't read: {error}", file=path, field="teacher.stored",
                                  mend="store them anew") from None
            self._shards.append(shard)
            for row, key in enumerate(keys):
                self._places[key.tobytes()] = (number, starts[row], starts[row + 1])

    def require(self, vocabulary_sha256: str, temperature: float | None, examples: Sequence[Example]) -> None:
        """Raise TrivetError where they are of another vocabulary, not of this temperature (None: no tails are wanted),
        or not of all these examples."""
        if self.index.vocabulary_sha256 != vocabulary_sha256:
            raise TrivetError(f"the stored logits are of another vocabulary, that of {self.index.teacher}",
                              file=self.folder, field="teacher.stored",
                              mend="give a student with the teacher's tokenizer, or store this teacher's logits")
        if temperature is not None and temperature not in self.index.temperatures:
            known = ", ".join(f"{t:g}" for t in self.index.temperatures)
            raise TrivetError(f"the logits were stored for temperatures {known}, not for {temperature:g}: what all "
                              "other tokens add up to there is not known", file=self.folder, field="temperature",
                              mend="use one of these, store them anew for this one, or leave the others out: "
                              "--teacher.tail drop")
        missing = [i for i, e in enumerate(examples) if key_of(e) not in self._places]
        if missing:
            raise TrivetError(f"of {len(examples)} rows the stored logits don't know {len(missing)}, the first of "
                              f"which is row {missing[0] + 1}", file=self.folder, field="teacher.stored",
                              mend="give the data, tokenizer and max_length with which they were stored, or store them "
                              "anew")

    def read(self, examples: Sequence[Example], temperature: float, tail: Tail, device: Any) -> Top:
        """The soft labels of examples, one after the other."""
        parts = []
        for example in examples:
            number, start, end = self._places[key_of(example)]
            shard = self._shards[number]
            parts.append([shard.get_slice(name)[start:end] for name in ("ids", "logps", "tails")])
        ids, logps, tails = (np.concatenate([p[i] for p in parts]) for i in range(3))
        column = self.index.temperatures.index(temperature) if tail == "bucket" else 0
        return Top(torch.from_numpy(ids.astype(np.int64)).to(device), torch.from_numpy(logps).to(device),
                   torch.from_numpy(np.ascontiguousarray(tails[:, column])).to(device), tail)
