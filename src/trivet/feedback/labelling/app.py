"""The app: routes, middleware, and what every error looks like."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles

from trivet import __version__
from trivet.errors import TrivetError
from trivet.feedback.labelling import admin, api, live_pages, pages
from trivet.feedback.labelling.live import LiveJobs, LiveModel
from trivet.feedback.labelling.security import HEADERS, SecurityHeaders
from trivet.feedback.labelling.web import (
    HERE,
    Forbidden,
    FormExpired,
    NeedSignIn,
    Web,
    failure,
    page,
    status_of,
    wants_json,
)
from trivet.feedback.labelling.web import current_user as current_user_of
from trivet.feedback.store import Store, User

API_ABOUT = """\
Rank completions, and run a labelling project, from a program. Send `Authorization: Bearer TOKEN`. Errors are
`{"error": …, "mend": …}`. Answers are blind and in your own shuffled order; ranks go back in that order."""


class KeptStatic(StaticFiles):
    """Static files that browsers keep: their address changes with their contents."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
        return response


def create_app(store: Store, *, url: str | None = None, live: LiveModel | None = None, answers: int = 4) -> FastAPI:
    """The labelling app on a store.

    url: the address people use, where a proxy stands before the app (https there: cookies over https only).
    live: the model under test, of `answers` answers to each turn; None: no live mode.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        if web.live is not None:
            web.live.stop()

    app = FastAPI(title="Trivet label", version=__version__, description=API_ABOUT, docs_url=None, redoc_url=None,
                  openapi_url=None, lifespan=lifespan)
    web = Web(store, url=url)
    if live is not None:
        web.live = LiveJobs(live, answers, lambda user, messages, completions, parent: store.add_live_item(
            user, messages, completions, parent_item_id=parent).id)
    app.state.web = web
    app.add_middleware(SecurityHeaders, https=web.https)
    for part in (pages, live_pages, admin, api):
        app.include_router(part.router)
    app.mount("/static", KeptStatic(directory=HERE / "static"))

    @app.get("/health", include_in_schema=False)
    def health() -> Response:
        """Whether the server and its database answer."""
        store.settings()
        return PlainTextResponse("ok\n")

    @app.get("/api/v1/openapi.json", include_in_schema=False)
    def openapi() -> Response:
        """The API's description; it holds nothing secret."""
        return JSONResponse(description(app))

    @app.get("/api", include_in_schema=False)
    def api_page(request: Request, user: User = Depends(current_user_of)) -> Response:  # noqa: B008
        """The API's operations, from its own description."""
        return page(request, "api.html", operations=operations(app), example_host=url or str(request.base_url)[:-1])

    _errors(app)
    return app


def description(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI description."""
    if app.openapi_schema is None:
        app.openapi_schema = get_openapi(title=app.title, version=app.version, description=app.description,
                                         routes=app.routes)
    return app.openapi_schema


def operations(app: FastAPI) -> list[tuple[str, list[dict[str, Any]]]]:
    """(tag, its operations) for the API page."""
    found: dict[str, list[dict[str, Any]]] = {}
    schema = description(app)

    def fields(holder: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
        name = holder.get("$ref", "").rpartition("/")[2]
        shape = schema["components"]["schemas"].get(name, {})
        return [(key, _type(value), value.get("description", ""), key in shape.get("required", ()))
                for key, value in shape.get("properties", {}).items()]

    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            found.setdefault(operation["tags"][0], []).append({
                "method": method.upper(), "path": path, "words": operation.get("description", ""),
                "body": fields(body), "parameters": [(p["name"], _type(p["schema"])) for p in
                                                     operation.get("parameters", [])]})
    return list(found.items())


def _type(schema: dict[str, Any]) -> str:
    """A JSON schema in a word or two."""
    if "anyOf" in schema:
        return " or ".join(_type(s) for s in schema["anyOf"])
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return str(schema.get("type", "any"))


def _errors(app: FastAPI) -> None:
    @app.exception_handler(NeedSignIn)
    def need_sign_in(request: Request, _: NeedSignIn) -> Response:
        if wants_json(request):
            return JSONResponse({"error": "you are signed out", "mend": "sign in again",
                                 "next": pages.sign_in_path(request)}, 401)
        return RedirectResponse(pages.sign_in_path(request), 303)

    @app.exception_handler(Forbidden)
    def forbidden(request: Request, _: Forbidden) -> Response:
        return failure(request, 403, "This page is for admins.", "Ask one of them if you need something here.")

    @app.exception_handler(FormExpired)
    def form_expired(request: Request, _: FormExpired) -> Response:
        return failure(request, 403, "This form is out of date.",
                       "Go back, reload the page, and send it again: what you wrote is kept there.")

    @app.exception_handler(TrivetError)
    def mendable(request: Request, error: TrivetError) -> Response:
        return failure(request, status_of(error), f"{error.what[:1].upper()}{error.what[1:]}.",
                       f"{error.mend[:1].upper()}{error.mend[1:]}.")

    @app.exception_handler(Exception)
    def broken(request: Request, error: Exception) -> Response:
        # this one runs outside of the middleware, so it brings the headers itself; the traceback goes to the log
        words = "The server failed at this. What was saved before is safe."
        headers = {**HEADERS, "Cache-Control": "no-store"}
        if wants_json(request):
            return JSONResponse({"error": words, "mend": "try again, or tell the admin"}, 500, headers)
        return PlainTextResponse(f"{words}\n", 500, headers)

    @app.exception_handler(RequestValidationError)
    def unsound(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = ".".join(str(p) for p in first["loc"] if p not in {"body", "query", "path"})
        if not wants_json(request):
            return failure(request, 404, "There is no such page.")
        return failure(request, 422, f"{place}: {first['msg']}" if place else str(first["msg"]), "see /api")

    @app.exception_handler(HTTPException)
    def http_error(request: Request, error: HTTPException) -> Response:
        words = {404: "There is no such page.", 405: "That can't be done here."}.get(error.status_code)
        detail = str(error.detail) if wants_json(request) or words is None else words
        return failure(request, error.status_code, detail, headers=dict(error.headers or {}))
