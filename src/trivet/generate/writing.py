"""Whatever writes texts behind one call: a model in this process, or an OpenAI-compatible endpoint.

Each text is kept on disk as it comes (`texts.jsonl`), found by the sha256 of who wrote it (a local model's weights and
chat template, an endpoint's address and model), the messages, the sampling, the seed and its number among the texts to
the same messages: what an interrupted run has, the next one does not ask for. A request's own random seed is made of
the same, without who writes: it depends neither on an ask's place among others nor on its id.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from trivet.artifacts import Completion, Completions, Message, Prompt, Row
from trivet.errors import TrivetError
from trivet.generate.config import Sampling, Writing, is_endpoint
from trivet.generate.endpoint import Endpoints, check_endpoint
from trivet.generate.kept import Keeping, Lines
from trivet.training.progress import bar

KEPT = "what was written is kept"


@dataclass(frozen=True)
class Ask:
    """One text that is wanted."""

    id: str
    """Its name in messages and in texts.jsonl."""
    messages: tuple[Message, ...]
    """The conversation up to where the text begins."""
    number: int = 0
    """Which of several texts to the same messages."""
    begun: str = ""
    """What the text begins with: the model writes on from there. An endpoint can't do it, and says so."""


@dataclass(frozen=True)
class Written:
    """One text."""

    text: str
    ended: bool
    """The model ended it itself; False: it was cut off at `max_new_tokens`."""
    tokens: int | None
    """As the model counts them; None where an endpoint does not tell."""


class Text(Row):
    """A line of texts.jsonl."""

    key: str
    ask: str
    text: str
    ended: bool
    tokens: int | None = None


class Source(Protocol):
    """What writes: generate/local_writer.py, generate/endpoint_writer.py."""

    name: str

    @property
    def identity(self) -> Mapping[str, Any]:
        """What its texts depend on beside what is asked."""

    @property
    def loaded(self) -> Mapping[str, tuple[Any, Any]]:
        """(model, tokenizer) by name, where it holds them."""

    def write(self, asks: Sequence[Ask], seeds: Sequence[int], sampling: Sampling, keep: Keeping[Written]) -> None:
        """Write the texts in any order, and keep them as they come. Raises TrivetError."""


class Texts:
    """The file of kept texts: where each stands is in memory, not the texts, so that it may grow long."""

    def __init__(self, path: Path) -> None:
        """Raises TrivetError for a damaged line (but for a torn last one)."""
        self.lines = Lines(path, Text)
        self._places = {bytes.fromhex(row.key): place for place, row in self.lines.read()}

    def __len__(self) -> int:
        return len(self._places)

    def get(self, key: str) -> Written | None:
        """The kept text, None where there is none."""
        place = self._places.get(bytes.fromhex(key))
        if place is None:
            return None
        row = self.lines.at(place)
        return Written(row.text, row.ended, row.tokens)

    def add(self, rows: Sequence[Text]) -> None:
        """Append texts; `lines.sync` puts them on the disk. Threads may call it side by side."""
        for row, place in zip(rows, self.lines.add(rows), strict=True):
            self._places[bytes.fromhex(row.key)] = place


class Writer:
    """Writes what was not written before, and keeps each text as it comes. Made by `make_writer`."""

    def __init__(self, source: Source, texts: Texts, seed: int) -> None:
        self.source, self.texts, self.seed = source, texts, seed

    @property
    def name(self) -> str:
        """What the writer is called in messages and results."""
        return self.source.name

    @property
    def loaded(self) -> Mapping[str, tuple[Any, Any]]:
        """(model, tokenizer) by name, to be shared with a judge or another writer; empty for an endpoint."""
        return self.source.loaded

    def __call__(self, asks: Sequence[Ask], sampling: Sampling, *,
                 take: Callable[[int, Written], None] | None = None) -> list[Written]:
        """One text for each ask, in their order. Asks that are alike in all but their id are written once.

        take: given an ask's place and its text as soon as the text is on the disk, kept ones first, in the caller's
        thread. Raises TrivetError for an ask that the context can't hold, and as the endpoint's client does; what came
        before is kept.
        """
        keys = [self._key(ask, sampling) for ask in asks]
        places: dict[str, list[int]] = {}
        for i, key in enumerate(keys):
            places.setdefault(key, []).append(i)
        found: dict[int, Written] = {}

        def hand_on(key: str, written: Written) -> None:
            for i in places[key]:
                found[i] = written
                if take is not None:
                    take(i, written)

        left = []
        for key, alike in places.items():
            if (kept := self.texts.get(key)) is None:
                left.append(alike[0])
            else:
                hand_on(key, kept)
        if left:
            with bar(f"write {self.name}", len(left)) as progress:

                def write(rows: Sequence[tuple[int, Written]]) -> None:
                    self.texts.add([Text(key=keys[left[j]], ask=asks[left[j]].id, text=w.text, ended=w.ended,
                                         tokens=w.tokens) for j, w in rows])

                def settle(rows: Sequence[tuple[int, Written]]) -> None:
                    self.texts.lines.sync()
                    for j, written in rows:
                        hand_on(keys[left[j]], written)
                    progress(len(rows))

                self.source.write([asks[i] for i in left], [self._seed(asks[i]) for i in left], sampling,
                                  Keeping(write, settle))
        return [found[i] for i in range(len(asks))]

    def _key(self, ask: Ask, sampling: Sampling) -> str:
        return _sha256({"writer": dict(self.source.identity), "sampling": sampling.model_dump(), **self._asked(ask)}
                       ).hex()

    def _seed(self, ask: Ask) -> int:
        return int.from_bytes(_sha256(self._asked(ask))[:6], "big")

    def _asked(self, ask: Ask) -> dict[str, Any]:
        asked = {"messages": [m.model_dump() for m in ask.messages], "seed": self.seed, "number": ask.number}
        return asked | ({"begun": ask.begun} if ask.begun else {})


def _sha256(value: Any) -> bytes:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()


def answered(prompt: Prompt, texts: Sequence[Written], model: str, sampling: Sampling) -> Completions:
    """A prompt with texts that answer it, as a row of completions. model: its name."""
    return Completions(
        id=prompt.id, messages=prompt.messages, reference=prompt.reference, tags=prompt.tags,
        completions=[Completion(id=f"{prompt.id}/{k}", text=w.text, model=model, sampling=sampling.model_dump(),
                                ended=w.ended, tokens=w.tokens) for k, w in enumerate(texts)])


def answers(writer: Writer, prompts: Sequence[Prompt], n: int, sampling: Sampling) -> list[Completions]:
    """n answers of the writer to each prompt. Raises as the writer does."""
    found = writer([Ask(p.id, tuple(p.messages), k) for p in prompts for k in range(n)], sampling)
    return [answered(p, found[i * n : (i + 1) * n], writer.name, sampling) for i, p in enumerate(prompts)]


def check_writer(settings: Writing, *, field: str) -> None:
    """Find out, without torch and without asking anything, whether the settings name a writer.

    field: what the settings are called in messages, such as `target`. Raises TrivetError for settings that name none,
    an endpoint without a model's name, a folder that is no model.
    """
    if settings.by is None or not settings.by.strip():
        raise TrivetError("nothing is named that writes", field=f"{field}.by",
                          expected="a model, or the URL of an OpenAI-compatible endpoint",
                          mend=f"give it: --{field}.by …")
    if is_endpoint(settings.by):
        check_endpoint(settings.by, settings.model, field=field)
        return
    from trivet.models.source import resolve

    try:
        resolve(settings.by)
    except TrivetError as error:
        raise TrivetError(f"{error.what} (as a writer)", file=error.file, field=f"{field}.by",
                          expected="a model, or the URL of an OpenAI-compatible endpoint", mend=error.mend) from None


def make_writer(settings: Writing, compute: Any, *, seed: int, folder: Path, field: str,
                count: Callable[[str, int], None] | None = None,
                loaded: Mapping[str, tuple[Any, Any]] | None = None, endpoints: Endpoints | None = None) -> Writer:
    """The writer that the settings name, its texts kept in `folder`.

    compute: where a local model runs (training.device.Compute). seed: of all that it draws. folder: texts are appended
    to texts.jsonl in it, and read from there by the next run; writers may share it one after another. field: what the
    settings are called in messages. count: told how many tokens a local model read (`prompt`) and wrote (`generated`).
    loaded: (model, tokenizer) by name, to be shared instead of loaded anew. endpoints: what the judges and writers of a
    stage share, `Endpoints.of(run)`, which tells the ledger; without it the account stands in `folder`, and no ledger
    is told.

    Raises TrivetError as `check_writer` does, and for a model that does not load.
    """
    check_writer(settings, field=field)
    assert settings.by is not None
    source: Source
    if is_endpoint(settings.by):
        from trivet.generate.endpoint_writer import EndpointWriter

        assert settings.model is not None
        endpoints = endpoints or Endpoints(folder / "requests.jsonl")
        source = EndpointWriter(endpoints.client(settings.by, settings.model, settings, field=field, kept=KEPT))
    else:
        from trivet.generate.local_writer import LocalWriter

        source = LocalWriter.load(settings.by, compute, loaded or {}, field=field, count=count)
    return Writer(source, Texts(folder / "texts.jsonl"), seed)
