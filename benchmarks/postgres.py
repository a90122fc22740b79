"""A PostgreSQL server of one's own for tests and benchmarks: in a temporary folder, on a free port, gone at the end."""

from __future__ import annotations

import ctypes
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def programs() -> Path:
    """The folder with initdb and postgres, of the newest version. Raises RuntimeError when there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    if not found and (elsewhere := shutil.which("initdb")):
        found = [Path(elsewhere).resolve()]
    if not found:
        raise RuntimeError("PostgreSQL is not installed: apt-get install postgresql (or say `-k 'not postgresql'`)")
    return found[-1].parent


def _end_with_parent() -> None:
    if sys.platform == "linux":  # should the tests be killed, the server does not stay
        ctypes.CDLL(None).prctl(1, signal.SIGINT)


class Cluster:
    """`with Cluster() as cluster: … cluster.url("postgres")`. durable: fsync as in production."""

    def __init__(self, *, durable: bool = False) -> None:
        self.port = free_port()
        self._bin = programs()
        self._durable = durable
        self._as: dict[str, Any] = {}
        self._count = 0

    def __enter__(self) -> Cluster:
        self.folder = Path(tempfile.mkdtemp(prefix="trivet-postgres-"))
        if os.getuid() == 0:  # the server refuses root
            account = pwd.getpwnam("postgres")
            os.chown(self.folder, account.pw_uid, account.pw_gid)
            self._as = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        data = self.folder / "data"
        subprocess.run([self._bin / "initdb", "-D", data, "-U", "trivet", "-A", "trust", "-E", "UTF8", "--locale=C",
                        "--no-sync"], check=True, capture_output=True, cwd=self.folder, **self._as)
        options = {"listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": self.folder,
                   "max_connections": 200, "fsync": "on" if self._durable else "off"}
        with (self.folder / "log").open("wb") as log:
            self._server = subprocess.Popen(
                [self._bin / "postgres", "-D", data, *(f"--{k}={v}" for k, v in options.items())], stdout=log,
                stderr=log, cwd=self.folder, preexec_fn=_end_with_parent, **self._as)
        until = time.monotonic() + 60
        while subprocess.run([self._bin / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]).returncode:
            if self._server.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"PostgreSQL did not start: {(self.folder / 'log').read_text()}")
            time.sleep(0.05)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._server.send_signal(signal.SIGINT)  # fast shutdown
        try:
            self._server.wait(20)
        except subprocess.TimeoutExpired:
            self._server.send_signal(signal.SIGQUIT)
            self._server.wait(20)
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, database: str) -> str:
        """The address of a database on this server."""
        return f"postgresql://trivet@127.0.0.1:{self.port}/{database}"

    def new_database(self, template: str = "template1") -> str:
        """The address of a new database, a copy of `template`."""
        import psycopg

        self._count += 1
        name = f"labels_{self._count}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        return self.url(name)
