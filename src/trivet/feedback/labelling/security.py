"""What keeps people apart: session cookies, CSRF tokens, rate limits, and the headers of every answer.

The CSRF token of a form is a keyed hash of the session's own secret, so that it needs no store and survives a restart
of the server; before sign-in a cookie of its own takes the session's place. A POST from a page of another origin is
refused as well. Programs come in with a token in the Authorization header; the API never looks at cookies.

Not covered: TLS (put a proxy that ends it in front, and give its address as --url), limits shared by several processes.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

SESSION_COOKIE = "trivet_session"
DOOR_COOKIE = "trivet_door"
"""Before sign-in: what the CSRF token of the sign-in and invitation forms is made from."""
CSRF_FIELD = "csrf"

POLICY = "; ".join((
    "default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self'", "connect-src 'self'",
    "form-action 'self'", "base-uri 'none'", "frame-ancestors 'none'"))
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # 'no-referrer' would also turn the Origin of our own forms into 'null', by which a foreign POST is known
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), interest-cohort=()",
}


class SecurityHeaders:
    """ASGI middleware: the headers of every answer, and a limit on what a request may send.

    small: bytes of a form; large: bytes of an upload through the API.
    """

    def __init__(self, app: Any, *, small: int = 1 << 20, large: int = 256 << 20, https: bool = False) -> None:
        self.app, self.small, self.large, self.https = app, small, large, https

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if self.https:
                    headers.setdefault("Strict-Transport-Security", "max-age=31536000")
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        limit = self.large if str(scope["path"]).startswith("/api/") else self.small
        length = Headers(scope=scope).get("content-length")
        if length is not None and (not length.isdigit() or int(length) > limit):
            await PlainTextResponse(f"too large: at most {limit} bytes\n", 413)(scope, receive, send_with_headers)
            return
        got = 0

        async def receive_counted() -> MutableMapping[str, Any]:
            # a chunked body names no length: it is cut off where it becomes too long
            nonlocal got
            message = await receive()
            got += len(message.get("body", b""))
            return {"type": "http.disconnect"} if got > limit else message

        await self.app(scope, receive_counted, send_with_headers)


# --- CSRF --------------------------------------------------------------------------------------------


def csrf_token(secret: str) -> str:
    """The token that a form must carry, from the secret in the visitor's cookie."""
    return hmac.new(secret.encode(), b"trivet csrf", hashlib.sha256).hexdigest()


def csrf_ok(secret: str | None, sent: str | None) -> bool:
    """Whether a form carried the token that belongs to its sender's cookie."""
    return bool(secret and sent) and hmac.compare_digest(csrf_token(str(secret)).encode(), str(sent).encode())


def same_origin(request: Request, public_url: str | None = None) -> bool:
    """Whether a request comes from a page of this server, as far as the browser says; programs say nothing.

    public_url: the address under which the server is reached from outside, where a proxy stands before it.
    """
    if request.headers.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}:
        return False
    origin = request.headers.get("origin")
    if origin is None:
        return True
    own = {request.headers.get("host", "").lower()}
    if public_url:
        own.add(urlsplit(public_url).netloc.lower())
    return urlsplit(origin).netloc.lower() in own


def set_cookie(response: Response, name: str, value: str, *, https: bool, days: float = 30) -> None:
    """A cookie that no script can read and no other site sends along with a form."""
    response.set_cookie(name, value, max_age=int(days * 86_400), httponly=True, samesite="lax", secure=https, path="/")


def new_secret() -> str:
    """A random value that can't be guessed."""
    return secrets.token_urlsafe(32)


# --- limits ------------------------------------------------------------------------------------------


@dataclass
class RateLimit:
    """At most `most` failures by a key within `seconds`; a success gives its try back.

    A try is counted before it is made, so that many at once can't pass together. Keys are forgotten when they are old,
    and the oldest when there are more than `keys`.
    """

    most: int
    seconds: float
    keys: int = 10_000
    clock: Callable[[], float] = time.monotonic
    _tries: dict[str, list[float]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def attempt(self, key: str) -> float:
        """Count a try. 0: go on; else the seconds after which the next one may come."""
        now = self.clock()
        with self._lock:
            recent = [t for t in self._tries.pop(key, ()) if now - t < self.seconds]
            wait = 0.0
            if len(recent) >= self.most:
                wait = self.seconds - (now - recent[0])
            else:
                recent.append(now)
            self._tries[key] = recent
            while len(self._tries) > self.keys:
                del self._tries[next(iter(self._tries))]
            return wait

    def succeeded(self, key: str) -> None:
        """The last try was right: it does not count."""
        with self._lock:
            recent = self._tries.get(key)
            if recent:
                recent.pop()
            if not recent:
                self._tries.pop(key, None)


class SignInLimits:
    """Limits on guessing: by account and address, by account alone, by address alone."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = (RateLimit(5, 300, clock=clock), RateLimit(30, 300, clock=clock),
                        RateLimit(40, 300, clock=clock))
        self.hashing = threading.BoundedSemaphore(4)
        """argon2 takes much memory and a core: only so many at once."""

    @staticmethod
    def _keys(name: str, address: str) -> tuple[str, str, str]:
        account = hashlib.sha256(name.strip().casefold().encode()).hexdigest()
        return f"{account}|{address}", account, address

    def attempt(self, name: str, address: str) -> float:
        """Count a try; the seconds to wait, or 0."""
        return max(limit.attempt(key) for limit, key in zip(self._limits, self._keys(name, address), strict=True))

    def succeeded(self, name: str, address: str) -> None:
        """The try was right."""
        for limit, key in zip(self._limits, self._keys(name, address), strict=True):
            limit.succeeded(key)
