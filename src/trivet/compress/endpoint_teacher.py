"""A teacher at an OpenAI-compatible endpoint: it answers prompts, and tells of each token the most probable ones.

What it tells are log-probabilities at temperature 1 of what it wrote itself (`top_logprobs`, 20 at most). Its tokens
travel as text or bytes and are found in the student's vocabulary; where one is not there, the vocabularies differ, and
that is an error. Among the alternatives one that is not there only adds to the tail. Each reply is kept as it comes
(`replies.jsonl`): an interrupted run does not ask for it again.

The end of an answer is a hard label without a soft one, unless the endpoint tells its token, too.
"""

from __future__ import annotations

import builtins
import hashlib
import json
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from trivet.artifacts import Prompt, Row
from trivet.compress.stored import StoredRow, learned
from trivet.data.chat import prompt_ids
from trivet.data.supervised import Example
from trivet.errors import TrivetError
from trivet.generate.config import Sampling
from trivet.generate.connection import Again
from trivet.generate.endpoint import Client, Reply
from trivet.generate.endpoint_writer import NO_TEXT_FOR_A_REASON, request_options
from trivet.generate.in_flight import ask_all
from trivet.generate.kept import Lines
from trivet.training.progress import bar

TOP = 20
"""The most that endpoints in use tell."""


class Told(BaseModel):
    """A token as an endpoint tells it."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)
    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: list[Told] = []

    @property
    def raw(self) -> builtins.bytes:
        """Its bytes: half a character has no text."""
        return bytes(self.bytes) if self.bytes is not None else self.token.encode("utf-8", "surrogatepass")


class KeptReply(Row):
    """A line of replies.jsonl."""

    key: str
    prompt: str
    ended: bool
    content: list[Told]


@dataclass(frozen=True)
class Taught:
    """An answer of the teacher with what it said of each of its tokens."""

    example: Example
    soft: StoredRow


def ask_teacher(client: Client, prompts: Sequence[Prompt], sampling: Sampling, folder: Path, *, k: int,
                seed: int) -> list[KeptReply]:
    """One reply to each prompt, in order; kept ones are not asked for again.

    Raises TrivetError as `Client.ask` does, and for an endpoint that tells no log-probabilities.
    """
    lines = Lines(folder / "replies.jsonl", KeptReply)
    known = {row.key: row for _, row in lines.read()}
    options = [request_options(sampling, _seed(p, seed)) | {"logprobs": True, "top_logprobs": k} for p in prompts]
    keys = [_digest({"url": client.url, "model": client.model, "messages": [m.model_dump() for m in p.messages],
                     "options": o}).hex() for p, o in zip(prompts, options, strict=True)]
    left = [i for i, key in enumerate(keys) if key not in known]

    def one(i: int, stop: threading.Event) -> KeptReply:
        found: list[KeptReply] = []

        def land(reply: Reply) -> None:
            row = KeptReply(key=keys[i], prompt=prompts[i].id, ended=reply.finish not in NO_TEXT_FOR_A_REASON,
                            content=_content(reply, client))
            lines.add([row])
            found.append(row)

        client.ask(prompts[i].messages, options[i], what=repr(prompts[i].id), stop=stop, land=land)
        return found[0]

    with bar(f"ask {client.name}", len(left)) as progress:

        def settle(rows: list[tuple[int, KeptReply]]) -> None:
            lines.sync()
            known.update({row.key: row for _, row in rows})
            progress(len(rows))

        failures = ask_all(left, one, settle, client.settings.concurrency)
    if failures:
        raise failures[0]
    return [known[key] for key in keys]


def _content(reply: Reply, client: Client) -> list[Told]:
    """The tokens of a reply. Raises Again for a reply that is malformed, TrivetError for one that tells none."""
    if reply.logprobs is None:
        raise TrivetError(f"{client.name} tells no log-probabilities, and so can't teach", field=f"{client.field}.by",
                          mend="take an endpoint that knows `logprobs` (vLLM, llama.cpp's server, OpenAI's), or let it "
                          "answer prompts (`trivet sample`) and train on its answers with `trivet sft`")
    try:
        return [Told.model_validate(entry) for entry in reply.logprobs]
    except (ValidationError, TypeError) as error:
        raise Again(f"log-probabilities of another form: {str(error).splitlines()[0]}") from None


def _seed(prompt: Prompt, seed: int) -> int:
    return int.from_bytes(_digest([seed, [m.model_dump() for m in prompt.messages]])[:6], "big")


def _digest(value: Any) -> bytes:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()


# --- their tokens as ours ---------------------------------------------------------------------------------------


def token_numbers(tokenizer: Any) -> dict[bytes, int]:
    """The number of each token by its bytes, for byte-level vocabularies and for those of whole characters."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    byte_level = "ByteLevel" in str(decoder)
    letters = _byte_letters() if byte_level else {}
    special = {str(t) for t in tokenizer.added_tokens_decoder.values()}
    found: dict[bytes, int] = {}
    for token, number in sorted(tokenizer.get_vocab().items(), key=lambda x: x[1]):
        if token in special:
            raw = token.encode()
        elif byte_level:
            raw = bytes(letters[c] for c in token) if all(c in letters for c in token) else token.encode()
        elif len(token) == 6 and token.startswith("<0x"):  # a byte that has no token of its own, in SentencePiece
            raw = bytes([int(token[3:5], 16)])
        else:
            raw = token.replace("▁", " ").encode()
        found.setdefault(raw, number)
    return found


def _byte_letters() -> dict[str, int]:
    """The byte that each letter of a byte-level vocabulary stands for (Radford et al. 2019: printable ones stand for
    themselves, the others for letters from 256 on)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}


def taught(reply: KeptReply, prompt: Prompt, tokenizer: Any, numbers: Mapping[bytes, int], client_name: str,
           k: int) -> Taught | None:
    """A reply as tokens of the student with soft labels; None for one without text.

    Raises TrivetError for a token that the student's vocabulary has not.
    """
    answer: list[int] = []
    soft: list[list[tuple[int, float]]] = []
    end = int(tokenizer.eos_token_id)
    for told in reply.content:
        number = numbers.get(told.raw)
        if number is None:
            raise TrivetError(
                f"{client_name} wrote {told.token!r}, which is no token of the student: it has another vocabulary "
                f"(prompt {reply.prompt!r})", field="student.by", expected="a student of the teacher's tokenizer",
                mend="take a student of the teacher's family, or let the teacher answer prompts (`trivet sample`) and "
                "train on its answers with `trivet sft`")
        alternatives = {numbers[a.raw]: a.logprob for a in told.top_logprobs if a.raw in numbers}
        alternatives.setdefault(number, told.logprob)
        soft.append(sorted(alternatives.items(), key=lambda x: -x[1])[:k])
        answer.append(number)
        if number == end:
            break
    if not answer or answer == [end]:
        return None
    if reply.ended and answer[-1] != end:
        answer.append(end)
        soft.append([])
    before = prompt_ids(tokenizer, prompt.messages)
    example = Example((*before, *answer), (False,) * len(before) + (True,) * len(answer))
    assert learned(example) == len(soft)
    return Taught(example, _row(soft, k))


def _row(soft: Sequence[Sequence[tuple[int, float]]], k: int) -> StoredRow:
    ids = np.zeros((len(soft), k), np.int64)
    logps = np.full((len(soft), k), -np.inf)
    tails = np.zeros((len(soft), 1))
    for i, entries in enumerate(soft):
        for j, (number, logp) in enumerate(entries):
            ids[i, j], logps[i, j] = number, logp
        if entries:
            rest = 1.0 - math.fsum(math.exp(logp) for _, logp in entries)
            tails[i] = math.log(rest) if rest > 0 else -np.inf
    return StoredRow(ids, logps, tails)
