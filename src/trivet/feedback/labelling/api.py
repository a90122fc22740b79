"""The REST API: the door for programs. AI labelers come in here and do what people do on the page, no more.

Answers are shown blind and in the labeler's own order, as on the page; ranks come back in that shown order.
"""

from __future__ import annotations

import datetime
import secrets
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response

from trivet.artifacts import Completions, Message, Ranking
from trivet.feedback.labelling.admin import EXPORTS, export_response
from trivet.feedback.labelling.figures import figures
from trivet.feedback.labelling.item import letter
from trivet.feedback.labelling.web import address_of, web_of
from trivet.feedback.store import Assignment, Invalid, Judgment, NotYours, ProjectSettings, User

router = APIRouter(prefix="/api/v1")
bearer = HTTPBearer(auto_error=False, description="A token from your account page, or from the admin.")
NO_TOKEN = HTTPException(401, "a token is wanted: Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})


def token_user(request: Request,
               given: Annotated[HTTPAuthorizationCredentials | None, Security(bearer)] = None) -> User:
    """Whose token a request carries; 401 without one. Wrong tokens from one address are limited."""
    web = web_of(request)
    if given is None:
        raise NO_TOKEN
    user = web.store.api_user(given.credentials)
    if user is None:
        if web.limits.attempt(f"token from {address_of(request)}", address_of(request)):
            raise HTTPException(429, "too many wrong tokens", {"Retry-After": "300"})
        raise NO_TOKEN
    return user


def token_admin(user: Annotated[User, Depends(token_user)]) -> User:
    """Whose token it is, if an admin's; else 403."""
    if user.role != "admin":
        raise HTTPException(403, "this is for admins")
    return user


Caller = Annotated[User, Depends(token_user)]
AdminCaller = Annotated[User, Depends(token_admin)]


# --- what goes over the wire -------------------------------------------------------------------------


class Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class Fault(BaseModel):
    """What is wrong, and what to do about it."""

    error: str
    mend: str


class Person(Wire):
    """An account."""

    id: int
    name: str
    role: Literal["admin", "labeler"]
    kind: Literal["person", "ai"]
    paused: bool


class Answer(Wire):
    """A completion, blind."""

    label: str
    """A, B, …: its place in the order shown."""
    text: str


class Rates(Wire):
    """Ratings from 1 (worst) to 5; each may be left out."""

    helpful: int | None = Field(None, ge=1, le=5)
    honest: int | None = Field(None, ge=1, le=5)
    harmless: int | None = Field(None, ge=1, le=5)


class Verdict(Wire):
    """A judgment of an item."""

    ranks: list[int | None]
    """One for each answer, in the order shown: 1 is best, equal ranks are a tie, null is F (fail)."""
    ratings: list[Rates] | None = None
    """One for each answer, in the order shown."""
    note: str | None = Field(None, max_length=4000)
    """A remark, kept with the judgment."""
    seconds: float = Field(0.0, ge=0, le=86_400)
    """Active time spent."""
    request_id: str | None = Field(None, min_length=1, max_length=64)
    """The same id again gives the same judgment again, so that a request may be repeated without harm."""


class Skip(Wire):
    """An item left to others."""

    reason: str = Field(min_length=1, max_length=4000)
    request_id: str | None = Field(None, min_length=1, max_length=64)


class Again(Wire):
    """An id by which a repeated request is known."""

    request_id: str | None = Field(None, min_length=1, max_length=64)


class Work(Wire):
    """An item to rank."""

    id: int
    """The assignment's."""
    prompt_id: str
    purpose: Literal["label", "live", "adjudicate"]
    state: str
    messages: list[Message]
    answers: list[Answer]
    expires_at: datetime.datetime | None
    """Until then the item is kept for you."""
    ranks: list[int | None] | None
    """Your current ranks in the order shown, where you have judged it."""


class Saved(Wire):
    """A judgment that is stored."""

    id: int
    assignment_id: int
    kind: Literal["judge", "skip", "undo"]
    ranks: list[int | None] | None
    """In the order shown."""
    note: str | None
    reason: str | None
    supersedes: int | None
    created_at: datetime.datetime


class NewPerson(Wire):
    """An account for a program; people are invited."""

    name: str = Field(min_length=1, max_length=100)
    kind: Literal["person", "ai"] = "ai"


class NewPersonToken(Person):
    """The account, and its token, shown this once."""

    token: str


class NewInvitation(Wire):
    """Whom to invite."""

    role: Literal["labeler", "admin"] = "labeler"
    name: str | None = None
    hours: int = Field(168, ge=1, le=8760)


class Link(Wire):
    """An invitation link; it works once."""

    url: str


class Rows(Wire):
    """Rows of an artifact."""

    rows: list[Completions] = Field(min_length=1)
    round: int = Field(1, ge=1)


class RankingRows(Wire):
    """Rankings known to be right."""

    rows: list[Ranking] = Field(min_length=1)


class Added(Wire):
    """added: new; present: there already."""

    added: int
    present: int


class Pause(Wire):
    paused: bool


class Instructions(Wire):
    """What a labeler is told."""

    title: str
    instructions: str
    """Markdown."""
    ask_ratings: bool


FAULTS: dict[int | str, dict[str, Any]] = {
    401: {"model": Fault, "description": "No token, or a wrong one"},
    404: {"model": Fault, "description": "Not there, or not yours"},
    409: {"model": Fault, "description": "Others have finished the item in the meantime"},
    422: {"model": Fault, "description": "Not sound"},
}


def _work(assignment: Assignment) -> Work:
    """An assignment as it is shown. That an item is gold or a repeat is nobody's to know."""
    purpose = assignment.purpose if assignment.purpose in {"live", "adjudicate"} else "label"
    current = assignment.current.ranks if assignment.current is not None else None
    return Work(id=assignment.id, prompt_id=assignment.prompt_id, purpose=purpose, state=assignment.state,
                messages=assignment.messages, expires_at=assignment.expires_at,
                answers=[Answer(label=letter(i), text=assignment.completions[p].text)
                         for i, p in enumerate(assignment.shown_order)],
                ranks=None if current is None else [current[p] for p in assignment.shown_order])


def _saved(judgment: Judgment, order: list[int]) -> Saved:
    ranks = None if judgment.ranks is None else [judgment.ranks[p] for p in order]
    return Saved(id=judgment.id, assignment_id=judgment.assignment_id, kind=judgment.kind, ranks=ranks,
                 note=judgment.note, reason=judgment.reason, supersedes=judgment.supersedes,
                 created_at=judgment.created_at)


def _own(request: Request, user: User, assignment_id: int) -> Assignment:
    found = web_of(request).store.assignment(assignment_id, user.id)
    if found is None:
        raise NotYours("there is no such item in your list", mend="ask for the next one")
    return found


def _in_file_order(verdict: Verdict, order: list[int]) -> dict[str, Any]:
    """A verdict as the store takes it. Raises Invalid for a wrong count."""
    for name, rows in (("ranks", verdict.ranks), ("ratings", verdict.ratings)):
        if rows is not None and len(rows) != len(order):
            raise Invalid(f"{len(order)} answers, but {len(rows)} {name}", field=name, mend="give one for each answer")
    ranks: list[int | None] = [None] * len(order)
    for i, position in enumerate(order):
        ranks[position] = verdict.ranks[i]
    ratings = {order[i]: given for i, row in enumerate(verdict.ratings or [])
               if (given := row.model_dump(exclude_none=True))}
    return {"ranks": ranks, "ratings": ratings or None, "note": verdict.note, "seconds": verdict.seconds,
            "request_id": verdict.request_id or secrets.token_urlsafe(12)}


# --- labelling ---------------------------------------------------------------------------------------


@router.get("/me", tags=["labelling"], responses=FAULTS)
def me(user: Caller) -> Person:
    """Whose token this is."""
    return _person(user)


def _person(user: User) -> Person:
    return Person(id=user.id, name=user.name, role=user.role, kind=user.kind, paused=user.paused)


@router.get("/instructions", tags=["labelling"], responses=FAULTS)
def instructions(request: Request, user: Caller) -> Instructions:
    """What labelers are told; an AI labeler reads the same."""
    found = web_of(request).store.settings()
    return Instructions(title=found.title, instructions=found.instructions, ask_ratings=found.ask_ratings)


@router.post("/assignments/next", tags=["labelling"], response_model=Work,
             responses=FAULTS | {204: {"description": "Nothing to do now"}})
def next_assignment(request: Request, user: Caller) -> Any:
    """The next item to rank; the same one again until it is answered or its time is over. 204: nothing to do."""
    found = None if user.paused else web_of(request).store.next_assignment(user.id)
    return Response(status_code=204) if found is None else _work(found)


@router.get("/assignments/{assignment_id}", tags=["labelling"], responses=FAULTS)
def assignment(request: Request, user: Caller, assignment_id: int) -> Work:
    """One of your items."""
    return _work(_own(request, user, assignment_id))


@router.post("/assignments/{assignment_id}/judgment", tags=["labelling"], status_code=201, responses=FAULTS)
def judge(request: Request, user: Caller, assignment_id: int, verdict: Verdict) -> Saved:
    """Rank an item. The answer comes when the judgment is stored for good."""
    found = _own(request, user, assignment_id)
    given = _in_file_order(verdict, found.shown_order)
    return _saved(web_of(request).store.submit(found.id, user.id, **given), found.shown_order)


@router.put("/assignments/{assignment_id}/judgment", tags=["labelling"], responses=FAULTS)
def edit(request: Request, user: Caller, assignment_id: int, verdict: Verdict) -> Saved:
    """Change one of your judgments; the earlier one stays in the audit trail."""
    found = _own(request, user, assignment_id)
    given = _in_file_order(verdict, found.shown_order)
    return _saved(web_of(request).store.edit(found.id, user.id, **given), found.shown_order)


@router.post("/assignments/{assignment_id}/skip", tags=["labelling"], status_code=201, responses=FAULTS)
def skip(request: Request, user: Caller, assignment_id: int, given: Skip) -> Saved:
    """Leave an item to others, and say why."""
    found = _own(request, user, assignment_id)
    return _saved(web_of(request).store.skip(found.id, user.id, given.reason,
                                             given.request_id or secrets.token_urlsafe(12)), found.shown_order)


@router.post("/undo", tags=["labelling"], response_model=Work,
             responses=FAULTS | {204: {"description": "Nothing to take back"}})
def undo(request: Request, user: Caller, given: Again) -> Any:
    """Take your newest judgment back; gives its item again. 204: there is none."""
    found = web_of(request).store.undo(user.id, given.request_id or secrets.token_urlsafe(12))
    return Response(status_code=204) if found is None else _work(found)


@router.get("/history", tags=["labelling"], responses=FAULTS)
def history(request: Request, user: Caller, limit: int = 50, before: int | None = None) -> list[Saved]:
    """Your judgments, newest first. before: the id of the last one you have."""
    store = web_of(request).store
    found = []
    for judgment in store.history(user.id, limit=max(1, min(limit, 200)), before=before):
        own = store.assignment(judgment.assignment_id, user.id)
        if own is not None:
            found.append(_saved(judgment, own.shown_order))
    return found


# --- administration ----------------------------------------------------------------------------------

ADMIN_FAULTS = FAULTS | {403: {"model": Fault, "description": "For admins"}}


@router.get("/progress", tags=["administration"], responses=ADMIN_FAULTS)
def progress(request: Request, user: AdminCaller) -> dict[str, float | None]:
    """How far the project is, in judgments, and the hours it will still take at the present pace."""
    return dict(vars(web_of(request).store.progress()))


@router.get("/labelers", tags=["administration"], responses=ADMIN_FAULTS)
def labelers(request: Request, user: AdminCaller) -> list[dict[str, Any]]:
    """Each labeler's count, time, tie and F rates, gold accuracy and self-consistency."""
    return [vars(s) | {"user": _person(s.user).model_dump()} for s in web_of(request).store.labeler_statistics()]


@router.get("/agreement", tags=["administration"], responses=ADMIN_FAULTS)
def agreement(request: Request, user: AdminCaller) -> dict[str, Any]:
    """How far labelers agree, with intervals."""
    return figures(web_of(request).store).as_dict()


@router.post("/completions", tags=["administration"], status_code=201, responses=ADMIN_FAULTS)
def add_completions(request: Request, user: AdminCaller, given: Rows) -> Added:
    """Items to rank."""
    result = web_of(request).store.add_completions(given.rows, round=given.round, by=user.id)
    return Added(added=result.added, present=result.present)


@router.post("/gold", tags=["administration"], status_code=201, responses=ADMIN_FAULTS)
def add_gold(request: Request, user: AdminCaller, given: RankingRows) -> Added:
    """Items whose right ranks are known."""
    result = web_of(request).store.add_gold(given.rows, by=user.id)
    return Added(added=result.added, present=result.present)


@router.get("/users", tags=["administration"], responses=ADMIN_FAULTS)
def users(request: Request, user: AdminCaller) -> list[Person]:
    """All accounts."""
    return [_person(u) for u in web_of(request).store.users()]


@router.post("/users", tags=["administration"], status_code=201, responses=ADMIN_FAULTS)
def add_user(request: Request, user: AdminCaller, given: NewPerson) -> NewPersonToken:
    """An account that works with a token only, such as an AI labeler's."""
    store = web_of(request).store
    made = store.create_user(given.name, "labeler", kind=given.kind, by=user.id)
    return NewPersonToken(**_person(made).model_dump(), token=store.create_api_token(made.id, "first", user.id))


@router.patch("/users/{user_id}", tags=["administration"], responses=ADMIN_FAULTS)
def pause_user(request: Request, user: AdminCaller, user_id: int, given: Pause) -> Person:
    """Pause an account, or let it go on."""
    store = web_of(request).store
    store.pause_user(user_id, given.paused, user.id)
    return next(_person(u) for u in store.users() if u.id == user_id)


@router.post("/invitations", tags=["administration"], status_code=201, responses=ADMIN_FAULTS)
def invite(request: Request, user: AdminCaller, given: NewInvitation) -> Link:
    """A link by which one person gets an account."""
    web = web_of(request)
    token = web.store.invite(given.role, by=user.id, name=given.name, hours=given.hours)
    return Link(url=f"{web.url or str(request.base_url).rstrip('/')}/invite/{token}")


@router.get("/settings", tags=["administration"], responses=ADMIN_FAULTS)
def settings(request: Request, user: AdminCaller) -> ProjectSettings:
    """The project's settings."""
    return web_of(request).store.settings()


@router.patch("/settings", tags=["administration"], responses=ADMIN_FAULTS)
def change_settings(request: Request, user: AdminCaller, changes: dict[str, Any]) -> ProjectSettings:
    """Change some settings."""
    return web_of(request).store.change_settings(user.id, **changes)


@router.get("/export/{format}", tags=["administration"], responses=ADMIN_FAULTS, response_class=Response)
def export(request: Request, user: AdminCaller,
           format: Literal["rankings", "preference", "argilla", "label_studio"]) -> Response:
    """Current judgments as a file."""
    assert format in EXPORTS
    return export_response(web_of(request).store, format, user.id)
