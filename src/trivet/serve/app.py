"""The HTTP server: routes, who may come in, what every error looks like, and what is counted and logged."""

from __future__ import annotations

import asyncio
import secrets
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from trivet import __version__
from trivet.errors import TrivetError
from trivet.generate.config import Sampling
from trivet.serve.answering import Way
from trivet.serve.limits import Door, Refused
from trivet.serve.metrics import Clock, Log, Metrics
from trivet.serve.wire import ALIVE, error_json, event

STATIC = Path(__file__).parent / "static"
T = TypeVar("T")
POLICY = "; ".join(("default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self'",
                    "connect-src 'self'", "form-action 'none'", "base-uri 'none'", "frame-ancestors 'none'"))
HEADERS = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY",
           "Referrer-Policy": "no-referrer", "Cross-Origin-Resource-Policy": "same-origin"}
KEEP_ALIVE = 10.0
"""Seconds without a word after which a stream says that it is still there."""
SLOWEST_BODY = 30.0
"""Seconds within which a request's body must have come."""


class Served(Protocol):
    """What the server needs of a model beyond answers: see local.LocalChatModel and proxy.Upstream."""

    name: str

    async def answer_chat(self, server: Server, body: bytes, call: Call) -> Response:
        """POST /v1/chat/completions."""

    async def answer_text(self, server: Server, body: bytes, call: Call) -> Response:
        """POST /v1/completions."""


@dataclass
class Call:
    """One request on its way."""

    request: Request
    caller: str
    route: str
    id: str = field(default_factory=lambda: f"req-{secrets.token_hex(8)}")
    clock: Clock = field(default_factory=Clock)
    texts: dict[str, Any] = field(default_factory=dict)
    """What was said, for a log that is to hold it."""


@dataclass
class Server:
    """What all routes share."""

    model: Served
    ways: Mapping[str, Way]
    """Ways beside plain words, by what follows MODEL: in their names."""
    door: Door
    metrics: Metrics
    log: Log
    sampling: Sampling
    seconds: float
    alive: Callable[[], bool] = lambda: True

    @property
    def models(self) -> list[str]:
        """The names that may be asked for."""
        return [self.model.name, *(f"{self.model.name}:{way}" for way in self.ways)]

    def way(self, name: str) -> Way | None:
        """The way that a model's name asks for, None: plain words. Raises Refused for a name that is not there."""
        if name == self.model.name:
            return None
        base, _, way = name.rpartition(":")
        if base == self.model.name and way in self.ways:
            return self.ways[way]
        raise Refused(404, "invalid_request_error", f"there is no model {name!r} here", field="model",
                      mend=f"ask for {' or '.join(self.models)}")

    # --- one request --------------------------------------------------------------------------------------

    async def whole(self, call: Call, work: Coroutine[Any, Any, T]) -> T:
        """Wait for an answer that is given in one piece; it ends when whoever asked has gone, or time is up.

        Raises Refused (504, 499).
        """
        task = asyncio.ensure_future(work)
        try:
            async with asyncio.timeout(self.seconds):
                while True:
                    done, _ = await asyncio.wait({task}, timeout=0.25)
                    if done:
                        return task.result()
                    if await call.request.is_disconnected():
                        raise Refused(499, "client_closed_request", "whoever asked has gone", mend="ask again")
        except TimeoutError:
            raise self._late() from None
        finally:
            if not task.done():
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    def _late(self) -> Refused:
        return Refused(504, "timeout_error", f"the answer took longer than {self.seconds:g} s",
                       mend="ask for less, or give the server more --seconds")

    def streamed(self, call: Call, parts: AsyncGenerator[bytes, None]) -> StreamingResponse:
        """Server-sent events; what goes wrong on the way becomes the last one. `parts` is closed in any case."""

        async def run() -> AsyncGenerator[bytes, None]:
            status = 499
            until = asyncio.get_running_loop().time() + self.seconds
            following: asyncio.Future[bytes] | None = None
            try:
                async with aclosing(parts):
                    try:
                        while True:
                            following = following or asyncio.ensure_future(anext(parts))
                            left = until - asyncio.get_running_loop().time()
                            if left <= 0:
                                raise self._late()
                            done, _ = await asyncio.wait({following}, timeout=min(KEEP_ALIVE, left))
                            if done:
                                part, following = following.result(), None
                                yield part
                            else:
                                yield ALIVE
                    except StopAsyncIteration:
                        following, status = None, 200
                    except TrivetError as error:
                        status, body, _ = error_json(error)
                        yield event(body)
                    finally:
                        if following is not None and not following.done():
                            following.cancel()
                            with suppress(asyncio.CancelledError, StopAsyncIteration, TrivetError):
                                await following
            except Exception:
                status = 500
                traceback.print_exc()
                yield event(_broken())
            finally:
                self.done(call, status)

        return StreamingResponse(run(), media_type="text/event-stream",
                                 headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no",
                                          "X-Request-Id": call.id})

    def done(self, call: Call, status: int, why: str | None = None) -> None:
        """Count and log a request that is over."""
        self.metrics.requests.labels(call.route, str(status)).inc()
        self.metrics.seconds.labels(call.route).observe(call.clock.seconds)
        if why is not None:
            self.metrics.refused.labels(why).inc()
        first = call.clock.first
        self.log.write(id=call.id, route=call.route, caller=call.caller, status=status,
                       ms=round(call.clock.seconds * 1000), first_ms=None if first is None else round(first * 1000),
                       prompt_tokens=call.clock.prompt_tokens or None, tokens=call.clock.tokens or None, why=why,
                       **(call.texts if self.log.texts else {}))


def _broken() -> dict[str, Any]:
    return {"error": {"message": "the server failed at this; its log says more", "type": "server_error", "param": None,
                      "code": None}}


Handler = Callable[[bytes, Call], Awaitable[Response]]


def create_app(server: Server) -> Starlette:
    """The app. The server's model is opened and closed by whoever makes it."""

    def post(route: str, handler: Handler) -> Route:
        async def endpoint(request: Request) -> Response:
            call = Call(request, "-", route)
            try:
                server.door.check_host(request)
                call.caller = server.door.caller(request)
                server.door.count(call.caller)
                try:
                    async with asyncio.timeout(SLOWEST_BODY):
                        body = await server.door.body(request)
                except TimeoutError:
                    raise Refused(408, "invalid_request_error", "the body came too slowly", mend="send it faster"
                                  ) from None
                response = await handler(body, call)
            except TrivetError as error:
                status, value, headers = error_json(error)
                server.done(call, status, value["error"]["code"] or value["error"]["type"])
                return JSONResponse(value, status, headers | {"X-Request-Id": call.id})
            except Exception:
                traceback.print_exc()
                server.done(call, 500, "server_error")
                return JSONResponse(_broken(), 500, {"X-Request-Id": call.id})
            if not isinstance(response, StreamingResponse):
                server.done(call, response.status_code)
                response.headers["X-Request-Id"] = call.id
            return response

        return Route(route, endpoint, methods=["POST"])

    def get(path: str, answer: Callable[[Request], Response], *, keys: bool = True) -> Route:
        async def endpoint(request: Request) -> Response:
            try:
                server.door.check_host(request)
                if keys:
                    server.door.caller(request)
                return answer(request)
            except TrivetError as error:
                status, value, headers = error_json(error)
                return JSONResponse(value, status, headers)

        return Route(path, endpoint, methods=["GET"])

    def listed(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": 0, "owned_by": "trivet"}

    def one(request: Request) -> Response:
        server.way(request.path_params["name"])
        return JSONResponse(listed(request.path_params["name"]))

    def health(_: Request) -> Response:
        fine = server.alive()
        return PlainTextResponse("ok\n" if fine else "the model has broken down\n", 200 if fine else 503)

    def chat_page(_: Request) -> Response:
        return FileResponse(STATIC / "chat.html", headers={"Cache-Control": "no-cache"})

    app = Starlette(routes=[
        post("/v1/chat/completions", lambda body, call: server.model.answer_chat(server, body, call)),
        post("/v1/completions", lambda body, call: server.model.answer_text(server, body, call)),
        get("/v1/models", lambda _: JSONResponse({"object": "list", "data": [listed(n) for n in server.models]})),
        get("/v1/models/{name:path}", one),
        get("/healthz", health, keys=False),
        get("/metrics", lambda _: Response(server.metrics.text(), media_type="text/plain; version=0.0.4")),
        get("/version", lambda _: JSONResponse({"version": __version__}), keys=False),
        get("/", chat_page, keys=False),
        Mount("/static", StaticFiles(directory=STATIC)),
    ])
    app.add_middleware(_Headers)
    return app


class _Headers:
    """ASGI middleware: the headers of every answer."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def sent(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"],
                                      *((k.lower().encode(), v.encode()) for k, v in HEADERS.items())]
            await send(message)

        await self.app(scope, receive, sent if scope["type"] == "http" else send)
