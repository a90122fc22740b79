"""Attacks on the sandbox, and oracles that notice when one reaches the host.

Watched while a program runs and afterwards: a file that it must neither read nor change, a folder in which anybody may
write, listening sockets, another process, how many processes there are and how much memory they hold, when the program
ends and how much of its output comes back. `tests/sandbox` runs the suite as tests, `benchmarks/attacks.py` counts.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import yaml

from trivet.sandbox import Limits, Result
from trivet.sandbox import confined as confined_tiers
from trivet.sandbox.base import NeedsMore
from trivet.sandbox.run import TIERS

FILE = Path(__file__).parent / "sandbox" / "attacks.yaml"
LIMITS: dict[str, Any] = {"seconds": 1.5, "memory": 128, "output": 20_000}
LATE = 12.0
"""Seconds beyond its limit after which a program counts as not ended: a busy machine takes less to start a tier."""
Runner = Callable[[str, Limits, int], Result]


@dataclass(frozen=True)
class Attack:
    """A program, how it must end where that matters, and which oracle it sets off when nothing holds it."""

    name: str
    kind: str
    code: str
    ends: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    trips: str = ""
    steps: int = 0
    limits: dict[str, Any] = field(default_factory=dict)

    @property
    def allowed(self) -> Limits:
        """The suite's limits and its own."""
        return Limits(**LIMITS | self.limits)


def attacks() -> list[Attack]:
    """The suite."""
    rows = yaml.safe_load(FILE.read_text())
    return [Attack(**row | {k: tuple(row.get(k, ())) for k in ("ends", "only")}) for row in rows]


def in_tier(name: str) -> Runner:
    """The runner of one tier: what it answers itself, whether or not another tier would be asked next."""
    def run(code: str, limits: Limits, steps: int) -> Result:
        try:
            return TIERS[name].run(code, limits, steps)
        except NeedsMore as needs:
            return needs.result
    return run


def in_the_open(code: str, limits: Limits, steps: int) -> Result:
    """No sandbox at all: to see that the oracles notice. Never more than a few seconds, and only for `trips`."""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               stdin=subprocess.DEVNULL)
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    endless = "while True" in code and "print" not in code
    until = time.monotonic() + (LATE + limits.seconds + 1 if endless else 4)
    said = b""
    while process.poll() is None and time.monotonic() < until and len(said) < 3_000_000:
        said += process.stdout.read(1_000_000) or b""
        time.sleep(0.02)
    process.kill()
    process.wait()
    said += process.stdout.read(1_000_000) or b""
    process.stdout.close()
    return Result("ok", "open", said.decode(errors="replace"))


class Host:
    """What an attack could reach, and what is seen of it."""

    def __init__(self) -> None:
        self.secret = secrets.token_hex(12)
        self.token = f"attack-{secrets.token_hex(8)}"
        # straight under /tmp and open to all: what keeps a program out must not be the file's owner
        self.folder = Path(tempfile.mkdtemp(prefix="trivet-attack-"))
        self.folder.chmod(0o777)
        self.marker = self.folder / "marker"
        self.marker.mkdir()
        self.marker.chmod(0o777)
        self.canary = self.folder / "canary"
        self.connections: list[str] = []
        self.stack = contextlib.ExitStack()
        self.ports = {kind: self._listen(kind) for kind in ("tcp", "udp")}
        self.unix = str(self.folder / "socket")
        self._listen_unix(self.unix)
        self._listen_unix("\0" + self.unix)
        self.stack.enter_context(mock.patch.dict(os.environ, {"ATTACK_SECRET": self.secret}))
        self.victim = self._victim()
        self.reset()

    def close(self) -> None:
        """Take all of it down."""
        self.victim.kill()
        self.victim.wait()
        self.stack.close()
        shutil.rmtree(self.folder)

    def reset(self) -> None:
        """As it was before an attack."""
        if self.victim.poll() is not None or self._state() != self.calm:
            self.victim.kill()
            self.victim.wait()
            self.victim = self._victim()
        self.canary.unlink(missing_ok=True)
        self.canary.write_text(self.secret)
        self.canary.chmod(0o666)
        shutil.rmtree(self.marker)
        self.marker.mkdir()
        self.marker.chmod(0o777)
        self.connections.clear()

    def fill(self, code: str) -> str:
        """A program with the places of this host."""
        for name, value in {"CANARY": self.canary, "MARKER": self.marker, "PORT": self.ports["tcp"],
                            "UDP": self.ports["udp"], "UNIX": self.unix, "VICTIM": self.victim.pid}.items():
            code = code.replace(f"@{name}@", str(value))
        return code

    def seen(self) -> Iterator[str]:
        """Oracles that have something to say."""
        if not self.canary.is_file() or self.canary.read_text() != self.secret \
                or self.canary.stat().st_mode & 0o777 != 0o666 or self.canary.stat().st_nlink != 1 \
                or time.time() - self.canary.stat().st_mtime > 3600:
            yield "canary changed"
        if list(self.marker.iterdir()):
            yield "marker"
        if "datagram" in self.connections:
            yield "datagram"
        if "connection" in self.connections:
            yield "connection"
        if self.victim.poll() is not None:
            yield "victim dead"
        elif self._state() != self.calm:
            yield "victim changed"

    def _victim(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-c", "import time; print(flush=True); time.sleep(3600)"],
                                   stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        self.victim = process
        self.calm = self._state()
        return process

    def _state(self) -> tuple[Any, ...]:
        """What another process could change of the victim."""
        try:
            status = Path(f"/proc/{self.victim.pid}/status").read_text()
            stopped = "State:\tT" in status or "State:\tt" in status or "TracerPid:\t0" not in status
            return (os.getpriority(os.PRIO_PROCESS, self.victim.pid), os.sched_getaffinity(self.victim.pid), stopped,
                    resource.prlimit(self.victim.pid, resource.RLIMIT_NOFILE))
        except (OSError, ProcessLookupError):
            return ()

    def _listen(self, kind: str) -> int:
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
        self.stack.callback(made.close)
        made.bind(("127.0.0.1", 0))
        self._accept(made, kind == "tcp")
        return int(made.getsockname()[1])

    def _listen_unix(self, name: str) -> None:
        made = socket.socket(socket.AF_UNIX)
        self.stack.callback(made.close)
        made.bind(name)
        if name[0] != "\0":
            os.chmod(name, 0o777)
        self._accept(made, True)

    def _accept(self, made: socket.socket, stream: bool) -> None:
        if stream:
            made.listen()
        made.settimeout(0.2)
        closed = threading.Event()
        self.stack.callback(closed.set)

        def serve() -> None:
            while not closed.is_set():
                with contextlib.suppress(TimeoutError, OSError):
                    if stream:
                        made.accept()[0].close()
                    else:
                        made.recvfrom(100)
                    self.connections.append("connection" if stream else "datagram")
        threading.Thread(target=serve, daemon=True).start()


@dataclass
class Watch:
    """The processes of an attack while it runs: how many at most, how much memory."""

    token: str
    most: int = 0
    memory: float = 0.0

    def __post_init__(self) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """No longer."""
        self._over.set()
        self._thread.join()

    def alive(self) -> list[psutil.Process]:
        """Processes that bear the token in their command, wherever they hang, and Monty's workers."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and any(self.token in word for word in process.cmdline()):
                    found.append(process)
        return found

    def _look(self) -> None:
        own = psutil.Process()
        while not self._over.wait(0.08):
            alive = self.alive()
            self.most = max(self.most, len(alive))
            held = 0
            with contextlib.suppress(psutil.Error):
                alive += [c for c in own.children() if c.name() == "monty"]
            for process in alive:
                with contextlib.suppress(psutil.Error):
                    held += process.memory_info().rss
            self.memory = max(self.memory, held / 2**20)


def through(attack: Attack, run: Runner, host: Host) -> list[str]:
    """Which oracles an attack sets off; none where the sandbox holds."""
    host.reset()
    limits = attack.allowed
    code = host.fill(attack.code)
    open_run = run is in_the_open
    source = confined_tiers.source() + f"\n# {host.token}\n"
    watch = Watch(host.token)
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    began = time.monotonic()
    with mock.patch.object(confined_tiers, "source", lambda: source):
        result = run(code + f"\n# {host.token}\n" if open_run else code, limits, attack.steps)
    seconds = time.monotonic() - began
    found = []
    for _ in range(20):
        left = watch.alive()
        if not left:
            break
        time.sleep(0.1)
    watch.stop()
    if left:
        found.append("left behind")
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
    time.sleep(0.05)
    found += list(host.seen())
    said = json.dumps(result.as_dict())
    if host.secret in said:
        found.append("canary read")
    if "REACHED" in result.stdout or "REACHED" in str(result.value):
        found.append("REACHED")
    if attack.ends and result.status not in attack.ends and not open_run:
        found.append(f"ended with {result.status}, not {' or '.join(attack.ends)}")
    if seconds > limits.seconds + LATE:
        found.append("time")
    if len(result.stdout.encode(errors="replace")) > limits.output * 4 or len(said) > 2_000_000:
        found.append("output")
    # bwrap itself, its init, the supervisor, each with the token in its command
    if watch.most > limits.processes + 4:
        found.append(f"processes ({watch.most})")
    if watch.memory > limits.memory + 200:
        found.append("memory")
    if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 > held + 300:
        found.append("memory of the host's process")
    return found


HARMLESS = {
    "a fork fails": "import os\nif os.fork() == 0:\n    os._exit(0)\nprint('REACHED')",
    "memory is bounded": "x = bytearray(400_000_000)\nprint('REACHED')",
    "a loop is ended": "import time\nt = time.time()\nwhile time.time() < t + 6:\n    pass\nprint('REACHED')",
    "files are out of reach": "open('@MARKER@/x', 'w').close()\nprint('REACHED')",
    "output is bounded": "print('x' * 30_000 + 'REACHED')",
}


def require_limits(name: str, host: Host) -> None:
    """Raise AssertionError unless a tier holds what is harmless: nothing else is run in it then."""
    for title, code in HARMLESS.items():
        found = through(Attack(title, "harmless", code), in_tier(name), host)
        assert not found, f"{name}: {title}: {found}"
