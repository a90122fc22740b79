"""One address with one key over HTTP: its connections, how many requests are in flight, and how long it is held.

It stands on urllib3, which takes a part of the processor time that httpx and the openai client take for a request
(benchmarks/endpoint_load.py): with 32 or 64 in flight that is what bounds how full an endpoint is kept.
"""

from __future__ import annotations

import threading
import time
import urllib.request
from urllib.parse import unquote, urlsplit

import urllib3

from trivet.errors import TrivetError
from trivet.generate.in_flight import Stopped

CONNECT_SECONDS = 10.0
"""Longest wait for a connection: an address where nobody is takes no `timeout` to find out."""


class Again(Exception):
    """A failure that may pass. `after`: seconds that the endpoint asks to wait."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


class NoAddress(Exception):
    """What was given as an address is none, or its proxy is."""


class Connection:
    """All who ask at this address with this key in a stage share it."""

    def __init__(self, url: str, key: str) -> None:
        self.url, self.key = url, key
        self._change = threading.Condition()
        self._bound: int | None = None
        self._flying = 0
        self._hold_until = 0.0
        self._http: urllib3.PoolManager | None = None

    def bound(self, concurrency: int) -> None:
        """At most this many in flight, or fewer where another who asks here wants fewer."""
        with self._change:
            self._bound = concurrency if self._bound is None else min(self._bound, concurrency)

    def hold(self, seconds: float) -> None:
        """No new request for that long: the endpoint is busy, not one request difficult."""
        self._hold_until = max(self._hold_until, time.monotonic() + seconds)

    def enter(self, stop: threading.Event) -> None:
        """Wait for room for one request. Raises Stopped when `stop` is set."""
        while True:
            with self._change:
                while self._bound is not None and self._flying >= self._bound:
                    if stop.is_set():
                        raise Stopped
                    self._change.wait(0.1)
                if (wait := self._hold_until - time.monotonic()) <= 0:
                    self._flying += 1
                    return
            if stop.wait(wait):
                raise Stopped

    def leave(self) -> None:
        """The request is over."""
        with self._change:
            self._flying -= 1
            self._change.notify()

    def post(self, body: bytes, id: str, timeout: float) -> urllib3.BaseHTTPResponse:
        """Send one request, and read its answer whole; redirections are not followed.

        Raises Again for no connection and no answer, NoAddress for an address that is none.
        """
        with self._change:
            if self._http is None:
                self._http = _pool(self.url, self._bound or 1)
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json",
                   "Accept": "application/json", "X-Client-Request-Id": id}
        try:
            return self._http.request(
                "POST", f"{self.url}/chat/completions", body=body, headers=headers, retries=False, redirect=False,
                timeout=urllib3.Timeout(connect=min(timeout, CONNECT_SECONDS), read=timeout))
        except (urllib3.exceptions.LocationValueError, UnicodeError) as error:
            raise NoAddress(str(error)) from None
        except urllib3.exceptions.NewConnectionError as error:  # urllib3 has it among the time-outs
            raise Again(f"no connection: {str(error).rpartition(': ')[2]}") from None
        except urllib3.exceptions.TimeoutError:
            raise Again(f"no answer in {timeout:g} s") from None
        except urllib3.exceptions.HTTPError as error:
            raise Again(f"no connection: {str(error) or type(error).__name__}") from None


def _pool(url: str, connections: int) -> urllib3.PoolManager:
    """Connections that stay open, by the environment's proxy where it names one for this address."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError as error:
        raise NoAddress(str(error)) from None
    secure = None
    if parts.scheme == "https":
        import httpx  # whose rules for certificates are those of all else that Trivet fetches

        secure = httpx.create_ssl_context()
    proxies = urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or urllib.request.proxy_bypass(host):
        return urllib3.PoolManager(maxsize=connections, ssl_context=secure)
    try:
        said = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        login = f"{unquote(said.username)}:{unquote(said.password or '')}" if said.username else None
        return urllib3.ProxyManager(
            f"{said.scheme}://{said.hostname}:{said.port or 80}", maxsize=connections, ssl_context=secure,
            proxy_headers=urllib3.make_headers(proxy_basic_auth=login) if login else None)
    except (ValueError, urllib3.exceptions.HTTPError):
        raise TrivetError("the environment names a proxy that is no HTTP address", field=f"{parts.scheme}_proxy",
                          mend=f"set {parts.scheme}_proxy to http://HOST:PORT, or no_proxy to {host}") from None
