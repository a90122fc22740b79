"""A running vLLM server over HTTP: what it serves, its answers, and the weights it is given. No torch here.

Tested with vLLM 0.32's CPU build. A fault that may pass (no connection, a time-out, a status of 5xx) is `Away`; what
a person has to put right is a TrivetError.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import httpx

from trivet.errors import TrivetError
from trivet.generate.config import VLLM

CONNECT_SECONDS = 5.0
LOOK_SECONDS = 10.0  # for what a server that is well answers at once
_START = ("VLLM_ALLOW_RUNTIME_LORA_UPDATING=True python -m vllm.entrypoints.openai.api_server --model … "
          "--enable-lora --logprobs-mode processed_logprobs")


class Away(Exception):
    """The server did not answer, or not in its senses; it may come back."""


class RolloutFailed(TrivetError):
    """No rollout came, and nothing has changed since the last step: the caller saves its state and stops."""


class ServerLost(RolloutFailed):
    """The server did not come back in time."""


class RolloutInterrupted(KeyboardInterrupt):
    """Somebody asked to stop while answers were awaited: nothing was changed since the last step."""


class Refused(Exception):
    """A status that sending again would not change."""

    def __init__(self, status: int, said: str) -> None:
        self.status, self.said = status, said
        super().__init__(f"status {status}: {said}")


@dataclass(frozen=True)
class Card:
    """What a server says of itself."""

    model: str
    """The base model's name in requests."""
    root: str
    """Where the server took it from: a folder, or a hub id."""
    context: int | None
    adapters: tuple[str, ...]


class Server:
    """Requests to one vLLM server. Raises TrivetError for an address that is none and a key that no header holds."""

    def __init__(self, url: str, settings: VLLM) -> None:
        self.url = url.rstrip("/").removesuffix("/v1").rstrip("/")
        self.settings = settings
        try:
            if httpx.URL(self.url).scheme not in {"http", "https"} or not httpx.URL(self.url).host:
                raise httpx.InvalidURL("it has to begin with http:// or https://")
        except httpx.InvalidURL as error:
            raise TrivetError(f"{url!r} is no address: {error}", field="url",
                              mend="give the server's base, such as http://localhost:8000") from None
        key = os.environ.get(settings.key, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise TrivetError("the key holds what no header can hold", field="vllm.key",
                              mend=f"put a valid key into the environment variable {settings.key}")
        self._http = httpx.Client(
            base_url=self.url, headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(settings.timeout, connect=CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=settings.in_flight + 4, max_keepalive_connections=settings.in_flight))

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    # --- what it serves ----------------------------------------------------------------------------------

    def card(self) -> Card:
        """What is served now. Raises Away, and TrivetError where this is no vLLM server."""
        try:
            answer = self._send("GET", "/v1/models", seconds=LOOK_SECONDS)
        except Refused as error:
            raise self._refusal(error, "it does not say which models it serves") from None
        try:
            rows = answer["data"]
            (base,) = (row for row in rows if row.get("parent") is None)
            context = base.get("max_model_len")
            return Card(str(base["id"]), str(base.get("root") or base["id"]),
                        int(context) if context is not None else None,
                        tuple(str(row["id"]) for row in rows if row is not base))
        except (KeyError, TypeError, ValueError, AttributeError):
            raise TrivetError(f"{self.url} serves no model as vLLM does", field="url",
                              expected="one base model under /v1/models",
                              mend="give the address of a vLLM server") from None

    # --- answers -----------------------------------------------------------------------------------------

    def complete(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        """The choices of one completion, in order. Raises Away, and TrivetError for a request that is refused."""
        try:
            answer = self._send("POST", "/v1/completions", body)
        except Refused as error:
            if error.status == 404 and "does not exist" in error.said:
                # it was started anew, and knows nothing of what it was given before
                raise Away(f"it does not know {body['model']}") from None
            raise self._refusal(error, "it refuses a completion") from None
        try:
            choices = sorted(answer["choices"], key=lambda choice: choice["index"])
            if [choice["index"] for choice in choices] == list(range(body["n"])):
                return choices
        except (KeyError, TypeError):
            pass  # said below
        raise TrivetError(f"{self.url} answers a completion with something else: {str(answer)[:200]}", field="url",
                          mend="give the address of a vLLM server")

    # --- weights -----------------------------------------------------------------------------------------

    def load_adapter(self, name: str, folder: str, rank: int) -> None:
        """Load a PEFT folder, by the server's own path, under a name that is new to it.

        Raises Away, and TrivetError for a server that takes no adapters, or not this one.
        """
        try:
            self._change("/v1/load_lora_adapter", {"lora_name": name, "lora_path": folder})
        except Refused as error:
            said = error.said
            if error.status in (404, 405) and "adapter" not in said.lower():
                raise TrivetError(f"the server at {self.url} takes no adapters while it runs", field="url",
                                  mend=f"start it like this: {_START}") from None
            if "rank" in said:
                mend = f"start the server with --max-lora-rank {rank} (or the next size it offers), or lower lora.r"
            elif "No adapter found" in said or "not found" in said.lower():
                mend = (f"the server must see {folder}: set vllm.adapters to a folder that both share, and "
                        "vllm.seen_as where the server has it under another path")
            elif "lora" in said.lower() and ("enabled" in said.lower() or "enable" in said.lower()):
                mend = f"start the server like this: {_START}"
            elif "target" in said.lower() or "module" in said.lower():
                mend = "set lora.targets to layers that vLLM adapts in this model, such as attention"
            else:
                mend = f"see the server's log, and that it was started like this: {_START}"
            raise TrivetError(f"the server at {self.url} does not load the policy's adapter: {said}", field="vllm",
                              mend=mend) from None

    def unload_adapter(self, name: str, seconds: float | None = None) -> None:
        """Forget an adapter; one that is not there is no fault. Raises Away, and TrivetError for another refusal.

        seconds: how long it may take, if not `vllm.timeout`.
        """
        try:
            self._change("/v1/unload_lora_adapter", {"lora_name": name}, seconds)
        except Refused as error:
            if error.status != 404:
                raise self._refusal(error, f"it does not unload {name}") from None

    def require_reload(self) -> None:
        """Raise TrivetError for a server whose weights can't be replaced while it runs; Away."""
        try:
            self._send("POST", "/collective_rpc", {}, seconds=LOOK_SECONDS)
        except Refused as error:
            if "method" in error.said:
                return  # it has the route, and misses the method's name
        raise TrivetError(
            f"the server at {self.url} can't reload all of its weights while it runs", field="tune",
            mend="start it with VLLM_SERVER_DEV_MODE=1, for this run alone; or set tune=lora, which hands over an "
            "adapter; or generate=torch")

    def reload(self, folder: str) -> None:
        """Replace all weights by those of a folder, by the server's own path, and forget what it cached of the old.

        Raises Away, and TrivetError for a folder that it does not load.
        """
        try:
            self._change("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": folder}})
            self._change("/reset_prefix_cache", {})
        except Refused as error:
            raise TrivetError(
                f"the server at {self.url} does not load the policy's weights from {folder}: {error.said}",
                field="vllm.adapters", mend="start the server anew; it must see this folder, and serve the same "
                "architecture (vllm.seen_as: the folder by the server's own path)") from None

    # --- one request -------------------------------------------------------------------------------------

    def _change(self, path: str, body: dict[str, Any], seconds: float | None = None) -> None:
        """A request that changes what is served. A 500 from a server that is well is a refusal, not a breakdown."""
        try:
            self._send("POST", path, body, seconds=seconds, broken_from=501)
        except Refused as error:
            if error.status == 500:
                self._send("GET", "/health", seconds=LOOK_SECONDS)
            raise

    def _send(self, method: str, path: str, body: dict[str, Any] | None = None, *, seconds: float | None = None,
              broken_from: int = 500) -> Any:
        """A response's JSON (None where it is none). Raises Away and Refused."""
        timeout = httpx.Timeout(seconds or self.settings.timeout, connect=CONNECT_SECONDS)
        try:
            response = self._http.request(method, path, json=body, timeout=timeout)
        except httpx.TimeoutException:
            raise Away(f"no answer in {seconds or self.settings.timeout:g} s") from None
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise Away(f"no connection: {str(error) or type(error).__name__}") from None
        if response.status_code in (408, 425, 429) or response.status_code >= broken_from:
            raise Away(f"status {response.status_code}: {_said(response)}")
        if response.status_code >= 300:
            raise Refused(response.status_code, _said(response))
        try:
            return response.json()
        except ValueError:
            return None

    def _refusal(self, error: Refused, what: str) -> TrivetError:
        if error.status in (401, 403):
            return TrivetError(f"the server at {self.url} wants a key: {error.said}", field="vllm.key",
                               mend=f"put it into the environment variable {self.settings.key}")
        return TrivetError(f"the server at {self.url}: {what} (status {error.status}: {error.said})", field="url",
                           mend="give the address of a vLLM server, without a path behind it")


def _said(response: httpx.Response) -> str:
    """A server's own words about a fault."""
    try:
        error = response.json()["error"]
        said = error["message"] if isinstance(error, dict) else error
    except (ValueError, KeyError, TypeError):
        said = response.text
    return " ".join(str(said).split())[:300] or "nothing more"
