"""A server of `trivet serve` as its own process, for tests: started, asked, stopped by its id."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx


@dataclass
class Running:
    """A running server."""

    url: str
    process: subprocess.Popen[str]
    said: list[str] = field(default_factory=list)
    """Its lines on standard error: the log."""

    def get(self, path: str, **more: Any) -> httpx.Response:
        return httpx.get(self.url + path, timeout=60, **more)

    def post(self, path: str, body: Any, **more: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=60, **more)

    def figure(self, name: str) -> float:
        """A metric's value, its labels added up."""
        found = re.findall(rf"^{name}(?:\{{.*\}})? ([\d.e+]+)$", self.get("/metrics").text, re.MULTILINE)
        return sum(map(float, found))

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextlib.contextmanager
def serving(model: Path | str, *settings: str, **environment: str) -> Iterator[Running]:
    """`trivet serve MODEL` on a free port until the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", "trivet", "serve", str(model), "--port", "0", "--device.threads", "1", *settings],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment)
    assert process.stdout is not None and process.stderr is not None
    errors, said = process.stderr, list[str]()
    reader = threading.Thread(target=lambda: said.extend(iter(errors.readline, "")), daemon=True)
    reader.start()
    try:
        url = ""
        for line in process.stdout:
            if found := re.search(r"serving (http://\S+)", line):
                url = found[1]
                break
        if not url:
            process.wait(30)
            reader.join(5)
            raise AssertionError("".join(said))
        yield Running(url, process, said)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        reader.join(5)
