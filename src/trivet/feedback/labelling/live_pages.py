"""The pages of live mode: write a turn, wait for the answers, rank them (the item page), go on with the best."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from trivet.artifacts import Message
from trivet.feedback.labelling.item import letter
from trivet.feedback.labelling.live import LiveJobs
from trivet.feedback.labelling.markdown import shown
from trivet.feedback.labelling.pages import Form, SignedIn, _own
from trivet.feedback.labelling.web import failure, go, page, web_of
from trivet.feedback.store import Assignment, Invalid, NotYours

router = APIRouter(prefix="/live", include_in_schema=False)
LONGEST_TURN = 20_000


def _jobs(request: Request) -> LiveJobs:
    jobs = web_of(request).live
    if jobs is None:
        raise NotYours("live mode is off", mend="ask the admin: it needs --model")
    return jobs


@router.get("")
def start_form(request: Request, user: SignedIn) -> Response:
    """Write the first turn of a conversation."""
    jobs = _jobs(request)
    return page(request, "live_start.html", count=jobs.count, text="", error=None)


@router.post("")
def start(request: Request, user: SignedIn, form: Form) -> Response:
    """The first turn goes to the model."""
    jobs, text = _jobs(request), _turn(form)
    if not text:
        return page(request, "live_start.html", status=422, count=jobs.count, text=text,
                    error="Write something to the model first.")
    if user.paused:
        return failure(request, 403, "Your account is paused.", "Ask the admin.")
    return go(request, f"/live/wait/{jobs.start(user.id, [Message(role='user', content=text)], None).id}")


def _turn(form: dict[str, str]) -> str:
    return form.get("text", "").replace("\r\n", "\n").strip()[:LONGEST_TURN]


@router.get("/wait/{job_id}")
def wait(request: Request, user: SignedIn, job_id: str) -> Response:
    """The model is answering; on to the ranking when it has."""
    jobs = _jobs(request)
    job = jobs.job(job_id, user.id)
    if job is None:
        return failure(request, 404, "This turn is not here any more.",
                       "The server was started anew, or the turn is an old one. Write it again under Live.")
    if job.state == "done":
        return go(request, f"/label/{job.assignment_id}")
    return page(request, "live_wait.html", job=job, ahead=jobs.ahead(job), text=job.messages[-1].content)


@router.get("/wait/{job_id}/state")
def wait_state(request: Request, user: SignedIn, job_id: str) -> Response:
    """For the script on the waiting page."""
    jobs = _jobs(request)
    job = jobs.job(job_id, user.id)
    if job is None:
        return JSONResponse({"state": "gone"})
    return JSONResponse({"state": job.state, "ahead": jobs.ahead(job)})


def best_positions(assignment: Assignment) -> list[int]:
    """Positions in the file of the best answers of the current judgment, in the shown order; none if all are F."""
    ranks = assignment.current.ranks if assignment.current is not None else None
    if ranks is None:
        return []
    top = min((r for r in ranks if r is not None), default=None)
    return [p for p in assignment.shown_order if top is not None and ranks[p] == top]


def _judged(request: Request, user: SignedIn, assignment_id: int) -> Assignment:
    assignment = _own(request, user, assignment_id)
    if assignment.purpose != "live" or assignment.current is None or assignment.current.kind != "judge":
        raise NotYours("this turn is not ranked yet", mend="rank its answers first")
    return assignment


@router.get("/{assignment_id}/next")
def next_form(request: Request, user: SignedIn, assignment_id: int) -> Response:
    """The conversation with its best answer, and room for the next turn."""
    return _next(request, _judged(request, user, assignment_id))


def _next(request: Request, assignment: Assignment, text: str = "", error: str | None = None) -> Response:
    jobs, best = _jobs(request), best_positions(assignment)
    options = [(p, letter(assignment.shown_order.index(p)), shown(assignment.completions[p].text)) for p in best]
    return page(request, "live_next.html", status=422 if error else 200, assignment=assignment, options=options,
                turns=[(m.role, shown(m.content)) for m in assignment.messages], count=jobs.count, text=text,
                error=error)


@router.post("/{assignment_id}/next")
def next_turn(request: Request, user: SignedIn, form: Form, assignment_id: int) -> Response:
    """Go on with the best answer and the labeler's next turn."""
    assignment, jobs, text = _judged(request, user, assignment_id), _jobs(request), _turn(form)
    best = best_positions(assignment)
    if not best:
        raise Invalid("no answer is good enough to go on with", mend="begin a new conversation")
    if not text:
        return _next(request, assignment, text, "Write your next turn, or end the conversation.")
    chosen = form.get("best", "")
    position = int(chosen) if chosen.isdecimal() and int(chosen) in best else best[0]
    web_of(request).store.choose_live(assignment.id, user.id, position)
    messages = [*assignment.messages, Message(role="assistant", content=assignment.completions[position].text),
                Message(role="user", content=text)]
    return go(request, f"/live/wait/{jobs.start(user.id, messages, assignment.item_id).id}")
