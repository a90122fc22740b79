"""Fetches a web page or an API's answer from where it may, and from nowhere else.

A name is resolved once, every address it has is checked, and the connection goes to the address that was checked: a
resolver that changes its mind in between changes nothing (DNS rebinding). TLS still verifies the name.
"""

from __future__ import annotations

import ipaddress
import queue
import re
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, urljoin, urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from trivet.errors import TrivetError

REDIRECTS = 5
"""Hops that are followed."""
_REDIRECT = {301, 302, 303, 307, 308}
_OURS = {"host", "content-length", "transfer-encoding", "connection", "accept-encoding"}
_NOT_SECRET = {"accept", "accept-language", "user-agent"}
_NETWORKS = tuple(map(ipaddress.ip_network, ("64:ff9b::/96", "64:ff9b:1::/48", "::/96", "::ffff:0:0/96",
                                             "::ffff:0:0:0/96", "2002::/16", "2001::/32", "fec0::/10")))
"""IPv6 addresses that lead to an IPv4 address (NAT64, compatible, mapped, translated, 6to4, Teredo), and site-local."""


@dataclass(frozen=True)
class Reach:
    """What may be reached."""

    hosts: tuple[str, ...] = ()
    """Allow-list: host, host:port or *.domain. Empty: any public host when `any_public`, else none."""
    any_public: bool = False
    """With no `hosts`: every host whose addresses are all public."""
    private: tuple[str, ...] = ()
    """Those of the allowed hosts that may resolve to private addresses."""
    seconds: float = 20.0
    """For the whole of it: names, redirects and body."""
    most_bytes: int = 10_000_000
    """Of a body, as it comes and as it is unpacked."""


@dataclass(frozen=True)
class Fetched:
    """What came."""

    url: str
    """Where it came from at last, after redirects."""
    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes


@dataclass(frozen=True)
class _Place:
    scheme: str
    host: str
    port: int
    target: str

    @property
    def origin(self) -> tuple[str, str, int]:
        return self.scheme, self.host, self.port

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == {"http": 80, "https": 443}[self.scheme] else f"{host}:{self.port}"


def fetch(url: str, reach: Reach, *, method: str = "GET", headers: Mapping[str, str] = {},
          body: bytes | None = None) -> Fetched:
    """What an http or https URL answers, whatever its status.

    Redirects of GET and HEAD are followed at most 5 times, each checked like the first; to another origin only
    harmless headers go along. No proxy and no netrc of the environment is used. Blocking.

    Raises TrivetError for a URL outside `reach`, an answer over its bounds, and where nothing answers.
    """
    ends = time.monotonic() + reach.seconds
    method = method.upper()
    if not re.fullmatch(r"[A-Z]{1,20}", method):
        raise TrivetError("this is no HTTP method", field="method", mend="use GET, HEAD, POST, PUT, PATCH or DELETE")
    sent = {k: v for k, v in headers.items() if k.lower() not in _OURS}
    place = _parse(url)
    for _ in range(REDIRECTS + 1):
        found = _hop(url, place, reach, method, sent, body, ends)
        there = found.headers.get("location")
        if found.status not in _REDIRECT or not there:
            return found
        if method not in ("GET", "HEAD"):
            raise _refused(url, f"it answers a {method} with a redirect, and only GET and HEAD follow one")
        url = urljoin(url, there)
        onward = _parse(url)
        if place.scheme == "https" and onward.scheme == "http":
            raise _refused(url, "a redirect leads from https to http")
        if onward.origin != place.origin:
            sent = {k: v for k, v in sent.items() if k.lower() in _NOT_SECRET}
        place = onward
    raise _refused(url, f"it redirects more than {REDIRECTS} times")


def _refused(url: str, why: str, mend: str = "use another address") -> TrivetError:
    # the query may hold a secret
    return TrivetError(f"{url.split('?')[0].split('#')[0][:200]!r} is not fetched: {why}", mend=mend)


def _parse(url: str) -> _Place:
    """The parts of a URL. Raises TrivetError for one that two readers could read differently."""
    if re.search(r"[\x00-\x20\x7f\\]", url):
        raise TrivetError("the URL holds spaces, control characters or backslashes", mend="write them as %20 and so on")
    try:
        parts = urlsplit(url)
        port = parts.port
        host = (parts.hostname or "").removesuffix(".")
    except ValueError as error:
        raise TrivetError(f"this is no URL ({error})", mend="give one like https://example.org/page") from None
    if parts.scheme not in ("http", "https"):
        raise _refused(url, f"its scheme is {parts.scheme or 'missing'!r}", "use an http or https address")
    if "@" in parts.netloc:
        raise TrivetError("the URL holds a user name or password", mend="leave out what stands before the @")
    if "%" in host or not host:
        raise _refused(url, "its host can't be read")
    try:
        host = str(ipaddress.ip_address(host))
    except ValueError:
        try:
            host = host.encode("idna").decode().lower()
        except UnicodeError:
            raise _refused(url, "its host is no name") from None
        if re.fullmatch(r"[0-9]+|0x[0-9a-f]*", host.rsplit(".", 1)[-1]):  # 2130706433, 0177.0.0.1, 0x7f.1
            raise _refused(url, "its host is a number in disguise", "write the address as four decimal numbers") \
                from None
        if not re.fullmatch(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*", host):
            raise _refused(url, "its host is no name") from None
    target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._") + (
        f"?{quote(parts.query, safe='/%:@!$&()*+,;=~-._?')}" if parts.query else "")
    return _Place(parts.scheme, host, port or {"http": 80, "https": 443}[parts.scheme], target)


def _listed(place: _Place, patterns: tuple[str, ...]) -> bool:
    for pattern in patterns:
        host, port = pattern.lower(), None
        if m := re.fullmatch(r"(\[[^\]]*\]|[^:]*):(\d+)", host):
            host, port = m[1], int(m[2])
        host = host.strip("[]").removesuffix(".")
        fits = place.host.endswith(host[1:]) if host.startswith("*.") else place.host == host
        if fits and port in (None, place.port):
            return True
    return False


def _is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address.split("%")[0])
    if ip.version == 6 and any(ip in network for network in _NETWORKS):
        return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified or ip.is_loopback
                                 or ip.is_link_local)


def _resolve(host: str, port: int) -> list[str]:
    return list(dict.fromkeys(str(i[4][0]) for i in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))


def _addresses(url: str, place: _Place, reach: Reach, ends: float) -> list[str]:
    """The checked addresses of an allowed host. Raises TrivetError."""
    if not (_listed(place, reach.hosts) or (not reach.hosts and reach.any_public)):
        raise _refused(url, f"the host {place.authority} is not in the allow-list", "list the host, if you trust it")
    answers: queue.Queue[list[str] | OSError] = queue.Queue()

    def ask() -> None:
        try:
            answers.put(_resolve(place.host, place.port))
        except (OSError, UnicodeError) as error:
            answers.put(error if isinstance(error, OSError) else OSError(str(error)))

    threading.Thread(target=ask, daemon=True).start()  # getaddrinfo knows no time-out
    try:
        found = answers.get(timeout=max(0.0, ends - time.monotonic()))
    except queue.Empty:
        raise _late(url, reach) from None
    if isinstance(found, OSError) or not found:
        raise _refused(url, f"the host {place.host} has no address", "check the name and the network")
    if not _listed(place, reach.private) and not all(map(_is_public, found)):
        raise _refused(url, f"the host {place.host} has an address that is not public",
                       "list it among the private hosts, if it is meant")
    return found


def _late(url: str, reach: Reach) -> TrivetError:
    return _refused(url, f"it took more than {reach.seconds:g} seconds", "try later, or allow it more time")


def _context() -> ssl.SSLContext:
    return ssl.create_default_context()


class _Pinned:
    """A handle on the connection's socket that stays good when TLS takes the socket over."""

    handle: socket.socket | None = None

    def _new_conn(self) -> socket.socket:
        made: socket.socket = super()._new_conn()  # type: ignore[misc]
        self.handle = made.dup()
        return made


class _Http(_Pinned, HTTPConnection):
    pass


class _Https(_Pinned, HTTPSConnection):
    pass


def _hop(url: str, place: _Place, reach: Reach, method: str, headers: Mapping[str, str], body: bytes | None,
         ends: float) -> Fetched:
    failed: Exception | None = None
    for address in _addresses(url, place, reach, ends):
        left = ends - time.monotonic()
        if left <= 0:
            raise _late(url, reach)
        conn: _Http | _Https
        if place.scheme == "https":
            conn = _Https(address, place.port, timeout=left, server_hostname=place.host, assert_hostname=place.host,
                          ssl_context=_context(), cert_reqs="CERT_REQUIRED")
        else:
            conn = _Http(address, place.port, timeout=left)

        def cut(conn: _Http | _Https = conn) -> None:
            try:
                if conn.handle is not None:
                    conn.handle.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

        timer = threading.Timer(left, cut)  # socket time-outs begin anew with every byte
        timer.daemon = True
        timer.start()
        try:
            conn.connect()
            return _exchange(url, conn, place, reach, method, headers, body, ends)
        except (OSError, urllib3.exceptions.HTTPError, ValueError, EOFError) as error:
            failed = error
            if time.monotonic() >= ends - 0.01:
                raise _late(url, reach) from None
            if conn.handle is not None:  # it was reached: no second try, which could write twice
                break
        except Exception as error:  # http.client's own faults
            if type(error).__module__ != "http.client":
                raise
            failed = error
            if time.monotonic() >= ends - 0.01:
                raise _late(url, reach) from None
            break
        finally:
            timer.cancel()
            conn.close()
            if conn.handle is not None:
                conn.handle.close()
    raise _refused(url, f"nothing sound answers ({type(failed).__name__}: {str(failed)[:200]})",
                   "check the address, its certificate and the network")


def _exchange(url: str, conn: HTTPConnection, place: _Place, reach: Reach, method: str, headers: Mapping[str, str],
              body: bytes | None, ends: float) -> Fetched:
    conn.request(method, place.target, body=body, preload_content=False, decode_content=False,
                 headers={"User-Agent": "trivet", **headers, "Host": place.authority, "Accept-Encoding": "gzip",
                          "Connection": "close"})
    answer = conn.getresponse()
    named = {k.lower(): v for k, v in answer.headers.items()}
    if method == "HEAD" or (answer.status in _REDIRECT and "location" in named):
        return Fetched(url, answer.status, named, b"")
    coding = named.get("content-encoding", "identity").strip().lower()
    if coding not in ("identity", "", "gzip", "x-gzip", "deflate"):
        raise _refused(url, f"its body is packed as {coding[:40]!r}")
    unpack = zlib.decompressobj(47) if coding in ("gzip", "x-gzip", "deflate") else None
    whole, came = bytearray(), 0
    while True:
        chunk = answer.read(65536)
        if time.monotonic() >= ends:
            raise _late(url, reach)
        if not chunk:
            break
        came += len(chunk)
        if unpack is not None:
            try:
                chunk = unpack.decompress(chunk, reach.most_bytes - len(whole) + 1)
            except zlib.error:
                raise _refused(url, "its body can't be unpacked") from None
        whole += chunk
        if max(came, len(whole)) > reach.most_bytes:
            raise _refused(url, f"its body has more than {reach.most_bytes} bytes", "allow it more bytes")
    if unpack is not None and came and not unpack.eof:
        raise _refused(url, "its packed body breaks off")
    return Fetched(url, answer.status, named, bytes(whole))
