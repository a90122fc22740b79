"""How full a writer keeps an endpoint, at what processor time a request, and in how much memory.

    python benchmarks/endpoint_load.py --json benchmarks/results/endpoint_load.json

10,000 prompts of 300 characters go to a stand-in in a process of its own that answers each after 50 ms with as many
(`stand_in.py`), by `generate.writing.make_writer` with 8, 32 and 64 requests allowed in flight. `full` is the mean in
flight as the stand-in saw it over what is allowed; `ideal` is what so many in flight could reach, requests a
second. All is done that a stage does: a line before and after each request, each text on the disk before it is told.
The client and the stand-in each have one core where there are two.

Beside it the same requests by the openai client, httpx, urllib3 (on which Trivet stands) and http.client alone, by as
many threads and with nothing kept: what of the processor time is HTTP's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from common import load_average, options, report
from trivet.artifacts import Message
from trivet.generate.config import Sampling, Writing
from trivet.generate.in_flight import ask_all
from trivet.generate.writing import Ask, make_writer
from trivet.ledger import peak_memory

DELAY, CHARACTERS = 0.05, 300
ALLOWED = (8, 32, 64)
SAMPLING = Sampling(max_new_tokens=128)
CLIENTS = ("openai", "httpx", "urllib3", "http.client")


def prompt(i: int) -> str:
    """Number i of the prompts: 300 characters."""
    return f"Prompt {i:6d}: " + "what would you say to somebody who asks this of you? " * 6


# --- in a process of its own -----------------------------------------------------------------------------


def written(url: str, allowed: int, count: int, folder: Path) -> dict[str, float]:
    """What a writer needs for so many prompts."""
    synced: list[float] = []
    real = os.fsync

    def timed(file: int) -> None:
        begun = time.monotonic()
        real(file)
        synced.append(time.monotonic() - begun)

    os.fsync = timed
    made = make_writer(Writing(by=url, model="m", concurrency=allowed), None, seed=0, folder=folder, field="target")
    before, begun, cpu = peak_memory(), time.monotonic(), time.process_time()
    texts = made([Ask(str(i), (Message(role="user", content=prompt(i)),)) for i in range(count)], SAMPLING)
    seconds, cpu = time.monotonic() - begun, time.process_time() - cpu
    assert len(texts) == count and all(len(t.text) >= CHARACTERS - 1 for t in texts)
    return {"seconds": seconds, "cpu_ms_per_request": 1e3 * cpu / count, "peak_rss_mb": peak_memory() / 1e6,
            "rss_mb_before": before / 1e6, "syncs": len(synced), "sync_seconds": sum(synced)}


def plain(client: str, url: str, allowed: int, count: int) -> dict[str, float]:
    """What a client alone needs for the same requests."""
    send = CLIENT[client](url)
    send(0)  # imports and the first connection
    begun, cpu = time.monotonic(), time.process_time()
    failures = ask_all(range(count), lambda i, stop: send(i), lambda rows: None, allowed)
    if failures:
        raise failures[0]
    return {"seconds": time.monotonic() - begun, "cpu_ms_per_request": 1e3 * (time.process_time() - cpu) / count}


def _body(i: int) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": prompt(i)}], "max_tokens": 128, "seed": i}


def _openai(url: str) -> Callable[[int], Any]:
    import openai

    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    return lambda i: client.chat.completions.create(**_body(i)).choices[0].message.content


def _httpx(url: str) -> Callable[[int], Any]:
    import httpx

    client = httpx.Client(limits=httpx.Limits(max_connections=None, max_keepalive_connections=None))
    return lambda i: client.post(f"{url}/chat/completions", content=json.dumps(_body(i)).encode(), headers={
        "Content-Type": "application/json"}).json()["choices"][0]["message"]["content"]


def _urllib3(url: str) -> Callable[[int], Any]:
    import urllib3

    pool = urllib3.PoolManager(maxsize=64)

    def send(i: int) -> Any:
        answer = pool.request("POST", f"{url}/chat/completions", body=json.dumps(_body(i)).encode(), retries=False,
                              headers={"Content-Type": "application/json"})
        return json.loads(answer.data)["choices"][0]["message"]["content"]

    return send


def _http_client(url: str) -> Callable[[int], Any]:
    import http.client

    parts, own = urllib.parse.urlsplit(url), threading.local()

    def send(i: int) -> Any:
        if not hasattr(own, "connection"):
            own.connection = http.client.HTTPConnection(parts.hostname or "", parts.port)
        own.connection.request("POST", f"{parts.path}/chat/completions", json.dumps(_body(i)).encode(),
                               {"Content-Type": "application/json"})
        return json.loads(own.connection.getresponse().read())["choices"][0]["message"]["content"]

    return send


CLIENT = {"openai": _openai, "httpx": _httpx, "urllib3": _urllib3, "http.client": _http_client}


# --- the benchmark ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def stand_in(core: int | None, delay: float = DELAY) -> Iterator[str]:
    """A running stand-in: its address without a path."""
    script = str(Path(__file__).with_name("stand_in.py"))
    with subprocess.Popen([sys.executable, script, str(delay), str(CHARACTERS)], stdout=subprocess.PIPE, text=True,
                          preexec_fn=None if core is None else lambda: os.sched_setaffinity(0, {core})) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def apart(core: int | None, *arguments: str) -> dict[str, float]:
    """This script in a process of its own, so that its peak of memory is its own."""
    done = subprocess.run([sys.executable, __file__, "--apart", *arguments], capture_output=True, text=True,
                          env=os.environ, preexec_fn=None if core is None else lambda: os.sched_setaffinity(0, {core}))
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def look(url: str, what: str) -> dict[str, float]:
    """What the stand-in tells."""
    with urllib.request.urlopen(f"{url}/{what}") as answer:
        found: dict[str, float] = json.load(answer)
    return found


def measured(url: str, core: int | None, allowed: int, *arguments: str) -> dict[str, Any]:
    """One run against the stand-in: what the client says of itself, and what the stand-in saw."""
    look(url, "reset")
    own = apart(core, *arguments)
    seen = look(url, "stats")
    ideal = allowed / DELAY
    return {"full": round(seen["mean_in_flight"] / allowed, 4), "most_in_flight": seen["most"],
            "requests_per_second": round(seen["requests"] / seen["seconds"], 1), "ideal": ideal,
            "of_ideal": round(seen["requests"] / seen["seconds"] / ideal, 4), "requests_seen": seen["requests"],
            **{k: round(v, 3) for k, v in own.items()}}


def figures(quick: bool, folder: Path) -> dict[str, Any]:
    """All figures; see above."""
    cores = sorted(os.sched_getaffinity(0))
    mine, its = (cores[0], cores[1]) if len(cores) > 1 else (None, None)
    many, few, plain_count = (400, 100, 200) if quick else (10_000, 1_000, 3_000)
    found: dict[str, Any] = {"prompts": many, "delay_ms": 1e3 * DELAY, "cores": len(cores)}
    with stand_in(its) as url:
        for allowed in ALLOWED[:2] if quick else ALLOWED:
            found[f"allowed_{allowed}"] = measured(url, mine, allowed, "written", f"{url}/v1", str(allowed), str(many),
                                                   str(folder / f"{allowed}"))
        smaller = measured(url, mine, 32, "written", f"{url}/v1", "32", str(few), str(folder / "few"))
        larger = found["allowed_32"]
        found["memory"] = {
            "prompts": [few, many], "peak_rss_mb": [smaller["peak_rss_mb"], larger["peak_rss_mb"]],
            "bytes_per_prompt": round(1e6 * (larger["peak_rss_mb"] - smaller["peak_rss_mb"]) / (many - few))}
        for client in CLIENTS:
            found[client] = measured(url, mine, 32, "plain", client, f"{url}/v1", "32", str(plain_count))
    return found


def main(arguments: Sequence[str]) -> None:
    if arguments[:1] == ["--apart"]:
        what, *rest = arguments[1:]
        if what == "written":
            result = written(rest[0], int(rest[1]), int(rest[2]), Path(rest[3]))
        else:
            result = plain(rest[0], rest[1], int(rest[2]), int(rest[3]))
        print(json.dumps(result))
        return

    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--folder", type=Path, default=Path("."), help="where texts are kept: the disk to measure")

    load, chosen = load_average(), options(__doc__ or "", add)
    with tempfile.TemporaryDirectory(dir=chosen.folder, prefix=".endpoint_load-") as folder:
        report("endpoint_load", figures(chosen.quick, Path(folder)), chosen, load=load)


if __name__ == "__main__":
    main(sys.argv[1:])
