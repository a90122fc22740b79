"""An endpoint in the chat-completions form on 127.0.0.1, for tests: it judges or writes by a rule, and fails as it is
told to.

    with Endpoint(lambda text: "A") as server:
        server.faults = [Fault(429, headers={"Retry-After": "0"}), None, Fault(hang=5.0)]
        …  Judging(by=server.url, model="m")

`rule` reads the prompt and gives the verdict: a label, or {label: probability}. With `writes` it gives the text that
is the whole reply.
"""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Rule = Callable[[str], str | Mapping[str, float]]


@dataclass(frozen=True)
class Fault:
    """One request's failure. body: text or JSON; say: what the model says instead of a verdict; hang: seconds."""

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    say: str | None = None
    hang: float = 0.0
    drop: bool = False
    """Close the connection without an answer."""
    cut: bool = False
    """Close it in the middle of one."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128  # connections that wait to be accepted; beyond them the system resets some


class Endpoint:
    """The server. `requests` are the bodies that came, `ids` what they called themselves, `completed` the ids of those
    that were answered whole, `most` how many were in work at once."""

    def __init__(self, rule: Rule, *, writes: bool = False, logprobs: bool = True, usage: bool = True,
                 unknown: tuple[str, ...] = (), work: float = 0.0, key: str | None = None) -> None:
        """writes: the rule gives texts. unknown: options that it refuses with status 400. work: seconds a request.
        key: the one it wants."""
        self.rule, self.writes, self.logprobs, self.usage, self.unknown = rule, writes, logprobs, usage, unknown
        self.work, self.key = work, key
        self.faults: list[Fault | None] = []
        self.requests: list[dict[str, Any]] = []
        self.ids: list[str | None] = []
        self.completed: list[str | None] = []
        self.times: list[float] = []
        self.most = self._now = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"  # connections stay open, as real ones do
            wbufsize = -1  # head and body in one packet, without the delay of waiting for its receipt

            def do_POST(self) -> None:
                outer._serve(self)

            def log_message(self, *args: object) -> None:
                pass

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> Endpoint:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        id = handler.headers.get("X-Client-Request-Id")
        with self._lock:
            self.requests.append(body)
            self.ids.append(id)
            self.times.append(time.monotonic())
            fault = self.faults.pop(0) if self.faults else None
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            time.sleep(self.work)
            if handler.path != "/v1/chat/completions":
                _send(handler, 404, {"error": {"message": "no such route"}})
            elif self.key is not None and handler.headers.get("Authorization") != f"Bearer {self.key}":
                _send(handler, 401, {"error": {"message": f"wrong key {handler.headers.get('Authorization')}"}})
            elif bad := next((name for name in self.unknown if name in body), None):
                _send(handler, 400, {"error": {"message": f"Unsupported parameter: '{bad}'", "param": bad}})
            elif fault is not None and fault.say is None:
                time.sleep(fault.hang)
                if not fault.drop:
                    _send(handler, fault.status, fault.body, fault.headers, missing=100 if fault.cut else 0)
                handler.close_connection = fault.drop or fault.cut
            else:
                said = fault.say if fault is not None else None
                _send(handler, 200, self._answer(body, said))
                with self._lock:
                    self.completed.append(id)
        except OSError:
            pass  # the client has hung up
        finally:
            with self._lock:
                self._now -= 1

    def _answer(self, body: dict[str, Any], said: str | None) -> dict[str, Any]:
        prompt = body["messages"][-1]["content"]
        verdict = self.rule(prompt) if said is None else said
        if self.writes:
            said = str(verdict)
        chances = dict(verdict) if isinstance(verdict, Mapping) else {verdict: 1.0}
        best = max(chances, key=lambda label: chances[label])
        pieces = ['{"', "verdict", '":', ' "', best, '"}'] if said is None else re.findall(r"\s?\S+", said) or [said]
        logprobs = None
        if self.logprobs and body.get("logprobs"):
            top = [{"token": label, "logprob": math.log(p)} for label, p in chances.items() if p > 0]
            logprobs = {"content": [
                {"token": t, "logprob": math.log(chances.get(t, 1.0)),
                 "top_logprobs": top if t == best else [{"token": t, "logprob": 0.0}]} for t in pieces]}
        answer = {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"], "choices": [{
            "index": 0, "finish_reason": "stop", "logprobs": logprobs,
            "message": {"role": "assistant", "content": "".join(pieces)}}]}
        if self.usage:
            answer["usage"] = {"prompt_tokens": len(prompt) // 4, "completion_tokens": len(pieces),
                               "total_tokens": len(prompt) // 4 + len(pieces)}
        return answer


def _send(handler: BaseHTTPRequestHandler, status: int, body: Any, headers: Mapping[str, str] | None = None,
          missing: int = 0) -> None:
    data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    handler.send_response(status)
    for name, value in (headers or {}).items():
        handler.send_header(name, value)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(data) + missing))
    handler.end_headers()
    handler.wfile.write(data)
    handler.wfile.flush()


def shown(prompt: str, name: str) -> str:
    """The text of a block in a judge's prompt: `answer A`, `answer B`, `the answer`, `conversation`."""
    found = re.search(rf"\[begin of {name} (\w+)\]\n(.*?)\n\[end of {name} \1\]", prompt, re.DOTALL)
    assert found is not None, prompt
    return found[2]
