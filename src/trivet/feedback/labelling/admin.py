"""The admin's pages: progress, people, disputed items and their adjudication, settings, files in and out, the log."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.background import BackgroundTask
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response

from trivet.errors import TrivetError
from trivet.feedback.labelling.figures import figures, latest
from trivet.feedback.labelling.item import letter
from trivet.feedback.labelling.markdown import shown, to_html
from trivet.feedback.labelling.pages import Form, order_words
from trivet.feedback.labelling.web import admin_user, go, page, web_of
from trivet.feedback.store import Assignment, Invalid, Store, User, transfer
from trivet.feedback.store.records import Role

router = APIRouter(prefix="/admin", include_in_schema=False)
Admin = Annotated[User, Depends(admin_user)]
EXPORTS = {
    "rankings": ("rankings.jsonl", "Trivet rankings", "Every current ranking with its labeler; input of trivet pairs."),
    "preference": ("preferences.jsonl", "Preferences", "prompt, chosen, rejected: what most training libraries read."),
    "argilla": ("argilla.json", "Argilla", "Records with ranking responses, for an Argilla dataset."),
    "label_studio": ("label-studio.json", "Label Studio", "Tasks with ranker annotations, to import there."),
}


@dataclass(frozen=True)
class Opinion:
    """How one labeler ranked an item, by the letters on the adjudicator's page."""

    labeler: str
    words: str
    ranks: list[str]
    note: str


def opinions(store: Store, assignment: Assignment) -> list[Opinion]:
    """The labelers' current rankings of an item, in the order in which the adjudicator sees its answers."""
    order = assignment.shown_order
    found = [r for r in store.rankings(include=("label", "live")) if r.id == assignment.prompt_id]
    return [Opinion(r.labeler, order_words(r.ranks, order),
                    ["F" if r.ranks[p] is None else str(r.ranks[p]) for p in order], r.note or "") for r in found]


# --- overview and agreement --------------------------------------------------------------------------


@router.get("")
def overview(request: Request, user: Admin) -> Response:
    """How far the project is, who does how much and how well, what people disagree on."""
    store = web_of(request).store
    return page(request, "admin_overview.html", progress=store.progress(), labelers=_labelers(store),
                disputed=store.disputed(5), figures=latest(store))


def _labelers(store: Store) -> list[Any]:
    """Everybody who has labeled or may, those with most judgments first."""
    rows = [s for s in store.labeler_statistics() if s.judgments or s.skips or s.user.role == "labeler"]
    return sorted(rows, key=lambda s: (-s.judgments, s.user.name.casefold()))


@router.get("/agreement")
def agreement(request: Request, user: Admin) -> Response:
    """How far labelers agree, with intervals; worked out anew where judgments have come since."""
    return page(request, "admin_agreement.html", figures=figures(web_of(request).store))


# --- people ------------------------------------------------------------------------------------------


@router.get("/people")
def people(request: Request, user: Admin) -> Response:
    """Accounts and invitations."""
    return _people(request)


def _people(request: Request, *, status: int = 200, **more: Any) -> Response:
    values: dict[str, Any] = {"link": None, "token": None, "error": None} | more
    return page(request, "admin_people.html", status=status, people=web_of(request).store.users(), **values)


@router.post("/invite")
def invite(request: Request, user: Admin, form: Form) -> Response:
    """An invitation link, shown once."""
    web = web_of(request)
    role: Role = "admin" if form.get("role") == "admin" else "labeler"
    try:
        token = web.store.invite(role, by=user.id, name=form.get("name", "").strip() or None)
    except TrivetError as error:
        return _people(request, status=422, error=f"{error.what}: {error.mend}.")
    base = web.url or str(request.base_url).rstrip("/")
    return _people(request, link=f"{base}/invite/{token}")


@router.post("/ai-labeler")
def add_ai_labeler(request: Request, user: Admin, form: Form) -> Response:
    """An account for a program, marked as such, and its token, shown once."""
    store = web_of(request).store
    try:
        made = store.create_user(form.get("name", ""), "labeler", kind="ai", by=user.id)
    except TrivetError as error:
        return _people(request, status=422, error=f"{error.what}: {error.mend}.")
    return _people(request, token=(made.name, store.create_api_token(made.id, "first", user.id)))


@router.post("/people/{user_id}/pause")
def pause_user(request: Request, user: Admin, form: Form, user_id: int) -> Response:
    """A paused account is given nothing and can answer nothing."""
    paused = form.get("paused") == "1"
    if user_id == user.id and paused:
        return _people(request, status=422, error="You cannot pause yourself: somebody must be able to end it.")
    web_of(request).store.pause_user(user_id, paused, user.id)
    return go(request, f"/admin/people?notice={'paused' if paused else 'resumed'}")


# --- disputed items ----------------------------------------------------------------------------------


@router.get("/disputed")
def disputed(request: Request, user: Admin) -> Response:
    """The items people disagree on most."""
    store = web_of(request).store
    rows = [(item, [(r, order_words(r.ranks, list(range(len(r.ranks))))) for r in item.rankings])
            for item in store.disputed(50)]
    people = [u for u in store.users() if not u.paused]
    return page(request, "admin_disputed.html", rows=rows, people=people, letter=letter, shown=shown)


@router.post("/items/{item_id}/adjudicate")
def adjudicate(request: Request, user: Admin, form: Form, item_id: int) -> Response:
    """On to the admin's own judgment of an item, which decides."""
    assignment = web_of(request).store.adjudication_assignment(item_id, user.id)
    return go(request, f"/label/{assignment.id}")


@router.post("/items/{item_id}/pause")
def pause_item(request: Request, user: Admin, form: Form, item_id: int) -> Response:
    """A paused item is given to nobody."""
    paused = form.get("paused") == "1"
    web_of(request).store.pause_item(item_id, paused, user.id)
    return go(request, f"/admin/disputed?notice={'paused' if paused else 'resumed'}")


@router.post("/items/{item_id}/reassign")
def reassign(request: Request, user: Admin, form: Form, item_id: int) -> Response:
    """Leases of an item end; it goes to somebody, or back to all."""
    chosen = form.get("user", "")
    web_of(request).store.reassign(item_id, user.id, user_id=int(chosen) if chosen.isdecimal() else None)
    return go(request, "/admin/disputed?notice=reassigned")


# --- settings ----------------------------------------------------------------------------------------


@router.get("/settings")
def settings_form(request: Request, user: Admin) -> Response:
    """The project's settings."""
    return page(request, "admin_settings.html", given=web_of(request).store.settings().model_dump(), error=None,
                preview=None)


@router.post("/settings")
def save_settings(request: Request, user: Admin, form: Form) -> Response:
    """Change the settings, or show how the instructions would look."""
    store = web_of(request).store
    given: dict[str, Any] = {
        "title": form.get("title", "").strip(), "instructions": form.get("instructions", "").replace("\r\n", "\n"),
        "search_url": form.get("search_url", "").strip(), "paused": "paused" in form,
        "ask_ratings": "ask_ratings" in form,
        "overlap": form.get("overlap", ""), "gold_rate": form.get("gold_rate", ""),
        "repeat_rate": form.get("repeat_rate", ""), "lease_seconds": form.get("lease_minutes", "")}
    if "preview" in form:
        return page(request, "admin_settings.html", given=store.settings().model_dump() | _numbers(given, strict=False),
                    error=None, preview=to_html(given["instructions"], breaks=False))
    try:
        store.change_settings(user.id, **_numbers(given))
    except TrivetError as error:
        return page(request, "admin_settings.html", status=422, preview=None,
                    given=store.settings().model_dump() | _numbers(given, strict=False),
                    error=f"{error.field or 'A setting'}: {error.what}.")
    return go(request, "/admin/settings?notice=settings")


def _numbers(given: dict[str, Any], strict: bool = True) -> dict[str, Any]:
    """The form's texts as numbers: shares in percent, the lease in minutes. Not strict: faulty ones left out."""
    values = dict(given)
    for name, scale, kind in (("overlap", 1, int), ("gold_rate", 0.01, float), ("repeat_rate", 0.01, float),
                              ("lease_seconds", 60, float)):
        try:
            values[name] = kind(values[name]) * scale
        except ValueError:
            if strict:
                raise Invalid(f"{values[name]!r} is no number", field=name, mend="type a number") from None
            del values[name]
    return values


@router.post("/preview")
def preview(request: Request, user: Admin, form: Form) -> Response:
    """Markdown as the page would show it, for the script beside the editor."""
    return HTMLResponse(to_html(form.get("instructions", ""), breaks=False))


# --- files in and out, the log -----------------------------------------------------------------------


@router.get("/data")
def data(request: Request, user: Admin) -> Response:
    """What can be downloaded."""
    return page(request, "admin_data.html", exports=EXPORTS, progress=web_of(request).store.progress())


@router.get("/export/{format}")
def export(request: Request, user: Admin, format: str) -> Response:
    """Judgments as a file."""
    if format not in EXPORTS:
        return RedirectResponse("/admin/data", 303)
    return export_response(web_of(request).store, format, user.id)


def export_response(store: Store, format: str, by: int) -> Response:
    """An export written whole to a temporary file, which is deleted when it is sent."""
    name = EXPORTS[format][0]
    folder = tempfile.TemporaryDirectory(prefix="trivet-export-")
    with _cleaned_on_error(folder):
        path = Path(folder.name) / name
        transfer.export(store, path, format, by=by)  # type: ignore[arg-type]
        return FileResponse(path, filename=name, media_type="application/octet-stream",
                            background=BackgroundTask(folder.cleanup))


@contextlib.contextmanager
def _cleaned_on_error(folder: tempfile.TemporaryDirectory[str]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        folder.cleanup()
        raise


@router.get("/log")
def audit(request: Request, user: Admin) -> Response:
    """The audit trail, newest first."""
    store = web_of(request).store
    return page(request, "admin_log.html", events=store.audit(200), names={u.id: u.name for u in store.users()})
