"""A server on 127.0.0.1 that speaks vLLM's protocol from a small model, for tests: it fails as it is told to.

    with StandIn(model_folder) as server:
        server.faults = [Fault(500), None, Fault(drop=True)]
        …  --generate vllm --url server.url
        server.die(); server.rise()

What vLLM 0.32 was seen to do is done alike: unknown names are 404, a refused adapter is 500, child j of a request has
the seed plus j, stop tokens stand in `token_ids`, runtime adapters and reloading are off unless switched on.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from trivet.artifacts import read_json
from trivet.generate.config import Sampling
from trivet.generate.torch_engine import TorchEngine
from trivet.models.source import load_causal_lm, resolve


@dataclass(frozen=True)
class Fault:
    """What one completion meets. drop: the connection is closed without an answer; change: made of its choices."""

    status: int = 200
    drop: bool = False
    change: Callable[[list[dict[str, Any]]], None] | None = None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 128


class StandIn:
    """The server. `requests` are the bodies of completions; `loaded` and `unloaded` the names of adapters, in order."""

    def __init__(self, folder: Path, *, root: str | None = None, lora: bool = True, runtime: bool = True,
                 dev: bool = False, processed: bool = True, context: int = 256, max_rank: int = 16,
                 work: float = 0.0) -> None:
        """root: what it says that its weights are. work: seconds a completion."""
        self.folder, self.root = Path(folder), root or str(folder)
        self.lora, self.runtime, self.dev, self.processed = lora, runtime, dev, processed
        self.context, self.max_rank, self.work = context, max_rank, work
        self.faults: list[Fault | None] = []
        self.before: Callable[[int], None] | None = None
        """Called with the number of each completion, before it is answered."""
        self.requests: list[dict[str, Any]] = []
        self.loaded: list[str] = []
        self.unloaded: list[str] = []
        self.reloaded: list[str] = []
        self.looks = 0
        """How often it was asked what it serves."""
        self.most = self._now = 0
        self._lock = threading.RLock()
        self._port = 0
        self._server: _Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> StandIn:
        self.rise()
        return self

    def __exit__(self, *error: object) -> None:
        self.die()

    def rise(self) -> None:
        """Start, or start anew: with the base model and without any adapter."""
        self.adapters: dict[str, Any] = {}
        self._base = load_causal_lm(resolve(str(self.folder)), torch.float32, "cpu")
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer._get(self)

            def do_POST(self) -> None:
                outer._post(self)

            def log_message(self, *args: object) -> None:
                pass

        self._server = _Server(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def die(self) -> None:
        """Nobody listens any more."""
        if self._server is not None:
            server, self._server = self._server, None
            server.shutdown()
            server.server_close()

    # --- routes ------------------------------------------------------------------------------------------

    def _get(self, handler: BaseHTTPRequestHandler) -> None:
        if handler.path == "/v1/models":
            self.looks += 1
            card = {"id": self.root, "root": self.root, "parent": None, "max_model_len": self.context}
            _send(handler, 200, {"data": [card, *({"id": n, "root": "x", "parent": self.root} for n in self.adapters)]})
        elif handler.path == "/health":
            _send(handler, 200, "")
        else:
            _send(handler, 404, {"detail": "Not Found"})

    def _post(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        try:
            if handler.path == "/v1/completions":
                self._completion(handler, body)
            elif handler.path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter") and self.runtime:
                with self._lock:
                    _send(handler, *(self._load if "/load" in handler.path else self._unload)(body))
            elif handler.path == "/collective_rpc" and self.dev:
                with self._lock:
                    _send(handler, *self._reload(body))
            elif handler.path == "/reset_prefix_cache" and self.dev:
                _send(handler, 200, {"success": True})
            else:
                _send(handler, 404, {"detail": "Not Found"})
        except OSError:
            pass  # the client has hung up

    def _load(self, body: dict[str, Any]) -> tuple[int, Any]:
        name, folder = body["lora_name"], Path(body["lora_path"])
        if not self.lora:
            return 500, _error("Call to add_lora method failed: LoRA is not enabled. Use --enable-lora")
        if name in self.adapters:
            return 400, _error(f"The lora adapter '{name}' has already been loaded.")
        if not (folder / "adapter_config.json").is_file():
            return 404, _error(f"Loading lora {name} failed: No adapter found for <path>")
        rank = read_json(folder / "adapter_config.json")["r"]
        if rank > self.max_rank:
            return 500, _error(f"Call to add_lora method failed: LoRA rank {rank} is greater than max_lora_rank "
                               f"{self.max_rank}.")
        base = load_causal_lm(resolve(str(self.folder)), torch.float32, "cpu")
        self.adapters[name] = PeftModel.from_pretrained(base, folder).merge_and_unload().eval()
        self.loaded.append(name)
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def _unload(self, body: dict[str, Any]) -> tuple[int, Any]:
        if self.adapters.pop(body["lora_name"], None) is None:
            return 404, _error(f"The lora adapter '{body['lora_name']}' cannot be found.")
        self.unloaded.append(body["lora_name"])
        return 200, "Success"

    def _reload(self, body: dict[str, Any]) -> tuple[int, Any]:
        if body.get("method") is None:
            return 400, _error("Missing 'method' in request body")
        folder = body["kwargs"]["weights_path"]
        if not Path(folder).is_dir():
            return 500, _error("Call to collective_rpc method failed: Repo id must be in the form 'repo_name'")
        self._base = load_causal_lm(resolve(folder), torch.float32, "cpu")
        self.reloaded.append(folder)
        return 200, {"results": [None]}

    def _completion(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        with self._lock:
            self.requests.append(body)
            number = len(self.requests)
            fault = self.faults.pop(0) if self.faults else None
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            answer = self._answer(body, number, fault)
        finally:
            with self._lock:  # before the client hears of it, and sends the next
                self._now -= 1
        if answer is None:
            handler.close_connection = True
        else:
            _send(handler, *answer)

    def _answer(self, body: dict[str, Any], number: int, fault: Fault | None) -> tuple[int, Any] | None:
        """Status and body; None: the connection is closed."""
        time.sleep(self.work)
        if self.before is not None:
            self.before(number)
        if (fault is not None and fault.drop) or self._server is None:
            return None
        if fault is not None and fault.status != 200:
            return fault.status, _error("EngineCore encountered an issue")
        model = self._base if body["model"] == self.root else self.adapters.get(body["model"])
        if model is None:
            return 404, _error(f"The model `{body['model']}` does not exist. Valid aliases: <path>")
        with self._lock:
            choices = self._choices(model, body)
        if fault is not None and fault.change is not None:
            fault.change(choices)
        return 200, {"object": "text_completion", "choices": choices}

    def _choices(self, model: Any, body: dict[str, Any]) -> list[dict[str, Any]]:
        assert body["ignore_eos"] and body["return_token_ids"] and body["logprobs"] == 0
        prompt, stops = body["prompt"], frozenset(body["stop_token_ids"])
        engine = TorchEngine(model, 0, stops)
        room = min(body["max_tokens"], self.context - len(prompt))  # vLLM shortens answers without a word
        sampling = Sampling(temperature=body["temperature"], top_p=body["top_p"], top_k=body["top_k"],
                            max_new_tokens=room)
        choices = []
        for j in range(body["n"]):
            answer = engine.generate([prompt], sampling, n=1, seeds=[body["seed"] + j])[0][0]
            logps = list(answer.logps) if self.processed else engine.score([prompt], [answer.token_ids], 1.0)[0]
            choices.append({"index": j, "text": "", "finish_reason": "stop" if answer.ended else "length",
                            "token_ids": list(answer.token_ids), "prompt_token_ids": prompt,
                            "logprobs": {"token_logprobs": logps}})
        return choices[::-1]  # in no order


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "x", "code": 0}}


def _send(handler: BaseHTTPRequestHandler, status: int, body: Any) -> None:
    data = (body if isinstance(body, str) else json.dumps(body)).encode()
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)
