"""The labeler's pages: sign in, rank, look back, settings of one's own. Every change is a form with a CSRF token.

All handlers that ask the store are plain functions: FastAPI runs them in threads. They answer after the store has
committed, so what the browser was told is saved.
"""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from trivet.errors import TrivetError
from trivet.feedback.labelling import security
from trivet.feedback.labelling.item import (
    Given,
    drift_words,
    file_order,
    given_by,
    item_values,
    read_form,
    skip_reason,
)
from trivet.feedback.labelling.web import (
    address_of,
    checked_form,
    current_user,
    failure,
    go,
    page,
    wants_json,
    web_of,
)
from trivet.feedback.store import ApiToken, Assignment, Invalid, LeaseLost, NotYours, User

router = APIRouter(include_in_schema=False)
Form = Annotated[dict[str, str], Depends(checked_form)]
SignedIn = Annotated[User, Depends(current_user)]
HISTORY_PAGE = 20


# --- the door ----------------------------------------------------------------------------------------


def own_path(path: str) -> str:
    """A path on this server to go on to, or the first page: never another server's."""
    inside = path.startswith("/") and not path.startswith(("//", "/\\")) and not any(ord(c) < 32 for c in path)
    return path if inside else "/"


@router.get("/")
def first_page(request: Request, user: SignedIn) -> Response:
    """On to what the visitor is here for."""
    return RedirectResponse("/admin" if user.role == "admin" else "/label", 303)


@router.get("/sign-in")
def sign_in_form(request: Request) -> Response:
    """The form of name and password."""
    return page(request, "signin.html", error=None, name="", to=own_path(request.query_params.get("next", "/")))


@router.post("/sign-in")
def sign_in(request: Request, form: Form) -> Response:
    """Let somebody in, at most a few wrong tries in five minutes."""
    web, name, to = web_of(request), form.get("name", ""), own_path(form.get("next", "/"))
    wait = web.limits.attempt(name, address_of(request))
    if wait:
        return _too_many(request, wait)
    with web.limits.hashing:
        token = web.store.sign_in(name, form.get("password", ""))
    if token is None:
        return page(request, "signin.html", status=401, error="That name and password do not go together.",
                    name=name, to=to)
    web.limits.succeeded(name, address_of(request))
    return _enter(request, token, to)


def _too_many(request: Request, wait: float) -> Response:
    return failure(request, 429, "Too many tries.", f"Wait {max(1, round(wait / 60))} min, then try again.",
                   {"Retry-After": str(int(wait) + 1)})


def _enter(request: Request, token: str, to: str) -> Response:
    response = RedirectResponse(to, 303)
    security.set_cookie(response, security.SESSION_COOKIE, token, https=web_of(request).https)
    response.delete_cookie(security.DOOR_COOKIE, path="/")
    return response


@router.post("/sign-out")
def sign_out(request: Request, form: Form) -> Response:
    """End the session, here and in the store."""
    token = request.cookies.get(security.SESSION_COOKIE)
    if token:
        web_of(request).store.sign_out(token)
    response = RedirectResponse("/sign-in", 303)
    response.delete_cookie(security.SESSION_COOKIE, path="/")
    response.headers["Clear-Site-Data"] = '"storage"'  # drafts of this labeler
    return response


@router.get("/invite/{token}")
def invitation_form(request: Request, token: str) -> Response:
    """Where an invitation link leads: choose a name and a password."""
    found = web_of(request).store.invitation(token)
    if found is None:
        return failure(request, 404, "This invitation can't be used.",
                       "It was used already, or has expired. Ask whoever sent it for a new link.")
    return page(request, "invite.html", token=token, error=None, name=found[1] or "", fixed=found[1] is not None)


@router.post("/invite/{token}")
def accept_invitation(request: Request, token: str, form: Form) -> Response:
    """Make the account and let its owner in. Guessing tokens is limited as guessing passwords is."""
    web, name, password = web_of(request), form.get("name", ""), form.get("password", "")
    found = web.store.invitation(token)
    if found is None:
        wait = web.limits.attempt(f"invitation from {address_of(request)}", address_of(request))
        if wait:
            return _too_many(request, wait)
    try:
        if password != form.get("again", ""):
            raise Invalid("the two passwords are not the same", mend="type them again")
        with web.limits.hashing:
            user = web.store.accept_invitation(token, name, password)
            session = web.store.sign_in(user.name, password)
    except TrivetError as error:
        return page(request, "invite.html", status=422, token=token, name=name,
                    fixed=found is not None and found[1] is not None,
                    error=f"{_sentence(error.what)} {_sentence(error.mend)}")
    if session is None:
        return RedirectResponse("/sign-in", 303)
    return _enter(request, session, "/")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


# --- ranking -----------------------------------------------------------------------------------------


@router.get("/label")
def next_item(request: Request, user: SignedIn) -> Response:
    """The next item to rank, or that there is none."""
    web = web_of(request)
    assignment = None if user.paused else web.store.next_assignment(user.id)
    if assignment is None:
        return page(request, "done.html", progress=web.store.progress())
    return _item(request, user, assignment)


@router.get("/label/{assignment_id}")
def one_item(request: Request, user: SignedIn, assignment_id: int) -> Response:
    """One's own item: to rank it, or to look at and change what was answered."""
    return _item(request, user, _own(request, user, assignment_id))


def _own(request: Request, user: User, assignment_id: int) -> Assignment:
    """One's own assignment. Raises NotYours for another's and for one that is not there, in the same words."""
    found = web_of(request).store.assignment(assignment_id, user.id)
    if found is None:
        raise NotYours("there is no such item in your list", mend="go on with the next one")
    return found


def _mode(assignment: Assignment) -> str:
    if assignment.state in {"done", "skipped"}:
        return "edit"
    return assignment.purpose if assignment.purpose in {"live", "adjudicate"} else "label"


def _item(request: Request, user: User, assignment: Assignment, *, given: Given | None = None,
          error: TrivetError | None = None) -> Response:
    """The item page. given: what a refused form held."""
    web = web_of(request)
    mode = _mode(assignment)
    if given is None:
        given = given_by(assignment.current, assignment.shown_order)
    more: dict[str, Any] = {"mode": mode, "progress": web.progress()}
    if error is not None:
        more["error"] = f"{_sentence(error.what)} {_sentence(error.mend)}"
    if mode == "label":
        more["drift"] = drift_words(web.store.labeler_drift(user.id))
    if assignment.purpose == "adjudicate":
        from trivet.feedback.labelling.admin import opinions

        more["opinions"] = opinions(web.store, assignment)
    values = item_values(assignment, web.store.settings(), given, **more)
    return page(request, "item.html", status=422 if error else 200, **values)


@router.post("/label/{assignment_id}")
def submit(request: Request, user: SignedIn, form: Form, assignment_id: int) -> Response:
    """Save a judgment, or a change to one; then the next item. Answers after the commit."""
    store = web_of(request).store
    assignment = _own(request, user, assignment_id)
    # what the page was for when it was opened: a second sending of a first answer must not become a change of it
    mode, given = form.get("mode") or _mode(assignment), None
    try:
        given = read_form(form, len(assignment.shown_order))
        ranks, ratings = file_order(given, assignment.shown_order)
        save = store.edit if mode == "edit" else store.submit
        save(assignment.id, user.id, ranks, ratings=ratings, note=given.note or None, seconds=given.seconds,
             request_id=given.request_id)
    except LeaseLost:
        return go(request, "/label?notice=late")
    except Invalid as error:
        if wants_json(request):
            raise
        return _item(request, user, assignment, given=given, error=error)
    return go(request, after(assignment, mode))


def after(assignment: Assignment, mode: str) -> str:
    """Where a saved judgment leads."""
    if assignment.purpose == "live" and mode != "edit":
        return f"/live/{assignment.id}/next"
    if assignment.purpose == "adjudicate":
        return "/admin/disputed?notice=adjudicated"
    return "/mine?notice=edited" if mode == "edit" else "/label?notice=saved"


@router.post("/label/{assignment_id}/skip")
def skip(request: Request, user: SignedIn, form: Form, assignment_id: int) -> Response:
    """Leave an item to others, and say why."""
    assignment = _own(request, user, assignment_id)
    try:
        web_of(request).store.skip(assignment.id, user.id, skip_reason(form), f"{form.get('request_id', '')[:64]}-skip")
    except LeaseLost:
        return go(request, "/label?notice=late")
    except Invalid as error:
        if wants_json(request):
            raise
        return _item(request, user, assignment, given=read_form(form, len(assignment.shown_order)), error=error)
    return go(request, "/live?notice=skipped" if assignment.purpose == "live" else "/label?notice=skipped")


@router.post("/undo")
def undo(request: Request, user: SignedIn, form: Form) -> Response:
    """Take the newest own answer back; its item comes again."""
    assignment = web_of(request).store.undo(user.id, f"{form.get('request_id', '')[:64]}-undo")
    return go(request, "/label?notice=nothing" if assignment is None else f"/label/{assignment.id}?notice=undone")


@router.get("/label/{assignment_id}/answer/{index}")
def whole_answer(request: Request, user: SignedIn, assignment_id: int, index: int) -> Response:
    """One answer's whole text as plain text, where the page shows only its beginning."""
    assignment = _own(request, user, assignment_id)
    if not 0 <= index < len(assignment.shown_order):
        raise NotYours("there is no such answer", mend="go back to the item")
    text = assignment.completions[assignment.shown_order[index]].text
    return PlainTextResponse(text.encode("utf-8", "replace"), headers={"Content-Security-Policy": "sandbox"})


# --- looking back ------------------------------------------------------------------------------------


@router.get("/mine")
def mine(request: Request, user: SignedIn, before: int | None = None) -> Response:
    """One's own answers, newest first."""
    store = web_of(request).store
    judgments = store.history(user.id, limit=HISTORY_PAGE + 1, before=before)
    rows = []
    for judgment in judgments[:HISTORY_PAGE]:
        assignment = store.assignment(judgment.assignment_id, user.id)
        if assignment is not None:
            rows.append((judgment, assignment, order_words(judgment.ranks, assignment.shown_order)))
    older = judgments[HISTORY_PAGE - 1].id if len(judgments) > HISTORY_PAGE else None
    return page(request, "mine.html", rows=rows, older=older)


def order_words(ranks: list[int | None] | None, order: list[int]) -> str:
    """A ranking in a line, by the letters the labeler saw: 'B > A = D, F: C'."""
    from trivet.feedback.labelling.item import letter

    if ranks is None:
        return ""
    by_rank: dict[int, list[str]] = {}
    failed = []
    for i, position in enumerate(order):
        rank = ranks[position]
        if rank is None:
            failed.append(letter(i))
        else:
            by_rank.setdefault(rank, []).append(letter(i))
    parts = [" > ".join(" = ".join(by_rank[rank]) for rank in sorted(by_rank))] if by_rank else []
    if failed:
        parts.append(f"F: {', '.join(failed)}")
    return ", ".join(parts)


@router.get("/instructions")
def instructions(request: Request, user: SignedIn) -> Response:
    """The instructions on a page of their own."""
    return page(request, "instructions.html")


@router.get("/account")
def account(request: Request, user: SignedIn) -> Response:
    """Tokens for programs."""
    return page(request, "account.html", tokens=_own_tokens(request, user), fresh=None)


def _own_tokens(request: Request, user: User) -> list[ApiToken]:
    return [t for t in web_of(request).store.api_tokens() if t.user_id == user.id]


@router.post("/account/token")
def make_token(request: Request, user: SignedIn, form: Form) -> Response:
    """A token for a program that works in one's own name; shown once."""
    store = web_of(request).store
    fresh = store.create_api_token(user.id, form.get("label", "").strip()[:100] or "token", user.id)
    return page(request, "account.html", tokens=_own_tokens(request, user), fresh=fresh)


@router.post("/account/token/{token_id}/revoke")
def revoke_token(request: Request, user: SignedIn, form: Form, token_id: int) -> Response:
    """A token of one's own ends."""
    store = web_of(request).store
    if token_id not in {t.id for t in _own_tokens(request, user)}:
        raise NotYours("there is no such token of yours", mend="see your account page")
    store.revoke_api_token(token_id, user.id)
    return go(request, "/account?notice=revoked")


def sign_in_path(request: Request) -> str:
    """The door, and the page that was asked for behind it."""
    wanted = request.url.path if request.method == "GET" else "/"
    return "/sign-in" if wanted == "/" else f"/sign-in?next={quote(wanted)}"
