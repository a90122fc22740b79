"""Requests handed on to an OpenAI-compatible server, such as vLLM's: keys, limits, ways and a chat page before it.

Plain requests are handed on as they are and their answers come back byte by byte: what that server knows (logprobs,
tools, forms) is there. Ways ask it through `draw`; it scores nothing.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import httpx
from starlette.responses import Response

from trivet.errors import TrivetError
from trivet.generate.config import Sampling
from trivet.serve.answering import Drawn, ToolCall, Turn
from trivet.serve.app import Call, Server
from trivet.serve.limits import Refused
from trivet.serve.openai_api import answer_by_way
from trivet.serve.requests import ChatRequest, read
from trivet.serve.tool_calls import turn_json
from trivet.serve.wire import event

CONNECT_SECONDS = 10.0


class Upstream:
    """See app.Served and ChatModel."""

    native_tools = True
    scores = False

    def __init__(self, url: str, model: str, key: str | None, *, called: str | None = None, seconds: float = 600.0,
                 connections: int = 256) -> None:
        """url: up to and with /v1. model: its name there. called: its name here."""
        self.url, self.model, self.name = url.rstrip("/"), model, called or model
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(seconds, connect=CONNECT_SECONDS), follow_redirects=False,
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=64))

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def answer_chat(self, server: Server, body: bytes, call: Call) -> Response:
        """See Served."""
        way = server.way(str(_loose(body).get("model", "")))
        if way is not None:
            return await answer_by_way(server, way, self, read(ChatRequest, body), call)
        return await self._hand_on(server, "/chat/completions", body, call)

    async def answer_text(self, server: Server, body: bytes, call: Call) -> Response:
        """See Served."""
        if server.way(str(_loose(body).get("model", ""))) is not None:
            raise TrivetError("this name answers conversations alone", field="model",
                              mend=f"ask /v1/chat/completions, or take {self.name}")
        return await self._hand_on(server, "/completions", body, call)

    async def _hand_on(self, server: Server, path: str, body: bytes, call: Call) -> Response:
        value = _loose(body) | {"model": self.model}
        value.pop("steps", None)
        request = self._client.build_request("POST", self.url + path, json=value)
        if not value.get("stream"):
            answer = await server.whole(call, self._send(request))
            return Response(await answer.aread(), answer.status_code, media_type="application/json")
        answer = await self._send(request, stream=True)
        if answer.status_code != 200:
            said = await answer.aread()
            await answer.aclose()
            return Response(said, answer.status_code, media_type="application/json")

        async def parts() -> AsyncGenerator[bytes, None]:
            try:
                async for part in answer.aiter_bytes():
                    call.clock.token(server.metrics)
                    yield part
            except httpx.HTTPError as error:
                yield event({"error": {"message": f"the server behind this one broke off ({type(error).__name__})",
                                       "type": "server_error", "param": None, "code": None}})
            finally:
                await answer.aclose()

        return server.streamed(call, parts())

    async def _send(self, request: httpx.Request, *, stream: bool = False) -> httpx.Response:
        try:
            return await self._client.send(request, stream=stream)
        except httpx.TimeoutException:
            raise Refused(504, "timeout_error", "the server behind this one does not answer in time",
                          mend="try again, or look whether it works") from None
        except httpx.HTTPError as error:
            raise Refused(502, "server_error", f"the server behind this one is not reached ({type(error).__name__})",
                          mend="start it, or check its address") from None

    async def draw(self, messages: Sequence[Turn], sampling: Sampling, *, n: int = 1, seed: int = 0,
                   tools: Sequence[dict[str, Any]] = ()) -> list[Drawn]:
        """See ChatModel. Raises TrivetError for whatever that server refuses."""
        body: dict[str, Any] = {
            "model": self.model, "messages": [turn_json(t) for t in messages], "n": n, "seed": seed % 2**31,
            "temperature": sampling.temperature, "top_p": sampling.top_p, "max_tokens": sampling.max_new_tokens}
        body |= {"stop": sampling.stop} if sampling.stop else {}
        body |= {"top_k": sampling.top_k} if sampling.top_k else {}
        body |= {"tools": list(tools)} if tools else {}
        answer = await self._send(self._client.build_request("POST", f"{self.url}/chat/completions", json=body))
        if answer.status_code != 200:
            raise TrivetError(f"{self.url} answered {answer.status_code}: {answer.text[:300]}", field="model",
                              mend="see what it says")
        try:
            value = answer.json()
            used = value.get("usage") or {}
            found = []
            for choice in value["choices"]:
                said = choice["message"]
                calls = tuple(ToolCall(c["id"], c["function"]["name"], c["function"]["arguments"])
                              for c in said.get("tool_calls") or ())
                found.append(Drawn((said.get("content") or "").strip(), choice.get("finish_reason") != "length",
                                   int(used.get("prompt_tokens") or 0),
                                   int(used.get("completion_tokens") or 0) // max(1, len(value["choices"])), calls))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise TrivetError(f"{self.url} gave an answer of another form ({type(error).__name__}: {error})",
                              field="model", mend="check that it is an OpenAI-compatible server") from None
        if len(found) < n:
            raise TrivetError(f"{self.url} gave {len(found)} of {n} answers", field="n",
                              mend="ask for one at a time: that server knows no n")
        return found

    async def score(self, messages: Sequence[Turn], answers: Sequence[str]) -> list[float]:
        """Always raises TrivetError: see `scores`."""
        raise TrivetError("a server behind this one does not tell the log-probabilities of given answers",
                          field="model", mend="serve the model in this process")


async def open_upstream(url: str, name: str | None, key: str | None, *, seconds: float) -> Upstream:
    """A server by its URL. name: of the model there; default: the first that it lists.

    Raises TrivetError for one that is not reached, or lists no model of that name.
    """
    upstream = Upstream(url, name or "", key, seconds=seconds)
    try:
        answer = await upstream._client.get(f"{upstream.url}/models", timeout=CONNECT_SECONDS)
        listed = [str(m["id"]) for m in answer.json()["data"]] if answer.status_code == 200 else None
    except httpx.HTTPError as error:
        await upstream.close()
        raise TrivetError(f"{url} is not reached ({type(error).__name__})", field="model",
                          mend="start it, or check its address; it ends with /v1 mostly") from None
    except (ValueError, KeyError, TypeError):
        listed = None
    if not listed or (name is not None and name not in listed):
        await upstream.close()
        what = f"{url} lists no model named {name!r}" if listed else \
            f"{url}/models answered {answer.status_code} and lists no model"
        raise TrivetError(what, field="model_name" if listed else "model",
                          expected=", ".join(listed) if listed else "an OpenAI-compatible server",
                          mend="name one of its models: --model-name NAME" if listed else
                          "check the address (it ends with /v1 mostly) and the key (--key names its variable)")
    upstream.model = upstream.name = name or listed[0]
    return upstream


def _loose(body: bytes) -> dict[str, Any]:
    """The body as JSON, unchecked but for being an object: that server checks the rest."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise TrivetError("the body is no JSON object", field="body", expected="a JSON object",
                          mend="send the request as OpenAI's clients do")
    return value

