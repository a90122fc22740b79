"""Load on `trivet serve`: streaming clients side by side against one after another, and beside llama.cpp's server.

    python benchmarks/serving.py --json benchmarks/results/serving.json        (about 14 minutes)

Each server is a process of its own on all cores, asked over HTTP on 127.0.0.1 by clients in this process, which read
every event. Questions are the starter set's. Some of our clients leave in the middle of an answer (`--leave`) and ask
again.

    torch       trivet serve on the embedded model, float32: one client, then 64 for five minutes
    gguf        trivet serve on the same model as a GGUF file (Q8_0), 64 clients
    llama.cpp   llama.cpp's own server on that file with as many slots, 64 clients, in the same run
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from common import load_average, options, report
from trivet.artifacts import Prompt, read_rows
from trivet.pipeline import starter

HERE = Path(__file__).parent


@dataclass
class Seen:
    """What the clients of one phase saw."""

    tokens: int = 0
    answers: int = 0
    left: int = 0
    errors: list[str] = field(default_factory=list)
    busy: int = 0
    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)
    seconds: float = 0.0

    def figures(self) -> dict[str, Any]:
        asked = self.answers + self.left + self.busy + len(self.errors)
        found: dict[str, Any] = {
            "seconds": round(self.seconds, 1), "answers": self.answers, "left_early": self.left,
            "errors": len(self.errors), "error_kinds": sorted(set(self.errors))[:5],
            "status_429": self.busy, "status_429_share": round(self.busy / max(1, asked), 5),
            "tokens": self.tokens, "tokens_per_second": round(self.tokens / self.seconds, 2)}
        if self.first:
            found["first_token_seconds"] = {f"p{q}": round(float(np.percentile(self.first, q)), 3) for q in (50, 95)}
        if self.whole:
            found["answer_seconds"] = {f"p{q}": round(float(np.percentile(self.whole, q)), 3) for q in (50, 95)}
        if len(self.memory) > 4:
            mib = [m / 2**20 for _, m in self.memory]
            part = max(1, len(mib) // 4)
            found["memory_mib"] = {"second_quarter": round(float(np.mean(mib[part : 2 * part])), 1),
                                   "last_quarter": round(float(np.mean(mib[-part:])), 1), "most": round(max(mib), 1)}
        return found


@contextmanager
def running(command: list[str]) -> Iterator[tuple[str, psutil.Process]]:
    """A server's process: (address, process)."""
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True)
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if found := re.search(r"serving (http://[\w.:]+)", line):
                    yield found[1], psutil.Process(process.pid)
                    break
            else:
                said.seek(0)
                raise SystemExit(f"{command} did not start:\n{said.read()[-2000:]}")
        finally:
            process.terminate()
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


async def client(http: httpx.AsyncClient, number: int, until: float, questions: list[str], chosen: argparse.Namespace,
                 model: str, seen: Seen, leave: float) -> None:
    """Ask one question after another until time is up."""
    numbers = random.Random(f"{chosen.seed}/{number}")
    while time.monotonic() < until:
        body = {"model": model, "messages": [{"role": "user", "content": numbers.choice(questions)}], "stream": True,
                "max_tokens": chosen.new_tokens, "temperature": 0.7, "seed": numbers.randrange(2**31),
                "stream_options": {"include_usage": True}}
        leaves_after = numbers.randrange(1, chosen.new_tokens) if numbers.random() < leave else None
        start, first, tokens, pieces = time.monotonic(), None, 0, 0
        try:
            async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
                if answer.status_code == 429:
                    seen.busy += 1
                    await asyncio.sleep(float(answer.headers.get("Retry-After", 1)))
                    continue
                if answer.status_code != 200:
                    seen.errors.append(f"status {answer.status_code}")
                    continue
                done = False
                async for line in answer.aiter_lines():
                    if not line.startswith("data: "):
                        continue
                    if line == "data: [DONE]":
                        done = True
                        break
                    chunk = json.loads(line[6:])
                    if "error" in chunk:
                        seen.errors.append(str(chunk["error"].get("message"))[:80])
                        break
                    if any((c.get("delta") or {}).get("content") for c in chunk["choices"]):
                        first = first or time.monotonic() - start
                        pieces += 1
                    tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
                    if leaves_after is not None and pieces >= leaves_after:
                        break
                if done:
                    seen.answers += 1
                    seen.tokens += tokens
                    seen.whole.append(time.monotonic() - start)
                elif leaves_after is not None:
                    seen.left += 1
                    seen.tokens += pieces
                if first is not None:
                    seen.first.append(first)
        except httpx.HTTPError as error:
            seen.errors.append(type(error).__name__)


async def phase(url: str, process: psutil.Process, clients: int, seconds: float, questions: list[str],
                chosen: argparse.Namespace, *, leave: float = 0.0) -> Seen:
    """So many clients for so long. Answers that are under way at the end are waited for: all that was made counts, and
    all the time that it took."""
    seen = Seen()
    limits = httpx.Limits(max_connections=clients + 8, max_keepalive_connections=clients + 8)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits, trust_env=False) as http:
        model = (await http.get("/v1/models")).json()["data"][0]["id"]
        start = time.monotonic()

        async def watch() -> None:
            while True:
                memory = process.memory_info().rss + sum(c.memory_info().rss for c in process.children(recursive=True))
                seen.memory.append((time.monotonic() - start, memory))
                await asyncio.sleep(2)

        watching = asyncio.create_task(watch())
        await asyncio.gather(*(client(http, k, start + seconds, questions, chosen, model, seen, leave)
                               for k in range(clients)))
        seen.seconds = time.monotonic() - start
        watching.cancel()
    return seen


def figure(url: str, name: str) -> float:
    """A metric of our server."""
    found = re.findall(rf"^{name}(?:\{{.*\}})? ([\d.e+]+)$", httpx.get(f"{url}/metrics").text, re.MULTILINE)
    return sum(map(float, found))


def quantized(folder: Path, model: str) -> Path:
    """The model as a Q8_0 GGUF file."""
    from trivet.compress.gguf_export import export_gguf
    from trivet.models.source import resolve

    export_gguf(resolve(model), folder, "Q8_0")
    (file,) = folder.glob("*.gguf")
    return file


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=300.0, help="of the main phase")
    parser.add_argument("--other-seconds", type=float, default=90.0, help="of every other phase")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--leave", type=float, default=0.1, help="share of answers whose client leaves in the middle")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--no-peer", action="store_true", help="leave the GGUF file and llama.cpp's server out")


def main() -> None:
    chosen = options(__doc__ or "", add)
    load = load_average()
    if chosen.quick:
        chosen.clients, chosen.seconds, chosen.other_seconds, chosen.new_tokens = 6, 4.0, 2.0, 8
    questions = [p.messages[-1].content for p in read_rows(Path(starter("prompts")), Prompt)]
    figures: dict[str, Any] = {"clients": chosen.clients, "new_tokens": chosen.new_tokens, "threads": chosen.threads}
    serve = [sys.executable, "-m", "trivet", "serve", "--port", "0", "--device.threads", str(chosen.threads)]

    def run(url: str, process: psutil.Process, clients: int, seconds: float, leave: float = 0.0) -> Seen:
        return asyncio.run(phase(url, process, clients, seconds, questions, chosen, leave=leave))

    with running([*serve, "--model", chosen.model]) as (url, process):
        run(url, process, 1, 1.0)  # warm: the first requests try the model's roads
        alone = run(url, process, 1, chosen.other_seconds)
        many = run(url, process, chosen.clients, chosen.seconds, chosen.leave)
        time.sleep(1)
        figures["torch"] = {
            "one_client": alone.figures(), "all_clients": many.figures(),
            "ratio_to_one_client": round(many.figures()["tokens_per_second"] / alone.figures()["tokens_per_second"], 2),
            "still_at_work_after": figure(url, "trivet_working_answers") + figure(url, "trivet_waiting_requests"),
            "cancelled_answers": figure(url, "trivet_cancelled_answers_total")}
    if not chosen.no_peer:
        with tempfile.TemporaryDirectory() as folder:
            file = quantized(Path(folder) / "gguf", chosen.model)
            with running([*serve, "--model", str(file)]) as (url, process):
                run(url, process, 1, 1.0)
                ours = run(url, process, chosen.clients, chosen.other_seconds)
            with running([sys.executable, str(HERE / "llama_server_peer.py"), str(file), "--threads",
                          str(chosen.threads)]) as (url, process):
                run(url, process, 1, 1.0)
                peer = run(url, process, chosen.clients, chosen.other_seconds)
        figures |= {"gguf": ours.figures(), "llama_cpp": peer.figures(), "gguf_ratio_to_llama_cpp": round(
            ours.figures()["tokens_per_second"] / peer.figures()["tokens_per_second"], 3)}
    report("serving", figures, chosen, load=load)


if __name__ == "__main__":
    main()
