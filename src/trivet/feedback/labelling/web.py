"""What all pages share: who asks, forms that are checked, templates, and errors in words."""

from __future__ import annotations

import datetime
import functools
import hashlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from fastapi import Depends, Request
from starlette.datastructures import FormData, UploadFile
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from trivet import __version__
from trivet.errors import TrivetError
from trivet.feedback.labelling import security
from trivet.feedback.labelling.live import LiveJobs
from trivet.feedback.labelling.markdown import mark_hidden, shown, to_html
from trivet.feedback.store import Invalid, LeaseLost, NotYours, Progress, Store, Unavailable, User

HERE = Path(__file__).parent
PROGRESS_SECONDS = 5.0
"""How old the progress may be that labelers see."""
NOTICES = {
    "saved": "Saved.", "skipped": "Skipped.", "undone": "Taken back. You can answer it again.",
    "nothing": "There is nothing to take back.", "edited": "Changed. The earlier answer stays in the audit trail.",
    "late": "Others have finished that item in the meantime, so it does not need your answer any more.",
    "settings": "Settings saved.", "paused": "Paused.", "resumed": "Resumed.", "reassigned": "Reassigned.",
    "adjudicated": "Your decision is saved.", "imported": "Imported.", "revoked": "The token no longer works.",
}


class NeedSignIn(Exception):
    """Nobody is signed in."""


class Forbidden(Exception):
    """Somebody is signed in, and may not see this."""


class FormExpired(Exception):
    """A form without its token, or from a page of another site."""


@dataclass
class Web:
    """The parts of the running app; `app.state.web`."""

    store: Store
    url: str | None = None
    live: LiveJobs | None = None
    limits: security.SignInLimits = field(default_factory=security.SignInLimits)
    clock: Callable[[], float] = time.monotonic
    _progress: tuple[float, Progress] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def https(self) -> bool:
        return bool(self.url and self.url.startswith("https://"))

    def progress(self) -> Progress:
        """The project's progress, at most PROGRESS_SECONDS old."""
        with self._lock:
            now = self.clock()
            if self._progress is None or now - self._progress[0] > PROGRESS_SECONDS:
                self._progress = (now, self.store.progress())
            return self._progress[1]


def web_of(request: Request) -> Web:
    """The app's parts."""
    web: Web = request.app.state.web
    return web


# --- who asks ----------------------------------------------------------------------------------------


def current_user(request: Request) -> User:
    """Who is signed in. Raises NeedSignIn."""
    token = request.cookies.get(security.SESSION_COOKIE)
    user = web_of(request).store.session_user(token) if token else None
    if user is None:
        raise NeedSignIn
    request.state.user = user
    return user


def admin_user(user: User = Depends(current_user)) -> User:  # noqa: B008
    """Who is signed in, if an admin. Raises Forbidden for labelers."""
    if user.role != "admin":
        raise Forbidden
    return user


def csrf_secret(request: Request) -> str | None:
    """What the visitor's forms are tied to: the session, before sign-in the door's cookie."""
    return request.cookies.get(security.SESSION_COOKIE) or request.cookies.get(security.DOOR_COOKIE)


async def checked_form(request: Request) -> dict[str, str]:
    """The text fields of a form. Raises FormExpired without its CSRF token, or when it comes from another site."""
    web = web_of(request)
    if not security.same_origin(request, web.url):
        raise FormExpired
    form: FormData = await request.form(max_files=0, max_fields=2000)
    values = {name: value for name, value in form.items() if not isinstance(value, UploadFile)}
    if not security.csrf_ok(csrf_secret(request), values.get(security.CSRF_FIELD)):
        raise FormExpired
    return values


def address_of(request: Request) -> str:
    """Where a request comes from, for limits."""
    return request.client.host if request.client else "?"


# --- templates ---------------------------------------------------------------------------------------


@functools.cache
def asset_version() -> str:
    """Changes with the static files, so that browsers may keep them for long."""
    digest = hashlib.sha256()
    for file in sorted((HERE / "static").iterdir()):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:10]


def _number(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f}%"


def _seconds(value: float | None) -> str:
    """A duration a person reads at a glance: 42 s, 3 min, 5.5 h, 3 days."""
    if value is None:
        return "–"
    for limit, unit, size in ((90, "s", 1), (90 * 60, "min", 60), (48 * 3600, "h", 3600)):
        if value < limit:
            amount = value / size
            return f"{amount:.1f} {unit}" if amount < 10 and unit == "h" else f"{amount:.0f} {unit}"
    return f"{value / 86_400:.0f} days"


def _when(value: datetime.datetime | None) -> str:
    return "" if value is None else f"{value:%-d %b %Y, %H:%M} UTC"


@functools.cache
def environment() -> jinja2.Environment:
    """The templates; everything is escaped, and what is not defined is an error."""
    made = jinja2.Environment(loader=jinja2.FileSystemLoader(HERE / "templates"), autoescape=True,
                              undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters |= {"number": _number, "percent": _percent, "duration": _seconds, "when": _when, "marked": mark_hidden,
                     "markdown": lambda text: to_html(text, breaks=False)}
    made.globals |= {"version": __version__, "assets": asset_version(), "shown": shown}
    return made


def page(request: Request, template: str, /, *, status: int = 200, **values: Any) -> HTMLResponse:
    """A template as an answer, with what the frame of every page needs."""
    web = web_of(request)
    user = getattr(request.state, "user", None)
    secret, fresh = csrf_secret(request), None
    if secret is None:
        secret = fresh = security.new_secret()
    settings = web.store.settings()
    html = environment().get_template(template).render(
        {"request": request, "path": request.url.path, "user": user, "settings": settings,
         "csrf": security.csrf_token(secret), "live_on": web.live is not None,
         "notice": NOTICES.get(request.query_params.get("notice", "")),
         "notice_name": request.query_params.get("notice", "")} | values)
    response = HTMLResponse(html, status)
    if fresh is not None:
        security.set_cookie(response, security.DOOR_COOKIE, fresh, https=web.https, days=1)
    return response


def wants_json(request: Request) -> bool:
    """Whether our own script asks (or a program at the API), not a browser for a page."""
    return request.url.path.startswith("/api/") or "application/json" in request.headers.get("accept", "")


def go(request: Request, path: str) -> Response:
    """On to another page: a redirect, and for our script its address."""
    if wants_json(request):
        return JSONResponse({"next": path})
    return RedirectResponse(path, status_code=303)


# --- errors ------------------------------------------------------------------------------------------


def status_of(error: TrivetError) -> int:
    """The HTTP status of an error a person can mend."""
    for kind, status in ((NotYours, 404), (LeaseLost, 409), (Invalid, 422), (Unavailable, 503)):
        if isinstance(error, kind):
            return status
    return 400


def failure(request: Request, status: int, what: str, mend: str = "", headers: dict[str, str] | None = None
            ) -> Response:
    """An error as a page, or as JSON for a program."""
    if wants_json(request):
        return JSONResponse({"error": what, "mend": mend}, status, headers)
    response = page(request, "message.html", status=status, title=what, text=mend, code=status)
    response.headers.update(headers or {})
    return response
