"""Who may ask, how often, and how much: keys, rates, sizes, and from which pages.

The server is meant for one machine's users or to stand behind a proxy that ends TLS. A rate counts requests by key, or
by address where there are no keys, over a sliding minute.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from pathlib import Path

from starlette.requests import Request

from trivet.errors import TrivetError

MOST_CALLERS = 10_000
"""Callers whose rate is remembered; the one that was silent the longest is forgotten first."""


class Refused(TrivetError):
    """A request that is turned away. status: HTTP's. after: seconds until it may be tried again."""

    def __init__(self, status: int, kind: str, what: str, *, mend: str, field: str | None = None,
                 after: float | None = None) -> None:
        super().__init__(what, mend=mend, field=field)
        self.status, self.kind, self.after = status, kind, after


def read_keys(file: Path | None, variable: str = "TRIVET_SERVE_KEYS") -> dict[str, str]:
    """Keys' hashes with their names, from a file (`NAME:KEY` or `KEY`, one a line) and an environment variable (the
    same with commas). Empty: no keys are asked for. Raises TrivetError for a file that can't be read or a short key."""
    lines: list[tuple[int | None, str]] = [(None, s) for s in os.environ.get(variable, "").split(",")]
    if file is not None:
        try:
            lines += list(enumerate(file.read_text(encoding="utf-8").splitlines(), 1))
        except (OSError, UnicodeDecodeError) as error:
            raise TrivetError(f"the file of keys can't be read ({error})", file=file, field="keys",
                              mend="give a text file with one key a line") from None
    found: dict[str, str] = {}
    for number, line in lines:
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        name, _, key = text.rpartition(":")
        if len(key) < 16:
            raise TrivetError("this key is too short to be safe", file=file if number else variable, line=number,
                              field="keys", expected="at least 16 characters",
                              mend="make one: python -c 'import secrets; print(secrets.token_urlsafe(24))'")
        found[_hash(key)] = name or f"key-{_hash(key)[:6]}"
    if file is not None and not found:
        raise TrivetError("the file of keys holds none", file=file, field="keys", mend="write one key a line")
    return found


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


class Door:
    """Turns away who has no key, asks too often, sends too much, or comes from a foreign page."""

    def __init__(self, keys: dict[str, str], *, rate: int | None, most_bytes: int, hosts: Sequence[str] | None,
                 clock: Callable[[], float] = time.monotonic) -> None:
        """keys: as `read_keys` gives them. rate: requests a minute. hosts: names under which the server may be asked
        for, None: any; a foreign page that has its own name resolve to this machine (DNS rebinding) is refused so.
        """
        self.keys, self.rate, self.most_bytes, self.clock = keys, rate, most_bytes, clock
        self.hosts = None if hosts is None else {h.lower() for h in hosts}
        self._asked: OrderedDict[str, deque[float]] = OrderedDict()

    def check_host(self, request: Request) -> None:
        """Raises Refused (421) for a name that is not the server's."""
        if self.hosts is None:
            return
        host = request.headers.get("host", "").lower()
        name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
        if name not in self.hosts:
            raise Refused(421, "invalid_request_error", "this server is not asked for under that name",
                          mend=f"use {' or '.join(sorted(self.hosts))}, or allow the name: --hosts NAME")

    def caller(self, request: Request) -> str:
        """The name of the key, or the address. Raises Refused (401)."""
        if not self.keys:
            return request.client.host if request.client else "local"
        kind, _, key = request.headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and key.strip():
            given = _hash(key.strip())
            for known, name in self.keys.items():
                if hmac.compare_digest(given, known):
                    return name
        raise Refused(401, "authentication_error", "no valid API key was given",
                      mend="send it in the header: Authorization: Bearer KEY")

    def count(self, caller: str) -> None:
        """Count a request. Raises Refused (429) where there were too many within a minute."""
        if self.rate is None:
            return
        now = self.clock()
        times = self._asked.setdefault(caller, deque())
        self._asked.move_to_end(caller)
        while len(self._asked) > MOST_CALLERS:
            self._asked.popitem(last=False)
        while times and now - times[0] >= 60:
            times.popleft()
        if len(times) >= self.rate:
            raise Refused(429, "rate_limit_error", f"more than {self.rate} requests a minute",
                          mend="ask less often", after=60 - (now - times[0]))
        times.append(now)

    async def body(self, request: Request) -> bytes:
        """The body. Raises Refused for one that is too long (413) or not JSON (415: what a foreign page's form can't
        send without asking first)."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refused(415, "invalid_request_error", "the body is not said to be JSON", field="Content-Type",
                          mend="send Content-Type: application/json")
        length = request.headers.get("content-length", "0")
        got = bytearray()
        if length.isdigit() and int(length) <= self.most_bytes:
            async for part in request.stream():
                got += part
                if len(got) > self.most_bytes:
                    break
            else:
                return bytes(got)
        raise Refused(413, "invalid_request_error", f"the body has more than {self.most_bytes} bytes",
                      mend="send less at once")
